"""Pooling of neighbours' messages (PinSage, Ying et al., KDD 2018, §3.2, Algorithm 1).

The messages of all neighbours, (n, neighbours, width), never exist at once in either pass.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

KINDS = ("importance", "mean", "max")

_UNROLL = 10  # neighbours whose messages are gathered and added by one fused loop
# Edges whose gradients are scattered at once: on a CPU so few that they stay in its L1 cache, else
# so many that few kernels are started.
_CPU_EDGES = 128
_EDGES = 2**16


def pool(
    messages: Float[Array, "nodes width"],
    neighbours: Int32[Array, "n neighbours"],
    weights: Float32[Array, "n neighbours"],
    kind: str,
) -> Float[Array, "n width"]:
    """Pools the messages of each row's neighbours; zeros where there are none.

    Args:
      messages: of nodes. Those of bfloat16 are summed in float32.
      neighbours: rows of `messages`; -1 is padding.
      weights: of the neighbours, summing to 1. No gradient flows to them.
      kind: "importance" is the sum by `weights`, "mean" the mean over the neighbours, "max" the
        element-wise maximum, whose gradient is shared equally by neighbours that reach it.

    Raises:
      ValueError: there is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"pooling {kind!r}, expected one of {KINDS}")
    exists = neighbours >= 0
    if kind == "max":
        return _maximum(messages, neighbours)
    if kind == "mean":
        weights = 1 / jnp.maximum(exists.sum(axis=1, keepdims=True, dtype=jnp.float32), 1)
    return _weighted_sum(messages, neighbours, jnp.where(exists, weights, 0))


@jax.custom_vjp
def _weighted_sum(messages, neighbours, weights):
    def step(total, column):
        rows, weights = column
        return total + weights[:, None] * messages[jnp.maximum(rows, 0)], None

    start = jnp.zeros((neighbours.shape[0], messages.shape[1]), jnp.float32)
    total, _ = lax.scan(step, start, (neighbours.T, weights.T), unroll=_UNROLL)
    return total.astype(messages.dtype)


def _weighted_sum_fwd(*args):
    return _weighted_sum(*args), args


def _weighted_sum_bwd(args, gradient):
    messages, neighbours, weights = args

    def to_edges(neighbours, weights, gradient):
        return weights[..., None] * gradient[:, None]

    return _scatter(messages, to_edges, neighbours, weights, gradient), None, None


_weighted_sum.defvjp(_weighted_sum_fwd, _weighted_sum_bwd)


@jax.custom_vjp
def _maximum(messages, neighbours):
    def step(highest, rows):
        return jnp.maximum(highest, _of_neighbours(messages, rows)), None

    start = jnp.full((neighbours.shape[0], messages.shape[1]), -jnp.inf, messages.dtype)
    highest, _ = lax.scan(step, start, neighbours.T, unroll=_UNROLL)
    return jnp.where((neighbours >= 0).any(axis=1, keepdims=True), highest, 0)


def _maximum_fwd(messages, neighbours):
    highest = _maximum(messages, neighbours)
    return highest, (messages, neighbours, highest)


def _maximum_bwd(residuals, gradient):
    messages, neighbours, highest = residuals

    def step(count, rows):
        return count + (_of_neighbours(messages, rows) == highest), None

    start = jnp.zeros(highest.shape, jnp.float32)
    count, _ = lax.scan(step, start, neighbours.T, unroll=_UNROLL)

    def to_edges(neighbours, highest, share):
        reached = _of_neighbours(messages, neighbours) == highest[:, None]
        return jnp.where(reached, share[:, None], 0)

    share = gradient / jnp.maximum(count, 1)
    return _scatter(messages, to_edges, neighbours, highest, share), None


_maximum.defvjp(_maximum_fwd, _maximum_bwd)


def _of_neighbours(messages, neighbours):
    """messages[neighbours], and -inf for padding."""
    return jnp.where(neighbours[..., None] >= 0, messages[jnp.maximum(neighbours, 0)], -jnp.inf)


def _scatter(messages, to_edges, neighbours, *arrays):
    """The gradient of the messages, the sum over edges of the gradients of neighbours' messages.

    Args:
      messages: (nodes, width).
      to_edges: (neighbours, *arrays), of some rows -> (rows, neighbours, width).
      neighbours: int32 (n, neighbours).
      arrays: (n, ...) each.
    """

    def by_blocks(edges, neighbours, *arrays):
        block_size = min(len(neighbours), max(1, edges // neighbours.shape[1]))
        padding = -len(neighbours) % block_size

        def blocks(x, value=0):
            x = jnp.pad(x, ((0, padding), (0, 0)), constant_values=value)
            return x.reshape(-1, block_size, x.shape[1])

        def step(total, block):
            rows = jnp.where(block[0] >= 0, block[0], len(messages))
            return total.at[rows].add(to_edges(*block), mode="drop"), None

        start = jnp.zeros(messages.shape, jnp.float32)
        return lax.scan(step, start, (blocks(neighbours, -1), *map(blocks, arrays)))[0]

    total = lax.platform_dependent(
        neighbours,
        *arrays,
        cpu=functools.partial(by_blocks, _CPU_EDGES),
        default=functools.partial(by_blocks, _EDGES),
    )
    return total.astype(messages.dtype)
