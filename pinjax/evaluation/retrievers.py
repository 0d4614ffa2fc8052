"""Retrievers answer evaluation queries with candidates.

A retriever returns the best candidates, and the scores of the labels. It may ignore
exclusions, if it lists more results, and labels that are not eligible: `without_excluded` and
`ranks` handle these for all retrievers.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np

from pinjax import ragged
from pinjax.evaluation import metrics
from pinjax.evaluation.queries import Candidates, EvalQueries
from pinjax.retrieval import exact


class Found(NamedTuple):
    """The answers of a retriever.

    Attributes:
      rows: int32 (queries, k), best first, -1 where there are fewer results.
      scores: floats (queries, k), -inf where there are fewer results.
      label_scores: floats (labels,), the labels' own scores for their queries, -inf if one
        cannot be found.
      label_ranks: int (labels,), the number of candidates, without the excluded ones, that
        come before each label; None: known of those in the lists alone.
      rounding: by how much equal scores may differ.
      figures: figures of the retriever itself, by name.
      queries: those that were answered, if labels decided what to ask; None: those of the call.
    """

    rows: np.ndarray
    scores: np.ndarray
    label_scores: np.ndarray
    label_ranks: np.ndarray | None = None
    rounding: float = metrics.ROUNDING
    figures: Mapping[str, float] = MappingProxyType({})
    queries: EvalQueries | None = None


class Retriever(Protocol):
    """Anything that ranks items for queries."""

    def answer(self, queries: EvalQueries, candidates: Candidates) -> Found:
        """The best `queries.listed` candidates for every query, without the excluded ones.

        Or else the best `queries.searched` items, with them.
        """


def without_excluded(found: Found, queries: EvalQueries) -> Found:
    """The best `queries.listed` results that are not excluded. Excluded labels are missed.

    Args:
      found: of a retriever.
      queries: that were answered.
    """
    query = np.arange(len(found.rows))[:, None]
    rows, scores = metrics.leave_out(found.rows, found.scores, queries.excludes(query, found.rows))
    missed = queries.label_excluded
    ranks = found.label_ranks
    return found._replace(
        rows=rows[:, : queries.listed],
        scores=scores[:, : queries.listed],
        label_scores=np.where(missed, -np.inf, found.label_scores),
        label_ranks=None if ranks is None else np.where(missed, queries.missed, ranks),
    )


def ranks(found: Found, queries: EvalQueries) -> np.ndarray:
    """Int (labels,): each label's rank, 0 for the best; `queries.missed` if it was not found."""
    found_ranks = found.label_ranks
    if found_ranks is None:
        found_ranks = metrics.label_ranks(
            found.rows,
            found.scores,
            queries.label_query,
            queries.label_item,
            found.label_scores,
            found.rounding,
        )
        found_ranks = np.where(found_ranks < queries.listed, found_ranks, queries.missed)
    return np.where(queries.label_exists, found_ranks, queries.missed)


class Answers:
    """A retriever of given answers. Labels that are not among them are missed."""

    def __init__(self, rows: Callable[[EvalQueries, Candidates], np.ndarray]):
        """A retriever.

        Args:
          rows: from queries and candidates to rows of items, int (queries, k), best first, -1 for
            padding; items that are no candidates do not count.
        """
        self._rows = rows

    def answer(self, queries: EvalQueries, candidates: Candidates) -> Found:
        rows = self._rows(queries, candidates)
        scores = np.broadcast_to(-np.arange(rows.shape[1], dtype=np.float32), rows.shape)
        rows, scores = metrics.leave_out(rows, scores, (rows < 0) | ~candidates.included[rows])
        more = (0, 0), (0, max(0, queries.listed - rows.shape[1]))
        return Found(
            np.pad(rows, more, constant_values=-1),
            np.pad(scores, more, constant_values=-np.inf),
            np.full(len(queries.label_item), -np.inf, np.float32),
        )


class Scored:
    """Gathers the answers of a retriever that scores all items, for some queries at a time."""

    def __init__(self, queries: EvalQueries, candidates: Candidates):
        self._queries, self._candidates = queries, candidates
        self._labels = np.argsort(queries.label_query, kind="stable")
        self._excluded = queries.excluded[np.argsort(queries.excluded[:, 0], kind="stable")]
        shape, labels = (len(queries), queries.listed), len(queries.label_item)
        self._rows, self._scores = np.empty(shape, np.int32), np.empty(shape)
        self._label_scores, self._label_ranks = np.empty(labels), np.empty(labels, np.int64)

    def add(self, some: np.ndarray, scores: np.ndarray) -> None:
        """Adds the scores of queries.

        Args:
          some: int (n,), rows of queries.
          scores: floats (n, items); they are overwritten.
        """
        queries, included = self._queries, self._candidates.included
        row, place = ragged.places_of(queries.label_query[self._labels], some)
        label = self._labels[place]
        own = self._label_scores[label] = scores[row, queries.label_item[label]]
        out_row, out = ragged.places_of(self._excluded[:, 0], some)
        scores[out_row, self._excluded[out, 1]] = -np.inf
        self._scores[some], self._rows[some] = exact.best(scores, included, queries.listed)
        if queries.rank_all:
            scores[:, ~included] = -np.inf
            ends = np.searchsorted(row, np.arange(len(some)), "right")
            for of_query, labels in zip(scores, np.split(np.arange(len(row)), ends), strict=False):
                self._label_ranks[label[labels]] = (of_query >= own[labels, None]).sum(axis=1)
            self._label_ranks[label] -= scores[row, queries.label_item[label]] >= own  # itself

    def found(self) -> Found:
        """The answers to all queries."""
        ranks = self._label_ranks if self._queries.rank_all else None
        return Found(self._rows, self._scores, self._label_scores, ranks, rounding=0.0)
