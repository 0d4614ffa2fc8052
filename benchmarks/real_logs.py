"""PinnerFormer on two real logs, beside the baselines of every table and RecTools' SASRec.

    python3 -m venv .venv-peers && .venv-peers/bin/pip install -r benchmarks/requirements-peers.txt
    python -m benchmarks.real_logs --data=DIR      # of DIR/ifdb/*.parquet and DIR/globo/*.parquet

Split by global time and by user: all methods learn from the same training users up to the same
time, and answer the same queries of other users, later (`pinjax.evaluation`). A query is a user's
history up to a time T; its labels are the items that the user engages with in the window after T,
if they existed at T and the user had not acted on them. Popularity, co-occurrence, PinnerFormer by
its popularity of ifdb's items, and the last row also know what the training users did between the
end of training and T.

The last row combines both: PinnerFormer's logits plus the logarithm of recent popularity, which is
one more number in each of the two vectors. So an index that is built anew knows about the days
after training, which the trained model does not.

Choices were made on validation users: PinnerFormer's config of globo, the baselines' settings, the
weight of popularity beside logits; its config of ifdb on the years before the test. Only a seeded
part of globo's users is taken, so that a CPU is enough.
"""

import os
import pathlib
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict

from benchmarks import real_sets
from pinjax import results
from pinjax.data import dataset as dataset_lib
from pinjax.data import windows
from pinjax.distributed import sharding
from pinjax.evaluation import (
    baselines,
    evaluator,
    metrics,
    retrievers,
    timeline_source,
    vector_search,
)
from pinjax.systems import histories, item_table, pinnerformer, registry
from pinjax.training import checkpoint

_DATA = flags.DEFINE_string("data", None, "directory of the raw logs", required=True)
_WORKDIR = flags.DEFINE_string("workdir", "work/real_sets", "where data sets and runs are kept")
_LOGS = flags.DEFINE_list("logs", ["ifdb", "globo"], "which logs")
_PEERS = flags.DEFINE_string("peers", ".venv-peers/bin/python", "the Python that has RecTools")

ROOT = pathlib.Path(__file__).parents[1]
WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # of log recent popularity, beside logits


