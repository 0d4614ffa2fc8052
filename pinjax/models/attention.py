"""Causal attention over padded sequences: by a platform's kernel if it has one, else by XLA."""

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

_BLOCKS = (512, 256, 128)  # positions processed at once, so that scores stay on the chip


def has_splash(length: int) -> bool:
    """Whether TPUs can use `splash`; it depends only on shapes."""
    return length % _BLOCKS[-1] == 0


def has_cudnn(dtype: Any, dim: int) -> bool:
    """Whether NVIDIA GPUs can use `by_cudnn`, for heads of `dim` numbers.

    cuDNN needs a 16-bit type, a head dimension that is a multiple of 8 and at most 128, and Ampere
    or newer. A program that is lowered for GPUs is assumed to run on GPUs like the local ones.
    Without a local GPU the target is unknown, and JAX cannot trace the kernel: then it is False,
    and `by_xla` is used.
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
    """softmax(Q Kᵀ / √dim) V, where a position attends to itself and to earlier ones.

    Args:
      query: Q.
      key: K.
      value: V.
      mask: False for padding, to which no other position attends; its output is arbitrary.
    """
    length = query.shape[1]
    # Padding attends to itself: a fully masked softmax would be uniform over all positions.
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
    backward = (
        "block_q_dkv",
        "block_kv_dkv",
    )  # one kernel for all gradients, which computes scores once
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
    """`by_xla` by cuDNN's fused kernel, for padding at the end: see `rotate`.

    Causality hides the padding, so the mask is not used: a kernel with a mask and causality takes
    50 % longer.
    """
    return jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation="cudnn")


def rotate(
    x: Float[Array, "batch length width"], by: Int[Array, " batch"], mesh: Mesh | None = None
) -> Float[Array, "batch length width"]:
    """Rotates the positions of each row towards the front.

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


# The gradient is a rotation, too. Autodiff would add at indices that it cannot know are distinct.
_rotate.defvjp(
    lambda x, by: (_rotate(x, by), by), lambda by, gradient: (_rotate(gradient, -by), None)
)


def over_data(function: Callable[..., Array], mesh: Mesh | None) -> Callable[..., Array]:
    """A function of a batch that each device runs on its own rows.

    Args:
      function: of arrays whose first axis is the batch; so is the first axis of its result.
      mesh: the batch is sharded over its axis `data`; None: one device.
    """
    if mesh is None:
        return function
    rows = PartitionSpec("data")
    return jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
