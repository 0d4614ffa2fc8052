"""Causal attention over padded sequences: by a kernel where the backend has one, else by XLA."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

_BLOCKS = (512, 256, 128)  # positions at once, whose scores stay on the chip


def on_gpu() -> bool:
    """Whether GPUs are what is computed on."""
    return jax.default_backend() == "gpu"


def has_cudnn(dtype: Any, dim: int) -> bool:
    """Whether `by_cudnn` can be had: on NVIDIA GPUs since Ampere, for heads of `dim` numbers."""
    if not on_gpu() or jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float16) or dim % 8 or dim > 128:
        return False
    device = jax.devices()[0]
    return "NVIDIA" in device.device_kind and float(device.compute_capability) >= 8


def causal_attention(
    query: Float[Array, "batch length heads dim"],
    key: Float[Array, "batch length heads dim"],
    value: Float[Array, "batch length heads dim"],
    mask: Bool[Array, "batch length"],
    mesh: Mesh | None = None,
) -> Float[Array, "batch length heads dim"]:
    """softmax(Q Kᵀ / √dim) V, where a position sees itself and those before it.

    On TPUs a length of a multiple of 128 goes through JAX's splash attention, a form of flash
    attention (Dao et al., NeurIPS 2022): scores never reach main memory.

    Args:
      query: Q.
      key: K.
      value: V.
      mask: False for padding, which no other position sees; what comes out there means nothing.
      mesh: over whose axis `data` the batch is shared out; None: it is on one device.
    """
    if query.shape[1] % _BLOCKS[-1]:
        return by_xla(query, key, value, mask)
    by_kernel = splash if mesh is None else _over_data(mesh, splash)
    return lax.platform_dependent(query, key, value, mask, tpu=by_kernel, default=by_xla)


def by_xla(query, key, value, mask):
    length = query.shape[1]
    # Padding still sees itself: a softmax over nothing would spread over everything.
    visible = mask[:, None, :] | jnp.eye(length, dtype=bool)
    visible &= jnp.tri(length, dtype=bool)
    return jax.nn.dot_product_attention(query, key, value, mask=visible[:, None])


def splash(query, key, value, mask, interpret=False):
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


def by_cudnn(query, key, value, mask, mesh=None):
    """`causal_attention` by cuDNN's fused kernel, where padding comes last: see `rotate`.

    Then no other position sees it, and the mask is not looked at: a kernel with a mask beside
    causality takes half as long again.
    """
    attend = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation="cudnn")
    return (attend if mesh is None else _over_data(mesh, attend))(query, key, value)


def rotate(
    x: Float[Array, "batch length width"], by: Int[Array, "batch"], mesh: Mesh | None = None
) -> Float[Array, "batch length width"]:
    """Each row's positions moved towards the front by so many, those in front going to the end."""
    return (_rotate if mesh is None else _over_data(mesh, _rotate))(x, by)


@jax.custom_vjp
def _rotate(x, by):
    batch, length, width = x.shape
    rows = jnp.arange(batch)[:, None] * length + (jnp.arange(length) + by[:, None]) % length
    return x.reshape(-1, width)[rows.ravel()].reshape(x.shape)


# The way back is a rotation, too, and no sum at positions that might be the same.
_rotate.defvjp(
    lambda x, by: (_rotate(x, by), by), lambda by, gradient: (_rotate(gradient, -by), None)
)


def _over_data(mesh, function):
    rows = PartitionSpec("data")
    return jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
