"""KuaiRand, the rows that were liked or hated: short videos, 14 days of April 2022.

python -m pinjax.prepare --config=configs/prepare/kuairand.py --events=log.parquet --out=DIR

Hate is an action like the others here; whether it is a label is for training to say.
"""

from ml_collections import ConfigDict

from pinjax.data import column_map


def get_config() -> ConfigDict:
    config = column_map.default()
    config.name = "kuairand"
    config.events.user = "user_id"
    config.events.item = "video_id"
    config.events.time = "time_ms"
    config.events.time_unit = "ms"
    config.events.duration = "play_time_ms"
    config.events.duration_unit = "ms"
    # Of several things done in one row, the one that says most. Every row is liked or hated.
    config.events.action_rules = (
        ("hate", "label", 0),
        ("follow", "is_follow", 1),
        ("forward", "is_forward", 1),
        ("comment", "is_comment", 1),
        ("like", "label", 1),
    )
    config.split.test_days = 4.0
    config.split.valid = 0.2
    config.split.test = 0.3
    return config
