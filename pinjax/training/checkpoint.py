"""Checkpoints of a run."""

import contextlib
import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from pinjax import checksums, files
from pinjax.distributed import processes
from pinjax.errors import InputError
from pinjax.systems import system as system_lib
from pinjax.training import step, workdirs

_DIRECTORY = "checkpoints"
# Orbax writes these when it gives a checkpoint its name, after the checksums.
_BY_ORBAX = ("_CHECKPOINT_METADATA", "commit_success.txt")


class Checkpoints:
    """The checkpoints under `workdir`: the two latest, and the best if a metric selects.

    Saving is asynchronous; a checkpoint appears complete, with its checksums, or not at all. The
    position in the data is the step itself, since batches are a function of it. Nothing is written
    before `save` or `remove_damaged`, so other processes may read the files of a live run.

    Args:
      workdir: of the run.
      select: the metric that selects, such as "valid/R@10"; "": the latest is chosen.
      direction: whether its "max" or "min" is best.
      verify: whether checksums are compared.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        select: str = "",
        direction: str = "max",
        verify: bool = True,
    ):
        self._select, self._verify = select, verify
        self._sign = {"max": 1, "min": -1}[direction]
        self._problems: dict[int, str] = {}
        self._directory = epath.Path(workdir) / _DIRECTORY
        if not self._directory.is_absolute():  # gs:// is; its `absolute` would be a local path
            self._directory = self._directory.absolute()

    @property
    def steps(self) -> list[int]:
        """Steps done in each checkpoint, ascending."""
        if not self._directory.exists():
            return []
        paths = [x for x in self._directory.iterdir() if re.fullmatch("0|[1-9][0-9]*", x.name)]
        if files.is_remote(self._directory):  # no renaming there tells what is complete
            paths = [
                path for path in paths if (path / ocp.path.atomicity.COMMIT_SUCCESS_FILE).exists()
            ]
        return sorted(int(path.name) for path in paths)

    def evaluated(self, step: int) -> bool:
        """Whether the checkpoint of a step was saved with its evaluation."""
        return self._metrics(step) is not None

    def load_latest(self, like: Any) -> Any | None:
        """The state of the latest checkpoint; arguments and result as `load_chosen`."""
        return self._load(lambda undamaged: next(undamaged, None), like)

    def load_chosen(self, like: Any) -> Any | None:
        """The state to evaluate and to serve: the best, or else the latest.

        A damaged checkpoint is skipped, with a line that names the file. If a live run has removed
        a checkpoint meanwhile, another one is read.

        Args:
          like: pytree of arrays, or of shapes with shardings, which may differ from those it was
            saved with; or a function that makes it of the pytree of the saved shapes.

        Returns:
          The state, or None if there is no checkpoint.

        Raises:
          InputError: if all are damaged.
        """
        return self._load(self._choose, like)

    def chosen(self) -> int | None:
        """Steps done in the checkpoint that `load_chosen` reads; raises as it does."""
        return self._pick(self._choose)

    def remove_damaged(self) -> None:
        """Removes damaged checkpoints, with a line for each, so that others replace them.

        Raises:
          InputError: if all are damaged; then they stay.
        """
        self._pick(lambda undamaged: len(list(undamaged)) or None)
        if processes.is_first():
            for step in self.steps:
                if self._problem(step):
                    path = self._directory / str(step)
                    if os.path.islink(path):
                        path.unlink()
                    else:
                        path.rmtree()
        processes.wait_for_others("damaged")

    def save(self, step: int, state: Any, metrics: Mapping[str, float] | None = None) -> None:
        """Saves the state of a step, and replaces an earlier one.

        Args:
          step: steps done.
          state: pytree of arrays.
          metrics: of the state's evaluation. A NaN of the selecting metric is ignored.

        Raises:
          OSError: if this checkpoint or the one before cannot be written.
        """
        if metrics is not None:
            value = metrics.get(self._select, np.nan)
            metrics = {"evaluated": 1.0} | ({} if np.isnan(value) else {self._select: value})
        args = ocp.args.Composite(state=ocp.args.StandardSave(state))
        with files.writing_to(self._directory):
            if step in self.steps:
                self._manager.delete(step)
            self._manager.save(step, args=args, metrics=metrics, force=True)

    def wait(self) -> None:
        """Returns when all checkpoints are on disk; raises as `save`."""
        if "_manager" in vars(self):
            with files.writing_to(self._directory):
                self._manager.wait_until_finished()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if "_manager" in vars(self):
            # Of two errors, the one that ends the run is raised.
            with contextlib.suppress(*[Exception] if kind else []):
                self.wait()
                self._manager.close()

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        keep = [checkpoint_managers.LatestN(2)]
        if self._select:
            best = checkpoint_managers.BestN(
                get_metric_fn=self._value, n=1, keep_checkpoints_without_metrics=False
            )
            keep.append(best)
        return ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                best_fn=self._value,
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(keep),
                cleanup_tmp_directories=True,
                temporary_path_class=_with_checksums(self._directory),
            ),
        )

    def _value(self, metrics: Mapping[str, float]) -> float:
        return self._sign * metrics[self._select] if self._select in metrics else -np.inf

    def _metrics(self, step: int) -> dict[str, float] | None:
        """The metrics of a checkpoint; None if it has none or is damaged."""
        try:
            return json.loads((self._directory / str(step) / "metrics" / "metrics").read_bytes())
        except (OSError, ValueError):
            return None

    def _choose(self, undamaged: Iterator[int]) -> int | None:
        if not self._select:
            return next(undamaged, None)
        values = {step: self._value(self._metrics(step) or {}) for step in undamaged}
        return max(values, key=lambda step: (values[step], step), default=None)

    def _load(self, pick: Callable[[Iterator[int]], int | None], like: Any) -> Any | None:
        while (step := self._pick(pick)) is not None:
            path = self._directory / str(step) / "state"
            try:
                with ocp.StandardCheckpointer() as checkpointer:
                    if callable(like):
                        like = like(checkpointer.metadata(path).item_metadata.tree)
                    return checkpointer.restore(path, like)
            except (jax.errors.JaxRuntimeError, MemoryError):  # not caused by the checkpoint
                raise
            except Exception as error:  # any kind, if checksums are not compared
                self._problems.pop(step, None)
                removed = step not in self.steps or self._problem(step)
                if processes.count() > 1 or not removed:  # other processes may have read it
                    raise InputError(f"{path}: cannot be read: {error}") from error
        return None

    def _pick(self, pick: Callable[[Iterator[int]], int | None]) -> int | None:
        """The result of `pick` on the undamaged steps, latest first; the same in all processes."""
        picked = -1
        if processes.is_first():
            picked = pick(self._undamaged())
            picked = -1 if picked is None else picked
        picked = int(processes.as_first(np.array(picked)))
        if picked < 0 and self.steps and all(map(self._problem, self.steps)):
            problem = self._problem(self.steps[-1])
            raise InputError(f"{problem}; no undamaged checkpoint is left")
        return picked if picked >= 0 else None

    def _undamaged(self) -> Iterator[int]:
        seen = set()
        while left := sorted(set(self.steps) - seen):  # a live run saves more, and removes some
            number = left[-1]
            seen.add(number)
            if not (problem := self._problem(number)):
                yield number
            elif number in self.steps:
                print(f"{problem}; passing over checkpoint {number}", file=sys.stderr)

    def _problem(self, step: int) -> str:
        """The damage of a checkpoint, or ""; checked once."""
        if step not in self._problems:
            self._problems[step] = ""
            if self._verify:
                try:
                    checksums.verify(self._directory / str(step))
                except (InputError, FileNotFoundError) as error:
                    self._problems[step] = str(error)
        return self._problems[step]


def _with_checksums(directory: epath.Path) -> type[ocp.path.atomicity_types.TemporaryPath]:
    """Orbax's type that renames a checkpoint below `directory` after its checksums are written."""

    class Temporary(ocp.path.atomicity_defaults.get_default_temporary_path_class(directory)):
        async def finalize(self) -> None:
            if self.get().parent == directory:  # not one of the items of a checkpoint
                checksums.record(self.get(), but=_BY_ORBAX)
            await super().finalize()

    return Temporary


