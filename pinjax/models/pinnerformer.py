"""The towers of PinnerFormer (Pancha et al., KDD 2022): one for users, one for pins."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Float32, Int32, Shaped, UInt32

from pinjax.distributed import sharded_table
from pinjax.models import features, hash_embedding, temperature, transformer

FEATURES = ("item", "action", "surface", "duration", "time", "request_time")

_CATEGORY_DIM = 16


class PinnerFormer(nn.Module):
    """Users and items as vectors of unit length, compared by their dot product.

    Both towers see an item as the same input vector (`ItemInput`), as in the paper, where it is the
    item's content embedding.

    A history is a mapping with the fields `item` int32, catalogue rows, -1 for padding; `action`
    and `surface`, vocabulary rows, integers of any type; `duration` float32, seconds; `time`
    uint32, unix seconds; each (users, length), oldest first. Padding comes first: the newest action
    is always the last. The feature `moment` is not the paper's: when the embedding at an action is
    asked for, uint32, unix seconds, no earlier than that action. Without it what is served is the
    embedding of the moment at which a user last acted, which in the news, say, is long ago.

    Attributes:
      num_items: rows of the catalogue.
      num_actions: size of the action vocabulary, with its row 0, "unknown".
      num_surfaces: the same of the surfaces.
      length: M, the longest history; it is the number of learned positions.
      layers: transformer blocks of the user tower.
      width: H.
      heads: attention heads.
      embedding_dim: D, numbers of an embedding.
      pin_hidden: hidden width of the pin tower.
      features: those of `FEATURES` that the user tower sees.
      positions: whether it has a learned positional encoding.
      history_sums: whether its head also sees what was liked, `Liked`, to which it is added, and
        the sum of all items, which is not the paper's.
      gated_layers: of the pin tower, see `MLP`; above 0 it is not the paper's either.
      id_dim: numbers of an item's learned input vector; 0: content alone.
      id_buckets: rows of the table behind it; 0: one for each item.
      dropout: rate, in the user tower.
      dtype: of the arithmetic. Parameters, normalisation and outputs are float32.
      remat: recompute blocks in the backward pass: less memory, more time.
      tables: how content and learned vectors lie on the devices.
      mesh: over whose axis `data` users are shared out; None: they are on one device.
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
    features: tuple[str, ...] = ("item", "action", "surface", "duration", "time")
    positions: bool = True
    history_sums: bool = False
    gated_layers: int = 0
    id_dim: int = 0
    id_buckets: int = 0
    dropout: float = 0.0
    dtype: Any = jnp.float32
    remat: bool = False
    tables: sharded_table.Layout = sharded_table.REPLICATED
    mesh: Mesh | None = None

    def setup(self):
        self.item_input = ItemInput(self.num_items, self.id_dim, self.id_buckets, self.tables)
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
            dropout=self.dropout,
            dtype=self.dtype,
            remat=self.remat,
            mesh=self.mesh,
        )
        layers, gated = max(self.gated_layers, 1), self.gated_layers > 0
        self.pin_tower = MLP(self.pin_hidden, self.embedding_dim, self.dtype, layers, gated)
        self.temperature = temperature.Temperature()

    def __call__(
        self,
        content: Float[Array, "items content"] | None,
        history: Mapping[str, Array],
        popularity_times: UInt32[Array, "times"] | None = None,
    ) -> tuple[Float32[Array, "users length dim"], Float32[Array, "users length dim"]]:
        """Both towers on a history: for `init`."""
        self.scale()
        items = self.items(content, history["item"], popularity_times=popularity_times)
        return self.users(content, history, popularity_times=popularity_times), items

    def users(
        self,
        content: Float[Array, "items content"] | None,
        history: Mapping[str, Array],
        positions: Int32[Array, "users positions"] | None = None,
        train: bool = False,
        popularity_times: UInt32[Array, "times"] | None = None,
    ) -> Float32[Array, "users positions {self.embedding_dim}"]:
        """Embeds users at positions of their histories; the last is the one to serve.

        Args:
          content: the catalogue's content vectors, laid out as `tables` says, or None where items
            are their learned ids.
          history: see the class; it may be shorter than `length`.
          positions: indices into the history; None: all of it.
          train: apply dropout, from the rng stream "dropout".
          popularity_times: see `ItemInput`. An action's item is as it was then.
        """
        items = self.item_input(content, history["item"], history["time"], popularity_times)
        embeddings = self._embed(items) if self.history_sums else None
        return self.user_tower(items, embeddings, history, positions, train)

    def items(
        self,
        content: Float[Array, "items content"] | None,
        rows: Int32[Array, "*shape"],
        times: UInt32[Array, "*shape"] | None = None,
        popularity_times: UInt32[Array, "times"] | None = None,
    ) -> Float32[Array, "*shape {self.embedding_dim}"]:
        """Embeds items of the catalogue. What comes back for a row of -1 means nothing.

        Args:
          content: the catalogue's content vectors, see `users`.
          rows: of the catalogue.
          times: unix seconds at which to see the items; None: now.
          popularity_times: see `ItemInput`.
        """
        return self._embed(self.item_input(content, rows, times, popularity_times))

    def scale(self) -> Float32[Array, ""]:
        """1 / τ, by which dot products are multiplied to be logits."""
        return self.temperature()

    def _embed(self, items):
        return features.unit_length(self.pin_tower(items))


