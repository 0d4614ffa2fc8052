"""Sums over a history for the user tower's head (`model.history_sums`). Not in the paper.

Attention learns averages, and learns slowly to count. Dot products are logits, so in the best user
embedding topics have weights by logarithms: a topic should count by the logarithm of its visits
(`Liked`). Preferences across topics show in a sum over all actions (`sums_until`). The head has
both as inputs, besides the transformer's output. It has a second layer, whose output is added to
`Liked`.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Float32, Int32

from pinjax.models import attention, features, residual_mlp


class Head(nn.Module):
    """The user tower's head.

    Attributes:
      width: of the transformer.
      embedding_dim: embedding dimension.
      dtype: of the arithmetic. Parameters and outputs are float32.
      mesh: see `pinnerformer.PinnerFormer`.
    """

    width: int
    embedding_dim: int
    dtype: Any
    mesh: Mesh | None = None

    @nn.compact
    def __call__(
        self,
        outputs: Float[Array, "users positions width"],
        actions: Float[Array, "rows length features"],
        items: Float[Array, "rows length item"],
        embeddings: Float32[Array, "rows length {self.embedding_dim}"],
        history: Mapping[str, Array],
        positions: Int32[Array, "users positions"],
    ) -> Float32[Array, "users positions {self.embedding_dim}"]:
        """Embeds users, not yet of unit length.

        Args:
          outputs: of the transformer at the positions, the input of the paper's head.
          actions: features of each action, for its weight.
          items: input vectors of their items.
          embeddings: of their items by the pin tower, of unit length.
          history: see `pinnerformer.PinnerFormer`.
          positions: see `pinnerformer.PinnerFormer`.
        """
        gate = nn.Dense(1, bias_init=nn.initializers.ones, dtype=self.dtype, name="gate")
        weights = jnp.where(history["item"] >= 0, nn.sigmoid(gate(actions)[..., 0]), 0)
        liked = Liked(mesh=self.mesh, name="liked")(embeddings, weights, history, positions)
        rows = of_users((items, weights, history["end"]), positions, self.mesh)
        parts = [outputs, liked * math.sqrt(self.embedding_dim), 2 * sums_until(*rows, positions)]
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

    Attributes:
      mesh: see `pinnerformer.PinnerFormer`.
    """

    mesh: Mesh | None = None

    @nn.compact
    def __call__(
        self,
        embeddings: Float32[Array, "rows length dim"],
        weights: Float[Array, "rows length"],
        history: Mapping[str, Array],
        positions: Int32[Array, "users positions"],
    ) -> Float32[Array, "users positions dim"]:
        """Vectors of unit length at positions; zero where all weights are.

        Args:
          embeddings: of unit length.
          weights: at least 0; 0 for padding.
          history: see `pinnerformer.PinnerFormer`; its `time` and `end` are read.
          positions: see `pinnerformer.PinnerFormer`; each reads itself and earlier actions.
        """

        def positive(name, value):
            init = nn.initializers.constant(math.log(value))
            return jnp.exp(self.param(name, init, ()))

        sharpness, gain = positive("sharpness", 6.0), positive("gain", 1.3)
        seconds = 3600 * positive("visit", 6.0)

        time, end = history["time"], history["end"]
        dim = embeddings.shape[-1]
        keys = nn.Dense(dim, use_bias=False, kernel_init=_identity, name="key")(embeddings)
        keys = features.unit_length(keys)
        alike = jnp.exp(sharpness * (jnp.einsum("usd,utd->ust", keys, keys) - 1))
        before = jnp.tri(time.shape[1], k=-1, dtype=bool).T & (end[:, :, None] == end[:, None, :])
        since = jnp.where(before, time[:, None, :] - time[:, :, None], 0).astype(jnp.float32)
        recent = jnp.where(before, jnp.exp(-since / seconds), 0)
        visits = weights / (1 + jnp.einsum("us,ust->ut", weights, alike * recent))

        # Of the users' rows; visits are (users, length, positions).
        rows = of_users((embeddings, alike, visits, end), positions, self.mesh)
        embeddings, alike, visits, end = rows
        visits = jnp.where(until(end, positions), visits[..., None], 0)
        counts = jnp.einsum("ust,utp->usp", alike, visits)
        visits *= jnp.log1p(gain * counts) / jnp.maximum(counts, 1e-6)
        return features.unit_length(jnp.einsum("usp,usd->upd", visits, embeddings))


def _identity(key, shape, dtype):
    del key
    return jnp.eye(*shape, dtype=dtype)


def of_users(arrays: Any, positions: Int32[Array, "users positions"], mesh: Mesh | None) -> Any:
    """The rows with the users' windows: from (rows, length, ...) each to (users, length, ...)."""

    def on_device(positions, *arrays):
        row = positions[:, 0] // arrays[0].shape[1]
        return tuple(x[row] for x in arrays)

    return attention.over_data(on_device, mesh)(positions, *arrays)


def until(
    end: Int32[Array, "users length"], positions: Int32[Array, "users positions"]
) -> Bool[Array, "users length positions"]:
    """Which cells of its row a position reads: those of its window up to itself."""
    length = end.shape[1]
    column = positions % length
    window = jnp.take_along_axis(end, column, axis=1)
    return (end[..., None] == window[:, None]) & (jnp.arange(length)[:, None] <= column[:, None, :])


def sums_until(
    x: Float[Array, "users length dim"],
    weights: Float[Array, "users length"],
    end: Int32[Array, "users length"],
    positions: Int32[Array, "users positions"],
) -> Float32[Array, "users positions dim"]:
    """The weighted sum of a window up to positions, over the square root of its weights' sum.

    The common part of actions grows with the square root of their number, and their noise does not.
    It is 0 if no weight is above 0.

    Args:
      x: rows of the users, see `of_users`.
      weights: of their cells.
      end: of their cells.
      positions: see `pinnerformer.PinnerFormer`.
    """
    seen = jnp.where(until(end, positions), weights[..., None], 0).astype(jnp.float32)
    total = jnp.einsum("usp,usd->upd", seen, x, preferred_element_type=jnp.float32)
    return total / jnp.sqrt(jnp.maximum(seen.sum(axis=1), 1e-6))[..., None]
