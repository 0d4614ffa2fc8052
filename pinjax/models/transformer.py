"""A causal PreNorm transformer."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int32, Shaped

from pinjax.models import attention, initial_scales


class Transformer(nn.Module):
    """PreNorm blocks U = V + MHSA(LN(V)), V' = U + FFN(LN(U)) (PinnerFormer, §3.2).

    The blocks are one block scanned over parameters stacked on a leading `layers` axis. As in
    GPT-2, a LayerNorm follows the last block.

    Attributes:
      layers: number of blocks.
      heads: attention heads; they divide the width.
      dropout: rate, on the output of each MHSA and FFN.
      dtype: of the arithmetic. Parameters, LayerNorm and softmax are float32.
      remat: keep only each block's input for the backward pass and recompute the rest.
      scaled_attention: see `initial_scales.attention_out`; not in the paper.
      kernels: use the attention kernel of each platform that has one. JAX cannot lower a kernel in
        a program for several platforms at once, so such an export needs False.
      mesh: the batch is sharded over its axis `data`; None: one device.
    """

    layers: int
    heads: int
    dropout: float = 0.0
    dtype: Any = jnp.float32
    remat: bool = False
    scaled_attention: bool = False
    kernels: bool = True
    mesh: Mesh | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        end: Int32[Array, "batch length"],
        train: bool = False,
        alone: bool = False,
    ) -> Float[Array, "batch length width"]:
        """Runs the blocks, in the best form for the platform of the program.

        Args:
          x: inputs at positions.
          end: the windows in the rows, see `attention`.
          train: apply dropout, from the rng stream "dropout".
          alone: whether each row has one window, before padding, which some kernels need not mask.

        Raises:
          ValueError: the heads do not divide the width.
        """
        width = x.shape[-1]
        if width % self.heads:
            raise ValueError(f"width {width} is not divisible by {self.heads} heads")
        x = x.astype(self.dtype)
        if self.is_initializing():
            x, _ = self._blocks(attention.by_xla, train, parent=self)(x, end)
        else:
            x = self._by_platform(self.variables["params"]["blocks"], x, end, train, alone)
        return nn.LayerNorm(dtype=self.dtype, name="norm")(x)

    def _by_platform(self, params, x, end, train, alone):
        """The blocks, in the best form for the platform of the program."""
        rngs = {"dropout": self.make_rng("dropout")} if train and self.dropout else {}

        def run(attend, params, x, end, rngs, **form):
            blocks = self._blocks(attend, train, **form)
            x, _ = blocks.apply({"params": params}, x, end, rngs=rngs)
            return x

        # The compiler cannot split a kernel over devices by itself.
        forms = {
            "default": functools.partial(run, attention.by_xla),
            "cpu": functools.partial(run, attention.by_xla, as_matrix=True),
        }
        if self.kernels and attention.has_splash(x.shape[1]):
            attend = attention.over_data(attention.splash, self.mesh)
            forms["tpu"] = functools.partial(run, attend)
        attend = attention.by_xla
        if self.kernels and attention.has_cudnn(self.dtype, x.shape[-1] // self.heads):
            kernel = attention.by_cudnn_alone if alone else attention.by_cudnn
            attend = attention.over_data(kernel, self.mesh)
        forms["cuda"] = functools.partial(run, attend, as_matrix=True, on_cuda=True)
        return lax.platform_dependent(params, x, end, rngs, **forms)

    def _blocks(self, attend, train, as_matrix=False, on_cuda=False, parent=None):
        """All blocks as one module; without a parent it is applied to parameters by itself."""
        # A loop copies its carry: on a CPU, a third of the time of two layers. It also copies what
        # blocks keep for the backward pass into a stack and out of it: two thirds of a TPU's
        # traffic, and a third of the time of six layers on a GPU. So it is unrolled.
        block = nn.remat(Block, prevent_cse=on_cuda) if self.remat else Block
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,
            length=self.layers,
            unroll=self.layers if on_cuda or not self.remat else 2,
        )
        return blocks(
            self.heads,
            self.dropout,
            self.dtype,
            deterministic=not train,
            attend=attend,
            scaled_attention=self.scaled_attention,
            as_matrix=as_matrix,
            name="blocks",
            parent=parent,
        )


class Block(nn.Module):
    """One block as a scan body: (carry, input) -> (carry, output).

    Attributes:
      heads, dropout, dtype: see `Transformer`.
      deterministic: no dropout.
      attend: (query, key, value, mask) -> attended, each (batch, length, heads, dim); the mask in
        whatever form the function expects.
      scaled_attention: see `Transformer`.
      as_matrix: see the tokens of all sequences as the rows of a matrix, whose last axis XLA keeps
        in one piece. Of three axes it chooses others, and a fifth of a step on a GPU, a twentieth
        on a CPU, goes into transposing. On a TPU it costs a third more memory traffic.
    """

    heads: int
    dropout: float
    dtype: Any
    deterministic: bool
    attend: Callable[..., Array] = attention.masked
    scaled_attention: bool = False
    as_matrix: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch length width"],
        mask: Shaped[Array, "..."],
    ) -> tuple[Float[Array, "batch length width"], None]:
        shape, width = x.shape, x.shape[-1]
        heads = (self.heads, width // self.heads)
        if self.as_matrix:
            x = x.reshape(-1, width)

        def dropout(y):
            return nn.Dropout(self.dropout, deterministic=self.deterministic)(y)

        y = nn.LayerNorm(dtype=self.dtype, name="attention_norm")(x)
        y = nn.DenseGeneral(
            (3, *heads),
            dtype=self.dtype,
            dot_general=_of_matrices if self.as_matrix else None,
            name="query_key_value",
        )(y)
        parts = (part.reshape(*shape[:-1], *heads) for part in jnp.moveaxis(y, -3, 0))
        y = self.attend(*parts, mask).reshape(*x.shape[:-1], *heads)
        init = nn.initializers.lecun_normal()
        if self.scaled_attention:
            init = initial_scales.attention_out(shape[1])
        y = nn.DenseGeneral(
            width, axis=(-2, -1), dtype=self.dtype, kernel_init=init, name="attention_out"
        )(y)
        x += dropout(y)

        y = nn.LayerNorm(dtype=self.dtype, name="ffn_norm")(x)
        y = nn.Dense(4 * width, dtype=self.dtype, name="ffn_in")(y)
        # Traffic is lower if only GELU's input is kept for the backward pass.
        y = jax.checkpoint(nn.gelu)(y) if self.as_matrix else nn.gelu(y)
        y = nn.Dense(width, dtype=self.dtype, name="ffn_out")(y)
        return (x + dropout(y)).reshape(shape), None


def _of_matrices(x, kernel, dimensions, **options):
    """`lax.dot_general` of rows and the first axis of a kernel, whose others are made one."""
    y = lax.dot_general(x, kernel.reshape(len(kernel), -1), dimensions, **options)
    return y.reshape(x.shape[0], *kernel.shape[1:])
