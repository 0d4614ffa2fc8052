"""From `config.system` to its page. Nothing else branches on a system's name."""

import importlib

from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.data import datasets
from pinjax.errors import InputError
from pinjax.systems import system
from pinjax.training import processes

SYSTEMS = ("pinnerformer", "itemsage", "searchsage")


def create(config: ConfigDict, mesh: Mesh) -> system.System:
    """The system that `config.system` names, on the mesh.

    Raises:
      InputError: where the name is unknown, or the config does not fit the data.
    """
    if config.system not in SYSTEMS:
        raise InputError(f"system {config.system!r} is none of {', '.join(SYSTEMS)}")
    with processes.first_before_others():
        datasets.ensure(config.data.name, config.data.dir)
    return importlib.import_module(f"pinjax.systems.{config.system}").create(config, mesh)
