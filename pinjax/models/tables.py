"""Rows of tables that are too large for one device."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Int32, Shaped

# A row lies in one of so many stripes, whole numbers of which go to a device, and the next row in a
# stripe far from it: whoever asks for a range of rows, or for the popular ones at the start, asks
# all devices alike. Places are the same for any number of devices; it must divide this one.
STRIPES = 1024
_NEXT = 633  # stripes from a row to the next: by the golden ratio, and odd, so that all are met


@dataclasses.dataclass(frozen=True)
class Tables:
    """How large tables lie on the devices, and how their rows come from there.

    Attributes:
      mesh: over all of whose devices the rows are shared out; None: each has the whole table.
      inside: used inside a `shard_map` over the mesh, where a table is a device's own rows of it.
    """

    mesh: Mesh | None = None
    inside: bool = False

    def on_device(self) -> "Tables":
        """The same inside a `shard_map`."""
        return dataclasses.replace(self, inside=True)

    def num_rows(self, count: int) -> int:
        """Rows of a table for `count` of them, with those that only fill it up."""
        if self.mesh is None:
            return count
        return -(-count // STRIPES) * STRIPES // (self.mesh.size if self.inside else 1)

    def lay_out(self, table: np.ndarray) -> np.ndarray:
        """A table of the host in the order in which it lies on the devices."""
        if self.mesh is None:
            return table
        rows = np.zeros((self.num_rows(len(table)), *table.shape[1:]), table.dtype)
        rows[self.lies_at(np.arange(len(table)), len(rows))] = table
        return rows

    def lies_at(self, rows, num_rows: int):
        """Where rows lie in a table of `num_rows`, NumPy or JAX arrays."""
        if self.mesh is None:
            return rows
        return rows % STRIPES * _NEXT % STRIPES * (num_rows // STRIPES) + rows // STRIPES

    @property
    def spec(self) -> PartitionSpec:
        """Of a table's rows over the axes of the mesh."""
        return PartitionSpec(None if self.mesh is None else self.mesh.axis_names)

    @property
    def sharding(self) -> NamedSharding | None:
        """Of a table's rows; None where each device has them all."""
        return None if self.mesh is None else NamedSharding(self.mesh, self.spec)

    def gather(
        self, table: Shaped[Array, "num_rows *row"], rows: Int[Array, "..."]
    ) -> Shaped[Array, "..."]:
        """table[rows] of a table with this layout; what comes back for a row of -1 means nothing.

        A device asks the owners for the rows of its own share of `rows` alone, each of them once:
        what it sends and receives does not grow with the table, and with the devices only by the
        room left for chance (`capacity`). The gradient goes the same way back. What an owner had no
        room for is NaN, or a negative integer.
        """
        if self.mesh is None:
            return table[jnp.maximum(rows, 0)]
        flat = rows.ravel()
        if self.inside:
            asked, places = self.fetch(table, flat)
            return asked.at[places].get(mode="fill").reshape(*rows.shape, *table.shape[1:])
        flat = jnp.pad(flat, (0, -len(flat) % self.mesh.size), constant_values=-1)
        gathered = jax.shard_map(
            self.on_device().gather,
            mesh=self.mesh,
            in_specs=(self.spec, self.spec),
            out_specs=self.spec,
            check_vma=False,  # else autodiff would want the unused cotangents' axes spelt out
        )(table, flat)
        return gathered[: rows.size].reshape(*rows.shape, *table.shape[1:])

    def fetch(
        self, table: Shaped[Array, "rows *row"], rows: Int[Array, " wanted"]
    ) -> tuple[Shaped[Array, "asked *row"], Int[Array, " wanted"]]:
        """A table that has the rows that are wanted, each once, and where in it each of them is.

        Past its end is a row that an owner had no room for. Of a row of -1 the place means nothing.
        """
        if self.mesh is None:
            return table, rows
        if not self.inside:
            return table, self.lies_at(rows, len(table))
        places = self.lies_at(rows, len(table) * self.mesh.size)
        places = jnp.where(rows >= 0, places, -1).astype(jnp.int32)
        return exchange(table, places, self.mesh.axis_names, self.mesh.size)


WHOLE = Tables()  # on every device
# Of the parameters whose rows are shared out: those of hash embeddings of ids and of texts.
PARAMETERS = "/(id|text)/(embedding|importance)$"


def exchange(
    shard: Shaped[Array, "rows *row"],
    places: Int32[Array, " places"],
    axes: tuple[str, ...],
    devices: int,
) -> tuple[Shaped[Array, "asked *row"], Int32[Array, " places"]]:
    """Rows of a table of which every device has an equal share: to be called on each of them.

    Args:
      shard: this device's rows; the table is those of all devices, one after the other.
      places: rows of the table that this device wants, -1 for none.
      axes: of the mesh, over which the table is shared out.
      devices: how many there are.

    Returns:
      The rows that came, with gaps between them, and which of them is that of each place: past the
      end where an owner was asked for more than its capacity, anything for -1.
    """
    num_rows = len(shard)
    room = min(capacity(len(places), devices), num_rows)  # a row is asked for once

    # Equal places lie together once sorted, and those of one owner, too.
    order = jnp.argsort(places)
    ascending = places[order]
    is_first = jnp.diff(ascending, prepend=-1) != 0  # -1 itself is never asked for
    unique = jnp.cumsum(is_first) - 1
    owner = jnp.where(ascending >= 0, ascending // num_rows, devices)
    before = jnp.zeros(devices + 1, jnp.int32).at[owner].add(is_first, mode="drop")
    before = jnp.cumsum(before) - before
    rank = unique - before[owner]  # among what is asked of the owner

    asked = jnp.full((devices, room), -1, jnp.int32)
    asked = asked.at[owner, rank].set(ascending % num_rows, mode="drop")
    wanted = lax.all_to_all(asked, axes, 0, 0, tiled=True)
    sent = shard[jnp.maximum(wanted, 0)]
    received = lax.all_to_all(sent, axes, 0, 0, tiled=True)
    row = jnp.where(rank < room, owner * room + rank, devices * room)
    row = jnp.where(ascending >= 0, row, 0)[jnp.argsort(order)]
    return received.reshape(devices * room, *shard.shape[1:]), row


def capacity(size: int, devices: int) -> int:
    """Rows that an owner can be asked for by a device that wants `size` rows of all owners.

    The number is a Poisson variable for places at random. It is above this by eight standard
    deviations, with their correction for a Poisson variable's skewness: once in 10^15 times.
    """
    mean = size / devices
    return min(size, math.ceil(mean + 8 * math.sqrt(mean) + (8**2 - 1) / 6))
