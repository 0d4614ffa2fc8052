"""Pooling of neighbours' messages (PinSage, Ying et al., KDD 2018, §3.2, Algorithm 1)."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32, Int32

KINDS = ("importance", "mean", "max")


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
      weights: of the neighbours, zero for padding; they sum to 1. No gradient flows to them.
      kind: "importance" is the sum by `weights`, "mean" the mean over the neighbours, "max" the
        element-wise maximum.

    Raises:
      ValueError: there is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"pooling {kind!r}, expected one of {KINDS}")
    if kind == "max":
        return _maximum(messages, neighbours)
    exists = neighbours >= 0
    if kind == "mean":
        weights = exists / jnp.maximum(exists.sum(axis=1, keepdims=True), 1)
    return _weighted_sum(messages, jnp.maximum(neighbours, 0), jnp.where(exists, weights, 0))


@jax.custom_vjp
def _weighted_sum(messages, rows, weights):
    def step(total, column):
        rows, weights = column
        return total + weights[:, None] * messages[rows], None

    start = jnp.zeros((len(rows), messages.shape[1]), jnp.float32)
    return lax.scan(step, start, (rows.T, weights.T))[0].astype(messages.dtype)


def _weighted_sum_fwd(*args):
    return _weighted_sum(*args), args


def _weighted_sum_bwd(args, gradient):
    messages, rows, weights = args

    def step(to_messages, column):
        rows, weights = column
        return to_messages.at[rows].add(weights[:, None] * gradient), None

    start = jnp.zeros(messages.shape, jnp.float32)
    to_messages, _ = lax.scan(step, start, (rows.T, weights.T))
    return to_messages.astype(messages.dtype), None, None


_weighted_sum.defvjp(_weighted_sum_fwd, _weighted_sum_bwd)


def _maximum(messages, neighbours):
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(highest, rows):
        message = jnp.where(rows[:, None] >= 0, messages[jnp.maximum(rows, 0)], -jnp.inf)
        return jnp.maximum(highest, message), None

    start = jnp.full((len(neighbours), messages.shape[1]), -jnp.inf, messages.dtype)
    highest, _ = lax.scan(step, start, neighbours.T)
    return jnp.where((neighbours >= 0).any(axis=1, keepdims=True), highest, 0)
