"""Globo.com news portal: 3 million clicks, 2017-10-01 to 10-17 and a thin tail.

python -m pinjax.prepare --config=configs/prepare/globo.py \
    --events=clicks.parquet --items=articles.parquet --out=DIR
"""

from ml_collections import ConfigDict

from pinjax.data import column_map


def get_config() -> ConfigDict:
    config = column_map.default()
    config.name = "globo"
    config.events.user = "user_id"
    config.events.item = "click_article_id"
    config.events.time = "click_timestamp"
    config.events.time_unit = "ms"
    config.events.surface = ("click_deviceGroup", "click_os", "click_referrer_type")
    config.catalogue.id = "article_id"
    config.catalogue.topic = "category_id"
    config.catalogue.keep_unseen = False  # seven of eight articles had no click
    config.split.train_end = "2017-10-12"
    return config
