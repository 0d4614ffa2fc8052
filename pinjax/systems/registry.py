"""From `config.system` to its page. Nothing else branches on a system's name."""

import importlib

from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.errors import InputError
from pinjax.systems import system

SYSTEMS = ("pinnerformer", "itemsage", "searchsage")


def create(config: ConfigDict, mesh: Mesh) -> system.System:
    """The system that `config.system` names, on the mesh.

    Raises:
      InputError: where the name is unknown, or the config does not fit the data.
    """
    if config.system not in SYSTEMS:
        raise InputError(f"system {config.system!r} is none of {', '.join(SYSTEMS)}")
    return importlib.import_module(f"pinjax.systems.{config.system}").create(config, mesh)
