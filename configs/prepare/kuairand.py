"""KuaiRand, the rows that were liked or hated: short videos, 14 days of April 2022.

python -m pinjax.prepare --config=configs/prepare/kuairand.py --events=log.parquet --out=DIR
python -m pinjax.train --config=configs/pinnerformer.py:kuairand --config.data.name=DIR

Timelines alone. Hate is an action like the others here; training decides that it is no label.
"""

from pinjax.data.sources import column_map
from pinjax.settings import Section


def get_config() -> Section:
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
