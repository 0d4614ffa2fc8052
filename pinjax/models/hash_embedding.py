"""Learned embeddings of tokens, in a table that may be smaller than their number."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, UInt32

from pinjax.distributed import sharded_table

# Tokens that are looked up at once: what they make stays in a CPU's cache.
_BLOCK_SIZE = 1024
_STDDEV = 0.02  # of the numbers in a shared table at first


class HashEmbeddingBag(nn.Module):
    """Sums of hash embeddings: a text as the sum over its tokens (ItemSage, KDD 2022).

    Hash functions send a token to rows of one shared table, and learned importance weights of its
    own sum them up: w_1 E[h_1] + w_2 E[h_2] (Svenstrup et al., NeurIPS 2017). Two tokens look the
    same only if all their hashes collide. Where the table has room for every token, each simply has
    its row. Rows are scaled by sqrt(dim): Adam moves each number of a table by about the learning
    rate, too slow for rows that are seldom seen.

    Texts of any length lie one after the other in one flat array, each a segment of it, so that
    they need no padding of their own.

    Attributes:
      num_tokens: tokens are 0 to num_tokens - 1.
      num_buckets: rows of the table; 0 or at least `num_tokens`: a row for each token.
      dim: numbers of an embedding.
      num_hashes: rows to a token.
      tables: how the table lies on the devices.
    """

    num_tokens: int
    num_buckets: int
    dim: int
    num_hashes: int = 2
    tables: sharded_table.Layout = sharded_table.REPLICATED

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "tokens"], segments: Int[Array, "tokens"], num_segments: int
    ) -> Float[Array, "{num_segments} {self.dim}"]:
        """Embeds segments; one without tokens is zero.

        Args:
          tokens: of all segments.
          segments: the segment of each token, ascending. Tokens of segment `num_segments`, which
            come last, are padding.
          num_segments: how many there are.
        """
        table, rows, weights = self._look_up(tokens)
        table, places = self.tables.fetch(table, rows.ravel())
        sums = _weighted_sums(num_segments, table, places.reshape(rows.shape), weights, segments)
        return sums * self.dim**0.5

    def _look_up(self, tokens):
        """The table, and for each token its rows and their weights, (tokens, hashes) each."""
        init = nn.initializers.normal(_STDDEV)
        if 0 < self.num_buckets < self.num_tokens:
            shape = self.tables.num_rows(self.num_buckets), self.dim
            table = self.param("embedding", init, shape)
            shape = self.tables.num_rows(self.num_tokens), self.num_hashes
            importance = self.param("importance", nn.initializers.ones, shape)
            rows = (hash_ids(tokens, self.num_hashes) % self.num_buckets).astype(jnp.int32)
            return table, rows, self.tables.gather(importance, tokens)
        table = self.param("embedding", init, (self.tables.num_rows(self.num_tokens), self.dim))
        return table, tokens[:, None], jnp.ones((*tokens.shape, 1), table.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_sums(num_segments, table, rows, weights, segments):
    """The sums over each segment of weights * table[rows]: (num_segments, dim).

    Both passes take a block of tokens at a time, so that the rows of all tokens never exist at
    once: making room for them takes a CPU longer than the sums. The backward pass adds to one
    gradient of the table, where autodiff of the loop would make a full one in every block.

    Args:
      num_segments: how many there are.
      table: (rows, dim).
      rows: int (tokens, hashes).
      weights: (tokens, hashes).
      segments: int (tokens,), ascending; what is out of range is dropped.
    """

    def step(sums, block):
        rows, weights, segments = block
        # A sum over hashes, not an einsum, which would first write down all rows.
        embedding = sum(weights[:, i, None] * table[rows[:, i]] for i in range(rows.shape[1]))
        return sums.at[segments].add(embedding, mode="drop", indices_are_sorted=True), None

    sums = jnp.zeros((num_segments, table.shape[1]), table.dtype)
    return lax.scan(step, sums, _blocks(num_segments, rows, weights, segments))[0]


def _weighted_sums_fwd(num_segments, *args):
    return _weighted_sums(num_segments, *args), args


def _weighted_sums_bwd(num_segments, args, gradient):
    table, rows, weights, segments = args

    def step(to_table, block):
        rows, weights, segments = block
        to_token = gradient.at[segments].get(mode="fill", fill_value=0, indices_are_sorted=True)
        to_weights = jnp.einsum("td,thd->th", to_token, table[rows])
        return to_table.at[rows].add(weights[..., None] * to_token[:, None]), to_weights

    blocks = _blocks(num_segments, rows, weights, segments)
    to_table, to_weights = lax.scan(step, jnp.zeros_like(table), blocks)
    to_weights = to_weights.reshape(-1, weights.shape[1])[: len(weights)]
    return to_table, None, to_weights, None


_weighted_sums.defvjp(_weighted_sums_fwd, _weighted_sums_bwd)


def _blocks(num_segments, rows, weights, segments):
    """The same arrays in blocks of tokens, on an axis of its own, with padding in the last."""
    block_size = max(1, min(_BLOCK_SIZE, len(segments)))
    padding = (0, -len(segments) % block_size)
    padded = (
        jnp.pad(rows, (padding, (0, 0))),
        jnp.pad(weights, (padding, (0, 0))),
        jnp.pad(segments, padding, constant_values=num_segments),
    )
    return jax.tree.map(lambda x: x.reshape(-1, block_size, *x.shape[1:]), padded)


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
