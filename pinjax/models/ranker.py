"""A ranking model: how likely a user is to engage with an item, in each way that counts.

An MLP over features that are known when items are ranked, with a logit for each type of engagement.
It is no larger than it takes to tell whether embeddings help. A user's and an item's vectors are
multiplied number by number, and summed, since layers are slow to learn products.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from pinjax.models.residual_mlp import ResidualMLP


def features(
    counts: Float[Array, "rows counts"],
    users: Float[Array, "rows dim"] | None = None,
    items: Float[Array, "rows dim"] | None = None,
) -> Float[Array, "rows features"]:
    """The features of rows: counts, and with vectors both of them, their product, and its sum."""
    if users is None:
        return counts
    product = users * items
    return jnp.concatenate(
        [counts, users, items, product, product.sum(axis=1, keepdims=True)], axis=1
    )


class Ranker(nn.Module):
    """Logits from features.

    Attributes:
      types: number of types of engagement.
      hidden: width of the two hidden layers.
      dropout: share of features that a training row does not see.
    """

    types: int
    hidden: int = 64
    dropout: float = 0.1

    @nn.compact
    def __call__(
        self,
        features: Float[Array, "rows features"],
        mean: Float[Array, " features"],
        scale: Float[Array, " features"],
        train: bool = False,
    ) -> Float[Array, "rows {self.types}"]:
        """The logits.

        Args:
          features: of `features`.
          mean: of each feature in training.
          scale: its standard deviation.
          train: whether with dropout, for which there has to be a key.
        """
        x = nn.Dropout(self.dropout, deterministic=not train)((features - mean) / scale)
        return ResidualMLP(self.hidden, self.types, jnp.float32, layers=2, gated=False)(x)
