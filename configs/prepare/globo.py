"""Globo.com news portal: 3 million clicks, 2017-10-01 to 10-17 and a thin tail.

python -m pinjax.prepare --config=configs/prepare/globo.py \
    --events=clicks.parquet --items=articles.parquet --out=DIR
python -m pinjax.train --config=configs/pinnerformer.py:globo --config.data.name=DIR

Timelines alone. A surface is the device, its system and the kind of referrer.
"""

from pinjax.data.sources import column_map
from pinjax.settings import Section


def get_config() -> Section:
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