class ItemInput(nn.Module):
    """An item as both towers see it: content and degree, a learned vector of its id, or both.

    Attributes:
      num_items: rows of the catalogue.
      id_dim: numbers of the learned vector; 0: there is none.
      id_buckets: rows of its table; 0: one for each item.
      tables: how content and learned vectors lie on the devices.
    """

    num_items: int
    id_dim: int
    id_buckets: int
    tables: sharded_table.Layout

    @nn.compact
    def __call__(
        self,
        content: Float[Array, "items content"] | None,
        rows: Int32[Array, "*shape"],
        times: UInt32[Array, "*shape"] | None = None,
        popularity_times: UInt32[Array, "times"] | None = None,
    ) -> Float32[Array, "*shape features"]:
        """Gathers and concatenates the vectors of catalogue rows; -1 is padding and zero.

        Args:
          content: (items, ...), laid out as `tables` says.
          rows: of the catalogue.
          times: unix seconds at which to see the items; None: at the newest degree.
          popularity_times: unix seconds, ascending, where the last numbers of content are an item's
            degree at each of these: of them an item has the newest one before its time, or zero.

        Raises:
          ValueError: there is neither content nor a learned vector.
        """
        parts = []
        if content is not None:
            vectors, popularity = self.tables.gather(content, rows), None
            if popularity_times is not None:
                dim = vectors.shape[-1] - len(popularity_times)
                vectors, popularity = jnp.split(vectors, [dim], axis=-1)
            # Content comes in any scale, PinSage's with unit length: to a root mean square of 1,
            # so that its numbers weigh what the other features' do.
            known = [features.unit_length(vectors) * math.sqrt(vectors.shape[-1])]
            if popularity is not None:
                known.append(_known_popularity(popularity, times, popularity_times))
            known = jnp.concatenate(known, axis=-1)
            parts.append(jnp.where(rows[..., None] >= 0, known, 0))
        if self.id_dim:
            table = hash_embedding.HashEmbedding(
                self.num_items, self.id_dim, self.id_buckets, tables=self.tables, name="id"
            )
            parts.append(table(rows))
        if not parts:
            raise ValueError("items have neither content vectors nor id_dim > 0: nothing is known")
        return jnp.concatenate(parts, axis=-1)


