"""A perceptron with one hidden layer, the head of every tower."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float


class MLP(nn.Module):
    """W gelu(V x + b) + c.

    Attributes:
      hidden: width of the hidden layer.
      out: numbers of the output.
      dtype: of the arithmetic. Parameters are float32.
    """

    hidden: int
    out: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "*shape in"]) -> Float[Array, "*shape {self.out}"]:
        rows = x.reshape(-1, x.shape[-1])  # a matrix, whose axes XLA leaves in their order
        hidden = nn.gelu(nn.Dense(self.hidden, dtype=self.dtype, name="hidden")(rows))
        out = nn.Dense(self.out, dtype=self.dtype, name="out")(hidden)
        return out.reshape(*x.shape[:-1], self.out)
