"""How fast one core makes training batches, from disk, beside a loop over actions.

    python -m benchmarks.input

Batches are those of the published size: 128 users, 256 actions, 32 labels each. The alternative
draws the same windows and labels in plain Python, an action at a time, from timelines that are in
memory already. Both run pinned to the same core, in turn.

Beside them is what one H200 could use of such batches at best: by the model's FLOPs and the GPU's
published rate of bfloat16 products.
"""

import os
import pathlib
import random
import runpy
import statistics
import time

from absl import app, flags, logging

from pinjax.compiler import programs, rates
from pinjax.data import batches, windows
from pinjax.data import dataset as dataset_lib
from pinjax.distributed import sharding
from pinjax.systems import registry
from pinjax.timestamps import DAY

_DATA_DIR = flags.DEFINE_string("data_dir", "~/.cache/pinjax", "where pinworld/small is kept")
_BATCHES = flags.DEFINE_integer("batches", 20, "batches to a measurement")

USERS, LENGTH, LABELS, HORIZON = 128, 256, 32, 28 * DAY


def main(_):
    logging.set_verbosity(logging.ERROR)
    os.sched_setaffinity(0, {0})
    dataset = dataset_lib.load("pinworld/small", _DATA_DIR.value)
    positives = windows.Positives.create(dataset.spec, "save, closeup>=10, click>=10", "home")
    sampler = windows.Sampler(
        LENGTH, "dense_all_action", LABELS, HORIZON, positives, dataset.spec.train_end
    )
    source = batches.Batches(dataset.timelines("train"), sampler, USERS, 10**6, seed=0)
    chunk = dataset.chunk("train", 0, USERS)
    rows = [chunk.records[a:b] for a, b in zip(chunk.offsets, chunk.offsets[1:], strict=False)]
    rng = random.Random(0)
    ours, loop = [], []
    source[0]
    for repeat in range(5):
        start = time.perf_counter()
        for step in range(repeat * _BATCHES.value, (repeat + 1) * _BATCHES.value):
            source[step]
        ours.append(_BATCHES.value * USERS / (time.perf_counter() - start))
        start = time.perf_counter()
        for row in rows:
            _draw_in_python(row, positives, sampler, rng)
        loop.append(USERS / (time.perf_counter() - start))
    ours, loop = statistics.median(ours), statistics.median(loop)
    actions = len(chunk.records) / USERS
    print(f"{USERS} users x {LENGTH} actions, {LABELS} labels; timelines of {actions:.0f} actions")
    print(f"vectorised, from disk    {ours:8,.0f} users/s")
    print(f"Python loop, in memory   {loop:8,.0f} users/s")
    print(f"ratio                    {ours / loop:8.1f}")
    used = _used_at_best("NVIDIA H200")
    print(f"one H200 at best         {used:8,.0f} users/s")
    print(f"16 such cores / one H200 {16 * ours / used:8.1f}")


def _used_at_best(chip: str) -> float:
    """Users a second of the published config that a chip could train on."""
    config = pathlib.Path(__file__).parents[1] / "configs/pinnerformer.py"
    config = runpy.run_path(str(config))["get_config"]("paper")
    config.data.users = USERS
    mesh = sharding.make_mesh()
    flops = programs.train_step(registry.build(config, mesh), config.train, mesh).flops
    return USERS * rates.CHIPS[chip].flops / flops


def _draw_in_python(row, positives, sampler, rng):
    """A window and its labels, as one would write it first."""
    actions = [
        (int(a["item"]), int(a["time"]), float(a["duration"]), int(a["surface"]), int(a["action"]))
        for a in row
        if a["time"] <= sampler.train_end
    ]
    good = [p for p in actions if p[2] >= positives.min_seconds[p[4]] and positives.surfaces[p[3]]]
    labels = [
        [p[0] for p in good if action[1] < p[1] <= action[1] + sampler.horizon]
        for action in actions
    ]
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
