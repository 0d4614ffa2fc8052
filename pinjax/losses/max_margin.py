"""PinSage's loss: a positive is to score higher than every negative, by a margin."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Float32, Int


def max_margin(
    queries: Float[Array, "pairs dim"],
    positives: Float[Array, "pairs dim"],
    negatives: Float[Array, "negatives dim"],
    negative_ids: Int[Array, " negatives"],
    excluded_ids: Int[Array, "pairs excluded"],
    margin: ArrayLike,
    hard: Float[Array, "pairs hard dim"] | None = None,
    hard_ids: Int[Array, "pairs hard"] | None = None,
) -> Float32[Array, " pairs"]:
    """Max-margin ranking loss (PinSage, Ying et al., KDD 2018, §3.3, equation 1).

      loss = the mean over negatives of max(0, <q, negative> - <q, positive> + margin)

    A pair's negatives are those shared by all pairs and the hard ones of its query together, but
    for padding and the items of its `excluded_ids`: its own two items and, usually, the query's
    other positives.

    Args:
      queries: (pairs, dim). Products of bfloat16 are summed in float32.
      positives: (pairs, dim).
      negatives: (negatives, dim), shared by all pairs.
      negative_ids: int32 (negatives,); -1 is padding.
      excluded_ids: int32 (pairs, excluded), padded with -1.
      margin: Δ, by which a positive has to score higher than a negative.
      hard: (pairs, hard, dim), each pair's own; None without.
      hard_ids: int32 (pairs, hard); -1 is padding.

    Returns:
      float32 (pairs,), unreduced. Zero if every negative is masked.
    """
    positive = jnp.einsum("pd,pd->p", queries, positives, preferred_element_type=jnp.float32)
    products = jnp.dot(queries, negatives.T, preferred_element_type=jnp.float32)
    ids = jnp.broadcast_to(negative_ids, products.shape)
    if hard is not None:
        own = jnp.einsum("pd,phd->ph", queries, hard, preferred_element_type=jnp.float32)
        products = jnp.concatenate([products, own], axis=1)
        ids = jnp.concatenate([ids, hard_ids], axis=1)
    excluded = (ids[..., None] == excluded_ids[:, None]).any(axis=-1)
    valid = (ids != -1) & ~excluded
    losses = jnp.where(valid, jax.nn.relu(products - positive[:, None] + margin), 0)
    return losses.sum(axis=1) / jnp.maximum(valid.sum(axis=1), 1)
