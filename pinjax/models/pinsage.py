"""PinSage: nodes of a graph as vectors, by convolutions over their important neighbours.

Ying et al., Graph Convolutional Neural Networks for Web-Scale Recommender Systems, KDD 2018. Every
method takes arrays of nodes and says what it computes of them; which nodes a layer needs, and who
their neighbours are, is the caller's: a minibatch computes those that its pairs need (Algorithm 2),
inference all of them, layer by layer (§3.4).
"""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Int32

from pinjax.distributed import sharded_table
from pinjax.models import features, hash_embedding, importance_pooling, temperature


class PinSage(nn.Module):
    """Items and groups as vectors of unit length, compared by their dot product.

    Of a minibatch, layer by layer from the nodes that are farthest away:

      h = model.inputs(rows, ...)
      for each layer k, with the nodes that layer k + 1 needs:
        n = importance_pooling.pool(model.messages(k, h), neighbours, weights, model.pooling)
        h = model.combine(k, h[these nodes], n)
      z = model.head(h)

    Attributes:
      num_items: rows of the catalogue.
      layers: convolutions; 0: the head is on the input, for a comparison with content alone.
      width: of h, the hidden states.
      message_width: of Q h + q, what a node passes to its neighbours.
      embedding_dim: embedding dimension.
      pooling: one of `importance_pooling.KINDS`.
      id_dim: dimension of an item's learned vector; 0: none.
      id_buckets: rows of the hash embedding of items; 0: one for each item.
      log_degree: whether the input has the logarithm of a node's degree.
      num_tokens: size of the vocabulary of an item's text; 0: items have none.
      token_buckets: rows of the hash embedding of tokens; 0: one for each token.
      token_dim: dimension of a text's vector, the sum over its tokens.
      dtype: of the arithmetic. Parameters, sums over neighbours, normalisation and outputs are
        float32.
      table_layout: layout of content, log degrees and hash embeddings.
    """

    num_items: int
    layers: int
    width: int
    message_width: int
    embedding_dim: int
    pooling: str = "importance"
    id_dim: int = 0
    id_buckets: int = 0
    log_degree: bool = False
    num_tokens: int = 0
    token_buckets: int = 0
    token_dim: int = 0
    dtype: Any = jnp.float32
    table_layout: sharded_table.Layout = sharded_table.REPLICATED

    def setup(self):
        self.node_input = NodeInput(
            num_items=self.num_items,
            id_dim=self.id_dim,
            id_buckets=self.id_buckets,
            log_degree=self.log_degree,
            num_tokens=self.num_tokens,
            token_buckets=self.token_buckets,
            token_dim=self.token_dim,
            table_layout=self.table_layout,
        )
        self.message = [self._dense(self.message_width) for _ in range(self.layers)]
        self.update = [self._dense(self.width) for _ in range(self.layers)]
        self.item_head = Head(self.width, self.embedding_dim, self.dtype)
        self.group_message = self._dense(self.message_width)
        self.group_update = self._dense(self.width)
        self.group_head = Head(self.width, self.embedding_dim, self.dtype)
        self.temperature = temperature.Temperature()

    def _dense(self, width):
        return nn.Dense(width, dtype=self.dtype)

    def __call__(
        self,
        rows: Int32[Array, " nodes"],
        content: Float[Array, "items content"] | None = None,
        log_degree: Float32[Array, " items"] | None = None,
        tokens: Int[Array, " tokens"] | None = None,
        segments: Int[Array, " tokens"] | None = None,
    ) -> Float32[Array, "nodes {self.embedding_dim}"]:
        """Every method on nodes that are their own only neighbours: for `init`."""
        self.scale()
        neighbours = jnp.arange(len(rows), dtype=jnp.int32)[:, None]
        weights = jnp.ones(neighbours.shape, jnp.float32)
        h = self.inputs(rows, content, log_degree, tokens, segments)
        for layer in range(self.layers):
            messages = self.messages(layer, h)
            pooled = importance_pooling.pool(messages, neighbours, weights, self.pooling)
            h = self.combine(layer, h, pooled)
        self.group(h, neighbours, weights)
        return self.head(h)

    def inputs(
        self,
        rows: Int32[Array, " nodes"],
        content: Float[Array, "items content"] | None = None,
        log_degree: Float32[Array, " items"] | None = None,
        tokens: Int[Array, " tokens"] | None = None,
        segments: Int[Array, " tokens"] | None = None,
    ) -> Float32[Array, "nodes features"]:
        """The input vectors of nodes, x of Algorithm 2. Arguments: see `NodeInput`."""
        return self.node_input(rows, content, log_degree, tokens, segments)

    def messages(
        self, layer: int, h: Float[Array, "nodes features"]
    ) -> Float[Array, "nodes {self.message_width}"]:
        """ReLU(Q h + q), what nodes pass to their neighbours (Algorithm 1, line 1).

        It is computed once for each node, not for each of its neighbours (§3.4).

        Args:
          layer: 0 to layers - 1; layer 0 takes the input.
          h: hidden states of the layer below.
        """
        return nn.relu(self.message[layer](h))

    def combine(
        self,
        layer: int,
        h: Float[Array, "nodes features"],
        pooled: Float[Array, "nodes {self.message_width}"],
    ) -> Float32[Array, "nodes {self.width}"]:
        """ReLU(W concat(h, n) + w) at unit length (Algorithm 1, lines 2 and 3); zero stays zero.

        Args:
          layer: as of `messages`.
          h: the nodes' own hidden states of the layer below.
          pooled: n, the pooled messages of their neighbours.
        """
        both = jnp.concatenate([h.astype(self.dtype), pooled.astype(self.dtype)], axis=-1)
        return features.unit_length(nn.relu(self.update[layer](both)))

    def head(
        self, h: Float[Array, "*nodes features"]
    ) -> Float32[Array, "*nodes {self.embedding_dim}"]:
        """Embeddings of items, from the last hidden states; see `Head`."""
        return self.item_head(h)

    def group(
        self,
        h: Float[Array, "nodes features"],
        neighbours: Int32[Array, "groups neighbours"],
        weights: Float32[Array, "groups neighbours"],
    ) -> Float32[Array, "groups {self.embedding_dim}"]:
        """Embeddings of groups, by one more convolution over their items. Not in the paper.

        A group has no input of its own, so its hidden state is ReLU(W n + w) at unit length.

        Args:
          h: last hidden states of items.
          neighbours: the groups' items, rows of `h`; -1 is padding.
          weights: see `importance_pooling.pool`.
        """
        messages = nn.relu(self.group_message(h))
        pooled = importance_pooling.pool(messages, neighbours, weights, self.pooling)
        return self.group_head(features.unit_length(nn.relu(self.group_update(pooled))))

    def scale(self) -> Float32[Array, ""]:
        """1 / τ, which turns dot products into logits of a softmax."""
        return self.temperature()


