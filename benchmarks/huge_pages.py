"""A train step's time on a CPU with pages of 2 MiB, as commands request, and of 4 KiB.

    python -m benchmarks.huge_pages
    python -m benchmarks.huge_pages --config=configs/pinnerformer.py:hour

A step's arrays are returned to the system and requested again, page by page.
"""

import functools
import os
import subprocess
import sys
import time

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from pinjax.distributed import sharding
from pinjax.systems import registry
from pinjax.training import step

_CONFIG = config_flags.DEFINE_config_file("config", "configs/pinnerformer.py", "config of the run")
_ALONE = flags.DEFINE_bool("alone", False, "measure in this process, in whatever pages it has")

UNTIMED, TIMED = 6, 24  # steps


def seconds_a_step() -> float:
    """The median."""
    config, mesh = _CONFIG.value, sharding.make_mesh()
    system = registry.create(config, mesh)
    optimizer = step.make_optimizer(config.train)
    init = functools.partial(step.init_state, system.trainable, optimizer, config.train.seed)
    state = jax.jit(init)()
    train_step = jax.jit(step.make_step(system.trainable, optimizer), donate_argnums=0)
    seconds = []
    for _, batch in zip(range(UNTIMED + TIMED), system.batches(0), strict=False):
        start = time.perf_counter()
        state, metrics = train_step(state, system.constants, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[UNTIMED:]))


def main(_):
    if _ALONE.value:
        print(seconds_a_step())
        return
    taken = []
    for tunables in ("", "glibc.malloc.hugetlb=1"):
        output = subprocess.check_output(
            [sys.executable, "-m", "benchmarks.huge_pages", "--alone", *sys.argv[1:]],
            env={**os.environ, "GLIBC_TUNABLES": tunables},
            text=True,
        )
        taken.append(float(output.split()[-1]))
    small, huge = taken
    print(f"pages of 4 KiB  {1000 * small:7.0f} ms a step")
    print(f"pages of 2 MiB  {1000 * huge:7.0f} ms a step, {huge / small:.2f} of the time")


if __name__ == "__main__":
    app.run(main)
