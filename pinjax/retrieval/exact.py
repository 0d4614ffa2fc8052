"""Exact maximum-inner-product search on the accelerator."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

QUERIES = 1024  # the most that evaluations search at a time


@functools.partial(jax.jit, static_argnames=("k", "chunk"))
def search(
    queries: Float[Array, "queries dim"],
    index: Float[Array, "items dim"],
    k: int,
    *,
    valid: Bool[Array, " items"] | None = None,
    excluded: Int32[Array, "pairs 2"] | None = None,
    chunk: int = 8192,
) -> tuple[Float[Array, "queries k"], Int32[Array, "queries k"]]:
    """The k rows of the index with the largest inner product with each query.

    The index is read in chunks, so that temporaries are queries * (chunk + k) numbers for any size
    of the index. For L2-normalised vectors the score is the cosine.

    Args:
      queries: floats of any width; a caller with many queries passes them in batches.
      index: floats of any width; products are summed in float32.
      k: results of a query.
      valid: rows that may be returned; all if None.
      excluded: queries and rows that may not be their results; `len(queries)` is padding.
      chunk: rows of the index that are scored at a time.

    Returns:
      (scores float32, rows int32), best first, equal scores by lower row. If fewer than k rows are
      left, the others are -1 with the score -inf.
    """
    num_queries, num_items = len(queries), len(index)
    none = jnp.full((num_queries, k), -jnp.inf), jnp.full((num_queries, k), -1, jnp.int32)
    if num_items == 0:
        return none
    chunk = min(chunk, num_items)

    def merge_chunk(best, start):
        rows, scores = _score_chunk(queries, index, start, chunk, valid, excluded)
        scores, columns = jax.lax.top_k(scores, min(k, chunk))
        # top_k keeps the order of equal scores, so the lower rows, seen earlier, go first; and so
        # do the -1 of `none`, before any ineligible row.
        candidates = jnp.concatenate([best[0], scores], axis=1)
        candidate_rows = jnp.concatenate([best[1], rows[columns]], axis=1)
        scores, columns = jax.lax.top_k(candidates, k)
        return (scores, jnp.take_along_axis(candidate_rows, columns, axis=1)), None

    starts = jnp.arange(0, num_items, chunk, dtype=jnp.int32)
    return jax.lax.scan(merge_chunk, none, starts)[0]


@functools.partial(jax.jit, static_argnames=("chunk",))
def count(
    queries: Float[Array, "queries dim"],
    index: Float[Array, "items dim"],
    least: Float[Array, " queries"],
    *,
    valid: Bool[Array, " items"] | None = None,
    excluded: Int32[Array, "pairs 2"] | None = None,
    chunk: int = 8192,
) -> Int32[Array, " queries"]:
    """The number of rows whose inner product with a query is not below its `least`.

    Other arguments as `search`. NaN is not below anything.
    """
    none = jnp.zeros(len(queries), jnp.int32)
    if len(index) == 0:
        return none
    chunk = min(chunk, len(index))

    def add_chunk(counts, start):
        _, scores = _score_chunk(queries, index, start, chunk, valid, excluded)
        above = ~(scores < least[:, None]) & (scores != -jnp.inf)
        return counts + above.sum(axis=1, dtype=jnp.int32), None

    starts = jnp.arange(0, len(index), chunk, dtype=jnp.int32)
    return jax.lax.scan(add_chunk, none, starts)[0]


def _score_chunk(
    queries: jax.Array,
    index: jax.Array,
    start: jax.Array,
    chunk: int,
    valid: jax.Array | None,
    excluded: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """(rows (chunk,), scores (queries, chunk)) from `start`, -inf for what may not be returned."""
    # The last chunk overlaps the one before, instead of padding, which copies the index.
    first = jnp.minimum(start, len(index) - chunk)
    rows = first + jnp.arange(chunk, dtype=jnp.int32)
    eligible = rows >= start
    if valid is not None:
        eligible &= jax.lax.dynamic_slice_in_dim(valid, first, chunk)
    scores = jnp.matmul(
        queries,
        jax.lax.dynamic_slice_in_dim(index, first, chunk).T,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    scores = jnp.where(eligible, scores, -jnp.inf)
    if excluded is not None:
        query, column = excluded[:, 0], excluded[:, 1] - first
        column = jnp.where(column < 0, chunk, column)  # dropped, not counted from the end
        scores = scores.at[query, column].set(-jnp.inf, mode="drop")
    return rows, scores


def best(
    scores: Float[np.ndarray, "queries items"], valid: Bool[np.ndarray, " items"], k: int
) -> tuple[Float[np.ndarray, "queries {k}"], Int32[np.ndarray, "queries {k}"]]:
    """The k rows with the largest of given scores, on the host.

    Returns:
      (scores, rows int32) as `search`, except that equal scores are in any order.
    """
    scores = np.where(valid, scores, -np.inf)
    kept = min(k, scores.shape[1])
    rows = np.argpartition(-scores, kept - 1, axis=1)[:, :kept]
    found = np.take_along_axis(scores, rows, axis=1)
    order = np.argsort(-found, axis=1, kind="stable")
    rows, found = (np.take_along_axis(x, order, axis=1) for x in (rows, found))
    rows = np.where(found > -np.inf, rows, -1).astype(np.int32)
    missing = (0, 0), (0, k - kept)
    return np.pad(found, missing, constant_values=-np.inf), np.pad(
        rows, missing, constant_values=-1
    )
