"""Weights of labels in the mean loss of a batch."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def equal_users(
    exists: Bool[Array, "rows labels"], labels_of_user: Int[Array, " rows"]
) -> Float[Array, "rows labels"]:
    """Weights with sum 1 that are equal for each user (PinnerFormer, §3.3).

    All weights are zero if there is no label.

    Args:
      exists: whether a label is no padding; those of a row are of one user.
      labels_of_user: the labels that the row's user has in the batch, in all rows.
    """
    weights = exists / jnp.maximum(labels_of_user, 1)[:, None]
    users = weights.sum()
    return weights / jnp.maximum(users, 1)


def equal_labels(exists: Bool[Array, "rows labels"]) -> Float[Array, "rows labels"]:
    """Weights with sum 1 that are equal for each label; all zero if there is no label.

    It is not in the paper (`loss.equal_labels`). Published results of SASRec use these weights.
    """
    return exists / jnp.maximum(exists.sum(), 1)