class NodeInput(nn.Module):
    """The input vector of a node: its content, and optionally what else is known of it.

    Attributes: see `PinSage`.
    """

    num_items: int
    id_dim: int
    id_buckets: int
    log_degree: bool
    num_tokens: int
    token_buckets: int
    token_dim: int
    table_layout: sharded_table.Layout

    @nn.compact
    def __call__(
        self,
        rows: Int32[Array, " nodes"],
        content: Float[Array, "items content"] | None,
        log_degree: Float32[Array, " items"] | None,
        tokens: Int[Array, " tokens"] | None,
        segments: Int[Array, " tokens"] | None,
    ) -> Float32[Array, "nodes features"]:
        """The input vectors of catalogue rows; -1 is padding and zero.

        Args:
          rows: of the catalogue.
          content: of the catalogue, of any scale, laid out as `table_layout` says; None: items have
            none.
          log_degree: of the catalogue, laid out likewise.
          tokens: of the texts of all `rows`, one text after the other.
          segments: the index into `rows` of each token, ascending; past the last for padding.

        Raises:
          ValueError: nothing is known of nodes.
        """
        parts = []
        if content is not None:
            vectors = self.table_layout.gather(content, rows)
            # To a root mean square of 1, as `item_input.ItemInput` does.
            parts.append(features.unit_length(vectors) * math.sqrt(vectors.shape[-1]))
        if self.log_degree:
            parts.append(self.table_layout.gather(log_degree, rows)[:, None])
        if self.num_tokens:
            text = hash_embedding.HashEmbeddingBag(
                self.num_tokens,
                self.token_buckets,
                self.token_dim,
                table_layout=self.table_layout,
                name="text",
            )
            parts.append(text(tokens, segments, len(rows)))
        if self.id_dim:
            # Not `learned_ids`, which are zero at first: without content nothing would be learned.
            ids = hash_embedding.HashEmbeddingBag(
                self.num_items,
                self.id_buckets,
                self.id_dim,
                table_layout=self.table_layout,
                name="id",
            )
            parts.append(ids(jnp.maximum(rows, 0), jnp.arange(len(rows)), len(rows)))
        if not parts:
            raise ValueError("nodes have neither content, degrees, texts nor ids as input")
        return jnp.where(rows[:, None] >= 0, jnp.concatenate(parts, axis=-1), 0)


class Head(nn.Module):
    """G_2 ReLU(G_1 h + g) (Algorithm 2) at unit length.

    The paper compares these vectors by their dot product. Here all systems compare embeddings by
    cosine similarity, so that one index serves them all.

    Attributes:
      hidden: width of the hidden layer.
      out: embedding dimension.
      dtype: of the arithmetic. Parameters and output are float32.
    """

    hidden: int
    out: int
    dtype: Any

    @nn.compact
    def __call__(self, h: Float[Array, "*nodes features"]) -> Float32[Array, "*nodes {self.out}"]:
        hidden = nn.relu(nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(h))
        out = nn.Dense(self.out, use_bias=False, dtype=self.dtype, name="out")(hidden)
        return features.unit_length(out)
