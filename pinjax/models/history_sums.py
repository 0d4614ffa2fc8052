"""Sums over a history for the user tower's head (`model.history_sums`). Not in the paper.

Attention learns averages, and learns slowly to count. Dot products are logits, so in the best user
embedding topics have weights by logarithms: a topic should count by the logarithm of its visits
(`Liked`). Preferences across topics show in a sum over all actions (`running_sum`). The head has
both as inputs, besides the transformer's output. It has a second layer, whose output is added to
`Liked`.
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32, UInt32

from pinjax.models import features, residual_mlp


class Head(nn.Module):
    """The user tower's head.

    Attributes:
      width: of the transformer.
      embedding_dim: embedding dimension.
      dtype: of the arithmetic. Parameters and outputs are float32.
    """

    width: int
    embedding_dim: int
    dtype: Any

    @nn.compact
    def __call__(
        self,
        outputs: Float[Array, "users positions width"],
        actions: Float[Array, "users length features"],
        items: Float[Array, "users length item"],
        embeddings: Float32[Array, "users length {self.embedding_dim}"],
        mask: Bool[Array, "users length"],
        time: UInt32[Array, "users length"],
        positions: Int32[Array, "users positions"],
    ) -> Float32[Array, "users positions {self.embedding_dim}"]:
        """Embeds users, not yet of unit length.

        Args:
          outputs: of the transformer at the positions, the input of the paper's head.
          actions: features of each action, for its weight.
          items: input vectors of their items.
          embeddings: of their items by the pin tower, of unit length.
          mask: False for padding.
          time: unix seconds, ascending but for padding.
          positions: indices into the history.
        """
        gate = nn.Dense(1, bias_init=nn.initializers.ones, dtype=self.dtype, name="gate")
        weights = jnp.where(mask, nn.sigmoid(gate(actions)[..., 0]), 0)
        liked = Liked(name="liked")(embeddings, weights, time, positions)
        sums = jnp.take_along_axis(running_sum(items, weights), positions[..., None], axis=1)
        parts = [outputs, liked * math.sqrt(self.embedding_dim), 2 * sums]
        # The target is not linear in these inputs, hence the second layer.
        mlp = residual_mlp.ResidualMLP(
            2 * self.width, self.embedding_dim, self.dtype, layers=2, gated=False, name="mlp"
        )
        return liked + mlp(jnp.concatenate(parts, axis=-1)) / 10  # with similar initial norms


class Liked(nn.Module):
    """The topics of a history, each weighted by the logarithm of its visits.

    For actions t on items with embeddings e_t and weights w_t it is

      sum over t of v_t e_t log(1 + gain n_t) / n_t,       where
      n_t = sum over s of v_s a_st                         counts visits to items like that of t,
      v_t = w_t / (1 + sum over s < t of w_s a_st exp(-(time_t - time_s) / visit)),
      a_st = exp(sharpness (cos(K e_s, K e_t) - 1)).

    So n visits to items that are all alike add log(1 + gain n) times their embedding. Gain,
    sharpness, visit (hours) and the matrix K, at first the identity, are learned.
    """

    @nn.compact
    def __call__(
        self,
        embeddings: Float32[Array, "users length dim"],
        weights: Float[Array, "users length"],
        time: UInt32[Array, "users length"],
        positions: Int32[Array, "users positions"],
    ) -> Float32[Array, "users positions dim"]:
        """Vectors of unit length at positions; zero where all weights are.

        Args:
          embeddings: of unit length.
          weights: at least 0; 0 for padding.
          time: unix seconds, ascending but for padding.
          positions: indices into the history; each reads itself and earlier actions.
        """

        def positive(name, value):
            init = nn.initializers.constant(math.log(value))
            return jnp.exp(self.param(name, init, ()))

        sharpness, gain = positive("sharpness", 6.0), positive("gain", 1.3)
        seconds = 3600 * positive("visit", 6.0)

        length, dim = embeddings.shape[1:]
        keys = nn.Dense(dim, use_bias=False, kernel_init=_identity, name="key")(embeddings)
        keys = features.unit_length(keys)
        alike = jnp.exp(sharpness * (jnp.einsum("usd,utd->ust", keys, keys) - 1))
        before = jnp.arange(length)[:, None] < jnp.arange(length)
        since = jnp.where(before, time[:, None, :] - time[:, :, None], 0).astype(jnp.float32)
        recent = jnp.where(before, jnp.exp(-since / seconds), 0)
        visits = weights / (1 + jnp.einsum("us,ust->ut", weights, alike * recent))

        seen = jnp.arange(length)[:, None] <= positions[:, None, :]
        visits = jnp.where(seen, visits[..., None], 0)  # (users, length, positions)
        counts = jnp.einsum("ust,utp->usp", alike, visits)
        visits *= jnp.log1p(gain * counts) / jnp.maximum(counts, 1e-6)
        return features.unit_length(jnp.einsum("usp,usd->upd", visits, embeddings))


def _identity(key, shape, dtype):
    del key
    return jnp.eye(*shape, dtype=dtype)


def running_sum(
    x: Float[Array, "users length dim"], weights: Float[Array, "users length"]
) -> Float32[Array, "users length dim"]:
    """The weighted sum up to each position, over the square root of the sum of the weights.

    The common part of actions grows with the square root of their number, and their noise does not.
    It is 0 if no weight is above 0.
    """
    total = jnp.cumsum(weights[..., None] * x, axis=1, dtype=jnp.float32)
    weight = jnp.cumsum(weights, axis=1, dtype=jnp.float32)[..., None]
    return total / jnp.sqrt(jnp.maximum(weight, 1e-6))
