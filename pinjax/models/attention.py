"""Causal attention over padded sequences: by a kernel where a platform has one, else by XLA."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

_BLOCKS = (512, 256, 128)  # positions at once, whose scores stay on the chip


def has_splash(length: int) -> bool:
    """Whether TPUs can use `splash`, a matter of shapes alone."""
    return length % _BLOCKS[-1] == 0


def has_cudnn(dtype: Any, dim: int) -> bool:
    """Whether NVIDIA GPUs can use `by_cudnn`, for heads of `dim` numbers.

    cuDNN wants a 16-bit type, a multiple of 8 numbers, at most 128, and Ampere or newer. A program
    that is lowered for GPUs is taken to run on GPUs like those at hand. On a machine without any,
    which GPUs these will be is not known, and JAX cannot trace the kernel: the answer is no, and
    `by_xla` runs on all of them.
    """
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16) or dim % 8 or dim > 128:
        return False
    try:
        devices = jax.devices("cuda")
    except RuntimeError:  # there is no such backend
        return False
    return all(float(device.compute_capability) >= 8 for device in devices)


def masked(
    query: Float[Array, "batch length heads dim"],
    key: Float[Array, "batch length heads dim"],
    value: Float[Array, "batch length heads dim"],
    visible: Bool[Array, "batch 1 length length"],
) -> Float[Array, "batch length heads dim"]:
    """softmax(Q Kᵀ / √dim) V over the positions (third axis: who looks) that are visible."""
    return jax.nn.dot_product_attention(query, key, value, mask=visible)


def by_xla(
    query: Float[Array, "batch length heads dim"],
    key: Float[Array, "batch length heads dim"],
    value: Float[Array, "batch length heads dim"],
    mask: Bool[Array, "batch length"],
) -> Float[Array, "batch length heads dim"]:
    """softmax(Q Kᵀ / √dim) V, where a position sees itself and those before it.

    Args:
      query: Q.
      key: K.
      value: V.
      mask: False for padding, which no other position sees; what comes out there means nothing.
    """
    length = query.shape[1]
    # Padding still sees itself: a softmax over nothing would spread over everything.
    visible = mask[:, None, :] | jnp.eye(length, dtype=bool)
    visible &= jnp.tri(length, dtype=bool)
    return masked(query, key, value, visible[:, None])


def splash(query, key, value, mask, interpret=False):
    """`by_xla` by JAX's splash attention, a form of flash attention (Dao et al., NeurIPS 2022).

    Scores never reach main memory. The length is a multiple of 128.
    """
    length, heads, dim = query.shape[1:]
    block = next(size for size in _BLOCKS if length % size == 0)
    forward = ("block_q", "block_kv")
    backward = ("block_q_dkv", "block_kv_dkv")  # one kernel for all gradients: scores are made once
    attend = splash_attention_kernel.make_splash_mha(
        splash_attention_mask.MultiHeadMask(
            [splash_attention_mask.CausalMask((length, length))] * heads
        ),
        block_sizes=splash_attention_kernel.BlockSizes(
            **dict.fromkeys(forward + backward, block), use_fused_bwd_kernel=True
        ),
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    segments = mask.astype(jnp.int32)  # padding is one of its own
    heads_first = (jnp.swapaxes(x, 1, 2) for x in (query * dim**-0.5, key, value))
    attended = jax.vmap(attend)(
        *heads_first, splash_attention_kernel.SegmentIds(segments, segments)
    )
    return jnp.swapaxes(attended, 1, 2)


def by_cudnn(query, key, value, mask):
    """`by_xla` by cuDNN's fused kernel, where padding comes last: see `rotate`.

    Then no other position sees it, and the mask is not looked at: a kernel with a mask beside
    causality takes half as long again.
    """
    return jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation="cudnn")


def rotate(
    x: Float[Array, "batch length width"], by: Int[Array, "batch"], mesh: Mesh | None = None
) -> Float[Array, "batch length width"]:
    """Each row's positions moved towards the front by so many, those in front going to the end.

    Args:
      x: rows.
      by: positions.
      mesh: see `over_data`.
    """
    return over_data(_rotate, mesh)(x, by)


@jax.custom_vjp
def _rotate(x, by):
    batch, length, width = x.shape
    rows = jnp.arange(batch)[:, None] * length + (jnp.arange(length) + by[:, None]) % length
    return x.reshape(-1, width)[rows.ravel()].reshape(x.shape)


# The way back is a rotation, too, and no sum at positions that might be the same.
_rotate.defvjp(
    lambda x, by: (_rotate(x, by), by), lambda by, gradient: (_rotate(gradient, -by), None)
)


def over_data(function: Callable[..., Array], mesh: Mesh | None) -> Callable[..., Array]:
    """A function of a batch that each device runs on its own rows.

    Args:
      function: of arrays that begin with the batch's axis, as its result does.
      mesh: over whose axis `data` the batch is split; None: it is on one device.
    """
    if mesh is None:
        return function
    rows = PartitionSpec("data")
    return jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