def claim(workdir: epath.PathLike, config: ConfigDict, identity: Mapping[str, str]) -> None:
    """Records in `workdir` which run it belongs to. Without a checkpoint it belongs to none.

    Raises:
      InputError: as `workdirs.check`.
    """
    if Checkpoints(workdir).steps:
        workdirs.check(workdir, config, identity)
    else:
        workdirs.write(workdir, config, identity)


def load_chosen(
    workdir: epath.PathLike,
    config: ConfigDict,
    system: system_lib.System,
    mesh: Mesh,
    verify: bool = True,
) -> step.State:
    """The state to evaluate and to serve of the run in `workdir`.

    The state of a system without training is empty.

    Raises:
      InputError: if `workdir` holds no checkpoint, or a run of another config, data set or
        frozen table.
    """
    if system.trainable is None:
        return step.State(step=np.int32(0), params=None, opt_state=None, sketches=None, key=None)
    workdirs.check(workdir, config, system.identity)
    optimizer = step.make_optimizer(config.train)
    like = step.abstract_state(system.trainable, optimizer, config.train, mesh)
    state = of_run(workdir, config, system, verify).load_chosen(like)
    if state is None:
        raise InputError(f"{workdir} holds no checkpoint yet")
    return state


def of_run(
    workdir: epath.PathLike, config: ConfigDict, system: system_lib.System, verify: bool = True
) -> Checkpoints:
    """The checkpoints of a run, with the selection of its config.

    Raises:
      InputError: if `train.select` is not a validation metric of the system, or there is none.
    """
    select = config.train.select
    directions = {
        f"valid/{name}": direction for name, direction in system.evaluator.metrics.items()
    }
    if select and select not in directions:
        reason = f"is none of {', '.join(directions)}" if directions else "needs a validation split"
        raise InputError(f"train.select: {select!r} {reason}")
    return Checkpoints(workdir, select, directions.get(select, "max"), verify)


def identity(
    config: ConfigDict, system: system_lib.System, params: Any, step: int
) -> dict[str, int | str]:
    """What a manifest says of the run: hashes of its parameters, its data and its config.

    Of the data set its digest counts, of training the parameters.
    """
    fields = workdirs.served_fields(config)
    return {
        "step": step,
        "system": config.system,
        "checkpoint": hash_of(params),
        **system.identity,
        "config": hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest(),
    }


def hash_of(params: Any) -> str:
    """Hash of parameters; the same in all processes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(processes.gathered(leaf).tobytes())
    return digest.hexdigest()
