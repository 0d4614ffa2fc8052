"""Retrievers: whatever answers evaluation queries with items of an index.

A retriever is asked for the best items of an index and for the scores of the labels. It need not
mind what a query excludes, nor labels that are not eligible: `without_excluded` and `ranks` do, for
all retrievers alike.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

from pinjax.distributed import batching
from pinjax.evaluation import metrics
from pinjax.evaluation.engagements import Engagements
from pinjax.evaluation.queries import EvalQueries, Index
from pinjax.retrieval import exact, scann_index

_QUERIES = 1024  # searched at a time, at most


class Found(NamedTuple):
    """What a retriever answers.

    Attributes:
      rows: int32 (queries, k), best first, -1 where there are fewer results.
      scores: floats (queries, k), -inf where there are fewer results.
      label_scores: floats (labels,), the labels' own scores for their queries, -inf where one
        cannot be found.
      rounding: by how much equal scores may differ.
      figures: numbers of the retriever itself, by name.
    """

    rows: np.ndarray
    scores: np.ndarray
    label_scores: np.ndarray
    rounding: float = metrics.ROUNDING
    figures: Mapping[str, float] = MappingProxyType({})


class Retriever(Protocol):
    """Anything that ranks items for queries."""

    def answer(self, queries: EvalQueries, index: Index) -> Found:
        """The `queries.searched` best items that the index holds, for every query."""


def without_excluded(found: Found, queries: EvalQueries, items: int) -> Found:
    """The `queries.listed` best of the results that are not excluded. Excluded labels are missed.

    Args:
      found: `queries.searched` results of each query.
      queries: that were answered.
      items: rows of the catalogue.
    """
    pairs = queries.excluded[:, 0] * items + queries.excluded[:, 1]
    query = np.arange(len(found.rows))[:, None]
    rows, scores = metrics.leave_out(
        found.rows, found.scores, np.isin(query * items + found.rows, pairs) & (found.rows >= 0)
    )
    missed = np.isin(queries.label_query * items + queries.label_item, pairs)
    return found._replace(
        rows=rows[:, : queries.listed],
        scores=scores[:, : queries.listed],
        label_scores=np.where(missed, -np.inf, found.label_scores),
    )


def ranks(found: Found, queries: EvalQueries) -> np.ndarray:
    """Int (labels,): each label's rank, 0 for the best; `queries.listed` where it was not found."""
    found_ranks = metrics.label_ranks(
        found.rows,
        found.scores,
        queries.label_query,
        queries.label_item,
        found.label_scores,
        found.rounding,
    )
    return np.where(queries.label_exists, found_ranks, queries.listed)


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


@dataclasses.dataclass(frozen=True)
class Popularity:
    """The items with most positive engagements, the same for every query.

    Attributes:
      engagements: of the training users.
      seconds: before the time of the index that count; all time if None. Items with as many in
        these seconds are in order of those of all time.
    """

    engagements: Engagements
    seconds: int | None = None

    def answer(self, queries: EvalQueries, index: Index) -> Found:
        score = self.engagements.counts(index.time).astype(np.float64)
        if self.seconds is not None:
            score /= 1 + score.max(initial=0)
            score += self.engagements.counts(index.time, self.seconds)
        found = exact.best(score[None], index.held, queries.searched(len(index.held)))
        scores, rows = (np.repeat(x, len(queries), axis=0) for x in found)
        return Found(rows, scores, score[queries.label_item], rounding=0.0)


@dataclasses.dataclass(frozen=True)
class CoOccurrence:
    """Items whose users overlap with those of the items that a query is known by.

    The score of an item is Σ |U ∩ V| / sqrt(|U| |V|) over the newest items of the query's context,
    V being the users who had engaged with the item and U those of the context's. Ties go to the
    more popular item.

    Attributes:
      engagements: of the training users.
      length: items of the context that count.
      may_repeat: whether an item counts as its own neighbour.
    """

    engagements: Engagements
    length: int
    may_repeat: bool

    def answer(self, queries: EvalQueries, index: Index) -> Found:
        counts = self.engagements.counts(index.time)
        tie = 1e-8 * counts / (1 + counts.max(initial=0))
        depth = queries.searched(len(counts))
        _, popular = exact.best(tie[None], index.held, depth)
        popular = popular[0][popular[0] >= 0]
        rows = np.full((len(queries), depth), -1, np.int32)
        scores = np.full(rows.shape, -np.inf)
        label_scores = tie[queries.label_item]
        for start, overlaps in self._overlaps(queries, index.time):
            label = (queries.label_query >= start) & (queries.label_query < start + _QUERIES)
            at = queries.label_query[label] - start, queries.label_item[label]
            label_scores[label] += overlaps[at]
            for i, (first, last) in enumerate(
                zip(overlaps.indptr[:-1], overlaps.indptr[1:], strict=True)
            ):
                # Of items that overlap in nothing the most popular ones may be in the list.
                items = overlaps.indices[first:last]
                items = np.concatenate([items, np.setdiff1d(popular, items)])
                score = tie[items]
                score[: last - first] += overlaps.data[first:last]
                (found,), (columns,) = exact.best(score[None], index.held[items], depth)
                there = columns >= 0
                rows[start + i, there] = items[columns[there]]
                scores[start + i] = found
        return Found(rows, scores, label_scores, rounding=0.0)

    def _overlaps(self, queries: EvalQueries, until: int):
        """(first query, (some queries, items) sparse), some queries at a time."""
        users = self.engagements.matrix(until)
        context = queries.context[:, -self.length :]
        query, _ = np.nonzero(context >= 0)
        shape = len(queries), self.engagements.items
        context = scipy.sparse.csr_array(
            (np.ones(len(query)), (query, context[context >= 0])), shape
        )
        known = np.unique(context.indices)
        # The order of the two products makes no difference but for what they cost.
        neighbours = (users.T.tocsr()[known] @ users) if len(known) < len(queries) else None
        engaged = users.sum(axis=0) > 0
        for start in range(0, len(queries), _QUERIES):
            some = context[start : start + _QUERIES]
            if neighbours is None:
                overlaps = ((some @ users.T) @ users).tocsr()
            else:
                overlaps = (some[:, known] @ neighbours).tocsr()
            if not self.may_repeat:
                overlaps = (overlaps - some.multiply(engaged[None])).tocsr()
            # Sums in another order differ in their last digits.
            overlaps.data = np.round(overlaps.data, 7)
            overlaps.eliminate_zeros()
            yield start, overlaps


class Answers:
    """The answers of a method that is measured from outside. An item not among them is missed."""

    def __init__(self, rows: Callable[[EvalQueries, Index], np.ndarray]):
        """A retriever.

        Args:
          rows: from queries and index to rows of items, int (queries, k), best first, -1 where
            there are fewer; what is not in the index does not count.
        """
        self._rows = rows

    def answer(self, queries: EvalQueries, index: Index) -> Found:
        rows = self._rows(queries, index)
        scores = np.broadcast_to(-np.arange(rows.shape[1], dtype=np.float32), rows.shape)
        rows, scores = metrics.leave_out(rows, scores, (rows < 0) | ~index.held[rows])
        more = (0, 0), (0, max(0, queries.listed - rows.shape[1]))
        return Found(
            np.pad(rows, more, constant_values=-1),
            np.pad(scores, more, constant_values=-np.inf),
            np.full(len(queries.label_item), -np.inf, np.float32),
        )
