"""Retrievers answer evaluation queries with items of an index.

A retriever returns the best items of an index, and the scores of the labels. It may ignore
exclusions and labels that are not eligible: `without_excluded` and `ranks` handle these for all
retrievers.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np

from pinjax.evaluation import metrics
from pinjax.evaluation.queries import EvalQueries, Index


class Found(NamedTuple):
    """The answers of a retriever.

    Attributes:
      rows: int32 (queries, k), best first, -1 where there are fewer results.
      scores: floats (queries, k), -inf where there are fewer results.
      label_scores: floats (labels,), the labels' own scores for their queries, -inf if one
        cannot be found.
      rounding: by how much equal scores may differ.
      figures: figures of the retriever itself, by name.
      queries: those that were answered, if labels decided what to ask; None: those of the call.
    """

    rows: np.ndarray
    scores: np.ndarray
    label_scores: np.ndarray
    rounding: float = metrics.ROUNDING
    figures: Mapping[str, float] = MappingProxyType({})
    queries: EvalQueries | None = None


class Retriever(Protocol):
    """Anything that ranks items for queries."""

    def answer(self, queries: EvalQueries, index: Index) -> Found:
        """The best `queries.searched` items of the index, for every query."""


def without_excluded(found: Found, queries: EvalQueries, items: int) -> Found:
    """The best `queries.listed` results that are not excluded. Excluded labels are missed.

    Args:
      found: `queries.searched` results of each query.
      queries: that were answered.
      items: number of items in the catalogue.
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
    """Int (labels,): each label's rank, 0 for the best; `queries.listed` if it was not found."""
    found_ranks = metrics.label_ranks(
        found.rows,
        found.scores,
        queries.label_query,
        queries.label_item,
        found.label_scores,
        found.rounding,
    )
    return np.where(queries.label_exists, found_ranks, queries.listed)


class Answers:
    """A retriever of given answers. Labels that are not among them are missed."""

    def __init__(self, rows: Callable[[EvalQueries, Index], np.ndarray]):
        """A retriever.

        Args:
          rows: from queries and index to rows of items, int (queries, k), best first, -1 for
            padding; items that are not in the index do not count.
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
