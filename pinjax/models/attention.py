"""Causal attention within windows: by a platform's kernel if it has one, else by XLA.

Windows lie in the rows of a batch, several to a row, each in neighbouring cells. `end` int32 (rows,
length) has for each cell the column of its window's last cell, and -1 for padding. A cell attends
to itself and to earlier cells of its window.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int32

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
    end: Int32[Array, "batch length"],
) -> Float[Array, "batch length heads dim"]:
    """softmax(Q Kᵀ / √dim) V over the visible cells; the output of padding is arbitrary.

    Args:
      query: Q.
      key: K.
      value: V.
      end: see the module.
    """
    return masked(query, key, value, _visible(end))


def _visible(end):
    same = end[:, :, None] == end[:, None, :]  # padding attends to padding
    return (same & jnp.tri(end.shape[1], dtype=bool))[:, None]


def splash(query, key, value, end, interpret=False):
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
    heads_first = (jnp.swapaxes(x, 1, 2) for x in (query * dim**-0.5, key, value))
    attended = jax.vmap(attend)(*heads_first, splash_attention_kernel.SegmentIds(end, end))
    return jnp.swapaxes(attended, 1, 2)


def by_cudnn(query, key, value, end):
    """`by_xla` by cuDNN's fused kernel."""
    visible = _visible(end)
    return jax.nn.dot_product_attention(query, key, value, mask=visible, implementation="cudnn")


def by_cudnn_alone(query, key, value, end):
    """`by_cudnn` for rows of one window each, before padding.

    Causality hides the padding, so `end` is not used: with a mask the kernel takes 50 % longer.
    """
    return jax.nn.dot_product_attention(query, key, value, is_causal=True, implementation="cudnn")


def over_data(function: Callable[..., Array], mesh: Mesh | None) -> Callable[..., Array]:
    """A function of a batch that each device runs on its own rows.

    Args:
      function: of arrays whose first axis is the batch; so is the first axis of its result.
      mesh: the batch is sharded over its axis `data`; None: one device.
    """
    if mesh is None or mesh.size == 1:
        return function
    rows = PartitionSpec("data")
    return jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
