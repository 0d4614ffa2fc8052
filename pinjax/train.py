"""Trains a system and measures it.

    python -m pinjax.train --config=configs/pinnerformer.py --workdir=DIR

A run that was stopped goes on with the same command, and on an accelerator it does not compile
its programs again.
"""

from collections.abc import Sequence

import jax
from absl import flags

from pinjax import app, results
from pinjax.systems import registry
from pinjax.training import checkpoint, loop, processes, sharding

CONFIG, WORKDIR = app.run_flags()
PROFILE = flags.DEFINE_integer(
    "profile",
    0,
    "trace so many steps, for TensorBoard's profiler or xprof: --logdir=WORKDIR",
    lower_bound=0,
)


def main(argv: Sequence[str]) -> int:
    del argv
    config, workdir = CONFIG.value, app.workdir_of(WORKDIR)
    mesh = sharding.make_mesh(model=config.train.model_devices)
    system = registry.create(config, mesh)
    with processes.first_before_others():
        checkpoint.claim(workdir, config, system.identity)
    checkpoints = checkpoint.Checkpoints(workdir, config.train.select)
    print(results.summary(system, config, mesh, workdir))

    if jax.default_backend() != "cpu":  # whose programs fit one machine alone
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
    result = loop.train(system, config.train, mesh, workdir, checkpoints, PROFILE.value)
    if not result.finished:
        print(f"stopped after step {int(result.state.step)}; the same command goes on from there")
        return app.EXIT_PREEMPTED

    state = result.state
    if checkpoints.chosen != int(state.step):
        state = checkpoints.restore(checkpoints.chosen, state)
    checkpoints.close()
    rows = system.evaluate(state.params, "test", full=True)
    results.write(workdir, "test", int(state.step), rows)
    print(f"\n{results.table(rows)}\n\n{results.next_commands(workdir, app.flags_of_run())}")
    return 0


if __name__ == "__main__":
    app.run(main)
