"""Rows of tables that are too large for one device."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, Int32, Shaped

# Rows are dealt to this many stripes, and every device has an equal number of stripes. Consecutive
# rows lie in stripes far apart, so a range of rows, or the popular rows at the start, is spread
# evenly over the devices. A row's place is the same for any number of devices that divides this.
STRIPES = 1024
_NEXT = (
    633  # stripes from a row to the next: by the golden ratio; odd, so that all stripes are reached
)
_BACK = pow(_NEXT, -1, STRIPES)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How large tables are laid out on the devices, and how rows are read from them.

    Attributes:
      mesh: rows are sharded over all its devices; None: every device has the full table.
      inside: for use inside a `shard_map` over the mesh, where a table is a device's own rows.
    """

    mesh: Mesh | None = None
    inside: bool = False

    def on_device(self) -> "Layout":
        """The same layout, for use inside a `shard_map`."""
        return dataclasses.replace(self, inside=True)

    def num_rows(self, count: int) -> int:
        """The number of rows of a table that holds `count`, with padding."""
        if self.mesh is None:
            return count
        return -(-count // STRIPES) * STRIPES // (self.mesh.size if self.inside else 1)

    def lay_out(self, table: np.ndarray, part: slice = slice(None)) -> np.ndarray:
        """The host's table, or a slice of its rows, in the order of the devices."""
        if self.mesh is None:
            return table[part]
        num_rows = self.num_rows(len(table))
        stripe, nth = np.divmod(np.arange(*part.indices(num_rows)), num_rows // STRIPES)
        row = stripe * _BACK % STRIPES + nth * STRIPES
        rows = table[np.minimum(row, len(table) - 1)]
        rows[row >= len(table)] = 0
        return rows

    def lies_at(self, rows, num_rows: int):
        """The places of rows in a table of `num_rows`; NumPy or JAX arrays."""
        if self.mesh is None:
            return rows
        return rows % STRIPES * _NEXT % STRIPES * (num_rows // STRIPES) + rows // STRIPES

    @property
    def spec(self) -> PartitionSpec:
        """Partitions the rows of a table over all axes of the mesh."""
        return PartitionSpec(None if self.mesh is None else self.mesh.axis_names)

    @property
    def sharding(self) -> NamedSharding | None:
        """The sharding of `spec`; None if every device has the full table."""
        return None if self.mesh is None else NamedSharding(self.mesh, self.spec)

    def gather(
        self, table: Shaped[Array, " num_rows *row"], rows: Int[Array, "..."]
    ) -> Shaped[Array, "..."]:
        """table[rows] of a table with this layout; the result for a row of -1 is arbitrary.

        A device requests only its own share of `rows`, each row once, from the devices that own
        them. The traffic does not grow with the table; with the number of devices only the padding
        grows (`capacity`). The gradient takes the same way back.
        """
        if self.mesh is None:
            return table[jnp.maximum(rows, 0)]
        flat = rows.ravel()
        if self.inside:
            fetched, places = self.fetch(table, flat)
            return fetched[places].reshape(*rows.shape, *table.shape[1:])
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
        self, table: Shaped[Array, " rows *row"], rows: Int[Array, " requested"]
    ) -> tuple[Shaped[Array, " fetched *row"], Int[Array, " requested"]]:
        """A table with every requested row, and the index in it of each request.

        The index of a row of -1 is arbitrary.
        """
        if self.mesh is None:
            return table, rows
        if not self.inside:
            return table, self.lies_at(rows, len(table))
        end = len(table) * self.mesh.size  # no device owns it
        places = jnp.where(rows >= 0, self.lies_at(rows, end), end).astype(jnp.int32)
        places, inverse = jnp.unique(places, return_inverse=True, size=rows.size, fill_value=end)
        return exchange(self.mesh.axis_names, self.mesh.size, table, places), inverse


REPLICATED = Layout()  # on every device
# Paths of the parameters that are sharded by rows: the hash embeddings of ids and of texts.
PARAMETERS = "/(id|text)/(embedding|importance)$"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def exchange(
    axes: tuple[str, ...],
    devices: int,
    shard: Shaped[Array, " rows *row"],
    places: Int32[Array, " places"],
) -> Shaped[Array, " places *row"]:
    """Rows of a table that is sharded equally over devices; every device calls it.

    An owner sends a device at most `capacity` rows in a round. All devices take part in as many
    rounds as one of them needs: one, unless few devices own most of the requested rows. So the
    first round is outside the loop.

    Args:
      axes: of the mesh, over which the table is sharded.
      devices: number of devices.
      shard: this device's rows; the table is the concatenation of all shards.
      places: rows of the table that this device requests, ascending and distinct; past the end of
        the table for padding, which comes last.

    Returns:
      the row of each place; zeros for padding.
    """
    plan = _Plan(axes, devices, len(shard), places)

    def step(round, found):
        received = plan.swap(shard[jnp.minimum(plan.requested(round), len(shard) - 1)])
        now = received.at[plan.lies_at(round)].get(mode="fill", fill_value=0)
        return jnp.where(jnp.expand_dims(plan.is_of(round), range(1, shard.ndim)), now, found)

    found = jnp.zeros((len(places), *shard.shape[1:]), shard.dtype)
    return lax.fori_loop(1, plan.rounds, step, step(0, found))


def _exchange_fwd(axes, devices, shard, places):
    return exchange(axes, devices, shard, places), (places, shard)


def _exchange_bwd(axes, devices, residuals, gradient):
    places, shard = residuals
    plan = _Plan(axes, devices, len(shard), places)

    def step(round, to_shard):
        sent = jnp.zeros((devices, plan.room, *shard.shape[1:]), shard.dtype)
        sent = sent.at[plan.lies_at(round)].set(gradient, mode="drop")
        return to_shard.at[plan.requested(round)].add(plan.swap(sent), mode="drop")

    return lax.fori_loop(1, plan.rounds, step, step(0, jnp.zeros_like(shard))), None


exchange.defvjp(_exchange_fwd, _exchange_bwd)


class _Plan:
    """Which device sends which rows in which round of `exchange`.

    Attributes:
      room: the most rows that an owner sends a device in a round.
      rounds: int32 scalar, the same on all devices.
    """

    def __init__(self, axes, devices, num_rows, places):
        self.room = min(capacity(len(places), devices), num_rows)
        self._axes, self._devices, self._num_rows = axes, devices, num_rows
        self._owner, self._row = places // num_rows, places % num_rows
        first = jnp.searchsorted(self._owner, jnp.arange(devices))
        rank = jnp.arange(len(places)) - first[jnp.minimum(self._owner, devices - 1)]
        self._round = jnp.where(self._owner < devices, rank // self.room, -1)
        self._slot = rank % self.room
        self.rounds = lax.pmax(self._round.max(), axes) + 1

    def is_of(self, round):
        """Bool (places,): the places that arrive in a round."""
        return self._round == round

    def lies_at(self, round):
        """Index of each place among the (devices, room) rows of a round; past the end if absent."""
        return self._owner, jnp.where(self.is_of(round), self._slot, self.room)

    def requested(self, round):
        """int32 (devices, room): the rows of this device that each device requests."""
        rows = jnp.full((self._devices, self.room), self._num_rows)
        return self.swap(rows.at[self.lies_at(round)].set(self._row, mode="drop"))

    def swap(self, x):
        """(devices, ...): sends each device its part of `x`, and receives a part from each."""
        return lax.all_to_all(x, self._axes, 0, 0, tiled=True)


def capacity(size: int, devices: int) -> int:
    """The most rows that an owner sends a device in a round, of the `size` rows it requests.

    For random places the number of rows is Poisson distributed. The capacity is its mean plus five
    standard deviations, corrected for skewness, so that a second round is rare.
    """
    mean = size / devices
    return min(size, math.ceil(mean + 5 * math.sqrt(mean) + (5**2 - 1) / 6))
