"""PinSage on public graphs of users and items, by the protocol of LightGCN (SIGIR 2020).

    python -m benchmarks.graph_recommenders --data=DIR --workdir=DIR [--sets=gowalla]

Every published training edge is trained on and left out of the answers, all items are ranked, and
Recall@20 is over all test edges of a user. configs/pinsage.py:users was chosen on a validation part
of the training edges. A run that is finished in --workdir is not made again.
"""

import pathlib

import numpy as np
import pyarrow.parquet as pq
from absl import app, flags

from benchmarks import real_sets, runs
from pinjax import results
from pinjax.data import dataset as dataset_lib
from pinjax.evaluation import evaluator, vector_search

_DATA = flags.DEFINE_string("data", None, "directory of the raw sets", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "where data sets and runs are kept", required=True)
_SETS = flags.DEFINE_list("sets", ["pinterest_graph"], "which sets: pinterest_graph, gowalla")
_STEPS = flags.DEFINE_integer("steps", None, "of the run; the default is the config's")
_SEED = flags.DEFINE_integer("seed", 0, "of the run")

CONFIG = "configs/pinsage.py:users"


def main(_):
    workdir = pathlib.Path(_WORKDIR.value).absolute()
    for name in _SETS.value:
        dataset = real_sets.published(name, pathlib.Path(_DATA.value).absolute(), workdir)
        steps = "" if _STEPS.value is None else f"-{_STEPS.value}"
        run = workdir / runs.directory(f"pinsage-{name}{steps}", _SEED.value)
        arguments = [f"--config.data.name={dataset.directory}"]
        if steps:
            arguments.append(f"--config.train.steps={_STEPS.value}")
        arguments.append(f"--config.train.seed={_SEED.value}")
        runs.train(CONFIG, run, *arguments)
        out = run / "embeddings"
        runs.call("embed", CONFIG, run, *arguments, f"--out={out}", "--precision=float32")
        evaluate = evaluator.Evaluator("PinSage", real_sets.all_groups("PinSage", dataset))
        table = evaluate(_search(dataset, out), "test", full=True)
        print(f"\n{name}\n{results.table(table)}", flush=True)


def _search(dataset: dataset_lib.Dataset, embeddings: pathlib.Path) -> vector_search.VectorSearch:
    """The search for items with the embeddings of groups."""

    def read(table: str, ids: np.ndarray) -> np.ndarray:
        parts = [pq.read_table(path) for path in sorted(embeddings.glob(f"{table}-*.parquet"))]
        vectors = np.concatenate([np.stack(part["vector"].to_numpy()) for part in parts])
        own = np.concatenate([part["id"].to_numpy() for part in parts])
        found = np.zeros((len(ids), vectors.shape[1]), np.float32)
        found[np.searchsorted(ids, own)] = vectors
        return found

    groups, items = read("groups", dataset.groups), read("items", dataset.catalogue.ids)
    return vector_search.VectorSearch.fixed(lambda x: groups[x["group"]], items.__getitem__)


if __name__ == "__main__":
    app.run(main)
