"""Finds the module of `config.system`. Nothing branches on a system's name.

A name without a dot is a module of this package. A name with a dot is any other module with
`check`, `build` and `bind` (see `system`).
"""

import dataclasses
import importlib
from types import ModuleType

from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax import checksums
from pinjax.data import dataset as dataset_lib
from pinjax.data import embeddings, overlay
from pinjax.data.dataset import Dataset
from pinjax.data.embeddings import Embeddings
from pinjax.data.fitted import Fitted
from pinjax.distributed import processes
from pinjax.errors import InputError
from pinjax.systems import system


def build(config: ConfigDict, mesh: Mesh, items: int | None = None) -> system.Trainable | None:
    """The trainable part of `config.system`, without data; None if it is not trained.

    Args:
      config: of the run.
      mesh: of `sharding.make_mesh`.
      items: another number of items than the data set's, as in `dataset.spec_of`.

    Raises:
      InputError: if the name is unknown, or the config is inconsistent or does not fit the mesh or
        the data.
    """
    module = find(config.system)
    module.check(config, mesh)
    spec = dataset_lib.spec_of(config.data.name, config.data.dir, items)
    if config.data.vectors:
        spec = overlay.spec_with(spec, _embeddings(config, verify=False))
    return module.build(config, mesh, spec)


def create(
    config: ConfigDict, mesh: Mesh, verify: bool = True, fitted: Fitted | None = None
) -> system.System:
    """The system that `config.system` names, on its data set.

    Args:
      config: of the run.
      mesh: of `sharding.make_mesh`.
      verify: whether checksums of the data set and of `data.vectors` are compared.
      fitted: of the model, if it was first trained on an earlier state of the log.

    Raises:
      InputError: as `build`, or if the data are damaged. Checks that need no data come before a
        data set is made.
    """
    module = find(config.system)
    module.check(config, mesh)
    dataset, found = open_dataset(config, verify)
    if fitted:
        dataset = dataset.with_fitted(fitted)
    made = module.bind(module.build(config, mesh, dataset.spec), config, mesh, dataset)
    identity = {"dataset": dataset.spec.digest, **made.identity}
    summary = dict(made.summary)
    if found:
        identity["vectors"] = embeddings.identity(found)
        summary["vectors"] = f"{config.data.vectors}, {dataset.spec.content_dim} numbers"
    if fitted:
        identity |= fitted.identity
    return dataclasses.replace(made, summary=summary, identity=identity)


def open_dataset(config: ConfigDict, verify: bool = True) -> tuple[Dataset, list[Embeddings]]:
    """The data set of a config, and the embeddings in place of its vectors, if any.

    Other arguments and errors as `create`.
    """
    with processes.first_before_others():
        directory = dataset_lib.ensure(config.data.name, config.data.dir)
        if verify:
            checksums.verify(directory)
    dataset = dataset_lib.open_directory(directory)
    if not config.data.vectors:
        return dataset, []
    with processes.first_before_others():
        found = _embeddings(config, verify)
    return overlay.with_vectors(dataset, found), found


def check_trained(config: ConfigDict, trainable: system.Trainable | None) -> None:
    """Rejects a system without training, for commands about training."""
    if trainable is None:
        raise InputError(
            f"system={config.system!r} is not trained, so there is nothing to compile either; "
            "evaluate it, or embed by it"
        )


def _embeddings(config: ConfigDict, verify: bool) -> list[Embeddings]:
    copies = dataset_lib.copies(config.data.dir)
    return embeddings.find(config.data.vectors, copies, verify)


def find(name: str) -> ModuleType:
    """The module of a system.

    Raises:
      InputError: if there is no such module, or it is not a system.
    """
    path = name if "." in name else f"{__package__}.{name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{path}.".startswith(f"{error.name}."):
            raise
        raise InputError(f"system={name!r}: there is no module {path}") from None
    for function in ("check", "build", "bind"):
        if not hasattr(module, function):
            raise InputError(f"system={name!r}: {path} is no system: it has no {function}")
    return module
