"""From `config.system` to its page. Nothing else branches on a system's name."""

import importlib
from types import ModuleType

from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax import checksums
from pinjax.data import dataset
from pinjax.distributed import processes
from pinjax.errors import InputError
from pinjax.systems import outline, system

SYSTEMS = ("pinnerformer", "itemsage", "searchsage")


def create(config: ConfigDict, mesh: Mesh, verify: bool = True) -> system.System:
    """The system that `config.system` names, on the mesh.

    Args:
      config: of the run.
      mesh: of `sharding.make_mesh`.
      verify: whether the data set's checksums are compared.

    Raises:
      InputError: where the name is unknown, the config does not fit itself, the mesh or the data,
        or these are damaged. What does not need the data is found before a data set is made.
    """
    page = _page("pinjax.systems", config)
    page.check(config, mesh)
    with processes.first_before_others():
        directory = dataset.ensure(config.data.name, config.data.dir)
        if verify:
            checksums.verify(directory)
    return page.create(config, mesh)


def create_outline(config: ConfigDict, mesh: Mesh, items: int | None) -> outline.Outline:
    """The same without data, for a catalogue of so many items if a number is given."""
    return _page("pinjax.systems.outlines", config).create(config, mesh, items)


def _page(package: str, config: ConfigDict) -> ModuleType:
    if config.system not in SYSTEMS:
        raise InputError(f"system {config.system!r} is none of {', '.join(SYSTEMS)}")
    return importlib.import_module(f"{package}.{config.system}")
