"""Counts of ids in a fixed amount of memory.

The sampled softmax corrects each logit by the log-probability of its item in the stream of labels.
A count-min sketch (Cormode & Muthukrishnan, J. Algorithms 2005) estimates it during training. It
has `depth` rows of `width` counters. An id increments one counter of each row; its count is the
smallest of these counters.

An estimate is never too low (with decay: up to float32 rounding), and with probability at least
1 - e^-depth it is too high by at most (e / width) * total.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key, Real

DEPTH = 4  # rows of the systems' sketches: their error bound holds with probability 0.98

# One byte of an id and this many bits of a column fit the uint32 arithmetic of `_columns`.
MAX_WIDTH = 2**25

_MAX_TOTAL = np.uint32(2**31)


@struct.dataclass
class CountMinSketch:
    """A sketch; a pytree, to be carried in the train state.

    Counters are uint32 without decay: float32 would silently stop counting at 2^24. With decay
    they are float32 to hold fractions, and the decay keeps them small. Either way `add` sums
    integers only, so the table does not depend on the order of the ids nor on the devices.

    Attributes:
      table: (depth * width,) counters, row by row. It has one dimension because TPUs scatter into
        one: with two they would copy the table to another layout and back in each step.
      multipliers: uint32 (depth, 4), the random weights of an id's four bytes.
      offsets: uint32 (depth,).
      total: scalar, the (decayed) number of ids added; of the table's type.
      decay: the factor by which each `add` multiplies earlier counts; 1: none is forgotten.
    """

    # Any, since a tree map may replace the arrays by shardings or shapes.
    table: Any
    multipliers: Any
    offsets: Any
    total: Any
    decay: float = struct.field(pytree_node=False)

    @property
    def width(self) -> int:
        """Counters of a row."""
        return len(self.table) // len(self.offsets)


def init(key: Key[Array, ""], depth: int, width: int, decay: float = 1.0) -> CountMinSketch:
    """Makes an empty sketch.

    Args:
      key: draws the hash functions.
      depth: rows; the error bound fails with probability e^-depth.
      width: counters of a row, a power of two; the bound is (e / width) * total.
      decay: in (0, 1]. With batches of n ids the sketch remembers about the last n / (1 - decay).

    Raises:
      ValueError: an argument is out of its range.
    """
    if depth < 1:
        raise ValueError(f"depth is {depth}, expected at least 1")
    if not 2 <= width <= MAX_WIDTH or width & (width - 1):
        raise ValueError(f"width is {width}, expected a power of two from 2 to {MAX_WIDTH}")
    if depth * width >= 2**31:
        raise ValueError(f"depth * width is {depth * width}, expected less than 2^31")
    if not 0 < decay <= 1:
        raise ValueError(f"decay is {decay}, expected more than 0 and at most 1")
    dtype = jnp.uint32 if decay == 1 else jnp.float32
    bits = jax.random.bits(key, (depth, 5), jnp.uint32)
    return CountMinSketch(
        table=jnp.zeros(depth * width, dtype),
        multipliers=bits[:, :4],
        offsets=bits[:, 4],
        total=jnp.zeros((), dtype),
        decay=float(decay),
    )


def add(
    sketch: CountMinSketch, ids: Int[Array, "*ids"], where: Bool[Array, "*ids"] | None = None
) -> CountMinSketch:
    """Decays the sketch, then counts every id once.

    On several devices pass replicated ids: then every device computes the same table without
    communication. Sharded ids give the same table by a sum over devices.

    Without decay, all counts are halved (rounding up) each time that the total exceeds 2^31.
    Otherwise they would silently wrap around. Halving does not change the probabilities.

    Args:
      sketch: a sketch.
      ids: int32 of any shape and value.
      where: which ids count; all if None.
    """
    ones = jnp.ones(ids.shape, jnp.uint32) if where is None else where.astype(jnp.uint32)
    places, added = _places(sketch, ids), ones.sum(dtype=jnp.uint32)
    if sketch.decay == 1:
        # A branch, so that a step does not read and write a large table in full.
        table, total = lax.cond(
            sketch.total > _MAX_TOTAL,
            lambda *counts: tuple(x - x // 2 for x in counts),
            lambda *counts: counts,
            sketch.table,
            sketch.total,
        )
        return sketch.replace(table=table.at[places].add(ones), total=total + added)
    # The batch is counted in integers, whose sum does not depend on their order.
    seen = jnp.zeros(sketch.table.shape, jnp.uint32).at[places].add(ones)
    return sketch.replace(
        table=sketch.table * sketch.decay + seen.astype(jnp.float32),
        total=sketch.total * sketch.decay + added.astype(jnp.float32),
    )


def count(sketch: CountMinSketch, ids: Int[Array, "*ids"]) -> Array:
    """How often each id was added: (*ids,) of the table's type, never too low."""
    return sketch.table[_places(sketch, ids)].min(axis=0)


