"""How much embeddings lift a ranking model: its rows by method, the results, and their tables."""

import dataclasses
import json
import math
import textwrap

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from pinjax import timestamps
from pinjax.data import windows
from pinjax.data.dataset import Dataset
from pinjax.errors import InputError
from pinjax.evaluation import formatting
from pinjax.evaluation.metrics import Estimate
from pinjax.ranking import export, metrics, training, vectors
from pinjax.ranking import rows as rows_lib
from pinjax.ranking.metrics import Results

NOTHING, AGGREGATE = "nothing", "PinnerSage's aggregate"


@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
    """Rows with the features of each method.

    Attributes:
      log: of the data set.
      rows: to train and to test on.
      names: of the counts.
      counts: float32 (rows, counts).
      methods: vectors by name; counts alone are the method `NOTHING`.
      about: a description.
    """

    log: rows_lib.Log
    rows: rows_lib.Rows
    names: list[str]
    counts: np.ndarray
    methods: dict[str, vectors.Vectors]
    about: str

    def measure(self, seeds: int) -> Results:
        """Trains and tests all methods with so many seeds."""
        logits = {}
        for name, of_method in {NOTHING: None, **self.methods}.items():
            features = training.Features(self.counts, of_method)
            logits[name] = [training.train(features, self.rows, seed) for seed in range(seeds)]
        return metrics.measure(logits, self.rows)

    def export(self, path: epath.Path, dataset: Dataset) -> None:
        """Writes the table of `ranking.export`."""
        own = dataset.catalogue.ids
        export.write(path, self.log, self.rows, own, self.names, self.counts, self.methods)


def prepare(
    config: ConfigDict, dataset: Dataset, runs: list[vectors.Run], sampled: int | None
) -> Prepared:
    """The rows of a data set, with the vectors of runs.

    Args:
      config: of a run, which says what its labels are.
      dataset: of the run.
      runs: with the vectors, at least one.
      sampled: as in `rows.make`.

    Raises:
      InputError: if there are no such rows, or the config says nothing of labels.
    """
    spec, created = dataset.spec, dataset.catalogue.created
    if "positives" not in config.data:
        raise InputError(
            f"system={config.system!r} does not say which actions are labels; expected the "
            "--workdir of a system that does, as PinnerFormer, and --embeddings=DIR"
        )
    positives = windows.Positives.create(spec, config.data.positives, config.data.surfaces)
    log = rows_lib.Log.read(dataset, positives)
    # Of what is later than the training period, no run has learned.
    start = max(spec.train_end, *(int(run.as_of[0]) for run in runs))
    rows = rows_lib.make(log, positives, spec, created, start, sampled)
    names, counts = rows_lib.count_features(log, rows, spec, created)

    content, whose = dataset.catalogue.content, "the data set's content vectors"
    if config.data.vectors:
        whose = f"the vectors of {config.data.vectors}"
    if content is None:
        content, whose = vectors.item_vectors(runs[0], dataset), f"the items of {runs[0].name}"
    methods = {AGGREGATE: vectors.aggregate(content, runs[0].as_of, log, rows)}
    for run in runs:
        methods[run.name] = vectors.of_run(run, log, rows, dataset)
    about = [
        f"{(~rows.test).sum():,} rows train, {rows.test.sum():,} test",
        f"of {len(np.unique(rows.user)):,} users, from {timestamps.iso(start)}; the test begins "
        f"{timestamps.iso(int(rows.time[rows.test].min()))}",
        f"{rows.sampled} items sampled for each label"
        if rows.sampled
        else f"rows are actions, {rows.labels[:, 0].mean():.0%} of them labels",
        f"{AGGREGATE}: of {whose}",
        *(f"{name}: {x.known():.0%} of the rows have both vectors" for name, x in methods.items()),
    ]
    return Prepared(log, rows, names, counts, methods, "\n".join(about))


def text(results: Results) -> str:
    """A table for each metric, each lift below its method, and what the seeds differ by."""
    blocks = [
        f"{metric}\n{formatting.format_table(_lines(results, metric))}" for metric in results.values
    ]
    of_metric = results.seeds["AUC"]
    lifts = {
        method: (seeds - of_metric[NOTHING])[:, 0]
        for method, seeds in of_metric.items()
        if method != NOTHING
    }
    apart = "; ".join(f"{x} {y.min():+.4f} to {y.max():+.4f}" for x, y in lifts.items())
    note = (
        f"Means over {len(of_metric[NOTHING])} seeds of the ranking model; intervals are over "
        f"users. By seed, lifts of AUC, {results.types[0]}: {apart}"
    )
    return "\n\n".join([*blocks, textwrap.fill(note, 100, subsequent_indent="  ")])


def to_json(results: Results) -> str:
    """By metric and method: `value` and `lift`, [value, low, high] by type; and `seeds`, of each
    the values by type. NaN is null."""
    content = {}
    for metric, of_metric in results.values.items():
        content[metric] = {}
        for method in of_metric:
            cells = {"value": results.estimates(metric, method)}
            if method != NOTHING:
                cells["lift"] = results.lifts(metric, method, NOTHING)
            cells |= {
                name: {type_: list(map(_finite, x)) for type_, x in by_type.items()}
                for name, by_type in cells.items()
            }
            seeds = results.seeds[metric][method]
            content[metric][method] = cells | {"seeds": [list(map(_finite, x)) for x in seeds]}
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _lines(results: Results, metric: str) -> list[tuple[str, dict[str, Estimate]]]:
    lines = []
    for method in results.values[metric]:
        lines.append((method, results.estimates(metric, method)))
        if method != NOTHING:
            lines.append((f"  over {NOTHING}", results.lifts(metric, method, NOTHING)))
    return lines


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
