"""The query towers of SearchSage (Pinterest Engineering, 2021): BERT, or a bag of hashed tokens."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int

from pinjax.distributed import sharded_table
from pinjax.models import bert, features, hash_embedding, mlp


class BertTower(nn.Module):
    """Queries as vectors of unit length, by a transformer: the published tower.

    Attributes:
      encoder: of text.
      dim: embedding dimension.
    """

    encoder: bert.Bert
    dim: int = 256

    @nn.compact
    def __call__(
        self,
        ids: Int[Array, "queries length"],
        mask: Bool[Array, "queries length"],
        capacity: int | None = None,
    ) -> Float32[Array, "queries {self.dim}"]:
        """Embeds queries: a linear map of the output at position 0, [CLS]. See `bert.Bert`."""
        x = self.encoder(ids, mask, capacity)[:, 0]
        x = nn.Dense(self.dim, dtype=self.encoder.dtype, name="out")(x)
        return features.unit_length(x)


class BagTower(nn.Module):
    """Queries as vectors of unit length: the sum of their tokens' hash embeddings through an MLP.

    Attributes:
      num_tokens: size of the vocabulary.
      token_buckets: rows of the hash embedding of tokens; 0: one for each token.
      token_dim: dimension of a token's vector.
      width: hidden width of the MLP.
      dim: embedding dimension.
      dtype: of the MLP's arithmetic.
      table_layout: layout of the hash embedding.
    """

    num_tokens: int
    token_buckets: int
    token_dim: int
    width: int
    dim: int
    dtype: Any = jnp.float32
    table_layout: sharded_table.Layout = sharded_table.REPLICATED

    @nn.compact
    def __call__(
        self, tokens: Int[Array, " tokens"], segments: Int[Array, " tokens"], num_queries: int
    ) -> Float32[Array, "{num_queries} {self.dim}"]:
        """Embeds queries.

        Args:
          tokens: of all queries, concatenated.
          segments: the query of each token, ascending; past the last one for padding.
          num_queries: number of queries.
        """
        x = hash_embedding.HashEmbeddingBag(
            self.num_tokens,
            self.token_buckets,
            self.token_dim,
            table_layout=self.table_layout,
            name="text",
        )(tokens, segments, num_queries)
        x = mlp.MLP(self.width, self.dim, self.dtype, name="head")(x)
        return features.unit_length(x)
