"""Retrievers by the embeddings of a model: exact search, and ScaNN over the same vectors."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pinjax.distributed import batching
from pinjax.evaluation.queries import EvalQueries, Index
from pinjax.evaluation.retrievers import Found
from pinjax.retrieval import exact, scann_index

_QUERIES = 1024  # searched at a time, at most


class Towers(NamedTuple):
    """Embedding functions as of a time.

    Attributes:
      queries: from the features of queries, (n, ...) each, to (n, dim); or (n, vectors, dim) where
        a query has several vectors, of which the nearest to an item counts and zeros are none.
      items: from rows of the catalogue, (n,), to (n, dim).
      as_of: the time that the embeddings of items depend on; None where they depend on none.
    """

    queries: Callable[[dict[str, np.ndarray]], jax.Array | np.ndarray]
    items: Callable[[np.ndarray], jax.Array | np.ndarray]
    as_of: int | None = None


class Items(NamedTuple):
    """Embeddings of items.

    Attributes:
      rows: int (n,), ascending, of the catalogue.
      vectors: float32 (n, dim).
      on_device: the same.
    """

    rows: np.ndarray
    vectors: np.ndarray
    on_device: jax.Array

    @classmethod
    def create(cls, rows: np.ndarray, vectors: jax.Array | np.ndarray) -> "Items":
        return cls(rows, np.asarray(vectors, np.float32), jnp.asarray(vectors))


class VectorSearch:
    """Exact maximum-inner-product search with the embeddings of a model."""

    def __init__(self, towers: Callable[[int], Towers], batch: int | None = None):
        """A retriever.

        Args:
          towers: from the time of an index to the embedding functions as of then.
          batch: queries that are embedded at a time; all of them if None.
        """
        self._towers, self._batch = functools.lru_cache(maxsize=1)(towers), batch
        self._items: tuple[int | None, Items] | None = None

    def answer(self, queries: EvalQueries, index: Index) -> Found:
        vectors, items = self.embed(queries, index)
        valid = jnp.asarray(index.held[items.rows])
        depth = queries.searched(len(index.held))

        def search(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            size = min(_QUERIES, 1 << max(len(batch) - 1, 0).bit_length())
            return batching.in_batches(
                lambda some: exact.search(some, items.on_device, depth, valid=valid), batch, size
            )

        scores, columns = _by_vector(search, vectors)
        rows = np.where(columns >= 0, items.rows[columns], -1)
        labels = items.vectors[np.searchsorted(items.rows, queries.label_item)]
        own = np.asarray(vectors[queries.label_query], np.float32)
        if own.ndim == 2:
            return Found(rows, scores, np.einsum("ld,ld->l", own, labels))
        label_scores = np.einsum("lvd,ld->lv", own, labels)
        label_scores = np.where(own.any(axis=2), label_scores, -np.inf).max(axis=1)
        return Found(rows, scores, label_scores)

    @functools.lru_cache(maxsize=1)  # noqa: B019, for ScaNN, which asks next
    def embed(self, queries: EvalQueries, index: Index) -> tuple[np.ndarray, Items]:
        """The vectors of queries; and of items, all that the index may hold and the labels."""
        towers = self._towers(index.time)
        if self._batch is None:
            vectors = np.asarray(towers.queries(queries.features))
        else:
            vectors = batching.in_batches(towers.queries, queries.features, self._batch)
        if (index.held != index.eligible).any():  # too many to embed all of them
            rows = np.union1d(np.flatnonzero(index.held), queries.label_item)
            return vectors, Items.create(rows, towers.items(rows))
        if self._items is None or self._items[0] != towers.as_of:
            rows = np.arange(len(index.held))
            self._items = towers.as_of, Items.create(rows, towers.items(rows))
        return vectors, self._items[1]


def of_vectors(
    embed_queries: Callable[[np.ndarray], np.ndarray], items: np.ndarray
) -> VectorSearch:
    """The search with embeddings that depend on no time.

    Args:
      embed_queries: from rows of queries, (n,), to (n, dim).
      items: (items, dim), of the catalogue.
    """
    towers = Towers(lambda features: embed_queries(features["query"]), items.__getitem__)
    return VectorSearch(lambda time: towers)


class ScannSearch:
    """Approximate search with ScaNN over the same vectors.

    A label that the index holds and that was not found is missed, however high its score.
    """

    def __init__(self, exactly: VectorSearch):
        self._exactly = exactly

    def answer(self, queries: EvalQueries, index: Index) -> Found:
        vectors, items = self._exactly.embed(queries, index)
        depth = queries.searched(len(index.held))
        rows = np.flatnonzero(index.held).astype(np.int32)
        held = items.vectors[index.held[items.rows]]
        searcher = scann_index.build(held, depth)
        scores, columns = _by_vector(
            lambda batch: scann_index.search(searcher, batch, depth), vectors
        )
        flat = vectors.reshape(-1, vectors.shape[-1])
        compared = scann_index.recall_against_exact(searcher, held, flat, 10)
        label_scores = self._exactly.answer(queries, index).label_scores
        return Found(
            np.where(columns >= 0, rows[columns], -1),
            scores,
            np.where(index.held[queries.label_item], -np.inf, label_scores),
            figures={
                "ANN recall@10": compared.recall,
                "queries/s": compared.queries_per_second,
                "exact queries/s": compared.exact_queries_per_second,
            },
        )


def _by_vector(
    search: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], vectors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(scores, rows) of queries with one vector each, or with several, of which the best counts."""
    if vectors.ndim == 2:
        return search(vectors)
    queries, several, dim = vectors.shape
    scores, rows = search(vectors.reshape(-1, dim))
    depth = rows.shape[1]
    missing = ~vectors.reshape(-1, dim).any(axis=1)[:, None] | (rows < 0)
    scores = np.where(missing, -np.inf, scores).reshape(queries, several * depth)
    rows = np.where(missing, -1, rows).reshape(queries, several * depth)
    order = np.lexsort((-scores, rows))  # of one item's scores the best first
    rows, scores = (np.take_along_axis(x, order, axis=1) for x in (rows, scores))
    again = np.zeros(rows.shape, bool)
    again[:, 1:] = rows[:, 1:] == rows[:, :-1]
    scores[again], rows[again] = -np.inf, -1
    order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)