def _known_popularity(popularity, times, popularity_times):
    """The last degree that was counted before each time, (..., 1); the last of all if None."""
    if times is None:
        return popularity[..., -1:]
    before = jnp.searchsorted(popularity_times, times, side="left")[..., None]
    degree = jnp.take_along_axis(popularity, jnp.maximum(before - 1, 0), axis=-1)
    return jnp.where(before > 0, degree, 0)


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
    dropout: float
    dtype: Any
    remat: bool
    mesh: Mesh | None

    @nn.compact
    def __call__(
        self,
        items: Float[Array, "users length features"],
        embeddings: Float32[Array, "users length {self.embedding_dim}"] | None,
        history: Mapping[str, Array],
        positions: Int32[Array, "users positions"] | None,
        train: bool,
    ) -> Float32[Array, "users positions {self.embedding_dim}"]:
        """Embeds a user at positions, from the action there and those before it.

        The exception is the time of the newest action, which every position knows, since an
        action's age is one of its features (§3.1). What that action was, no other position knows.

        Args:
          items: the input vectors of the history's items.
          embeddings: what the pin tower makes of these; needed for `history_sums` alone.
          history: see `PinnerFormer`.
          positions: indices into the history; None: all of it.
          train: apply dropout.

        Raises:
          ValueError: a feature does not exist, or the history is longer than `length`.
        """
        unknown = set(self.features) - set(FEATURES)
        if unknown:
            raise ValueError(f"unknown features {sorted(unknown)}, expected some of {FEATURES}")
        length = items.shape[1]
        if length > self.length:
            raise ValueError(f"a history of {length} actions, expected at most {self.length}")

        mask = history["item"] >= 0
        if positions is None:
            positions = jnp.broadcast_to(jnp.arange(length), mask.shape)
        parts = []
        if "item" in self.features:
            parts.append(items)
        if "action" in self.features:
            table = features.CategoryEmbedding(self.num_actions, _CATEGORY_DIM, name="action")
            parts.append(table(history["action"]))
        if "surface" in self.features:
            table = features.CategoryEmbedding(self.num_surfaces, _CATEGORY_DIM, name="surface")
            parts.append(table(history["surface"]))
        if "duration" in self.features:
            parts.append(features.log_seconds(history["duration"]))
        if "time" in self.features:
            age, gap = relative_times(history["time"], mask)
            # Divided, which is not the paper's. A linear layer could learn that, but Adam changes
            # all its weights alike: many periods that say nothing would drown the content of an
            # item for the first thousand steps.
            parts += [
                features.TimeEncoding(features.ABSOLUTE_PERIODS, name="time")(history["time"]) / 4,
                features.TimeEncoding(features.RELATIVE_PERIODS, name="age")(age) / 4,
                features.TimeEncoding(features.RELATIVE_PERIODS, name="gap")(gap) / 4,
            ]

        inputs = jnp.concatenate(parts, axis=-1)
        x = nn.Dense(self.width, dtype=self.dtype, name="projection")(inputs)
        if self.positions:
            init = nn.initializers.normal(0.02)
            table = self.param("positions", init, (self.length, self.width))
            # Counted from the newest action, whatever the length of the history.
            x += table[self.length - length :].astype(self.dtype)
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
        x = transformer.Transformer(
            layers=self.layers,
            heads=self.heads,
            dropout=self.dropout,
            dtype=self.dtype,
            remat=self.remat,
            mesh=self.mesh,
            name="transformer",
        )(x, mask, train)
        parts = [at(x, positions)]
        hidden, layers = self.width, 1
        if self.history_sums:
            # Attention is slow to learn to count.
            gate = nn.Dense(1, bias_init=nn.initializers.ones, dtype=self.dtype, name="gate")
            seen = gate(jnp.concatenate([inputs, x], axis=-1))[..., 0]
            weights = jnp.where(mask, nn.sigmoid(seen), 0)
            liked = Liked(name="liked")(embeddings, weights, history["time"], positions)
            parts += [
                liked * math.sqrt(self.embedding_dim),
                2 * at(running_sum(items, weights), positions),
            ]
            hidden, layers = 2 * self.width, 2  # what is wanted is not linear in these
        if "request_time" in self.features:
            moment, time = (at(history[name], positions) for name in ("request_time", "time"))
            parts += [
                features.TimeEncoding(features.ABSOLUTE_PERIODS, name="request_time")(moment),
                features.TimeEncoding(features.RELATIVE_PERIODS, name="since")(moment - time),
            ]
        head = MLP(hidden, self.embedding_dim, self.dtype, layers, name="head")
        out = head(jnp.concatenate(parts, axis=-1))
        if self.history_sums:
            out = liked + out / 10  # at first about as long
        return features.unit_length(out)


