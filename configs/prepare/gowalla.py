"""Gowalla: check-ins of users at places, with the split of LightGCN (He et al., SIGIR 2020).

python -m pinjax.prepare --config=configs/prepare/gowalla.py --events=edges.parquet --out=DIR

The graph alone, of places and users. A tenth of the training edges validates; the published methods
train on all of them, as --config.split.valid=0 does.
"""

from pinjax.data.sources import column_map
from pinjax.settings import Section


def get_config() -> Section:
    config = column_map.default()
    config.name = "gowalla"
    config.events.group = "user"
    config.split.kind = "column"
    config.split.column = "is_test"
    return config
