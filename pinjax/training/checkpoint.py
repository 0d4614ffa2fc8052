"""Checkpoints of a run, and the rule that a work directory belongs to one run."""

import json
from collections.abc import Mapping
from typing import Any

import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict
from orbax.checkpoint import checkpoint_managers

from pinjax.errors import InputError
from pinjax.systems import system as system_lib
from pinjax.training import step

_RUN_FILE = "run.json"
# What may differ between the calls of one run: it changes no parameter, but for rounding.
_FREE = (
    *("evaluate.", "data.dir", "data.workers", "train.log_every"),
    *("train.model_devices", "train.shard", "train.shard_optimizer"),
)


class Checkpoints:
    """The checkpoints under `workdir`: the two latest, and the best where one metric chooses.

    Saving is asynchronous; a checkpoint is there whole or not at all. The position in the data is
    the step itself, since batches are a function of it.
    """

    def __init__(self, workdir: epath.PathLike, select: str = ""):
        self._select = select
        directory = epath.Path(workdir) / "checkpoints"
        if not directory.is_absolute():  # as gs:// is, whose `absolute` would be below here
            directory = directory.absolute()
        keep = [checkpoint_managers.LatestN(2)]
        if select:
            keep.append(
                checkpoint_managers.BestN(
                    get_metric_fn=lambda metrics: metrics[select],
                    n=1,
                    keep_checkpoints_without_metrics=False,
                )
            )
        self._manager = ocp.CheckpointManager(
            directory,
            options=ocp.CheckpointManagerOptions(
                best_fn=(lambda metrics: metrics[select]) if select else None,
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(keep),
                cleanup_tmp_directories=True,
            ),
        )

    @property
    def latest(self) -> int | None:
        """Steps done in the newest checkpoint; None where there is none."""
        return self._manager.latest_step()

    @property
    def chosen(self) -> int | None:
        """The checkpoint to evaluate and to serve: the best, or else the newest."""
        return self._manager.best_step() if self._select else self.latest

    def save(self, step: int, state: Any, metrics: Mapping[str, float] | None = None) -> None:
        args = ocp.args.Composite(state=ocp.args.StandardSave(state))
        self._manager.save(step, args=args, metrics=dict(metrics) if metrics else None, force=True)

    def restore(self, step: int, like: Any) -> Any:
        """The state of a step.

        Args:
          step: of a checkpoint that is there.
          like: pytree of arrays, or of shapes with shardings; it lies as these do, which need not
            be as it was written from.
        """
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like))
        return self._manager.restore(step, args=args).state

    def wait(self) -> None:
        """Returns when all that was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def claim(workdir: epath.PathLike, config: ConfigDict, identity: Mapping[str, str]) -> None:
    """Notes in `workdir` which run it belongs to, or checks that it belongs to this one.

    Raises:
      InputError: where the directory holds a run of another config, data set or frozen table.
    """
    run = {"config": json.loads(config.to_json()), **identity}
    path = epath.Path(workdir) / _RUN_FILE
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(run, indent=2, sort_keys=True) + "\n")
        temporary.replace(path)
        return
    old, new = _flatten(json.loads(path.read_text())), _flatten(run)
    for name in sorted(old.keys() | new.keys()):
        short = name.removeprefix("config.")
        if old.get(name) != new.get(name) and not _is_free(short):
            raise InputError(
                f"{workdir} holds a run with {short}={old.get(name)}, this one has "
                f"{short}={new.get(name)}; choose another --workdir"
            )


def _is_free(field: str) -> bool:
    return any(field == free or (free.endswith(".") and field.startswith(free)) for free in _FREE)


def load_chosen(
    workdir: epath.PathLike, config: ConfigDict, system: system_lib.System, mesh: Mesh
) -> step.State:
    """The state of the run in `workdir` that is to be evaluated and served.

    Raises:
      InputError: where `workdir` holds no checkpoint, or a run of another config, data set or
        frozen table.
    """
    if not (epath.Path(workdir) / _RUN_FILE).exists():
        raise InputError(f"{workdir} holds no run; train one with --workdir={workdir}")
    claim(workdir, config, system.identity)
    checkpoints = Checkpoints(workdir, config.train.select)
    if checkpoints.chosen is None:
        raise InputError(f"{workdir} holds no checkpoint yet")
    optimizer = step.make_optimizer(config.train)
    like = step.abstract_state(system, optimizer, config.train, mesh)
    state = checkpoints.restore(checkpoints.chosen, like)
    checkpoints.close()
    return state


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
