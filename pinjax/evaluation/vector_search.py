"""Retrievers with the embeddings of a model: exact search, and ScaNN over the same vectors."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from pinjax import ragged
from pinjax.distributed import batching
from pinjax.evaluation.queries import Candidates, EvalQueries
from pinjax.evaluation.retrievers import Found
from pinjax.retrieval import exact, tuning
from pinjax.retrieval import index as index_lib

_COMPARED = 2048  # by which an approximate search is measured
_LABELS = 2**14  # whose queries' vectors are held at a time


class Towers(NamedTuple):
    """Embedding functions as of a time.

    Attributes:
      queries: from the features of queries, (n, ...) each, to (n, dim); or (n, vectors, dim) where
        a query has several vectors: the nearest to an item counts, zeros are padding.
      items: from rows of the catalogue, (n,), to (n, dim).
      as_of: the time that the embeddings of items depend on; None if they depend on none.
    """

    queries: Callable[[dict[str, np.ndarray]], jax.Array | np.ndarray]
    items: Callable[[np.ndarray], jax.Array | np.ndarray]
    as_of: int | None = None


class Items(NamedTuple):
    """Embeddings of items.

    Attributes:
      rows: int (n,), ascending, of the catalogue.
      vectors: float32 (n, dim).
      on_device: `vectors` on the device.
    """

    rows: np.ndarray
    vectors: np.ndarray
    on_device: jax.Array

    @classmethod
    def create(cls, rows: np.ndarray, vectors: jax.Array | np.ndarray) -> "Items":
        return cls(rows, np.asarray(vectors, np.float32), jnp.asarray(vectors))

    def of(self, rows: np.ndarray) -> np.ndarray:
        """Float32 (rows, dim): the vectors of some of the rows of the catalogue."""
        return self.vectors[np.searchsorted(self.rows, rows)]


class VectorSearch:
    """Exact maximum-inner-product search with the embeddings of a model."""

    def __init__(self, towers: Callable[[int], Towers]):
        """A retriever.

        Args:
          towers: from the time of candidates to the embedding functions.
        """
        self._towers = functools.lru_cache(maxsize=1)(towers)
        self._items: tuple[int | None, Items] | None = None
        self._embedded: tuple[EvalQueries, tuple[np.ndarray, Items]] | None = None

    @classmethod
    def fixed(
        cls,
        queries: Callable[[dict[str, np.ndarray]], jax.Array | np.ndarray],
        items: Callable[[np.ndarray], jax.Array | np.ndarray],
    ) -> "VectorSearch":
        """The search with embeddings that do not depend on time, by functions as of `Towers`."""
        towers = Towers(queries, items)
        return cls(lambda time: towers)

    def answer(self, queries: EvalQueries, candidates: Candidates) -> Found:
        return search(*self.embed(queries, candidates), queries, candidates)

    def embed(self, queries: EvalQueries, candidates: Candidates) -> tuple[np.ndarray, Items]:
        """The vectors of queries, and of the items that may be candidates and the labels.

        The vectors of the last call are cached for ScaNN.
        """
        if self._embedded is None or self._embedded[0] is not queries:
            towers = self._towers(candidates.time)
            vectors = np.asarray(towers.queries(queries.features))
            self._embedded = queries, (vectors, self._embed_items(towers, queries, candidates))
        return self._embedded[1]

    def _embed_items(self, towers: Towers, queries: EvalQueries, candidates: Candidates) -> Items:
        # Of a small part of the catalogue, no more is embedded; all of it once, else.
        few = 2 * candidates.included.sum() < len(candidates.included)
        if few or (candidates.included != candidates.eligible).any():
            rows = np.union1d(np.flatnonzero(candidates.included), queries.label_item)
            return Items.create(rows, towers.items(rows))
        if self._items is None or self._items[0] != towers.as_of:
            rows = np.arange(len(candidates.included))
            self._items = towers.as_of, Items.create(rows, towers.items(rows))
        return self._items[1]


def of_vectors(
    embed_queries: Callable[[np.ndarray], np.ndarray], items: np.ndarray
) -> VectorSearch:
    """The search with vectors that do not depend on time.

    Args:
      embed_queries: from rows of queries, (n,), to (n, dim).
      items: (items, dim), of the catalogue.
    """
    return VectorSearch.fixed(lambda x: embed_queries(x["query"]), items.__getitem__)


def search(
    vectors: np.ndarray, items: Items, queries: EvalQueries, candidates: Candidates
) -> Found:
    """The items nearest to the vectors of queries, as `Towers.queries` gives them."""
    valid = jnp.asarray(candidates.included[items.rows])
    scores, rows = nearest(vectors, items, queries.listed, valid, queries.excluded)
    found = Found(rows, scores, _label_scores(vectors, items, queries))
    if queries.rank_all and vectors.ndim == 2:
        return found._replace(label_ranks=_label_ranks(vectors, items, queries, found, valid))
    return found


def nearest(
    vectors: np.ndarray, items: Items, k: int, valid: jax.Array, excluded: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The k items nearest to vectors, by exact search.

    Args:
      vectors: float32 (queries, dim), or (queries, vectors, dim) as in `Towers.queries`.
      items: that are searched.
      k: number of results.
      valid: bool (items,), of `items`, those that may be found.
      excluded: int (pairs, 2), queries and rows of the catalogue that are not their results.

    Returns:
      (scores, rows of the catalogue), each (queries, k), best first; -inf and -1 where there are
      fewer.
    """

    def search_all(flat: np.ndarray, excluded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        size = min(exact.QUERIES, ragged.power_of_two(len(flat)))
        pairs_of = _batches_of_pairs(*excluded.T, items, len(flat), size)

        def search_some(some: tuple[np.ndarray, np.ndarray]) -> tuple[jax.Array, jax.Array]:
            vectors, row = some
            pairs = pairs_of(row[0])
            return exact.search(vectors, items.on_device, k, valid=valid, excluded=pairs)

        return batching.in_batches(search_some, (flat, np.arange(len(flat))), size)

    scores, columns = by_vector(search_all, vectors, excluded)
    return scores, np.where(columns >= 0, items.rows[columns], -1)


def by_vector(
    search: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    vectors: np.ndarray,
    excluded: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(scores, rows) of a search with one or several vectors a query, of which the best counts.

    Args:
      search: from vectors (n, dim) and `excluded` for these to (scores, rows), each (n, k).
      vectors: (queries, dim) or (queries, vectors, dim).
      excluded: int (pairs, 2), queries and what they may not find.
    """
    if vectors.ndim == 2:
        return search(vectors, excluded)
    queries, several, dim = vectors.shape
    query, item = np.repeat(excluded, several, axis=0).T
    query = query * several + np.arange(len(query)) % several
    scores, rows = search(vectors.reshape(-1, dim), np.stack([query, item], axis=1))
    depth = rows.shape[1]
    missing = ~vectors.reshape(-1, dim).any(axis=1)[:, None] | (rows < 0)
    scores = np.where(missing, -np.inf, scores).reshape(queries, several * depth)
    rows = np.where(missing, -1, rows).reshape(queries, several * depth)
    order = np.lexsort((-scores, rows))  # the best score of each item first
    rows, scores = (np.take_along_axis(x, order, axis=1) for x in (rows, scores))
    again = np.zeros(rows.shape, bool)
    again[:, 1:] = rows[:, 1:] == rows[:, :-1]
    scores[again], rows[again] = -np.inf, -1
    order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


class NearestVector:
    """An oracle of several vectors a query: searches for each label with the nearest one.

    PinnerFormer (Pancha et al., KDD 2022), Table 1, grants it to PinnerSage. A label's rank, and
    what is shown for it, are those of one vector's own list.
    """

    def __init__(self, several: VectorSearch, number: int):
        """A retriever.

        Args:
          several: the search with all vectors of a query.
          number: how many vectors of a query it may choose from, the first ones.
        """
        self._several, self._number = several, number

    def answer(self, queries: EvalQueries, candidates: Candidates) -> Found:
        vectors, items = self._several.embed(queries, candidates)
        vectors = vectors[:, : self._number]
        nearest = _scores_of_vectors(vectors, items, queries).argmax(axis=1)
        split = queries.split(nearest, "vector")
        query = np.empty(len(split), np.int64)
        query[split.label_query] = queries.label_query
        own = vectors[query, split.features["vector"]][:, None]
        found = search(own, items, split, candidates)
        return found._replace(queries=split)


class ScannSearch:
    """Approximate search with ScaNN over the same vectors.

    A label among the candidates that was not found is missed, however high its score.
    """

    def __init__(self, exactly: VectorSearch):
        self._exactly = exactly

    def answer(self, queries: EvalQueries, candidates: Candidates) -> Found:
        vectors, items = self._exactly.embed(queries, candidates)
        depth = queries.searched(len(candidates.included))
        rows = np.flatnonzero(candidates.included).astype(np.int32)
        included = items.vectors[candidates.included[items.rows]]
        made = index_lib.create(pa.array(rows), included, "scann", depth)
        nothing = np.zeros((0, 2), np.int64)
        scores, columns = by_vector(lambda flat, _: made.search(flat, depth), vectors, nothing)
        label_scores = _label_scores(vectors, items, queries)
        return Found(
            np.where(columns >= 0, rows[columns], -1),
            scores,
            np.where(candidates.included[queries.label_item], -np.inf, label_scores),
            figures=_figures(made, vectors),
        )


def _figures(index: index_lib.Index, vectors: np.ndarray) -> dict[str, float]:
    """The recall and the speed of an index on some vectors of queries; nothing without vectors."""
    flat = vectors.reshape(-1, vectors.shape[-1])
    flat = flat[flat.any(axis=1)]  # not of padding, to which all items are equally near
    if not len(flat):
        return {}
    some = np.random.default_rng(0).permutation(len(flat))[:_COMPARED]
    compared = tuning.queries(index, flat[some], 10)
    measured = tuning.measure(index, compared)
    return {
        "ANN recall@10": measured.recall,
        "queries/s": measured.queries_per_second,
        "exact queries/s": compared.exact_per_second,
    }


def _label_scores(vectors: np.ndarray, items: Items, queries: EvalQueries) -> np.ndarray:
    """Float32 (labels,): the labels' own scores for their queries."""
    if vectors.ndim == 3:
        return _scores_of_vectors(vectors, items, queries).max(axis=1)
    own = np.asarray(vectors[queries.label_query], np.float32)
    return np.einsum("ld,ld->l", own, items.of(queries.label_item))


def _scores_of_vectors(vectors: np.ndarray, items: Items, queries: EvalQueries) -> np.ndarray:
    """Float32 (labels, vectors): the labels' scores for each vector of their queries."""
    scores = np.empty((len(queries.label_query), vectors.shape[1]), np.float32)
    for start in range(0, len(scores), _LABELS):
        some = slice(start, start + _LABELS)
        own = np.asarray(vectors[queries.label_query[some]], np.float32)
        products = np.einsum("lvd,ld->lv", own, items.of(queries.label_item[some]))
        scores[some] = np.where(own.any(axis=2), products, -np.inf)
    return scores


def _label_ranks(
    vectors: np.ndarray, items: Items, queries: EvalQueries, found: Found, valid: jax.Array
) -> np.ndarray:
    """Int32 (labels,): how many items score as high as each label, of those that may be found."""
    label, item = queries.excluded_by(queries.label_query).T
    label = np.concatenate([label, np.arange(len(queries.label_item))])
    item = np.concatenate([item, queries.label_item])
    excluded = _batches_of_pairs(label, item, items, len(queries.label_item), exact.QUERIES)

    def count_some(some: tuple[np.ndarray, ...]) -> jax.Array:
        query, score, row = some
        least = score - np.float32(found.rounding)
        own = np.asarray(vectors[query], np.float32)
        pairs = excluded(row[0])
        return exact.count(own, items.on_device, least, valid=valid, excluded=pairs)

    rows = np.arange(len(queries.label_item))
    arrays = queries.label_query, found.label_scores, rows
    return batching.in_batches(count_some, arrays, exact.QUERIES)


def _batches_of_pairs(
    row: np.ndarray, item: np.ndarray, items: Items, total: int, size: int
) -> Callable[[int], jax.Array]:
    """From the first row of a batch to its pairs of a row and a column, padded.

    Args:
      row: int (pairs,), rows that are searched with.
      item: int (pairs,), items that are not to be found; some may not be among `items`.
      items: that are searched.
      total: number of rows.
      size: rows of a batch.
    """
    column = np.minimum(np.searchsorted(items.rows, item), len(items.rows) - 1)
    there = np.flatnonzero(items.rows[column] == item)
    there = there[np.argsort(row[there], kind="stable")]
    pairs = np.stack([row[there], column[there]], axis=1).astype(np.int32)
    bounds = np.searchsorted(pairs[:, 0], np.arange(0, total + size, size))
    most = int(np.diff(bounds).max(initial=0))
    width = ragged.power_of_two(most) if most else 0

    def of_batch(start: int) -> jax.Array:
        batch = start // size
        some = pairs[bounds[batch] : bounds[batch + 1]] - np.array([start, 0], np.int32)
        padding = (0, width - len(some)), (0, 0)
        return jnp.asarray(np.pad(some, padding, constant_values=size))

    return of_batch
