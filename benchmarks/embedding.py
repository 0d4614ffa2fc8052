"""The rate of `pinjax.embed` beside that of the compiled forward pass alone.

    python -m benchmarks.embedding [--data=pinworld/small] [--repeats=3] [--config=FILE]

Every table of the system is embedded as by the command, from timelines on disk to Parquet files
with their checksums; in turn with it, the forward pass embeds one batch that is in the device's
memory, as often as the table took batches. Parameters are as initialised. Prints rows a second of
both and their ratio, by wall time and by the process's CPU time, which counts where other programs
share the machine; medians over the repeats.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
from absl import app, flags
from etils import epath

from pinjax import checksums, config_flag
from pinjax.data import embeddings
from pinjax.distributed import sharding
from pinjax.systems import embedded, registry

_DATA = flags.DEFINE_string("data", "pinworld/small", "data set")
_REPEATS = flags.DEFINE_integer("repeats", 3, "of each measurement")
_CONFIG = flags.DEFINE_string("config", "configs/pinnerformer.py", "of the system")


def main(_):
    config = config_flag.load(_CONFIG.value)
    config.data.name = _DATA.value
    mesh = sharding.mesh_of(config)
    system = registry.create(config, mesh, verify=False)
    params, _ = jax.jit(system.trainable.init)(jax.random.key(config.train.seed))
    embedders, batches = dict(system.trainable.embedders), collections.Counter()

    def counted(name: str, *arguments: Any) -> jax.Array:
        batches[name] += 1
        return embedders[name].function(*arguments)

    for name, embedder in embedders.items():
        function = functools.partial(counted, name)
        system.trainable.embedders[name] = dataclasses.replace(embedder, function=function)
    tables = embedded.tables(config, system, params, system.dataset.spec.train_end)
    for name, embedder in embedders.items():
        if name not in tables:
            continue
        batch = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), embedder.batch)
        forward = functools.partial(embedder, params, system.constants, batch)
        jax.block_until_ready(forward())  # compiles
        found = []
        for _ in range(_REPEATS.value):
            batches.clear()
            rows, *made = measure(lambda name=name: embed(tables[name]))
            number = batches[name]
            _, *passed = measure(lambda forward=forward, n=number: run(forward, n))
            found.append((passed, made))
        for kind, label in enumerate(("wall", "CPU")):
            alone, whole, ratio = (
                statistics.median(values)
                for values in zip(
                    *((rows / a[kind], rows / b[kind], a[kind] / b[kind]) for a, b in found),
                    strict=True,
                )
            )
            print(
                f"{name:<10}{label:<6}{rows:>9,} rows, {number:,} batches  "
                f"forward {alone:>11,.0f} a second  embed {whole:>11,.0f}  {ratio:.3f} of it"
            )


def run(forward: Callable[[], jax.Array], times: int) -> None:
    for _ in range(times):
        result = forward()
    jax.block_until_ready(result)


def embed(shards: list[embedded.Shard]) -> int:
    """Writes a table as the command does; the number of its rows."""
    with (
        tempfile.TemporaryDirectory() as directory,
        concurrent.futures.ThreadPoolExecutor(1) as thread,
    ):
        writing, rows = thread.submit(lambda: None), 0
        for number, shard in enumerate(shards):
            part = shard()
            rows += len(part.ids)
            writing.result()
            writing = thread.submit(write, pathlib.Path(directory) / str(number), part)
        writing.result()
    return rows


def write(path: pathlib.Path, part: embedded.Part) -> None:
    with path.open("wb") as file:
        embeddings.write(embeddings.to_arrow(*part, "float16"), file)
    checksums.of_file(epath.Path(path))


def measure(function: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, seconds, and seconds of CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return result, time.perf_counter() - wall, time.process_time() - cpu


if __name__ == "__main__":
    app.run(main)
