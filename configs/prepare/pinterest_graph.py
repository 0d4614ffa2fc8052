"""Pinterest users and their pins, with the split of SGFCF (Peng et al., KDD 2024).

python -m pinjax.prepare --config=configs/prepare/pinterest_graph.py \
    --events=edges.parquet --out=DIR

The graph alone, of pins and users. Rows that come again are one edge. An edge that is both in
training and in test is of training: published figures count these as test edges that a method
which leaves out what it was trained on cannot find. A tenth of the training edges validates; the
published methods train on all of them, as --config.split.valid=0 does.
"""

from pinjax.data.sources import column_map
from pinjax.settings import Section


def get_config() -> Section:
    config = column_map.default()
    config.name = "pinterest-graph"
    config.events.item = "pin"
    config.events.group = "user"
    config.split.kind = "column"
    config.split.column = "is_test"
    return config
