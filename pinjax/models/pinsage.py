"""The network of PinSage (Ying et al., KDD 2018): convolutions of items and their neighbours."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Int32

from pinjax.distributed import sharded_table
from pinjax.models import features, hash_embedding, importance_pooling, temperature


class PinSage(nn.Module):
    """Convolutions, and the heads of items and of groups.

    The methods are the parts of Algorithms 1 and 2, for any list of items; `systems/pinsage.py`
    calls them for the items of a batch and `systems/layerwise.py` for all.

    Attributes:
      layers: number of convolutions; 0: the head reads an item's own features.
      pooling: of neighbours, "importance", or a baseline of the paper, "mean" or "max".
      width: of an item's vector after a convolution, and of the hidden layers of heads.
      message_width: of what an item sends to others.
      embedding_dim: embedding dimension.
      num_items: rows of the catalogue.
      id_dim: dimension of the learned vector of an item; 0: none.
      id_buckets: rows of the table of these, to which items are hashed; 0: one for each item.
      log_degree: whether an item's input has it.
      num_tokens: size of the vocabulary; 0: no texts.
      token_buckets: rows of the hash embedding of tokens; 0: one for each token.
      token_dim: dimension of the bag of an item's tokens.
      dtype: of the arithmetic. Parameters are float32.
      tables: layout of large tables.
    """

    layers: int
    pooling: str
    width: int
    message_width: int
    embedding_dim: int
    num_items: int
    id_dim: int
    id_buckets: int
    log_degree: bool
    num_tokens: int
    token_buckets: int
    token_dim: int
    dtype: Any = jnp.float32
    tables: sharded_table.Layout = sharded_table.REPLICATED

    def setup(self):
        def dense(width: int, name: str, use_bias: bool = True) -> nn.Dense:
            return nn.Dense(width, use_bias, dtype=self.dtype, name=name)

        layers = range(self.layers)
        self.q = [dense(self.message_width, f"q_{layer}") for layer in layers]
        self.w = [dense(self.width, f"w_{layer}") for layer in layers]
        self.g_1, self.g_2 = dense(self.width, "g_1"), dense(self.embedding_dim, "g_2", False)
        self.group_w = dense(self.width, "group_w")
        self.group_g_1 = dense(self.width, "group_g_1")
        self.group_g_2 = dense(self.embedding_dim, "group_g_2", False)
        self.temperature = temperature.Temperature()
        if self.id_dim:
            self.id = hash_embedding.HashEmbeddingBag(
                self.num_items, self.id_buckets, self.id_dim, tables=self.tables
            )
        if self.num_tokens:
            self.text = hash_embedding.HashEmbeddingBag(
                self.num_tokens, self.token_buckets, self.token_dim, tables=self.tables
            )

    def __call__(self, *inputs: Any) -> Float[Array, "groups {self.embedding_dim}"]:
        """Uses every parameter, to initialise them.

        Args:
          *inputs: of `inputs`.
        """
        z = self.inputs(*inputs)
        itself = jnp.arange(len(z), dtype=jnp.int32)[:, None]
        ones = jnp.ones(itself.shape)
        for layer in range(self.layers):
            z = self.combine(layer, z, self.pool(self.messages(layer, z), itself, ones))
        return (self.head(z) + self.group(z, itself, ones)) * self.scale()

    def inputs(
        self,
        rows: Int32[Array, " items"],
        content: Float[Array, "catalogue content"] | None,
        log_degree: Float32[Array, " catalogue"] | None,
        tokens: Int[Array, " tokens"] | None,
        segments: Int[Array, " tokens"] | None,
    ) -> Float32[Array, "items features"]:
        """The features of items, h of the first convolution; zero for padding.

        Args:
          rows: of the catalogue; -1 is padding.
          content: vectors of the catalogue, with the layout `tables`.
          log_degree: of the catalogue, likewise.
          tokens: of the items' texts, concatenated.
          segments: the item of each token, ascending; past the last one for padding.
        """
        parts, exists = [], rows >= 0
        if content is not None:
            vectors = self.tables.gather(content, rows)
            # Content may have any scale. The other features have a root mean square of 1.
            parts.append(features.unit_length(vectors) * math.sqrt(vectors.shape[-1]))
        if log_degree is not None:
            parts.append(self.tables.gather(log_degree, rows)[:, None])
        if self.id_dim:
            parts.append(self.id(jnp.maximum(rows, 0), jnp.arange(len(rows)), len(rows)))
        if self.num_tokens:
            parts.append(self.text(tokens, segments, len(rows)))
        return jnp.where(exists[:, None], jnp.concatenate(parts, axis=1), 0)

    def messages(
        self, layer: int, h: Float[Array, "items in"]
    ) -> Float[Array, "items {self.message_width}"]:
        """ReLU(Q h + q), what items send to others (Algorithm 1, line 1)."""
        return nn.relu(self.q[layer](h))

    def pool(
        self,
        messages: Float[Array, "sent in"],
        neighbours: Int32[Array, "rows T"],
        weights: Float32[Array, "rows T"],
    ) -> Float[Array, "rows in"]:
        """The neighbours' messages in one, γ of Algorithm 1; zero without neighbours.

        Args:
          messages: of the items that are neighbours.
          neighbours: rows of `messages`; -1 is padding.
          weights: importance of the neighbours, of sum 1.
        """
        if self.pooling == "mean":
            return importance_pooling.mean(messages, neighbours)
        if self.pooling == "max":
            return importance_pooling.maximum(messages, neighbours)
        return importance_pooling.weighted_sum(messages, neighbours, weights)

    def combine(
        self,
        layer: int,
        h: Float[Array, "rows in"],
        pooled: Float[Array, "rows {self.message_width}"],
    ) -> Float32[Array, "rows {self.width}"]:
        """ReLU(W [h, n] + w) of unit length (Algorithm 1, lines 2 and 3)."""
        joined = jnp.concatenate([h, pooled.astype(h.dtype)], axis=1)
        return features.unit_length(nn.relu(self.w[layer](joined)))

    def head(self, z: Float[Array, "rows in"]) -> Float32[Array, "rows {self.embedding_dim}"]:
        """G_2 ReLU(G_1 z + g) (Algorithm 2, line 15), of unit length.

        The paper's embeddings may have any length. All systems here are compared by cosines, so
        that one index serves all of them.
        """
        return features.unit_length(self.g_2(nn.relu(self.g_1(z))))

    def group(
        self,
        z: Float[Array, "items in"],
        neighbours: Int32[Array, "groups T"],
        weights: Float32[Array, "groups T"],
    ) -> Float32[Array, "groups {self.embedding_dim}"]:
        """The embeddings of groups, by a convolution over their items. It is not in the paper.

        Args:
          z: of items, after the last convolution.
          neighbours: the items of groups, as rows of `z`; -1 is padding.
          weights: of the items, of sum 1.
        """
        pooled = importance_pooling.weighted_sum(z, neighbours, weights)
        own = features.unit_length(nn.relu(self.group_w(pooled)))
        return features.unit_length(self.group_g_2(nn.relu(self.group_g_1(own))))

    def scale(self) -> Float32[Array, ""]:
        """One over the learned temperature of a softmax."""
        return self.temperature()
