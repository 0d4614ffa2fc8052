"""A former run, on an earlier state of the log, from which training or embedding goes on."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from pinjax import checksums
from pinjax.data import item_features
from pinjax.data.dataset import Dataset
from pinjax.data.fitted import Fitted
from pinjax.distributed import processes, sharding
from pinjax.errors import InputError
from pinjax.systems import registry, system
from pinjax.training import checkpoint, step, warm_start

_ALIKE = 0.5  # cosine of an item's vectors in two data sets, at most, if the spaces are others


def read(workdir: epath.Path) -> dict[str, Any]:
    """The config and the identity of the run in a work directory.

    Raises:
      InputError: if there is none.
    """
    path = workdir / "run.json"
    if not path.exists():
        raise InputError(f"{workdir} holds no run; train one with --workdir={workdir}")
    return checksums.read(path)


def fitted_of(workdir: epath.Path) -> Fitted | None:
    """What the features of the run in a work directory were fitted to, if it began from another."""
    return Fitted.load(workdir) if checkpoint.Checkpoints(workdir).steps else None


@dataclasses.dataclass(frozen=True, eq=False)
class Former:
    """A former run.

    Attributes:
      workdir: of the run.
      run: its config and identity, as recorded.
      dataset: what it was trained on.
      mesh: of the devices.
      verify: whether checksums are compared.
    """

    workdir: epath.Path
    run: Mapping[str, Any]
    dataset: Dataset
    mesh: Mesh
    verify: bool

    @classmethod
    def open(cls, workdir: epath.Path, config: ConfigDict, mesh: Mesh, verify: bool) -> "Former":
        """Opens a run and its data set.

        Args:
          workdir: of the run.
          config: of the run, or the embeddings, that go on from it.
          mesh: of the devices.
          verify: whether checksums are compared.

        Raises:
          InputError: if there is no run, or one of another system, or its data set is gone.
        """
        run = read(workdir)
        name = run["config"]["system"]
        if name != config.system:
            raise InputError(f"{workdir} holds a run of system={name!r}, not {config.system!r}")
        data = run["config"]["data"] | {"dir": config.data.dir}
        dataset, _ = registry.open_dataset(ConfigDict({"data": data}), verify)
        if dataset.spec.digest != run["dataset"]:
            raise InputError(
                f"{workdir} holds a run on data set {run['dataset']}, and {data['name']} is now "
                f"{dataset.spec.digest}; keep the data set of a run for as long as it is used"
            )
        if fitted := fitted_of(workdir):
            dataset = dataset.with_fitted(fitted)
        return cls(workdir, run, dataset, mesh, verify)

    def begin(self, config: ConfigDict) -> tuple[system.System, step.State]:
        """A system on the data set of a config, and its state before the first step.

        Parameters are those that the run would serve, new rows as at the start of any training;
        `warm_start` says why the rest begins anew. What features were fitted to is `fitted` of the
        system's data set.

        Raises:
          InputError: as `load` and `carry`.
        """
        made = registry.create(config, self.mesh, self.verify, self.fit(""))
        registry.check_trained(config, made.trainable)
        params = self.load(made).params
        fitted = self.fit(warm_start.digest(params))
        made = dataclasses.replace(
            made,
            dataset=dataclasses.replace(made.dataset, fitted=fitted),
            identity=made.identity | fitted.identity,
        )
        state = step.begin(made.trainable, config.train, self.mesh)
        fresh = jax.tree.map(processes.gathered, state.params)
        carried = self.carry(params, fresh, made, config)
        return made, state.replace(params=warm_start.place(carried, state.params))

    def fit(self, params: str) -> Fitted:
        """What features were fitted to, for a run that begins from parameters of this digest."""
        arrays = item_features.fit(self.dataset, self.run["config"]["data"].get("pca_dim", 0))
        return Fitted(arrays, params)

    def load(self, made: system.System) -> step.State:
        """The step and the parameters that it would serve.

        Args:
          made: the system, on any data set.

        Raises:
          InputError: if it holds no checkpoint.
        """
        config = ConfigDict(self.run["config"])
        checkpoints = checkpoint.of_run(self.workdir, config, made, self.verify)
        saved = checkpoints.load_chosen(lambda shapes: jax.tree.map(self._by_rows, shapes))
        if saved is None:
            raise InputError(f"{self.workdir} holds no checkpoint yet")
        return step.State(**saved)

    def carry(self, params: Any, like: Any, made: system.System, config: ConfigDict) -> Any:
        """Its parameters for a later state of the log, as `warm_start.carry`.

        Args:
          params: of the run.
          like: values of new rows.
          made: the system on the later data set.
          config: of `made`.

        Raises:
          InputError: as `warm_start.carry`, or if the vectors of items lie in another space.
        """
        later = made.dataset
        _check_space(self.dataset, later, str(self.workdir))
        ends = [
            warm_start.End(dataset.names, sharding.table_layout(self.mesh, train))
            for dataset, train in (
                (self.dataset, ConfigDict(self.run["config"]["train"])),
                (later, config.train),
            )
        ]
        return warm_start.carry(params, like, made.trainable.rows, *ends, str(self.workdir))

    def _by_rows(self, saved: Any) -> jax.ShapeDtypeStruct:
        """The saved shape, over all devices if they divide its rows."""
        divided = saved.shape and saved.shape[0] % self.mesh.size == 0
        spec = PartitionSpec(self.mesh.axis_names if divided else None)
        place = NamedSharding(self.mesh, spec if saved.shape else PartitionSpec())
        return jax.ShapeDtypeStruct(saved.shape, saved.dtype, sharding=place)


def _check_space(former: Dataset, later: Dataset, name: str) -> None:
    """Rejects vectors of another space than those that a model was trained with."""
    before, after = former.catalogue.content, later.catalogue.content
    if before is None or after is None or before.shape[1] != after.shape[1]:
        return  # parameters have another shape then
    place = warm_start.match(former.catalogue.ids, later.catalogue.ids, f"{name}: ids of items")
    both = np.flatnonzero(place >= 0)
    both = both[:: 1 + len(both) // 10_000]
    one, other = (item_features.unit_length(x) for x in (before[place[both]], after[both]))
    known = one.any(axis=1) & other.any(axis=1)
    alike = np.sum(one * other, axis=1)[known]
    if len(alike) and np.median(alike) < _ALIKE:
        raise InputError(
            f"{name}: {later.spec.name} has other content vectors of the same items, with a median "
            f"cosine of {np.median(alike):.2f}; expected vectors in the space of training"
        )
