"""Learned embeddings of ids, in a table that may be smaller than their number."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32


class HashEmbedding(nn.Module):
    """Hash embeddings (Svenstrup et al., NeurIPS 2017).

    Hash functions send an id to rows of one shared table, and learned importance weights of its own
    sum them up: w_1 E[h_1] + w_2 E[h_2]. Two ids look the same only if all their hashes collide.
    Where the table has room for every id, each simply has its row. Rows are scaled by sqrt(dim).

    Attributes:
      num_ids: ids are 0 to num_ids - 1.
      dim: numbers of an embedding.
      num_buckets: rows of the table; 0 or at least `num_ids`: a row for each id.
      num_hashes: rows to an id.
    """

    num_ids: int
    dim: int
    num_buckets: int = 0
    num_hashes: int = 2

    @nn.compact
    def __call__(self, ids: Int[Array, "*shape"]) -> Float[Array, "*shape {self.dim}"]:
        """Embeds ids; -1 is padding and embedded as zero."""
        exists = ids >= 0
        ids = jnp.where(exists, ids, 0)
        init = nn.initializers.normal(0.02)
        if 0 < self.num_buckets < self.num_ids:
            table = self.param("embedding", init, (self.num_buckets, self.dim))
            ones = nn.initializers.ones
            importance = self.param("importance", ones, (self.num_ids, self.num_hashes))
            rows = hash_ids(ids, self.num_hashes) % self.num_buckets
            embedding = jnp.einsum("...h,...hd->...d", importance[ids], table[rows])
        else:
            table = self.param("embedding", init, (self.num_ids, self.dim))
            embedding = table[ids]
        # Adam moves each number of a table by about the learning rate: too slow for rows that are
        # seldom seen, unless what is read is larger than what is stored.
        return jnp.where(exists[..., None], embedding * self.dim**0.5, 0)


def hash_ids(ids: Int[Array, "*shape"], num_hashes: int) -> UInt32[Array, "*shape hashes"]:
    """Several hashes of each id: MurmurHash3's finaliser of the id, salted.

    It mixes every bit into every other, so a remainder of the hash is as good as its high bits.
    """
    # A SeedSequence is the same in every release of NumPy: a checkpoint keeps its hashes.
    salts = np.random.SeedSequence(0).generate_state(num_hashes)
    x = ids.astype(jnp.uint32)[..., None] ^ salts
    x = (x ^ x >> 16) * jnp.uint32(0x85EBCA6B)
    x = (x ^ x >> 13) * jnp.uint32(0xC2B2AE35)
    return x ^ x >> 16
