"""A previous run, on an earlier state of the log, from which training or embedding goes on."""

import dataclasses
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from pinjax import config_json
from pinjax.data import dataset as dataset_lib
from pinjax.data import embeddings, item_features
from pinjax.data.dataset import Dataset
from pinjax.data.fitted import Fitted
from pinjax.distributed import processes, sharding
from pinjax.errors import InputError
from pinjax.serving import spaces
from pinjax.systems import registry, system
from pinjax.training import checkpoint, step, warm_start, workdirs


def fitted_of(workdir: epath.Path) -> Fitted | None:
    """What the features of the run in a work directory were fitted to, if it began from another.

    A run that ended before its first checkpoint may have left a file that is none of this run's.
    """
    if not checkpoint.Checkpoints(workdir).steps or "fitted" not in workdirs.identity_of(workdir):
        return None
    return Fitted.load(workdir)


def bind(
    workdir: epath.Path, config: ConfigDict, mesh: Mesh, verify: bool
) -> tuple[system.System, step.State, Any]:
    """The model of a run, on the data set of a config: the run's own, or a later state of its log.

    Args:
      workdir: of the run.
      config: of the run; `data.name` may differ, and how it was trained then makes no difference.
      mesh: of the devices.
      verify: whether checksums are compared.

    Returns:
      the system, its state, and the parameters as they are on the run's own data set.

    Raises:
      InputError: as `checkpoint.load_chosen` or `PreviousRun.serve`.
    """
    if "train" in config and _is_of_another_log(workdir, config):
        return PreviousRun.open(workdir, config, mesh, verify).serve(config)
    made = registry.create(config, mesh, verify, fitted_of(workdir))
    state = checkpoint.load_chosen(workdir, config, made, mesh, verify)
    return made, state, state.params


def _is_of_another_log(workdir: epath.Path, config: ConfigDict) -> bool:
    if workdirs.config_of(workdir).data.name == config.data.name:
        return False
    dataset, _ = registry.open_dataset(config, verify=False)
    return dataset.spec.digest != workdirs.identity_of(workdir)["dataset"]  # else it has moved


