"""Trains a system and measures it.

    python -m pinjax.train --config=configs/pinnerformer.py --workdir=DIR

A run that was stopped goes on with the same command, and on an accelerator it does not compile
its programs again. On a longer log, a new run takes fewer steps from a previous one's parameters:

    python -m pinjax.train --config=configs/pinnerformer.py --config.data.name=TODAY \
        --config.train.steps=40 --config.train.warmup_steps=10 --workdir=NEW --warm_start=FORMER
"""

import contextlib
from collections.abc import Sequence

import jax
from absl import flags
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax import app, files, results
from pinjax.distributed import processes, sharding
from pinjax.errors import InputError
from pinjax.serving import previous
from pinjax.systems import registry
from pinjax.systems import system as system_lib
from pinjax.training import checkpoint, loop, step

CONFIG, WORKDIR = app.run_flags()
PROFILE = flags.DEFINE_integer(
    "profile",
    0,
    "number of steps to trace, for TensorBoard's profiler or xprof: --logdir=WORKDIR",
    lower_bound=0,
)
WARM_START = flags.DEFINE_string(
    "warm_start",
    None,
    "directory of a run on an earlier state of the log: begin from its parameters",
)


def main(argv: Sequence[str]) -> int:
    del argv
    config, workdir = CONFIG.value, app.workdir_of(WORKDIR)
    mesh = sharding.mesh_of(config)
    system, first = _begin(config, workdir, mesh)
    registry.check_trained(config, system.trainable)
    system.check_training()
    source = system.evaluator.source
    splits = ("valid", "test") if source.validates else ("test",)
    evaluated_on = "; ".join(f"{split}: {source.describe(split)}" for split in splits)
    with contextlib.ExitStack() as stack:
        checkpoints = checkpoint.of_run(workdir, config, system, app.verifies())
        with processes.first_before_others():
            if processes.is_first():
                stack.enter_context(files.only_writer(workdir))
                checkpoint.claim(workdir, config, system.identity)
                if first:
                    system.dataset.fitted.save(workdir)
        stack.enter_context(checkpoints)
        if first:  # so that the run goes on from here, whatever becomes of the previous one
            checkpoints.save(0, first)
            checkpoints.wait()
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
        print(f"\n{results.table(table)}\n\n{results.next_commands(workdir)}")
        results.write(workdir, "test", int(state.step), table)
    return 0


def _begin(
    config: ConfigDict, workdir: epath.Path, mesh: Mesh
) -> tuple[system_lib.System, step.State | None]:
    """The system, and the state to begin from if that is a previous run's."""
    fitted, given = previous.fitted_of(workdir), WARM_START.value
    if given is not None and checkpoint.Checkpoints(workdir).steps:
        if fitted is None:
            raise InputError(
                f"{workdir} holds a run that did not begin from another; choose another --workdir"
            )
    elif given is not None:
        directory = app.directory("--warm_start", given)
        return previous.PreviousRun.open(directory, config, mesh, app.verifies()).begin(config)
    return registry.create(config, mesh, app.verifies(), fitted), None


if __name__ == "__main__":
    app.run(main, trains=True)
