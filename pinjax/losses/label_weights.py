"""Weights by which each label counts the same (`loss.equal_labels`). They are not the paper's.

The paper's are `sampled_softmax.equal_user_weights`. Published tables of SASRec come from models
that are trained so, and where evaluation counts labels it is what is measured.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def equal_labels(exists: Bool[Array, "users labels"]) -> Float[Array, "users labels"]:
    """Weights that sum to 1; if there is no label at all, all weights are zero."""
    return exists / jnp.maximum(exists.sum(), 1)
