"""A causal PreNorm transformer."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float

from pinjax.models import attention


class Transformer(nn.Module):
    """PreNorm blocks U = V + MHSA(LN(V)), V' = U + FFN(LN(U)) (PinnerFormer, §3.2).

    The blocks are one block scanned over parameters stacked on a leading `layers` axis, so that it
    is compiled once however many there are. As in GPT-2, a LayerNorm follows the last of them.

    Attributes:
      layers: number of blocks.
      heads: attention heads; they divide the width.
      dropout: rate, on the output of each MHSA and FFN.
      dtype: of the arithmetic. Parameters, LayerNorm and softmax are float32.
      remat: keep only each block's input for the backward pass and compute the rest anew.
      mesh: over whose axis `data` the batch is shared out; None: it is on one device.
    """

    layers: int
    heads: int
    dropout: float = 0.0
    dtype: Any = jnp.float32
    remat: bool = False
    mesh: Mesh | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        mask: Bool[Array, "batch length"],
        train: bool = False,
    ) -> Float[Array, "batch length width"]:
        """Runs the blocks.

        Args:
          x: what is at each position.
          mask: False for padding, which comes first and which no other position attends to.
          train: apply dropout, from the rng stream "dropout".

        Raises:
          ValueError: the heads do not divide the width.
        """
        width = x.shape[-1]
        if width % self.heads:
            raise ValueError(f"width {width} is not divisible by {self.heads} heads")
        x = x.astype(self.dtype)
        by_cudnn = attention.has_cudnn(self.dtype, width // self.heads)
        if by_cudnn:
            padding = jnp.argmax(mask, axis=1)
            x = attention.rotate(x, padding, self.mesh)
        attend = attention.by_cudnn if by_cudnn else attention.causal_attention
        # What a loop carries is copied: on a CPU, a third of the time of two layers. On a GPU so is
        # all that the backward pass needs, a third of the time of six: there it is no loop.
        loop = not attention.on_gpu()
        block = nn.remat(Block, prevent_cse=not loop) if self.remat else Block
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=self.layers,
            unroll=2 if loop else self.layers,
        )(
            *(self.heads, self.dropout, self.dtype),
            deterministic=not train,
            attend=functools.partial(attend, mesh=self.mesh),
            name="blocks",
        )
        x, _ = blocks(x, mask)
        if by_cudnn:
            x = attention.rotate(x, -padding, self.mesh)
        return nn.LayerNorm(dtype=self.dtype, name="norm")(x)


class Block(nn.Module):
    """One block, in the form that a scan takes: (carry, input) -> (carry, output).

    Attributes:
      heads, dropout, dtype: see `Transformer`.
      deterministic: no dropout.
      attend: (query, key, value, mask=mask) -> attended, each (batch, length, heads, dim).
    """

    heads: int
    dropout: float
    dtype: Any
    deterministic: bool
    attend: Callable[..., Array] = jax.nn.dot_product_attention

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        mask: Bool[Array, "..."],
    ) -> tuple[Float[Array, "batch length width"], None]:
        shape, width = x.shape, x.shape[-1]
        heads = (self.heads, width // self.heads)
        on_gpu = attention.on_gpu()
        if on_gpu:
            # As a matrix, whose last axis XLA keeps in one piece. Of three axes it chooses others,
            # and a fifth of a step goes into transposing.
            x = x.reshape(-1, width)

        def dropout(y):
            return nn.Dropout(self.dropout, deterministic=self.deterministic)(y)

        y = nn.LayerNorm(dtype=self.dtype, name="attention_norm")(x)
        y = nn.DenseGeneral(
            (3, *heads),
            dtype=self.dtype,
            dot_general=_of_matrices if on_gpu else None,
            name="query_key_value",
        )(y)
        parts = (part.reshape(*shape[:-1], *heads) for part in jnp.moveaxis(y, -3, 0))
        y = self.attend(*parts, mask=mask).reshape(*x.shape[:-1], *heads)
        # At first attention is a mean over positions, and a mean of n vectors that have nothing in
        # common is 1 / sqrt(n) as long as they are: what a user did would drown in the last action.
        init = nn.initializers.variance_scaling(shape[1], "fan_in", "truncated_normal")
        y = nn.DenseGeneral(
            width, axis=(-2, -1), dtype=self.dtype, kernel_init=init, name="attention_out"
        )(y)
        x += dropout(y)

        y = nn.LayerNorm(dtype=self.dtype, name="ffn_norm")(x)
        y = nn.Dense(4 * width, dtype=self.dtype, name="ffn_in")(y)
        # A GPU moves less if GELU's input is all that is kept for the backward pass.
        y = jax.checkpoint(nn.gelu)(y) if on_gpu else nn.gelu(y)
        y = nn.Dense(width, dtype=self.dtype, name="ffn_out")(y)
        return (x + dropout(y)).reshape(shape), None


def _of_matrices(x, kernel, dimensions, **options):
    """`lax.dot_general` of rows and the first axis of a kernel, whose others are made one."""
    y = lax.dot_general(x, kernel.reshape(len(kernel), -1), dimensions, **options)
    return y.reshape(len(x), *kernel.shape[1:])
