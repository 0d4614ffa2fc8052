"""The device mesh, and where arrays lie on it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pinjax.errors import InputError


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """All devices (of all processes) along `data`; `model` is there to shard large tables over."""
    devices = np.array(jax.devices() if devices is None else devices)
    return Mesh(devices.reshape(len(devices), 1), ("data", "model"))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def over_data(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("data"))


def by_rows(mesh: Mesh, function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """(a, b, rows) -> function(a, b, rows), each device with its own share of the rows alone.

    For what has flattened ragged arrays inside, of which no axis could be sharded. `a` and `b` are
    replicated; the result has an axis of rows, and is sharded over `data` as they are.
    """
    everywhere, over_data = PartitionSpec(), PartitionSpec("data")
    return jax.shard_map(
        function,
        mesh=mesh,
        in_specs=(everywhere, everywhere, over_data),
        out_specs=over_data,
        check_vma=False,  # else every scan inside would have to know of the mesh
    )


def on_each(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of replicated arguments, computed whole by every device.

    Left to itself the compiler may give each device a part, and send what costs more than it saves.
    """
    everywhere = PartitionSpec()
    return jax.shard_map(
        function, mesh=mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False
    )


def place_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The global batch on the mesh, from each process's share of its rows."""
    sharding = over_data(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


def check_batch(mesh: Mesh, name: str, size: int) -> None:
    """Refuses a global batch that the devices cannot share equally."""
    devices = mesh.shape["data"]
    if size % devices:
        raise InputError(f"{name}={size} is not divisible by the {devices} devices of the mesh")