def train(log: str, directory: epath.Path, workdir: pathlib.Path) -> float:
    """Trains PinnerFormer by its command; the seconds until its own table is printed."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "pinjax.train", f"--config=configs/pinnerformer.py:{log}"]
    command += [f"--config.data.name={directory}", f"--workdir={workdir}"]
    subprocess.run(command, check=True, cwd=ROOT)
    return time.perf_counter() - started


def trained_towers(
    dataset: dataset_lib.Dataset, config: ConfigDict, workdir: pathlib.Path
) -> tuple[Callable[[int], vector_search.Towers], float]:
    """The towers of the checkpoint that the run in `workdir` serves, and the scale of logits."""
    mesh = sharding.make_mesh()
    system = registry.create(config, mesh)
    params = checkpoint.load_chosen(workdir, config, system, mesh).params
    table = item_table.ItemTable.create(config, mesh, dataset.spec)
    layout = histories.served_layout(config, dataset.spec, mesh)
    make = pinnerformer.make_towers(system.trainable, layout, table, dataset, system.constants)
    model = pinnerformer.make_model(config, dataset.spec, mesh)
    scale = float(model.apply(params, method="scale"))
    return lambda as_of: make(params, as_of)[1], scale


def with_popularity(
    towers_as_of: Callable[[int], vector_search.Towers],
    popularity: baselines.Popularity,
    weight: float,
) -> Callable[[int], vector_search.Towers]:
    """Towers whose products have weight * log1p(recent popularity) added."""

    def with_it(as_of: int) -> vector_search.Towers:
        towers = towers_as_of(as_of)
        counts = popularity.engagements.counts(as_of, popularity.seconds)

        def queries(features: Any) -> Any:
            vectors = towers.queries(features)
            return jnp.concatenate([vectors, jnp.ones((len(vectors), 1))], axis=1)

        def items(rows: np.ndarray) -> np.ndarray:
            more = weight * np.log1p(counts[rows, None])
            return np.concatenate([towers.items(rows), more], axis=1).astype(np.float32)

        return vector_search.Towers(queries, items, as_of)

    return with_it


def sasrec(
    source: timeline_source.TimelineSource, out: pathlib.Path
) -> tuple[retrievers.Answers, float]:
    """RecTools' answers for test and the seconds of its training, in the peers' environment."""
    parts = source.queries("test")
    first = dict(zip(parts, np.cumsum([0, *map(len, parts.values())]), strict=False))
    train = source.dataset.chunk("train", 0, len(source.dataset.timelines("train")))
    user = np.repeat(np.arange(len(train.users)), np.diff(train.offsets))
    past = train.records["time"] <= source.dataset.spec.train_end
    seen = np.concatenate(
        [part.excluded + np.array([first[start], 0]) for start, part in parts.items()]
    )
    given, answers = out / "sasrec_queries.npz", out / "sasrec_answers.npz"
    np.savez(
        given,
        user=user[past],
        item=train.records["item"][past],
        time=train.records["time"][past],
        window=np.repeat(np.arange(len(parts)), [len(part) for part in parts.values()]),
        index=np.stack([source.candidates(start).included for start in parts]),
        length=source.length,
        history_query=seen[:, 0],
        history_item=seen[:, 1],
    )
    script = pathlib.Path(__file__).with_name("rectools_sasrec.py")
    subprocess.run([_PEERS.value, script, given, answers], check=True)
    with np.load(answers) as file:
        rows, seconds = file["rows"], float(file["seconds"])
    return retrievers.Answers(
        lambda queries, index: rows[first[index.time] : first[index.time] + len(queries)]
    ), seconds


def measure(log: str, raw: pathlib.Path, out: pathlib.Path) -> None:
    """Trains everything on a log and prints the table."""
    out.mkdir(parents=True, exist_ok=True)
    dataset, workdir = real_sets.prepare_log(log, raw, out), out / f"pinnerformer-{log}"
    config = runpy.run_path(str(ROOT / "configs/pinnerformer.py"))["get_config"](log)
    config.data.name = str(dataset.directory)
    seconds = {"PinnerFormer": train(log, dataset.directory, workdir)}

    positives = windows.Positives.create(dataset.spec, config.data.positives, config.data.surfaces)
    source = timeline_source.TimelineSource(dataset, positives, config.data.length, config.evaluate)
    evaluate = evaluator.Evaluator("PinnerFormer", source)
    towers, scale = trained_towers(dataset, config, workdir)
    (recent,) = (
        method
        for method in evaluate.baselines.retrievers.values()
        if isinstance(method, baselines.Popularity) and method.seconds
    )

    def search(weight: float) -> vector_search.VectorSearch:
        beside = with_popularity(towers, recent, weight / scale)
        return vector_search.VectorSearch(beside)

    weight = max(WEIGHTS, key=lambda weight: baselines.recall(source, search(weight)))
    peer, seconds["SASRec"] = sasrec(source, out)
    table = evaluate(
        vector_search.VectorSearch(towers),
        "test",
        full=True,
        others={"SASRec": peer, "PinnerFormer and recent": search(weight)},
    )
    for row in table.rows:
        row.metrics["train, s"] = metrics.Estimate(seconds.get(row.method, float("nan")))
    print(f"\n{log}, {os.cpu_count()} cores; recent popularity {weight:g} times beside logits")
    print(results.table(table))
    recall = {row.method: row.metrics["R@10"].value for row in table.rows}
    for name in list(recall)[1:]:
        print(f"PinnerFormer / {name:<24} {recall['PinnerFormer'] / recall[name]:.2f}")


def main(_):
    logging.set_verbosity(logging.ERROR)
    for log in _LOGS.value:
        measure(log, pathlib.Path(_DATA.value).absolute(), pathlib.Path(_WORKDIR.value).absolute())


if __name__ == "__main__":
    app.run(main)
