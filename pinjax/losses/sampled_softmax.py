"""Softmax cross-entropy against sampled negatives, with memory independent of their number."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int

# The logit of masked negatives. It is finite, so that a row of masked negatives gives no NaN: its
# log-sum-exp is about this number, and its sigmoid, the weight of the negatives, is exactly zero.
_MASKED = -1e30


class Negatives(NamedTuple):
    """The negatives of every pair.

    Attributes:
      embeddings: (negatives, dim).
      ids: int32 (negatives,); -1 is padding.
      log_q: float32 (negatives,), subtracted from the logits, see `log_expected_count`. Zeros
        switch the correction off. No gradient flows to it.
      positive_log_q: float32 (groups, pairs), the same for the positives.
    """

    embeddings: Float[Array, "negatives dim"]
    ids: Int[Array, " negatives"]
    log_q: Float[Array, " negatives"]
    positive_log_q: Float[Array, "groups pairs"]


class HardNegatives(NamedTuple):
    """Negatives of each pair's own, drawn from a part of the items.

    Attributes:
      embeddings: (groups, pairs, hard, dim).
      ids: int32 (groups, pairs, hard); -1 is padding.
      log_q: float32 (groups, pairs), the log of the expected count of each item of that part among
        a pair's own. Subtracted as `Negatives.log_q`, it makes these negatives an estimate of a
        second sum, over that part of the items alone, which is added to the sum over all items.
    """

    embeddings: Float[Array, "groups pairs hard dim"]
    ids: Int[Array, "groups pairs hard"]
    log_q: Float[Array, "groups pairs"]


def sampled_softmax(
    queries: Float[Array, "groups pairs dim"],
    positives: Float[Array, "groups pairs dim"],
    negatives: Negatives,
    scale: Float[Array, ""],
    excluded_ids: Int[Array, "groups excluded"],
    *,
    hard: HardNegatives | None = None,
    block_size: int = 1024,
) -> Float[Array, "groups pairs"]:
    """Sampled softmax with logQ correction (PinnerFormer, Pancha et al., KDD 2022, §3.3).

    With s(q, v) = scale * <q, v> + the correction, -log Q(v):

      loss = -log( e^s(q, positive) / (e^s(q, positive) + sum over negatives of e^s(q, negative)) )

    Pairs come in groups: a user with its labels, a query with its positives, or groups of one pair.
    The items of a group's `excluded_ids` are not its negatives. In this example they are its
    labels: A and B for user 0, C and A for user 1. The negatives are the labels of the full batch
    and the random items D, B and padding:

                         in batch          random
                       A   B   C   A     D   B   -1
      user 0   A       x   x   .   x     .   x   x       x  masked
               B       x   x   .   x     .   x   x       .  in the sum
      user 1   C       x   .   x   x     .   .   x
               A       x   .   x   x     .   .   x

    If `excluded_ids` has only the pair's own positive, this is the same-id mask; if it has all
    positives of the query, it is the same-query mask.

    To join several sets of negatives in one sum, concatenate them with the log_q of their mixture.
    For a sum of terms (ItemSage, Baltescu et al., KDD 2022), call the function for each set and add
    the results.

    Negatives are processed in blocks with a running log-sum-exp, and the backward pass recomputes
    the logits of a block, so the groups * pairs * negatives matrix never exists (Rabe & Staats,
    2021; Wijmans et al., Cut Your Losses, ICLR 2025). If queries, positives and excluded_ids are
    sharded over groups and the negatives are replicated, the only communication is the sum of the
    negatives' gradients.

    Args:
      queries: (groups, pairs, dim). Products of bfloat16 are summed in float32.
      positives: (groups, pairs, dim), of the same type.
      negatives: shared by all pairs.
      scale: scalar, one over the temperature. Gradients flow to it.
      excluded_ids: int32 (groups, excluded), padded with -1.
      hard: further negatives in the sum, masked as the shared ones are.
      block_size: negatives of a block.

    Returns:
      float32 (groups, pairs), unreduced. Zero if every negative is masked.
    """
    groups, pairs, dim = queries.shape
    positive = jnp.einsum("gpd,gpd->gp", queries, positives, preferred_element_type=jnp.float32)
    positive = positive * scale - lax.stop_gradient(negatives.positive_log_q)
    negative = _log_sum_exp(
        min(block_size, negatives.ids.shape[0]),
        queries.reshape(groups * pairs, dim),
        negatives.embeddings,
        scale,
        negatives.ids,
        negatives.log_q,
        excluded_ids,
    )
    negative = negative.reshape(groups, pairs)
    if hard is not None:
        logits = scale * jnp.einsum(
            "gpd,gphd->gph", queries, hard.embeddings, preferred_element_type=jnp.float32
        )
        logits -= lax.stop_gradient(hard.log_q)[..., None]
        excluded = (hard.ids[..., None] == excluded_ids[:, None, None]).any(axis=-1)
        logits = jnp.where(excluded | (hard.ids == -1), _MASKED, logits)
        negative = jnp.logaddexp(negative, jax.nn.logsumexp(logits, axis=-1))
    return jax.nn.softplus(negative - positive)


def of_pairs(
    queries: Float[Array, "pairs dim"],
    positives: Float[Array, "pairs dim"],
    negatives: Negatives,
    scale: Float[Array, ""],
    excluded_ids: Int[Array, "pairs excluded"],
    *,
    hard: HardNegatives | None = None,
) -> Float[Array, " pairs"]:
    """`sampled_softmax` of groups of one pair.

    Arrays have one axis of pairs where those of `sampled_softmax` have groups and pairs:
    `negatives.positive_log_q` and the fields of `hard`, too.
    """
    negatives = negatives._replace(positive_log_q=negatives.positive_log_q[:, None])
    losses = sampled_softmax(
        queries[:, None],
        positives[:, None],
        negatives,
        scale,
        excluded_ids,
        hard=jax.tree.map(lambda x: x[:, None], hard),
    )
    return losses[:, 0]


def log_expected_count(
    log_probability: Float[Array, "*items"],
    num_batch: ArrayLike,
    num_random: ArrayLike,
    num_items: ArrayLike,
) -> Float[Array, "*items"]:
    """log Q of the mixture of in-batch and random negatives (Yang et al., WWW Companion 2020).

    Dividing each e^s by the expected count of its item among the negatives makes their sum an
    unbiased estimate of the sum over the items (Bengio & Senécal, IEEE TNN 2008).

    Args:
      log_probability: of the items in the stream of labels, as a count-min sketch estimates it.
      num_batch: negatives drawn from that stream; 0 if all are random.
      num_random: negatives drawn uniformly; 0 if all are from the batch.
      num_items: items that random negatives are drawn from.
    """
    return jnp.log(num_batch * jnp.exp(log_probability) + num_random / num_items)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _log_sum_exp(block_size, queries, embeddings, scale, ids, log_q, excluded_ids):
    """log of the sum of e^s(query, negative) over the unmasked negatives: float32 (rows,).

    Rows are the pairs of all groups, group by group.
    """
    return _log_sum_exp_fwd(block_size, queries, embeddings, scale, ids, log_q, excluded_ids)[0]


def _log_sum_exp_fwd(block_size, *args):
    queries, embeddings, *_ = args

    def step(carry, block):
        highest, total = carry
        _, _, logits = _logits(block_size, block, *args)
        new_highest = jnp.maximum(highest, logits.max(axis=1))
        total *= jnp.exp(highest - new_highest)
        total += jnp.exp(logits - new_highest[:, None]).sum(axis=1)
        return (new_highest, total), None

    start = jnp.full(len(queries), _MASKED, jnp.float32), jnp.zeros(len(queries), jnp.float32)
    (highest, total), _ = lax.scan(step, start, _blocks(block_size, embeddings))
    result = highest + jnp.log(total)
    return result, (args, result)


def _log_sum_exp_bwd(block_size, residuals, gradient):
    args, log_sum = residuals
    queries, embeddings, scale, *_ = args
    weighted = (queries * (gradient * scale)[:, None]).astype(queries.dtype)

    def step(carry, block):
        mean, to_embeddings = carry
        start, embedding, logits = _logits(block_size, block, *args)
        softmax = jnp.exp(logits - log_sum[:, None]).astype(queries.dtype)
        mean += jnp.dot(softmax, embedding, preferred_element_type=jnp.float32)
        to_block = jnp.dot(softmax.T, weighted, preferred_element_type=jnp.float32)
        # Add, not set: the last block overlaps the one before it.
        to_block = to_block.astype(embeddings.dtype)
        to_block += lax.dynamic_slice_in_dim(to_embeddings, start, block_size)
        to_embeddings = lax.dynamic_update_slice_in_dim(to_embeddings, to_block, start, axis=0)
        return (mean, to_embeddings), None

    start = jnp.zeros(queries.shape, jnp.float32), jnp.zeros_like(embeddings)
    (mean, to_embeddings), _ = lax.scan(step, start, _blocks(block_size, embeddings))
    # d log-sum-exp / d <q, v> is scale * softmax, so both remaining gradients need only the mean
    # of the negatives under each row's softmax.
    mean *= gradient[:, None]
    to_queries = (mean * scale).astype(queries.dtype)
    to_scale = (mean * queries).sum().astype(scale.dtype)
    return to_queries, to_embeddings, to_scale, None, None, None


_log_sum_exp.defvjp(_log_sum_exp_fwd, _log_sum_exp_bwd)


def _blocks(block_size, embeddings):
    return jnp.arange(-(-len(embeddings) // block_size))


def _logits(block_size, block, queries, embeddings, scale, ids, log_q, excluded_ids):
    """The corrected and masked logits of one block of negatives.

    Returns:
      the first row of the block in `embeddings`, its embeddings (block, dim), and the logits
      float32 (rows, block).
    """
    # Padding would copy all negatives, so the last block starts early and masks repeated rows.
    start = jnp.minimum(block * block_size, len(embeddings) - block_size)
    embeddings, ids, log_q = (
        lax.dynamic_slice_in_dim(x, start, block_size) for x in (embeddings, ids, log_q)
    )
    repeated = start + jnp.arange(block_size) < block * block_size
    excluded = (ids[:, None] == excluded_ids[:, None, :]).any(axis=-1)
    offset = jnp.where(excluded | (ids == -1) | repeated, _MASKED, -log_q)

    products = jnp.dot(queries, embeddings.T, preferred_element_type=jnp.float32)
    by_group = products.reshape(len(excluded_ids), -1, block_size)
    logits = by_group * scale + offset[:, None, :]
    return start, embeddings, logits.reshape(products.shape)
