"""The cheap query tower of SearchSage: a bag of hashed tokens."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int

from pinjax.distributed import sharded_table
from pinjax.models import features, hash_embedding, mlp


class BagTower(nn.Module):
    """Queries as vectors of unit length: the sum of their tokens' hash embeddings through an MLP.

    Attributes:
      num_tokens: size of the vocabulary.
      token_buckets: rows of the hash embedding of tokens; 0: one for each token.
      token_dim: dimension of a token's vector.
      width: hidden width of the MLP.
      dim: embedding dimension.
      dtype: of the MLP's arithmetic.
      tables: layout of the hash embedding.
    """

    num_tokens: int
    token_buckets: int
    token_dim: int
    width: int
    dim: int
    dtype: Any = jnp.float32
    tables: sharded_table.Layout = sharded_table.REPLICATED

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
            self.num_tokens, self.token_buckets, self.token_dim, tables=self.tables, name="text"
        )(tokens, segments, num_queries)
        x = mlp.MLP(self.width, self.dim, self.dtype, name="head")(x)
        return features.unit_length(x)
