"""Texts and images of different lengths in device memory, and gathers of those of some rows."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int32, Shaped

from pinjax import settings
from pinjax.distributed import batching, sharded_table
from pinjax.errors import InputError

ENCODED = 512  # rows encoded at a time when a table is embedded
OVERFLOW = 1e-12  # probability that a run fails because tokens exceed the capacity


@struct.dataclass
class DeviceRagged:
    """A variable-length feature of all products, without padding.

    Attributes:
      values: (values, ...), ordered by product and list.
      offsets: int32 (products, lists + 1), where each list of a product begins, and the last ends.
    """

    # Any, since a tree map may replace the arrays by shardings or shapes.
    values: Any
    offsets: Any

    @classmethod
    def create(
        cls, values: np.ndarray | None, offsets: np.ndarray, lists: int = 1
    ) -> "DeviceRagged":
        """From flat offsets, (products * lists + 1,)."""
        last = offsets[lists::lists]
        return cls(values, np.c_[offsets[:-1].reshape(-1, lists), last].astype(np.int32))


def check_size(about: str, number: int, what: str) -> int:
    """The number of values of all products.

    Raises:
      InputError: if there are more than offsets of int32 can tell.
    """
    if number > settings.INT32:
        raise InputError(f"{about} have {number:,} {what} together; expected under 2^31")
    return number


def gather_images(
    images: DeviceRagged,
    rows: Int32[Array, " products"],
    slots: int,
    table_layout: sharded_table.Layout = sharded_table.REPLICATED,
) -> tuple[Shaped[Array, "products {slots} dim"], Bool[Array, "products {slots}"]]:
    """The first `slots` images of products, and the mask of the slots.

    Args:
      images: vectors, one list per product.
      rows: of the products.
      slots: the most images of a product.
      table_layout: layout of both arrays.
    """
    offsets = table_layout.gather(images.offsets, rows)
    place = offsets[:, :1] + jnp.arange(slots)
    exists = place < offsets[:, 1:]
    return table_layout.gather(images.values, jnp.where(exists, place, -1)), exists


def gather_tokens(
    texts: DeviceRagged,
    rows: Int32[Array, " products"],
    capacity: int,
    table_layout: sharded_table.Layout = sharded_table.REPLICATED,
) -> tuple[Int32[Array, " {capacity}"], Int32[Array, " {capacity}"], Bool[Array, ""]]:
    """The flattened tokens of products, without padding of short texts.

    Args:
      texts: tokens, a list for each text feature.
      rows: of the products; -1 has no tokens.
      capacity: the most tokens, see `token_capacity`.
      table_layout: layout of both arrays.

    Returns:
      the tokens; their segments, product * text features + feature, ascending, and the number of
      segments for padding; whether all tokens fit.
    """
    offsets = table_layout.gather(texts.offsets, rows)
    starts = offsets[:, :-1].ravel()
    lengths = jnp.where(rows[:, None] >= 0, jnp.diff(offsets), 0).ravel()
    ends = jnp.cumsum(lengths)
    place = jnp.arange(capacity)
    segment = jnp.searchsorted(ends, place, side="right").astype(jnp.int32)
    known = jnp.minimum(segment, len(ends) - 1)
    source = starts[known] + place - (ends - lengths)[known]
    exists = place < ends[-1]
    tokens = table_layout.gather(texts.values, jnp.where(exists, source, -1))
    tokens = jnp.where(exists, tokens, 0)
    return tokens, jnp.where(exists, segment, len(ends)), ends[-1] <= capacity


def token_capacity(lengths: np.ndarray, weights: np.ndarray, number: int, chance: float) -> int:
    """A number of tokens that `number` products exceed with a probability of at most `chance`.

    With M(t) the mean of e^(t length), the tokens exceed c with probability at most
    M(t)^number e^(-t c), for every t > 0 (Chernoff, 1952). The result is the least such c. The
    bound holds for any lengths, and also for draws without replacement (Hoeffding, JASA 1963,
    theorem 4).

    Args:
      lengths: int (products,), tokens of each product of the catalogue.
      weights: (products,), how often each is drawn, up to a factor.
      number: products drawn.
      chance: of more tokens.

    Returns:
      a multiple of 128.
    """
    known, inverse = np.unique(lengths[weights > 0], return_inverse=True)
    log_share = np.log(np.bincount(inverse, weights[weights > 0]) / weights.sum())
    longest = int(known[-1])

    def bound(t: float) -> float:
        return (number * np.logaddexp.reduce(log_share + t * known) - math.log(chance)) / t

    # Dense enough that the best of them is close to the least bound.
    tilts = np.geomspace(1e-3 / number, 1e3, 500) / max(longest, 1)
    most = min(number * longest, *map(bound, tilts))
    return int(-(-most // 128) * 128)


def pack(lengths: np.ndarray, most: int, capacity: int) -> np.ndarray:
    """Divides products, in order, into groups whose tokens do not exceed the capacity.

    Args:
      lengths: int (products,), tokens of each product, none above the capacity.
      most: the most products of a group.
      capacity: the most tokens of a group.

    Returns:
      int64 (groups, most), the indices of each group's products, padded with -1.
    """
    ends = np.cumsum(lengths)
    groups, start = [], 0
    while start < len(lengths):
        before = ends[start] - lengths[start]
        stop = min(start + most, int(np.searchsorted(ends, before + capacity, side="right")))
        places = np.arange(start, start + most)
        groups.append(np.where(places < stop, places, -1))
        start = stop
    return np.array(groups, np.int64).reshape(-1, most)


def rows_at_once(mesh: Mesh) -> int:
    """Rows that are encoded at a time when a table is embedded."""
    return max(1, ENCODED // mesh.shape["data"]) * mesh.shape["data"]


def embed_rows(
    embed: Callable[[np.ndarray], jax.Array],
    rows: np.ndarray,
    lengths: np.ndarray,
    mesh: Mesh,
    capacity: int,
) -> np.ndarray:
    """The embeddings of products or queries, float32 (rows, dim).

    Args:
      embed: from `rows_at_once` rows, -1 for padding, to their embeddings; each device computes
        its share.
      rows: int (rows,), of the table.
      lengths: int (size of the table,), tokens of each of its rows.
      mesh: of the devices.
      capacity: the most tokens of a device.
    """
    devices = mesh.shape["data"]
    packed = pack(lengths[rows], rows_at_once(mesh) // devices, capacity)
    shares = np.where(packed >= 0, rows[packed], -1).astype(np.int32)

    def embed_shares(shares: np.ndarray) -> jax.Array:
        return embed(shares.ravel()).reshape(*shares.shape, -1)

    return batching.in_batches(embed_shares, shares, devices)[packed >= 0]
