"""The learned temperature of a softmax over cosines."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float32

_LEAST = 0.01
_INITIAL = 0.07


class Temperature(nn.Module):
    """1 / τ, by which dot products are multiplied to be logits.

    τ is 0.01 + e^x with x learned: it stays above 0.01, and unlike that of a clipped temperature
    its gradient never becomes zero, from where it could not come back. It starts at 0.07.
    """

    @nn.compact
    def __call__(self) -> Float32[Array, ""]:
        init = nn.initializers.constant(math.log(_INITIAL - _LEAST))
        return 1 / (_LEAST + jnp.exp(self.param("log_temperature", init, ())))
