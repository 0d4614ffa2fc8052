"""The two towers of PinnerFormer (Pancha et al., KDD 2022).

Everything beyond the paper is an option, off in `configs/pinnerformer.py:paper`, with a module of
its own: `history_sums`, `initial_scales`, `learned_ids`, `popularity`, `request_time`,
`residual_mlp`.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, Int32, Shaped, UInt32

from pinjax.distributed import sharded_table
from pinjax.models import (
    attention,
    features,
    history_sums,
    initial_scales,
    item_input,
    mlp,
    request_time,
    residual_mlp,
    temperature,
    transformer,
)

FEATURES = ("item", "action", "surface", "duration", "time", "request_time")

_CATEGORY_DIM = 16


class PinnerFormer(nn.Module):
    """Users and items as vectors of unit length, compared by their dot product.

    A history is a mapping with the fields `item` int32, catalogue rows, -1 for padding; `action`
    and `surface`, vocabulary rows, integers of any type; `duration` float32, seconds; `time`
    uint32, unix seconds; and, for the feature `request_time`, `request_time` uint32, unix seconds,
    when the embedding at an action is requested, not before that action; and `end` int32, the
    windows, see `attention`. Each is (rows, length): the windows of several users may share a row,
    each in neighbouring cells, oldest action first. A user without actions has one cell, whose item
    is -1. `packing` makes such batches. `positions` are cells (row * length + column) of the rows
    that lie on the same device.

    Attributes:
      num_items: rows of the catalogue.
      num_actions: size of the action vocabulary, with its row 0, "unknown".
      num_surfaces: the same for surfaces.
      length: M, the longest history, and the number of learned positions.
      layers: transformer blocks of the user tower.
      width: H.
      heads: attention heads.
      embedding_dim: D, embedding dimension.
      pin_hidden: hidden width of the pin tower.
      features: of `FEATURES`, inputs of the user tower; see `pinjax.models.request_time`.
      positions: whether there is a learned positional encoding.
      id_dim: dimension of an item's learned vector, 0 for none; see `learned_ids`.
      history_sums: see `pinjax.models.history_sums`.
      gated_layers: of the pin tower, 0 as in the paper; see `residual_mlp`.
      scaled_attention: see `initial_scales`.
      divided_time: see `initial_scales`.
      dropout: rate, in the user tower.
      dtype: of the arithmetic. Parameters, normalisation and outputs are float32.
      remat: recompute blocks in the backward pass: less memory, more time.
      table_layout: layout of content and learned vectors.
      kernels: see `transformer.Transformer`; False to export for several platforms at once.
      mesh: rows and users are sharded over its axis `data`; None: one device.
    """

    num_items: int
    num_actions: int
    num_surfaces: int
    length: int
    layers: int
    width: int
    heads: int
    embedding_dim: int
    pin_hidden: int
    features: tuple[str, ...] = FEATURES[:5]
    positions: bool = True
    id_dim: int = 0
    history_sums: bool = False
    gated_layers: int = 0
    scaled_attention: bool = False
    divided_time: bool = False
    dropout: float = 0.0
    dtype: Any = jnp.float32
    remat: bool = False
    table_layout: sharded_table.Layout = sharded_table.REPLICATED
    kernels: bool = True
    mesh: Mesh | None = None

    def setup(self):
        self.item_input = item_input.ItemInput(self.num_items, self.id_dim, self.table_layout)
        self.user_tower = UserTower(
            num_actions=self.num_actions,
            num_surfaces=self.num_surfaces,
            length=self.length,
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            embedding_dim=self.embedding_dim,
            features=self.features,
            positions=self.positions,
            history_sums=self.history_sums,
            scaled_attention=self.scaled_attention,
            divided_time=self.divided_time,
            dropout=self.dropout,
            dtype=self.dtype,
            remat=self.remat,
            kernels=self.kernels,
            mesh=self.mesh,
        )
        sizes = self.pin_hidden, self.embedding_dim, self.dtype
        if self.gated_layers:
            self.pin_tower = residual_mlp.ResidualMLP(*sizes, self.gated_layers, gated=True)
        else:
            self.pin_tower = mlp.MLP(*sizes)
        self.temperature = temperature.Temperature()

    def __call__(
        self,
        items: item_input.ItemFeatures,
        history: Mapping[str, Array],
    ) -> tuple[Float32[Array, "rows length dim"], Float32[Array, "rows length dim"]]:
        """Both towers on a history: for `init`."""
        self.scale()
        embeddings = self.items(items, history["item"])
        return self.users(items, history), embeddings

    def users(
        self,
        items: item_input.ItemFeatures,
        history: Mapping[str, Array],
        positions: Int32[Array, "users positions"] | None = None,
        train: bool = False,
        alone: bool = False,
    ) -> Float32[Array, "users positions {self.embedding_dim}"]:
        """User embeddings at positions of their histories; the one at the last is served (§3.2).

        Args:
          items: of the catalogue; content is laid out as `table_layout` says. Popularity is as of
            the time of the action.
          history: see the class; its rows may be shorter than `length`.
          positions: cells, all of a user in the same window; None, on one device: all cells.
          train: apply dropout, from the rng stream "dropout".
          alone: see `transformer.Transformer`.
        """
        inputs = self.item_input(items, history["item"], history["time"])
        embeddings = self._embed(inputs) if self.history_sums else None
        return self.user_tower(inputs, embeddings, history, positions, train, alone)

    def items(
        self,
        items: item_input.ItemFeatures,
        rows: Int32[Array, "*shape"],
        times: UInt32[Array, "*shape"] | None = None,
    ) -> Float32[Array, "*shape {self.embedding_dim}"]:
        """Item embeddings (§3.2): an MLP on an item's content. A row of -1 gives any vector.

        Args:
          items: of the catalogue; content is laid out as `table_layout` says.
          rows: of the catalogue.
          times: see `item_input.ItemInput`.
        """
        return self._embed(self.item_input(items, rows, times))

    def scale(self) -> Float32[Array, ""]:
        """1 / τ, which turns dot products into logits (§3.3)."""
        return self.temperature()

    def _embed(self, inputs):
        return features.unit_length(self.pin_tower(inputs))


class UserTower(nn.Module):
    """The transformer over a user's actions (§3.1, §3.2). Attributes: see `PinnerFormer`."""

    num_actions: int
    num_surfaces: int
    length: int
    layers: int
    width: int
    heads: int
    embedding_dim: int
    features: tuple[str, ...]
    positions: bool
    history_sums: bool
    scaled_attention: bool
    divided_time: bool
    dropout: float
    dtype: Any
    remat: bool
    kernels: bool
    mesh: Mesh | None

    @nn.compact
    def __call__(
        self,
        items: Float[Array, "rows length features"],
        embeddings: Float32[Array, "rows length {self.embedding_dim}"] | None,
        history: Mapping[str, Array],
        positions: Int32[Array, "users positions"] | None,
        train: bool,
        alone: bool,
    ) -> Float32[Array, "users positions {self.embedding_dim}"]:
        """Embeds a user at positions, from the action there and those before it.

        Every position depends on the time of the last action, too, since an action's age is one of
        its features (§3.1). No other field of the last action reaches other positions.

        Args:
          items: the input vectors of the history's items.
          embeddings: the pin tower's embeddings of these items, for `history_sums`; else None.
          history: see `PinnerFormer`.
          positions: see `PinnerFormer.users`.
          train: apply dropout.
          alone: see `transformer.Transformer`.

        Raises:
          ValueError: a feature does not exist, or the history is longer than `length`.
        """
        unknown = set(self.features) - set(FEATURES)
        if unknown:
            raise ValueError(f"unknown features {sorted(unknown)}, expected some of {FEATURES}")
        rows, length, _ = items.shape
        if length > self.length:
            raise ValueError(f"a history of {length} actions, expected at most {self.length}")
        end = history["end"]
        if positions is None:
            positions = jnp.arange(rows * length).reshape(rows, length)

        # Features of an action, concatenated (§3.1).
        actions = jnp.concatenate(self._actions(items, history), axis=-1)

        # A causal PreNorm transformer over projected actions and learned positions (§3.2).
        x = nn.Dense(self.width, dtype=self.dtype, name="projection")(actions)
        if self.positions:
            init = nn.initializers.normal(0.02)
            table = self.param("positions", init, (self.length, self.width))
            # Counted from the last action, whatever the length of the history. A product, since
            # the gradient of a lookup would be added row by row.
            place = self.length - 1 - (end - jnp.arange(length))
            x += jax.nn.one_hot(place, self.length, dtype=self.dtype) @ table.astype(self.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = transformer.Transformer(
            layers=self.layers,
            heads=self.heads,
            dropout=self.dropout,
            dtype=self.dtype,
            remat=self.remat,
            scaled_attention=self.scaled_attention,
            kernels=self.kernels,
            mesh=self.mesh,
            name="transformer",
        )(x, end, train, alone)

        # A two-layer MLP at each position, normalised (§3.2).
        out = at(x, positions, self.mesh)
        if "request_time" in self.features:
            times = (at(history[name], positions, self.mesh) for name in ("request_time", "time"))
            encoded = request_time.RequestTime(name="request_time")(*times)
            out = jnp.concatenate([out, encoded], axis=-1)
        if self.history_sums:
            known = jnp.concatenate([actions, x], axis=-1)
            sizes = self.width, self.embedding_dim, self.dtype
            head = history_sums.Head(*sizes, mesh=self.mesh, name="head")
            out = head(out, known, items, embeddings, history, positions)
        else:
            out = mlp.MLP(self.width, self.embedding_dim, self.dtype, name="head")(out)
        return features.unit_length(out)

    def _actions(self, items, history):
        """The features of each action, (rows, length, ...) each (§3.1)."""
        parts = []
        if "item" in self.features:
            parts.append(items)
        for name, size in (("action", self.num_actions), ("surface", self.num_surfaces)):
            if name in self.features:
                table = features.CategoryEmbedding(size, _CATEGORY_DIM, name=name)
                parts.append(table(history[name]))
        if "duration" in self.features:
            parts.append(features.log_seconds(history["duration"]))
        if "time" in self.features:
            age, gap = features.relative_times(history["time"], history["end"])
            absolute, relative = features.ABSOLUTE_PERIODS, features.RELATIVE_PERIODS
            times = [
                features.TimeEncoding(absolute, name="time")(history["time"]),
                features.TimeEncoding(relative, name="age")(age),
                features.TimeEncoding(relative, name="gap")(gap),
            ]
            if self.divided_time:
                times = [initial_scales.TIME * time for time in times]
            parts += times
        return parts


def at(
    x: Shaped[Array, "rows length *dim"],
    positions: Int32[Array, "users positions"],
    mesh: Mesh | None,
) -> Shaped[Array, "users positions *dim"]:
    """The values at each user's positions, see `PinnerFormer`."""

    def on_device(x, positions):
        return x.reshape(-1, *x.shape[2:])[positions]

    return attention.over_data(on_device, mesh)(x, positions)
