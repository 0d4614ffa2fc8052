"""LightGCN on the published splits of pinterest_graph and gowalla, a peer of PinSage.

    python3 -m venv .venv-peers && .venv-peers/bin/pip install -r benchmarks/requirements-peers.txt
    python -m benchmarks.lightgcn --data=DIR       # of DIR/pinterest_graph/edges.parquet

It is trained on all training edges, and measured as every system is (`graph_source`), but that the
test edges of pinterest_graph that are in training count as missed, as in published figures.
"""

import pathlib
import subprocess
import time

import numpy as np
import pyarrow.parquet as pq
from absl import app, flags

from benchmarks import real_sets
from pinjax import results
from pinjax.data import dataset as dataset_lib
from pinjax.evaluation import evaluator, retrievers

_DATA = flags.DEFINE_string("data", None, "directory of the raw sets", required=True)
_WORKDIR = flags.DEFINE_string("workdir", "work/real_sets", "where data sets and lists are kept")
_SETS = flags.DEFINE_list("sets", ["pinterest_graph"], "which sets: pinterest_graph, gowalla")
_EPOCHS = flags.DEFINE_integer("epochs", 45, "of training")
_PEERS = flags.DEFINE_string("peers", ".venv-peers/bin/python", "the Python that has LightGCN")


def answers(dataset: dataset_lib.Dataset, out: pathlib.Path) -> tuple[retrievers.Answers, float]:
    """LightGCN's answers, and the seconds of its training; `out` gets its lists."""
    started = time.perf_counter()
    script = pathlib.Path(__file__).with_name("pyg_lightgcn.py")
    command = [_PEERS.value, script, dataset.directory, out, f"--epochs={_EPOCHS.value}"]
    subprocess.run(command, check=True)
    return read_answers(out), time.perf_counter() - started


def read_answers(path: pathlib.Path) -> retrievers.Answers:
    """The answers of a file of lists: a row for each group, items in `items`, best first."""
    lists = np.stack(pq.read_table(path)["items"].to_numpy())
    return retrievers.Answers(lambda queries, index: lists[queries.features["group"]])


def main(_):
    workdir = pathlib.Path(_WORKDIR.value).absolute()
    for name in _SETS.value:
        raw = pathlib.Path(_DATA.value).absolute()
        dataset = real_sets.published(name, raw, workdir)
        evaluate = evaluator.Evaluator("LightGCN", real_sets.all_groups("LightGCN", dataset))
        retriever, seconds = answers(dataset, workdir / f"lightgcn-{name}.parquet")
        table = evaluate(retriever, "test", full=True)
        print(f"\n{name}, LightGCN's lists after {seconds:,.0f} s\n{results.table(table)}")


if __name__ == "__main__":
    app.run(main)
