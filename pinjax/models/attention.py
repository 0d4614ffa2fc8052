"""Causal attention over padded sequences: by a kernel where the backend has one, else by XLA."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel,
    splash_attention_mask,
)
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float

_BLOCKS = (512, 256, 128)  # positions at once, whose scores stay on the chip


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


def _over_data(mesh, function):
    rows = PartitionSpec("data")
    return jax.shard_map(function, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
