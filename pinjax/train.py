"""Trains a system and measures it.

    python -m pinjax.train --config=configs/pinnerformer.py --workdir=DIR

A run that was stopped goes on with the same command, and on an accelerator it does not compile
its programs again.
"""

import contextlib
from collections.abc import Sequence

import jax
from absl import flags

from pinjax import app, files, results
from pinjax.distributed import processes, sharding
from pinjax.systems import registry
from pinjax.training import checkpoint, loop

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
    mesh = sharding.mesh_of(config)
    system = registry.create(config, mesh, app.verifies())
    registry.check_trained(config, system.trainable)
    system.check_training()
    splits = ("valid", "test") if system.metrics else ("test",)
    evaluated_on = "; ".join(f"{split}: {system.evaluated_on(split)}" for split in splits)
    with contextlib.ExitStack() as stack:
        checkpoints = checkpoint.of_run(workdir, config, system, app.verifies())
        with processes.first_before_others():
            if processes.is_first():
                stack.enter_context(files.only_writer(workdir))
                checkpoint.claim(workdir, config, system.identity)
        stack.enter_context(checkpoints)
        print(results.summary(system, config, mesh, workdir, evaluated_on))

        if jax.default_backend() != "cpu":  # whose programs fit one machine alone
            jax.config.update("jax_compilation_cache_dir", str(workdir / "compiled"))
        result = loop.train(system, config.train, mesh, workdir, checkpoints, PROFILE.value)
        state = result.state
        if result.stopped:
            print(f"stopped after step {int(state.step)}; run the same command again to continue")
            return result.stopped.exit_code
        if config.train.select and checkpoints.chosen() != int(state.step):
            state = checkpoints.load_chosen(state)
        table = system.evaluate(state.params, "test", full=True)
        print(f"\n{results.table(table)}\n\n{results.next_commands(workdir, app.flags_of_run())}")
        results.write(workdir, "test", int(state.step), table)
    return 0


if __name__ == "__main__":
    app.run(main, trains=True)
