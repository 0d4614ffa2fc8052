"""BERT's encoder."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

_INIT = nn.initializers.truncated_normal(0.02)


class Bert(nn.Module):
    """The encoder of BERT (Devlin et al., NAACL 2019), for single texts.

    LayerNorm of token + position + token type, then PostNorm blocks U = LN(V + MHSA(V)),
    V' = LN(U + FFN(U)), with the exact GELU. A single text is of token type 0 throughout. Without
    token types it is the encoder of DistilBERT (Sanh et al., 2019). The blocks are one block
    scanned over parameters stacked on a leading `layers` axis.

    Attributes:
      vocabulary: number of tokens.
      positions: the longest text, in tokens.
      token_types: rows of the table of token types; 0: no table.
      layers: number of blocks.
      heads: attention heads; they divide the width.
      width: numbers at a position.
      ffn_width: hidden width of each FFN.
      epsilon: of every LayerNorm, added to the variance.
      dtype: of the arithmetic. Parameters, LayerNorm and softmax are float32.
    """

    vocabulary: int
    positions: int
    token_types: int
    layers: int
    heads: int
    width: int
    ffn_width: int
    epsilon: float = 1e-12
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        ids: Int[Array, "texts length"],
        mask: Bool[Array, "texts length"],
        capacity: int | None = None,
    ) -> Float[Array, "texts length {self.width}"]:
        """Encodes texts.

        With a capacity, everything but attention itself is computed for that many tokens and for
        no padding; texts are short, so attention is the least part.

        Args:
          ids: tokens, the first of each text at position 0. A token outside the
            vocabulary makes its text NaN.
          mask: False for padding, which no position attends to. Its output is arbitrary.
          capacity: the most tokens of all texts, without padding. If there are more, the result
            is NaN. None: unknown.

        Raises:
          ValueError: the texts are longer than `positions`, or the heads do not divide the width.
        """
        length = ids.shape[1]
        if length > self.positions:
            raise ValueError(f"texts of {length} tokens, expected at most {self.positions}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")
        place = jnp.broadcast_to(jnp.arange(length), mask.shape)
        cells = None
        # Cells are numbered by an int32.
        if capacity is not None and capacity < mask.size <= jnp.iinfo(jnp.int32).max:
            cells = _Cells.create(mask, capacity)
            ids, place = cells.take(ids), cells.take(place)
        x = nn.Embed(self.vocabulary, self.width, embedding_init=_INIT, name="token")(ids)
        x += self.param("position", _INIT, (self.positions, self.width))[place]
        if self.token_types:
            x += self.param("token_type", _INIT, (self.token_types, self.width))[0]
        x = nn.LayerNorm(self.epsilon, dtype=self.dtype, name="norm")(x)

        blocks = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.layers,
            unroll=self.layers,  # see `transformer.Transformer`
        )(self.heads, self.ffn_width, self.epsilon, self.dtype, name="blocks")
        x, _ = blocks(x, mask[:, None, None], cells)
        if cells is not None:
            x = jnp.where(mask.sum() <= capacity, cells.put(x), jnp.nan)
        return x


class _Cells(NamedTuple):
    """Which cells of texts have a token.

    Attributes:
      token: int32 (tokens,), the cell of each token; behind the last cell where there are fewer.
      cell: int32 (texts, length), the token in each cell; behind the last token for padding.
    """

    token: Array
    cell: Array

    @classmethod
    def create(cls, mask: Bool[Array, "texts length"], tokens: int) -> "_Cells":
        token = jnp.flatnonzero(mask, size=tokens, fill_value=mask.size)
        number = jnp.cumsum(mask).reshape(mask.shape) - 1
        return cls(token, jnp.where(mask, number, tokens))

    def take(self, x: Shaped[Array, "texts length *dim"]) -> Shaped[Array, " tokens *dim"]:
        """The values at tokens, 0 where there are fewer."""
        flat = x.reshape(-1, *x.shape[2:])
        return flat.at[self.token].get(mode="fill", fill_value=0)

    def put(self, x: Shaped[Array, " tokens *dim"]) -> Shaped[Array, "texts length *dim"]:
        """The values of tokens in their cells, arbitrary ones in others."""
        return x.at[self.cell].get(mode="clip")


class Block(nn.Module):
    """One block as a scan body: (carry, input) -> (carry, output); of texts or of their tokens."""

    heads: int
    ffn_width: int
    epsilon: float
    dtype: Any

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "*tokens width"],
        visible: Bool[Array, "texts 1 1 length"],
        cells: _Cells | None,
    ) -> tuple[Float[Array, "*tokens width"], None]:
        width = x.shape[-1]

        def added(y, name):
            return nn.LayerNorm(self.epsilon, dtype=self.dtype, name=name)(x + y)

        def linear(shape, name, axis=-1):
            return nn.DenseGeneral(shape, axis=axis, dtype=self.dtype, kernel_init=_INIT, name=name)

        heads = self.heads, width // self.heads
        y = linear((3, *heads), "query_key_value")(x)
        # Rows of all heads together: XLA pads an axis of 64 to 128 in a TPU's memory.
        y = y.reshape(*x.shape[:-1], -1)
        parts = jnp.split(y if cells is None else cells.put(y), 3, axis=-1)
        query, key, value = (part.reshape(*part.shape[:-1], *heads) for part in parts)
        y = jax.nn.dot_product_attention(query, key, value, mask=visible)
        y = y.reshape(*y.shape[:-2], width)
        y = y if cells is None else cells.take(y)
        y = y.reshape(*x.shape[:-1], *heads)
        x = added(linear(width, "attention_out", (-2, -1))(y), "attention_norm")

        y = nn.gelu(linear(self.ffn_width, "ffn_in")(x), approximate=False)
        x = added(linear(width, "ffn_out")(y), "ffn_norm")
        return x, None
