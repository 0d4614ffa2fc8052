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

# A row lies in one of so many stripes, whole numbers of which go to a device, and the next row in a
# stripe far from it: whoever asks for a range of rows, or for the popular ones at the start, asks
# all devices alike. Places are the same for any number of devices; it must divide this one.
STRIPES = 1024
_NEXT = 633  # stripes from a row to the next: by the golden ratio, and odd, so that all are met
_BACK = pow(_NEXT, -1, STRIPES)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How large tables lie on the devices, and how their rows come from there.

    Attributes:
      mesh: over all of whose devices the rows are shared out; None: each has the whole table.
      inside: used inside a `shard_map` over the mesh, where a table is a device's own rows of it.
    """

    mesh: Mesh | None = None
    inside: bool = False

    def on_device(self) -> "Layout":
        """The same inside a `shard_map`."""
        return dataclasses.replace(self, inside=True)

    def num_rows(self, count: int) -> int:
        """Rows of a table for `count` of them, with those that only fill it up."""
        if self.mesh is None:
            return count
        return -(-count // STRIPES) * STRIPES // (self.mesh.size if self.inside else 1)

    def lay_out(self, table: np.ndarray, part: slice = slice(None)) -> np.ndarray:
        """A table of the host, or a part, in the order in which it lies on the devices."""
        if self.mesh is None:
            return table[part]
        num_rows = self.num_rows(len(table))
        stripe, nth = np.divmod(np.arange(*part.indices(num_rows)), num_rows // STRIPES)
        row = stripe * _BACK % STRIPES + nth * STRIPES
        rows = table[np.minimum(row, len(table) - 1)]
        rows[row >= len(table)] = 0
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
        room left for chance (`capacity`). The gradient goes the same way back.
        """
        if self.mesh is None:
            return table[jnp.maximum(rows, 0)]
        flat = rows.ravel()
        if self.inside:
            asked, places = self.fetch(table, flat)
            return asked[places].reshape(*rows.shape, *table.shape[1:])
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

        Of a row of -1 the place means nothing.
        """
        if self.mesh is None:
            return table, rows
        if not self.inside:
            return table, self.lies_at(rows, len(table))
        end = len(table) * self.mesh.size  # which no owner has
        places = jnp.where(rows >= 0, self.lies_at(rows, end), end).astype(jnp.int32)
        places, inverse = jnp.unique(places, return_inverse=True, size=rows.size, fill_value=end)
        return exchange(self.mesh.axis_names, self.mesh.size, table, places), inverse


REPLICATED = Layout()  # on every device
# Of the parameters whose rows are shared out: those of hash embeddings of ids and of texts.
PARAMETERS = "/(id|text)/(embedding|importance)$"


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def exchange(
    axes: tuple[str, ...],
    devices: int,
    shard: Shaped[Array, "rows *row"],
    places: Int32[Array, " places"],
) -> Shaped[Array, "places *row"]:
    """Rows of a table of which every device has an equal share: to be called on each of them.

    An owner sends a device so many rows at a time (`capacity`), in as many rounds as any of them
    needs: one, unless what is wanted lies with few owners. So the first one is no part of the loop.

    Args:
      axes: of the mesh, over which the table is shared out.
      devices: how many there are.
      shard: this device's rows; the table is those of all devices, one after the other.
      places: rows of the table that this device wants, ascending, each once; at the end what is
        past the table, for none.

    Returns:
      the row of each place; for none it is zero.
    """
    plan = _Plan(axes, devices, len(shard), places)

    def step(round, found):
        received = plan.swap(shard[jnp.minimum(plan.wanted(round), len(shard) - 1)])
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
        return to_shard.at[plan.wanted(round)].add(plan.swap(sent), mode="drop")

    return lax.fori_loop(1, plan.rounds, step, step(0, jnp.zeros_like(shard))), None


exchange.defvjp(_exchange_fwd, _exchange_bwd)


class _Plan:
    """Who sends what in which round: see `exchange`.

    Attributes:
      room: rows that an owner sends a device in a round.
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
        """Bool (places,): which come in a round."""
        return self._round == round

    def lies_at(self, round):
        """Where among (devices, room) rows each place is in a round; past the end if it is not."""
        return self._owner, jnp.where(self.is_of(round), self._slot, self.room)

    def wanted(self, round):
        """int32 (devices, room): of this device's rows, those that each device wants."""
        asked = jnp.full((self._devices, self.room), self._num_rows)
        return self.swap(asked.at[self.lies_at(round)].set(self._row, mode="drop"))

    def swap(self, x):
        """(devices, ...): the part for each device against the part that it has for this one."""
        return lax.all_to_all(x, self._axes, 0, 0, tiled=True)


def capacity(size: int, devices: int) -> int:
    """Rows that an owner sends in a round to a device that wants `size` rows of all owners.

    The number wanted is a Poisson variable for places at random. It is above this by five standard
    deviations, with their correction for a Poisson variable's skewness: a second round is rare.
    """
    mean = size / devices
    return min(size, math.ceil(mean + 5 * math.sqrt(mean) + (5**2 - 1) / 6))