@dataclasses.dataclass(frozen=True, eq=False)
class PreviousRun:
    """A previous run.

    Attributes:
      workdir: of the run.
      config: of the run.
      dataset: what it was trained on.
      spaces: of `data.vectors`, by `embeddings.spaces`.
      mesh: of the devices.
      verify: whether checksums are compared.
    """

    workdir: epath.Path
    config: ConfigDict
    dataset: Dataset
    spaces: str
    mesh: Mesh
    verify: bool

    @classmethod
    def open(
        cls, workdir: epath.Path, config: ConfigDict, mesh: Mesh, verify: bool
    ) -> "PreviousRun":
        """Opens a run and its data set.

        Args:
          workdir: of the run.
          config: of the run, or the embeddings, that go on from it.
          mesh: of the devices.
          verify: whether checksums are compared.

        Raises:
          InputError: if there is no run, or one of another system, or its data set is gone.
        """
        of_run, identity = workdirs.config_of(workdir), workdirs.identity_of(workdir)
        if of_run.system != config.system:
            raise InputError(
                f"{workdir} holds a run with system={of_run.system}, not {config.system}"
            )
        of_run.data.dir = config.data.dir
        dataset, found = registry.open_dataset(of_run, verify)
        if dataset.spec.digest != identity["dataset"]:
            raise InputError(
                f"{workdir} holds a run on data set {identity['dataset']}, and {of_run.data.name} "
                f"is now {dataset.spec.digest}; keep a run's data set for as long as the run"
            )
        if fitted := fitted_of(workdir):
            dataset = dataset.with_fitted(fitted)
        return cls(workdir, of_run, dataset, embeddings.spaces(found), mesh, verify)

    def begin(self, config: ConfigDict) -> tuple[system.System, step.State]:
        """A system on the data set of a config, and its state before the first step.

        Parameters are those that the run would serve, new rows as at the start of any training;
        `warm_start` says why the rest begins anew. What features were fitted to is `fitted` of the
        system's data set.

        Raises:
          InputError: as `_load` and `warm_start.carry`.
        """
        made = self._create(config)
        registry.check_trained(config, made.trainable)
        params = self._load(made).params
        fitted = self._fit(checkpoint.hash_of(params))
        made = dataclasses.replace(
            made,
            dataset=dataclasses.replace(made.dataset, fitted=fitted),
            identity=made.identity | fitted.identity,
        )
        state = step.begin(made.trainable, config.train, self.mesh)
        fresh = jax.tree.map(processes.gathered, state.params)
        carried = self._carry(params, fresh, made, config)
        return made, state.replace(params=warm_start.place(carried, state.params))

    def serve(self, config: ConfigDict) -> tuple[system.System, step.State, Any]:
        """As the function `bind`, for a later state of the log.

        What training had not seen is unknown to the model: learned rows of new items, tokens or
        action types are zero.

        Raises:
          InputError: if the config is not the run's, `data.vectors` are of another system, or as
            `begin`.
        """
        served = workdirs.served_fields(self.config), workdirs.served_fields(config)
        if different := config_json.first_difference(*served):
            name, old, new = different
            raise InputError(f"{self.workdir} holds a run with {name}={old}, not {new}")
        names, copies = config.data.vectors, dataset_lib.copies(config.data.dir)
        found = embeddings.find(names, copies, verify=False) if names else []
        if embeddings.spaces(found) != self.spaces:
            raise InputError(
                f"{self.workdir} holds a run on vectors by other parameters than those of "
                f"data.vectors={names!r}; expected embeddings by the same, of {config.data.name}"
            )
        made = self._create(config)
        state = self._load(made)
        optimizer = step.make_optimizer(config.train)
        like = step.abstract_state(made.trainable, optimizer, config.train, self.mesh).params
        nothing = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)
        carried = self._carry(state.params, nothing, made, config)
        return made, state.replace(params=warm_start.place(carried, like)), state.params

    def _create(self, config: ConfigDict) -> system.System:
        """The system on a later data set.

        Raises:
          InputError: if vectors of items or queries lie in another space.
        """
        made = registry.create(config, self.mesh, self.verify, self._fit(""))
        _check_spaces(self.dataset, made, config, str(self.workdir))
        return made

    def _fit(self, params: str) -> Fitted:
        """What features were fitted to, for a run that begins from parameters of this digest."""
        components = self.config.data.get("pca_dim", 0)
        return Fitted(item_features.fit(self.dataset, components), params)

    def _load(self, made: system.System) -> step.State:
        """The step and the parameters that it would serve; `made` is of any data set."""
        checkpoints = checkpoint.of_run(self.workdir, self.config, made, self.verify)
        saved = checkpoints.load_chosen(lambda shapes: jax.tree.map(self._by_rows, shapes))
        if saved is None:
            raise InputError(f"{self.workdir} holds no checkpoint yet")
        return step.State(**saved)

    def _carry(self, params: Any, like: Any, made: system.System, config: ConfigDict) -> Any:
        """Its parameters for a later data set; `like` has the values of new rows."""
        ends = [
            warm_start.End(dataset.names, sharding.table_layout(self.mesh, of_run.train))
            for dataset, of_run in ((self.dataset, self.config), (made.dataset, config))
        ]
        params = jax.tree.map(processes.gathered, params)
        return warm_start.carry(params, like, made.trainable.row_meanings, *ends, str(self.workdir))

    def _by_rows(self, saved: Any) -> jax.ShapeDtypeStruct:
        """The saved shape, over all devices if they divide its rows."""
        divided = saved.shape and saved.shape[0] % self.mesh.size == 0
        spec = PartitionSpec(self.mesh.axis_names if divided else None)
        place = NamedSharding(self.mesh, spec if saved.shape else PartitionSpec())
        return jax.ShapeDtypeStruct(saved.shape, saved.dtype, sharding=place)


def _check_spaces(previous: Dataset, made: system.System, config: ConfigDict, name: str) -> None:
    """Rejects vectors of another space than those that a model was trained with."""
    read = [spaces.content]
    if "image vectors" in made.identity:
        read.append(spaces.images)
    if "query vectors" in made.identity:
        # A tower of queries reads their texts, and their vectors only with `model.residual`.
        is_tower = "queries" in made.trainable.embedders
        if not is_tower or config.model.get("residual", True):
            read.append(spaces.queries)
    later = made.dataset
    for vectors in read:
        before, after = vectors(previous), vectors(later)
        for what in before:
            if what in after:
                about = f"{name}: {later.spec.name} has other {what}"
                expected = "expected vectors in the space of training"
                spaces.check(before[what], after[what], about, expected)
