"""MovieLens-1M as SASRec published it: one "user item" a line, in order, without times.

python -m pinjax.prepare --config=configs/prepare/ml1m.py --events=ml-1m.txt.gz --out=DIR
"""

from ml_collections import ConfigDict

from pinjax.data import column_map


def get_config() -> ConfigDict:
    config = column_map.default()
    config.name = "ml1m"
    config.delimiter = " "
    config.min_actions = 3
    config.events.header = ("user", "item")
    config.events.time = ""
    config.split.kind = "leave_one_out"
    return config
