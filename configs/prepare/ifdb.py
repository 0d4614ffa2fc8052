"""IFDB, the interactive-fiction database: games played and wish-listed, 2007 to 2026.

python -m pinjax.prepare --config=configs/prepare/ifdb.py \
    --events=playedgames.parquet,wishlists.parquet --items=gametags.parquet --out=DIR

Half of the users are kept for evaluation, as one window holds few of them: from 2023 on.
"""

from ml_collections import ConfigDict

from pinjax.data import column_map


def get_config() -> ConfigDict:
    config = column_map.default()
    config.name = "ifdb"
    config.events.user = "userid"
    config.events.item = "gameid"
    config.events.time = "date_added"
    config.events.since = "2007-01-01"  # rows of 1980 stand for an unknown date
    config.events.action_by_file = (("playedgames", "played"), ("wishlists", "wish-listed"))
    config.catalogue.id = "gameid"
    config.catalogue.tags = "tag"  # one tag a row
    config.split.train_end = "2023-01-01"
    config.split.valid = 0.1
    config.split.test = 0.4
    return config