class Liked(nn.Module):
    """What a history was about: a topic counts by the logarithm of the visits that it had.

    Of actions t on items with embeddings e_t, weighted by w_t, it is

      sum over t of v_t e_t log(1 + gain n_t) / n_t,       where
      n_t = sum over s of v_s a_st                         counts visits to items like that of t,
      v_t = w_t / (1 + sum over s < t of w_s a_st exp(-(time_t - time_s) / visit)),
      a_st = exp(sharpness (cos(K e_s, K e_t) - 1)).

    So n visits to items that are all alike make log(1 + gain n) of their embedding: the best user
    embedding is made of logarithms of what is wanted, as dot products are logits. Gain, sharpness,
    visit, in hours, and the matrix K, at first the identity, are learned.
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
          positions: indices into the history, each of which sees itself and what was before.
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


class MLP(nn.Module):
    """Hidden layers of gelu(W x), those after the first with a norm before and a residual around.

    Attributes:
      hidden: their width.
      out: numbers of the output.
      dtype: of the arithmetic.
      layers: how many there are.
      gated: whether they are gelu(W x) * V x (Shazeer, GLU Variants Improve Transformer, 2020).
    """

    hidden: int
    out: int
    dtype: Any
    layers: int = 1
    gated: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*shape in"]) -> Float[Array, "*shape {self.out}"]:
        rows = x.reshape(-1, x.shape[-1])  # a matrix, whose axes XLA leaves in their order

        def layer(rows, number=""):
            hidden = nn.gelu(nn.Dense(self.hidden, dtype=self.dtype, name=f"hidden{number}")(rows))
            if self.gated:
                hidden *= nn.Dense(self.hidden, dtype=self.dtype, name=f"gate{number}")(rows)
            return hidden

        hidden = layer(rows)
        for n in range(1, self.layers):
            hidden += layer(nn.LayerNorm(dtype=self.dtype, name=f"norm_{n}")(hidden), f"_{n}")
        out = nn.Dense(self.out, dtype=self.dtype, name="out")(hidden)
        return out.reshape(*x.shape[:-1], self.out)


def at(
    x: Shaped[Array, "users length *dim"], positions: Int32[Array, "users positions"]
) -> Shaped[Array, "users positions *dim"]:
    """What is at each user's positions."""
    return jax.vmap(lambda row, places: row[places])(x, positions)


def running_sum(
    x: Float[Array, "users length dim"], weights: Float[Array, "users length"]
) -> Float32[Array, "users length dim"]:
    """The weighted sum of each position and all before it over the root of their weights' sum.

    What is the same in all actions grows in it with the root of their number, and their noise does
    not. It is 0 where no weight is above 0.
    """
    total = jnp.cumsum(weights[..., None] * x, axis=1, dtype=jnp.float32)
    weight = jnp.cumsum(weights, axis=1, dtype=jnp.float32)[..., None]
    return total / jnp.sqrt(jnp.maximum(weight, 1e-6))


def relative_times(
    time: UInt32[Array, "users length"], mask: Bool[Array, "users length"]
) -> tuple[UInt32[Array, "users length"], UInt32[Array, "users length"]]:
    """Seconds to each user's newest action, and from the previous one (0 for the oldest)."""
    previous = jnp.roll(time, 1, axis=1)
    has_previous = jnp.roll(mask, 1, axis=1).at[:, 0].set(False)
    return time[:, -1:] - time, jnp.where(has_previous, time - previous, 0)
