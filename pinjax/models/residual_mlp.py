"""A deeper MLP, with or without gates. Not in the paper, whose towers end in `mlp.MLP`.

With `model.gated_layers` it is the pin tower: one layer of GELU stays almost linear for thousands
of steps, so items with similar content keep similar embeddings. A gate, which multiplies two linear
maps, separates them sooner. With `model.history_sums` it is in the user tower's head, with two
layers and no gates.
"""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float


class ResidualMLP(nn.Module):
    """Hidden layers with a residual around each but the first, and a LayerNorm before it.

    A layer is gelu(W x), or with gates gelu(W x) * V x (Shazeer, GLU Variants Improve Transformer,
    2020).

    Attributes:
      hidden: width of the layers.
      out: output dimension.
      dtype: of the arithmetic. Parameters and LayerNorm are float32.
      layers: number of layers, at least 1.
      gated: whether they have gates.
    """

    hidden: int
    out: int
    dtype: Any
    layers: int
    gated: bool

    @nn.compact
    def __call__(self, x: Float[Array, "*shape in"]) -> Float[Array, "*shape {self.out}"]:
        rows = x.reshape(-1, x.shape[-1])  # a matrix, for which XLA keeps the order of axes

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
