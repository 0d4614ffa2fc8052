"""How fast one core makes training batches, from disk, beside a loop over actions.

    python -m benchmarks.input

Batches have the published size: 128 users, 256 actions, 32 labels each, packed. Timelines are
random. They are so long that every window has 256 actions, or as long that windows have 64 in the
mean (`quarter`) or the lengths of globo, see short_windows.py. The alternative draws the same
windows and labels in plain Python, an action at a time, from timelines that are in memory already,
and does not pack them. Both run pinned to the same core, in turn; seconds are of its CPU time, so
that other programs on it count little.

Beside both is the rate at which one H200 could at best consume such batches, from the model's FLOPs
and the GPU's published rate of bfloat16 products.
"""

import bisect
import dataclasses
import os
import pathlib
import random
import runpy
import statistics
import tempfile
import time

import numpy as np
import tensorflow_datasets as tfds
from absl import app, flags, logging
from ml_collections import ConfigDict

from benchmarks import short_windows
from pinjax.compiler import programs, rates
from pinjax.data import batches, timelines
from pinjax.data import statistics as statistics_lib
from pinjax.data.simulated import made_up
from pinjax.data.spec import Spec
from pinjax.distributed import sharding
from pinjax.systems import histories, pinnerformer

_BATCHES = flags.DEFINE_integer("batches", 20, "batches to a measurement")
_TIMELINES = flags.DEFINE_integer("timelines", 4_096, "of which windows are drawn", lower_bound=640)

USERS, REPEATS, CHIP = 128, 5, "NVIDIA H200"
KINDS = ("full", "quarter", "globo")


def main(_):
    logging.set_verbosity(logging.ERROR)
    os.sched_setaffinity(0, {0})
    config = pathlib.Path(__file__).parents[1] / "configs/pinnerformer.py"
    config = runpy.run_path(str(config))["get_config"]("paper")
    config.data.users = USERS
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as directory:
            measure(kind, config, pathlib.Path(directory, "timelines"))


def measure(kind: str, config: ConfigDict, directory: pathlib.Path) -> None:
    """Prints the rates for a kind of lengths."""
    mesh, spec = sharding.make_mesh(), made_up.spec(config.data.name)
    rng = np.random.default_rng(0)
    (lengths,) = short_windows.draw(kind, _TIMELINES.value, config.data.length, rng, count=1)
    # A window ends in the last half of its timeline.
    lengths = 2 * lengths if kind == "full" else -(-4 * lengths // 3)
    rows = [_timeline(length, spec, rng) for length in rng.permutation(lengths)]
    with timelines.writer(directory) as writer:
        for number, row in enumerate(rows):
            writer.add("train", number, row, len(row))
    quantiles = np.quantile(lengths, statistics_lib.LENGTH_SHARES, method="inverted_cdf")
    last = max(int(row["time"][-1]) for row in rows)
    spec = dataclasses.replace(
        spec, train_end=last, length_quantiles=tuple(quantiles.astype(int).tolist())
    )
    sampler = pinnerformer.make_sampler(config, spec)
    source = batches.Batches(
        timelines=tfds.builder_from_directory(directory).as_data_source("train"),
        lengths=np.load(directory / statistics_lib.LENGTHS_FILE),
        sampler=sampler,
        layout=histories.layout_of(sampler, spec, USERS, mesh),
        steps=10**6,
        seed=0,
    )
    ours, loop, draws = [], [], random.Random(0)
    actions = int((source[0]["item"] >= 0).sum())
    for repeat in range(REPEATS):
        start = time.process_time()
        for step in range(repeat * _BATCHES.value, (repeat + 1) * _BATCHES.value):
            source[step]
        ours.append(_BATCHES.value * USERS / (time.process_time() - start))
        some = rows[repeat * USERS : (repeat + 1) * USERS]
        start = time.process_time()
        for row in some:
            _draw_in_python(row, sampler.positives, sampler, draws)
        loop.append(len(some) / (time.process_time() - start))
    ours, loop = statistics.median(ours), statistics.median(loop)
    print(f"{kind}: {source.layout.describe()}; {actions / USERS:.0f} actions and ", end="")
    print(f"{sampler.pairs} labels a user; timelines of {lengths.mean():.0f} actions")
    print(f"vectorised, from disk    {ours:8,.0f} users/s")
    print(f"Python loop, in memory   {loop:8,.0f} users/s")
    print(f"ratio                    {ours / loop:8.1f}")
    trainable = pinnerformer.build(config, mesh, spec)
    flops = programs.train_step(trainable, config.train, mesh).flops
    used = USERS * rates.CHIPS[CHIP].flops / flops
    print(f"one H200 at best         {used:8,.0f} users/s")
    print(f"16 such cores / one H200 {16 * ours / used:8.1f}", flush=True)


def _timeline(actions: int, spec: Spec, rng: np.random.Generator) -> np.ndarray:
    """Random actions, four a day."""
    made = np.zeros(actions, timelines.ACTION)
    made["item"] = rng.integers(spec.num_items, size=actions)
    made["time"] = 1_600_000_000 + np.cumsum(rng.exponential(6 * 3600, actions))
    made["duration"] = rng.exponential(10, actions)
    made["action"] = rng.integers(1, len(spec.actions), actions)
    made["surface"] = rng.integers(1, len(spec.surfaces), actions)
    return made


def _draw_in_python(row, positives, sampler, rng):
    """A window and its labels, an action at a time."""
    actions = [
        (int(a["item"]), int(a["time"]), float(a["duration"]), int(a["surface"]), int(a["action"]))
        for a in row
        if a["time"] <= sampler.train_end
    ]
    good = [p for p in actions if p[2] >= positives.min_seconds[p[4]] and positives.surfaces[p[3]]]
    times = [p[1] for p in good]  # ascending
    labels = []
    for action in actions:
        first = bisect.bisect_right(times, action[1])
        last = bisect.bisect_right(times, action[1] + sampler.horizon)
        labels.append([p[0] for p in good[first:last]])
    ends = [i for i, of_action in enumerate(labels) if of_action]
    if not ends:
        return [], []
    end = rng.choice(ends)
    window = range(max(0, end - sampler.length + 1), end + 1)
    able = [i for i in window if labels[i]]
    chosen = rng.sample(able, min(sampler.labels, len(able)))
    return [actions[i] for i in window], [(i, rng.choice(labels[i])) for i in chosen]


if __name__ == "__main__":
    app.run(main)
