"""What verifying checksums costs, as a share of opening and using the files.

    python -m benchmarks.verifying --config=configs/pinnerformer.py

Makes a data set, trains two steps and evaluates the validation users. Prints how long
`checksums.verify` takes on the data set and on the checkpoint, as shares of the time to open both
and evaluate, in one process.
"""

import pathlib
import tempfile
import time

from absl import app, flags

from pinjax import checksums, config_flag
from pinjax.data import dataset
from pinjax.distributed import sharding
from pinjax.systems import registry
from pinjax.training import checkpoint, loop

_CONFIG = flags.DEFINE_string("config", "configs/pinnerformer.py", "config of the run")


def main(_):
    config = config_flag.load(_CONFIG.value)
    config.train.update(steps=2, select="")
    mesh = sharding.make_mesh()
    with tempfile.TemporaryDirectory() as directory:
        config.data.dir = directory
        workdir = pathlib.Path(directory, "run")
        system = registry.create(config, mesh)
        checkpoint.claim(workdir, config, system.identity)
        with checkpoint.of_run(workdir, config, system) as checkpoints:
            loop.train(system, config.train, mesh, workdir, checkpoints)
        data = dataset.ensure(config.data.name, directory)
        (written,) = (workdir / "checkpoints").iterdir()

        seconds, start = {}, time.perf_counter()
        system = registry.create(config, mesh, verify=False)
        state = checkpoint.load_chosen(workdir, config, system, mesh, verify=False)
        system.evaluate(state.params, "valid")
        use = time.perf_counter() - start
        for name, path in (("data set", data), ("checkpoint", written)):
            start = time.perf_counter()
            checksums.verify(path)
            seconds[name] = time.perf_counter() - start, _size(path)
    print(f"\nto open both and evaluate: {use:.2f} s")
    for name, (spent, size) in seconds.items():
        print(f"to verify the {name}, {size / 1e6:,.1f} MB: {spent:.3f} s, {spent / use:.2%} of it")


def _size(directory: pathlib.Path) -> int:
    return sum(path.stat().st_size for path in pathlib.Path(directory).rglob("*"))


if __name__ == "__main__":
    app.run(main)
