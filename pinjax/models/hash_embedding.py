"""Learned embeddings of tokens, in a table that may be smaller than their number."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, UInt32

from pinjax.distributed import sharded_table

# Tokens that are looked up at once, so that their rows stay in a CPU's cache.
BLOCK_SIZE = 1024
_STDDEV = 0.02  # initial standard deviation of a shared table
_HASHES = 2  # rows of a token in a shared table


class HashEmbeddingBag(nn.Module):
    """Sums of hash embeddings: a text as the sum over its tokens (ItemSage, KDD 2022).

    Two hash functions map a token to rows of one shared table, and the token's learned importance
    weights sum them: w_1 E[h_1] + w_2 E[h_2] (Svenstrup et al., NeurIPS 2017). Two tokens have the
    same embedding only if all their hashes collide. If the table has a row for every token, no
    hashes are used. Rows are scaled by sqrt(dim): Adam moves each number of a table by about the
    learning rate, which is too slow for rare rows.

    Texts are segments of one flat array, so they need no padding.

    Attributes:
      num_tokens: tokens are 0 to num_tokens - 1.
      num_buckets: rows of the table; 0 or at least `num_tokens`: a row for each token.
      dim: embedding dimension.
      table_layout: layout of the table.
    """

    num_tokens: int
    num_buckets: int
    dim: int
    table_layout: sharded_table.Layout = sharded_table.REPLICATED

    @nn.compact
    def __call__(
        self, tokens: Int[Array, " tokens"], segments: Int[Array, " tokens"], num_segments: int
    ) -> Float[Array, "{num_segments} {self.dim}"]:
        """Embeds segments; one without tokens is zero.

        Args:
          tokens: of all segments.
          segments: the segment of each token, ascending. Tokens of segment `num_segments`, which
            come last, are padding.
          num_segments: number of segments.
        """
        table, rows, weights = self._look_up(tokens)
        table, places = self.table_layout.fetch(table, rows.ravel())
        sums = _weighted_sums(num_segments, table, places.reshape(rows.shape), weights, segments)
        return sums * self.dim**0.5

    def _look_up(self, tokens):
        """The table, and for each token its rows and their weights, (tokens, hashes) each."""
        init = nn.initializers.normal(_STDDEV)
        if 0 < self.num_buckets < self.num_tokens:
            shape = self.table_layout.num_rows(self.num_buckets), self.dim
            table = self.param("embedding", init, shape)
            shape = self.table_layout.num_rows(self.num_tokens), _HASHES
            importance = self.param("importance", nn.initializers.ones, shape)
            rows = (hash_ids(tokens) % self.num_buckets).astype(jnp.int32)
            return table, rows, self.table_layout.gather(importance, tokens)
        table = self.param(
            "embedding", init, (self.table_layout.num_rows(self.num_tokens), self.dim)
        )
        return table, tokens[:, None], jnp.ones((*tokens.shape, 1), table.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _weighted_sums(num_segments, table, rows, weights, segments):
    """The sums over each segment of weights * table[rows]: (num_segments, dim).

    Both passes process blocks of tokens, so that the rows of all tokens never exist at once: a CPU
    would take longer to allocate them than to sum them. The backward pass adds to one gradient of
    the table; autodiff of the loop would allocate a full gradient for every block.

    Args:
      num_segments: number of segments.
      table: (rows, dim).
      rows: int (tokens, hashes).
      weights: (tokens, hashes).
      segments: int (tokens,), ascending; those out of range are dropped.
    """

    def step(sums, block):
        rows, weights, segments = block
        # A sum over hashes, not an einsum, which would first materialise all rows.
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
    """The arrays with an axis of blocks of tokens; the last block is padded."""
    block_size = max(1, min(BLOCK_SIZE, segments.shape[0]))
    padding = (0, -segments.shape[0] % block_size)
    padded = (
        jnp.pad(rows, (padding, (0, 0))),
        jnp.pad(weights, (padding, (0, 0))),
        jnp.pad(segments, padding, constant_values=num_segments),
    )
    return jax.tree.map(lambda x: x.reshape(-1, block_size, *x.shape[1:]), padded)


def hash_ids(ids: Int[Array, "*shape"]) -> UInt32[Array, "*shape 2"]:
    """Two hashes of each id: MurmurHash3's finaliser of the id, salted.

    It mixes all bits, so a remainder of the hash is as good as its high bits.
    """
    # A SeedSequence is the same in every release of NumPy: a checkpoint keeps its hashes.
    salts = np.random.SeedSequence(0).generate_state(_HASHES)
    x = ids.astype(jnp.uint32)[..., None] ^ salts
    x = (x ^ x >> 16) * jnp.uint32(0x85EBCA6B)
    x = (x ^ x >> 13) * jnp.uint32(0xC2B2AE35)
    return x ^ x >> 16
