"""The training loop: one readable page for every system."""

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import tqdm
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax import files, signals
from pinjax.distributed import processes, sharding
from pinjax.errors import InputError
from pinjax.systems import system as system_lib
from pinjax.training import checkpoint, metrics_writer, step

_IN_FLIGHT = 2  # steps dispatched before the loop waits for the oldest
_UNTRACED = 10  # the first steps of a run; the first one compiles


@dataclasses.dataclass(frozen=True)
class Result:
    """The end of a training run.

    Attributes:
      state: after the last step.
      stopped: the signal that ended the run; its state is saved. None: the run is finished.
    """

    state: step.State
    stopped: signals.Stopped | None


def train(
    system: system_lib.System,
    config: ConfigDict,
    mesh: Mesh,
    workdir: epath.PathLike,
    checkpoints: checkpoint.Checkpoints,
    traced: int = 0,
) -> Result:
    """Trains `system` for `config.steps` steps, resuming from the latest checkpoint if any.

    Args:
      system: what to train.
      config: the `train` section of a run's config.
      mesh: of all devices; the batch is sharded over `data`, the state as the config says.
      workdir: metrics go here.
      checkpoints: of this run.
      traced: steps of which a profiler's trace is written to `workdir`, after the first ten.

    Raises:
      InputError: if the config's sharding does not fit, too few steps are left to trace, or the
        loss or its gradient is not finite; then the batch is saved in `workdir`.
      OSError: if `workdir` cannot be written.
    """
    # State: fresh or restored.
    optimizer = step.make_optimizer(config)
    like = step.abstract_state(system.trainable, optimizer, config, mesh)
    places = jax.tree.map(lambda x: x.sharding, like)
    checkpoints.remove_damaged()
    state = checkpoints.load_latest(like)
    if state is None:
        state = step.begin(system.trainable, config, mesh)
    first = int(state.step)
    tracing = range(first + _UNTRACED, first + _UNTRACED + traced)
    if tracing and tracing.stop > config.steps:
        raise InputError(
            f"a trace of {traced} steps takes {_UNTRACED + traced}, but only "
            f"{config.steps - first} are left to train"
        )

    # The step.
    train_step = jax.jit(
        step.make_step(system.trainable, optimizer),
        donate_argnums=0,
        out_shardings=(places, sharding.replicated(mesh)),
    )

    with contextlib.ExitStack() as stack:
        writer = None
        if processes.is_first():
            writer = stack.enter_context(metrics_writer.MetricsWriter(workdir, first))
        progress = stack.enter_context(
            tqdm.tqdm(
                total=config.steps,
                initial=first,
                unit="step",
                dynamic_ncols=True,
                disable=not processes.is_first(),
            )
        )
        stop = stack.enter_context(signals.deferred(alone=processes.count() == 1))

        def report(done: int, means: dict[str, float], evaluating: bool, saving: bool) -> bool:
            """Writes metrics and a checkpoint; False if a signal ended the evaluation."""
            evaluation = None
            if evaluating:
                with contextlib.suppress(signals.Stopped), stop.checked():
                    evaluation = _evaluate(system, state.params)
            if writer:
                writer.write(done, means | (evaluation or {}))
            if saving and (evaluation is not None or done > first):  # else it lies there already
                checkpoints.save(done, state, evaluation)
            return evaluation is not None or not evaluating

        # The loop.
        def evaluation_due(done: int) -> bool:
            return done == config.steps or _due(done, config.evaluate_every)

        pending: list[system_lib.Metrics] = []
        done, stopping = first, False
        if first and evaluation_due(first) and not checkpoints.evaluated(first):
            stopping = not report(first, {}, evaluating=True, saving=True)
        trace = stack.enter_context(contextlib.ExitStack())
        batches = stack.enter_context(contextlib.closing(system.batches(first)))
        while done < config.steps and not stopping:
            if tracing and done == tracing.start:
                jax.block_until_ready(state)
                checkpoints.wait()  # so that none is written during the traced steps
                trace.enter_context(_tracing(workdir))
            batch = sharding.place_batch(mesh, next(batches))
            state, metrics = train_step(state, system.constants, batch)
            pending.append(metrics)
            done += 1
            progress.update()
            if len(pending) > _IN_FLIGHT:
                jax.block_until_ready(pending[-1 - _IN_FLIGHT])
            if tracing and done == tracing.stop:
                jax.block_until_ready(metrics)
                trace.close()

            stopping = processes.agree_to_stop(stop.requested is not None, done)
            evaluating = evaluation_due(done)
            saving = evaluating or stopping or _due(done, config.checkpoint_every)
            if not (saving or _due(done, config.log_every)):
                continue
            means = _fetch(pending, done, workdir, system.batches)
            pending.clear()
            progress.set_postfix({"loss": f"{means['loss']:.4f}"}, refresh=False)
            stopping |= not report(done, means, evaluating, saving)
        checkpoints.wait()
    # Read after everything is closed, so that a signal that comes meanwhile is not lost.
    stopped = stopping or stop.requested is not None
    return Result(state, signals.Stopped(stop.requested or signal.SIGTERM) if stopped else None)


def _evaluate(system: system_lib.System, params: Any) -> dict[str, float]:
    """The first row of the table of the validation users, by the names of metrics, if any."""
    if not system.evaluator.metrics:
        return {}
    row = system.evaluate(params, "valid").rows[0]
    return {f"valid/{name}": estimate.value for name, estimate in row.metrics.items()}


@contextlib.contextmanager
def _tracing(directory: epath.PathLike) -> Iterator[None]:
    """Traces devices and JAX, but not Python calls, which would slow down every thread."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    jax.profiler.start_trace(directory, profiler_options=options)
    try:
        yield
    finally:
        jax.profiler.stop_trace()


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _fetch(
    pending: list[system_lib.Metrics],
    done: int,
    workdir: epath.PathLike,
    batches: Callable[[int], Iterator[system_lib.Batch]],
) -> dict[str, float]:
    """Means of the metrics of the pending steps.

    Raises:
      InputError: if the loss or the gradient of a step is not finite.
    """
    fetched = jax.tree.map(lambda *x: np.stack(x), *jax.device_get(pending))
    finite = np.isfinite(fetched["loss"]) & np.isfinite(fetched["gradient_norm"])
    if not finite.all():
        first_bad = int(np.argmin(finite))
        bad = done - len(pending) + first_bad
        loss, norm = fetched["loss"][first_bad], fetched["gradient_norm"][first_bad]
        path = epath.Path(workdir) / f"bad_batch_{bad + 1}_of_process_{jax.process_index()}.npz"
        with contextlib.closing(batches(bad)) as again, files.replacing(path) as file:
            np.savez(file, **next(again))
        raise InputError(
            f"step {bad + 1} has the loss {loss:g} and a gradient of norm {norm:g}; its batch is "
            f"in {path}; a lower train.learning_rate or train.clip_norm may help"
        )
    return {name: float(values.mean()) for name, values in fetched.items()}
