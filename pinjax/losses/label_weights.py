"""What each label counts in the mean of a batch's losses."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def equal_users(where: Bool[Array, "users labels"]) -> Float[Array, "users labels"]:
    """Weights that sum to 1 and let each user count the same (PinnerFormer, §3.3).

    Users without a label weigh nothing; if there is no label at all, all weights are zero.
    """
    labels = where.sum(axis=1, keepdims=True)
    users = (labels > 0).sum()
    return where / jnp.maximum(labels * users, 1)


def equal_labels(exists: Bool[Array, "users labels"]) -> Float[Array, "users labels"]:
    """Weights that sum to 1 and are the same for each label; all zero if there is no label.

    That is not the paper's (`loss.equal_labels`). Published tables of SASRec come from models that
    are trained so.
    """
    return exists / jnp.maximum(exists.sum(), 1)
