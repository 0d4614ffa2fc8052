"""Importance pooling: weighted sums of what an item's neighbours send (PinSage, §3.2)."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

_BLOCK_SIZE = 64  # rows whose gradients are added at once, so that they stay in a CPU's cache


@jax.custom_vjp
def weighted_sum(
    messages: Float[Array, "sent width"],
    neighbours: Int32[Array, "rows T"],
    weights: Float32[Array, "rows T"],
) -> Float[Array, "rows width"]:
    """Σ_t weights[:, t] * messages[neighbours[:, t]].

    The messages of all neighbours, (rows, T, width), never exist at once, in neither pass. No
    gradient flows to the weights.

    Args:
      messages: of the items that are neighbours.
      neighbours: rows of `messages`; -1 is padding.
      weights: of the neighbours.

    Returns:
      sums, of the messages' type, computed in float32.
    """
    total = jnp.zeros((len(neighbours), messages.shape[1]), jnp.float32)
    weights = jnp.where(neighbours >= 0, weights, 0)
    rows = jnp.maximum(neighbours, 0)
    for t in range(neighbours.shape[1]):  # one loop over all of it for the compiler
        total += weights[:, t, None] * messages[rows[:, t]]
    return total.astype(messages.dtype)


def _forward(messages, neighbours, weights):
    return weighted_sum(messages, neighbours, weights), (messages, neighbours, weights)


def _backward(residuals, gradient):
    messages, neighbours, weights = residuals
    found = lax.platform_dependent(
        *(gradient, neighbours, weights, jnp.zeros(messages.shape, jnp.float32)),
        cpu=_add_by_rows,
        default=_add_by_neighbours,
    )
    return found.astype(messages.dtype), None, None


weighted_sum.defvjp(_forward, _backward)


def _add_by_rows(gradient, neighbours, weights, start):
    """The gradient of messages, by blocks of rows."""
    more = -len(neighbours) % _BLOCK_SIZE
    blocks = (
        jnp.pad(x, ((0, more), (0, 0)), constant_values=padding).reshape(
            -1, _BLOCK_SIZE, x.shape[1]
        )
        for x, padding in ((gradient, 0), (neighbours, -1), (weights, 0))
    )

    def step(total, block):
        gradient, neighbours, weights = block
        return _add(total, neighbours, weights[..., None] * gradient[:, None]), None

    return lax.scan(step, start, tuple(blocks))[0]


def _add_by_neighbours(gradient, neighbours, weights, start):
    """The same, by neighbours: few large additions, for accelerators."""

    def step(total, column):
        neighbours, weights = column
        return _add(total, neighbours, weights[:, None] * gradient), None

    return lax.scan(step, start, (neighbours.T, weights.T))[0]


def _add(total, rows, values):
    rows = jnp.where(rows >= 0, rows, len(total))
    return total.at[rows].add(values.astype(total.dtype), mode="drop")


def mean(
    messages: Float[Array, "sent width"], neighbours: Int32[Array, "rows T"]
) -> Float[Array, "rows width"]:
    """The mean of the neighbours' messages, a baseline of the paper; zero without neighbours."""
    exists = neighbours >= 0
    number = exists.sum(axis=1, keepdims=True)
    return weighted_sum(messages, neighbours, exists / jnp.maximum(number, 1))


def maximum(
    messages: Float[Array, "sent width"], neighbours: Int32[Array, "rows T"]
) -> Float[Array, "rows width"]:
    """The largest of the neighbours' messages, which are not negative; another baseline."""
    largest = jnp.zeros((len(neighbours), messages.shape[1]), messages.dtype)
    for t in range(neighbours.shape[1]):
        sent = messages[jnp.maximum(neighbours[:, t], 0)]
        largest = jnp.maximum(largest, jnp.where(neighbours[:, t, None] >= 0, sent, 0))
    return largest
