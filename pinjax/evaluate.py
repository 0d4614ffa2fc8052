"""Evaluates the checkpoint that a run would serve: the best, or else the latest.

python -m pinjax.evaluate --config=configs/pinnerformer.py --workdir=DIR --split=test

The config may be left out: the directory knows it.
"""

from collections.abc import Sequence

from absl import flags

from pinjax import app, results
from pinjax.distributed import sharding
from pinjax.serving import previous
from pinjax.systems import registry
from pinjax.training import checkpoint, workdirs

CONFIG, WORKDIR = app.run_flags(config_required=False)
SPLIT = flags.DEFINE_enum("split", "test", ["valid", "test"], "split to evaluate on")


def main(argv: Sequence[str]) -> int:
    del argv
    config, workdir = app.run_of(CONFIG, WORKDIR)
    mesh = sharding.mesh_of(config)
    system = registry.create(config, mesh, app.verifies(), previous.fitted_of(workdir))
    if system.trainable is None:
        workdirs.claim(workdir, config, system.identity)
    state = checkpoint.load_chosen(workdir, config, system, mesh, app.verifies())
    table = system.evaluate(state.params, SPLIT.value, full=True)
    print(f"{workdir}, step {int(state.step):,}, split {SPLIT.value}\n")
    print(results.table(table))
    print(f"\nnext  {results.command('report', workdir)}")
    results.write(workdir, SPLIT.value, int(state.step), table)
    return 0


if __name__ == "__main__":
    app.run(main)
