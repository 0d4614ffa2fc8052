"""Directions of PinSage's offline table on pinworld (Ying et al., KDD 2018, §4.2).

    python -m benchmarks.pinsage_directions --workdir=DIR [--seeds=3]

Recall@10, hit rate and scaled MRR of the test pairs, and the kurtosis of the cosine similarities of
random pairs of items. A run that is finished in --workdir is not made again.
"""

import pathlib
import statistics

import numpy as np
import pyarrow.parquet as pq
from absl import app, flags

from benchmarks import runs
from pinjax.evaluation import similarities

_WORKDIR = flags.DEFINE_string("workdir", None, "where runs are kept", required=True)
_SEEDS = flags.DEFINE_integer("seeds", 3, "of every row")
_STEPS = flags.DEFINE_integer("steps", 500, "of every run")

METHODS = {
    "importance": (),
    "mean": ("model.pooling=mean",),
    "max": ("model.pooling=max",),
    "content alone": ("model.layers=0",),
    "importance, hard negatives": (
        *("loss.num_hard_negatives=6", "loss.hard_after=50"),
        *("loss.hard_first=200", "loss.hard_last=500"),
    ),
    "max margin": ("loss.name=max_margin",),
    "max margin, hard negatives": (
        *("loss.name=max_margin", "loss.num_hard_negatives=6", "loss.hard_after=50"),
        *("loss.hard_first=200", "loss.hard_last=500"),
    ),
}
METRICS = ("R@10", "HR@500", "scaled MRR")


def main(_):
    found = {}
    print(f"{'':<28}{''.join(f'{name:>18}' for name in (*METRICS, 'kurtosis'))}")
    for method, settings in METHODS.items():
        made = [_run(method, settings, seed) for seed in range(_SEEDS.value)]
        columns = [list(values) for values in zip(*made, strict=True)]
        found[method] = columns[0]
        cells = "".join(f"{runs.mean_and_range(values):>18}" for values in columns)
        print(f"{method:<28}{cells}", flush=True)
    print()
    for higher, lower in (
        *(("importance", "mean"), ("mean", "max"), ("max", "content alone")),
        *(("importance, hard negatives", "importance"), ("importance", "max margin")),
        ("max margin, hard negatives", "max margin"),
    ):
        more = [a - b for a, b in zip(found[higher], found[lower], strict=True)]
        claim = f"Recall@10, {higher} > {lower}"
        runs.claim(f"{claim}, by {statistics.mean(more):+.4f}", found[higher], found[lower])


def _run(method: str, settings: tuple[str, ...], seed: int) -> list[float]:
    """The metrics of a run, and the kurtosis of its embeddings."""
    workdir = pathlib.Path(_WORKDIR.value) / runs.directory(method, seed)
    fields = (f"train.steps={_STEPS.value}", "train.evaluate_every=0", "data.groups=0", *settings)
    arguments = [f"--config.{field}" for field in (f"train.seed={seed}", *fields)]
    row = runs.train("configs/pinsage.py", workdir, *arguments)["PinSage"]
    out = workdir / "embeddings"
    runs.call("embed", "configs/pinsage.py", workdir, *arguments, f"--out={out}")
    parts = [pq.read_table(path)["vector"] for path in sorted(out.glob("items-*.parquet"))]
    vectors = np.concatenate([np.stack(part.to_numpy()) for part in parts]).astype(np.float32)
    return [*(row[name].value for name in METRICS), similarities.kurtosis(vectors, seed=0)]


if __name__ == "__main__":
    app.run(main)