def log_probability(sketch: CountMinSketch, ids: Int[Array, "*ids"]) -> Float[Array, "*ids"]:
    """The log of each id's share of the total, float32.

    It is -inf for an id that was never added, so add a batch before looking up its ids.
    """
    counts = count(sketch, ids).astype(jnp.float32)
    return jnp.log(counts / jnp.maximum(sketch.total.astype(jnp.float32), 1e-30))


class Accuracy(NamedTuple):
    """The accuracy of a sketch's counts at the end of a stream.

    Attributes:
      error: the bound on the error of a count, which holds with probability 1 - e^-depth.
      mean: mean count of an id.
      median: median count over the stream, as the loss looks up ids as often as they come.
      least_width: the least power of two for which the error is at most the median.
    """

    error: float
    mean: float
    median: float
    least_width: int


def accuracy(
    width: int, decay: float, batch: int, batches: int, counts: Real[np.ndarray, " ids"]
) -> Accuracy:
    """The accuracy of a sketch after a stream.

    Args:
      width: counters of a row.
      decay: of `init`; below 1, only remembered ids are counted.
      batch: ids added at a time.
      batches: number of batches.
      counts: above 0, counts of the stream's distinct ids, up to a factor.
    """
    if not len(counts):
        return Accuracy(0.0, 0.0, 0.0, 2)
    total = batch * (batches if decay == 1 else (1 - decay**batches) / (1 - decay))
    ascending = np.sort(counts)
    below = np.cumsum(ascending)
    of_median = ascending[np.searchsorted(below, below[-1] / 2)] / below[-1]
    # Every id of the stream has come at least once.
    mean, median = (max(1.0, total * share) for share in (1 / len(counts), of_median))
    least = 2 ** math.ceil(math.log2(math.e * total / median))
    return Accuracy(math.e / width * total, mean, float(median), least)


def pair_ids(a: Int[Array, "*ids"], b: Int[Array, "*ids"]) -> Int[Array, "*ids"]:
    """An int32 id for each pair of ids, to count pairs; two pairs collide with chance 2^-32."""
    mixed = a.astype(jnp.uint32) * jnp.uint32(0x9E3779B1)
    mixed = (mixed ^ mixed >> 15) * jnp.uint32(0x85EBCA77) + b.astype(jnp.uint32)
    mixed = (mixed ^ mixed >> 16) * jnp.uint32(0xC2B2AE3D)
    return jax.lax.bitcast_convert_type(mixed ^ mixed >> 13, jnp.int32)


def _places(sketch: CountMinSketch, ids: Int[Array, "*ids"]) -> Array:
    """The indices of each id's counters in the table: int32 (depth, *ids)."""
    starts = sketch.width * jnp.arange(len(sketch.offsets))
    return starts.reshape(-1, *[1] * ids.ndim) + _columns(sketch, ids)


def _columns(sketch: CountMinSketch, ids: Int[Array, "*ids"]) -> Array:
    """Hashes ids to a column of each row: int32 (depth, *ids).

    Multiply-shift on the vector of an id's bytes (Dietzfelbinger, STACS 1996; Thorup, High Speed
    Hashing for Integers and Strings, 2015). Multiplying the full id would need 64-bit
    numbers: with 32 bits two ids may collide with twice the probability 1 / width that the error
    bound needs. The hash of bytes is strongly universal up to 32 - 8 + 1 bits of column.
    """
    unsigned = jax.lax.bitcast_convert_type(ids.astype(jnp.int32), jnp.uint32)
    hashes = sum(
        jnp.multiply.outer(sketch.multipliers[:, i], unsigned >> (8 * i) & 0xFF) for i in range(4)
    )
    hashes += sketch.offsets.reshape(-1, *[1] * ids.ndim)
    bits = int(math.log2(sketch.width))
    return (hashes >> (32 - bits)).astype(jnp.int32)
