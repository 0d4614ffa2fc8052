"""The training loop: one readable page for every system."""

import dataclasses
import functools
import signal
from collections.abc import Callable, Iterator

import jax
import numpy as np
import tqdm
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.errors import InputError
from pinjax.systems import system as system_lib
from pinjax.training import checkpoint, metrics_writer, processes, sharding, step

_IN_FLIGHT = 2  # steps given to the device before the loop waits for the oldest
_UNTRACED = 10  # first steps, of which the first compiles


@dataclasses.dataclass(frozen=True)
class Result:
    """What `train` ends with.

    Attributes:
      state: after the last step that was made.
      finished: False where SIGTERM ended the run early; its state is saved.
    """

    state: step.State
    finished: bool


def train(
    system: system_lib.System,
    config: ConfigDict,
    mesh: Mesh,
    workdir: epath.PathLike,
    checkpoints: checkpoint.Checkpoints,
    traced: int = 0,
) -> Result:
    """Trains `system` for `config.steps` steps, going on from the newest checkpoint if any.

    Args:
      system: what to train.
      config: the `train` section of a run's config.
      mesh: of all devices; the batch is sharded over `data`, the state as the config says.
      workdir: metrics go here.
      checkpoints: of this run.
      traced: steps of which a profiler's trace is written to `workdir`, after the first ten.

    Raises:
      InputError: where the config's sharding does not fit, too few steps are left to trace, there
        is no such metric as `select`, which is known after the first evaluation, or the loss stops
        being finite; the batch that did it is saved in `workdir`.
    """
    # State: fresh or restored.
    optimizer = step.make_optimizer(config)
    like = step.abstract_state(system, optimizer, config, mesh)
    places = jax.tree.map(lambda x: x.sharding, like)
    if checkpoints.latest is None:
        init = functools.partial(step.init_state, system, optimizer, config.seed)
        state = jax.jit(init, out_shardings=places)()
    else:
        state = checkpoints.restore(checkpoints.latest, like)
    first = int(state.step)
    tracing = range(first + _UNTRACED, first + _UNTRACED + traced)
    if tracing and tracing.stop > config.steps:
        raise InputError(
            f"a trace of {traced} steps takes {_UNTRACED + traced}, but only "
            f"{config.steps - first} are left to train"
        )

    # The step.
    train_step = jax.jit(
        step.make_step(system, optimizer),
        donate_argnums=0,
        out_shardings=(places, sharding.replicated(mesh)),
    )
    writer = metrics_writer.MetricsWriter(workdir, first) if processes.is_first() else None
    stop = _StopOnSigterm()
    progress = tqdm.tqdm(
        total=config.steps,
        initial=first,
        unit="step",
        dynamic_ncols=True,
        disable=not processes.is_first(),
    )
    pending: list[system_lib.Metrics] = []

    # The loop.
    with stop, progress:
        batches = system.batches(first)
        done, stopping = first, False
        while done < config.steps and not stopping:
            if tracing and done == tracing.start:
                checkpoints.wait()  # so that none is written beside the steps
                jax.profiler.start_trace(workdir, profiler_options=_profiler_options())
            batch = sharding.place_batch(mesh, next(batches))
            state, metrics = train_step(state, system.frozen, batch)
            pending.append(metrics)
            done += 1
            progress.update()
            if len(pending) > _IN_FLIGHT:
                jax.block_until_ready(pending[-1 - _IN_FLIGHT])
            if tracing and done == tracing.stop:
                jax.block_until_ready(metrics)
                jax.profiler.stop_trace()

            stopping = processes.agree_to_stop(stop.requested, done)
            last = done == config.steps
            evaluating = last or _due(done, config.evaluate_every)
            saving = last or evaluating or stopping or _due(done, config.checkpoint_every)
            if not (saving or _due(done, config.log_every)):
                continue
            means = _fetch(pending, done, workdir, system.batches)
            pending.clear()
            progress.set_postfix({"loss": f"{means['loss']:.4f}"}, refresh=False)
            if evaluating:
                best = _first_row(system.evaluate(state.params, "valid"))
                means |= {f"valid/{name}": value for name, value in best.items()}
                if config.select:
                    system_lib.check_choice("train.select", config.select, sorted(means))
            if writer:
                writer.write(done, means)
            if saving:
                checkpoints.save(done, state, means if evaluating else None)
    checkpoints.wait()
    if writer:
        writer.close()
    return Result(state, done == config.steps)


def _profiler_options() -> jax.profiler.ProfileOptions:
    """What is traced: devices and JAX, but no calls in Python.

    To trace these the profiler goes into the state of every thread, and a run once crashed that was
    tracing while a checkpoint was written.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    return options


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _first_row(table: system_lib.Table) -> dict[str, float]:
    return {name: estimate.value for name, estimate in table.rows[0].metrics.items()}


def _fetch(
    pending: list[system_lib.Metrics],
    done: int,
    workdir: epath.PathLike,
    batches: Callable[[int], Iterator[system_lib.Batch]],
) -> dict[str, float]:
    """Means of the metrics of the last steps, once they are known to be finite."""
    fetched = jax.tree.map(lambda *x: np.stack(x), *jax.device_get(pending))
    finite = np.isfinite(fetched["loss"])
    if not finite.all():
        bad = done - len(pending) + int(np.argmin(finite))
        path = epath.Path(workdir) / f"bad_batch_{bad + 1}_of_process_{jax.process_index()}.npz"
        with path.open("wb") as file:
            np.savez(file, **next(batches(bad)))
        raise InputError(
            f"the loss of step {bad + 1} is {fetched['loss'][~finite][0]}; its batch is in {path}; "
            "a lower train.learning_rate or train.clip_norm may help"
        )
    return {name: float(values.mean()) for name, values in fetched.items()}


class _StopOnSigterm:
    """Notes SIGTERM (a preemption) instead of dying of it, while inside.

    Of several processes each has JAX's handler, which tells the others.
    """

    def __init__(self):
        self.requested = False

    def __enter__(self):
        if processes.count() == 1:
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def _note(self, signum, frame):
        self.requested = True

    def __exit__(self, *exc):
        if processes.count() == 1:
            signal.signal(signal.SIGTERM, self._previous)
