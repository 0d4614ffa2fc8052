"""Weights of labels in the mean loss of a batch."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def equal_users(where: Bool[Array, "users labels"]) -> Float[Array, "users labels"]:
    """Weights with sum 1 that are equal for each user (PinnerFormer, §3.3).

    Users without a label have weight 0. All weights are zero if there is no label.
    """
    labels = where.sum(axis=1, keepdims=True)
    users = (labels > 0).sum()
    return where / jnp.maximum(labels * users, 1)


def equal_labels(exists: Bool[Array, "users labels"]) -> Float[Array, "users labels"]:
    """Weights with sum 1 that are equal for each label; all zero if there is no label.

    It is not in the paper (`loss.equal_labels`). Published results of SASRec use these weights.
    """
    return exists / jnp.maximum(exists.sum(), 1)
