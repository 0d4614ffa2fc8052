"""Recall and speed of an index, and the setting that reaches a recall on given queries."""

import dataclasses
import time
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from pinjax.errors import InputError
from pinjax.retrieval import backends
from pinjax.retrieval.index import EXACT_QUERIES, Index

_TIE = 1e-5  # scores of float32 vectors of unit length that differ by less are equal
_GAIN = 1e-3  # where a doubling of the effort adds less, a ladder ends
_DOUBLING = 4  # steps of a ladder
ERRORS = 2  # standard errors by which recall has to exceed what is asked for
_ROUNDS = 10  # of timing, of which the fastest counts, since other programs may be running


class Queries(NamedTuple):
    """Queries and what they should find.

    Attributes:
      vectors: float32 (queries, dim).
      k: results of a query.
      excluded: int (pairs, 2), as in `Index.search`.
      kth: float32 (queries,), the exact score of the last result.
      exact_per_second: queries that were searched exactly a second.
    """

    vectors: np.ndarray
    k: int
    excluded: np.ndarray | None
    kth: np.ndarray
    exact_per_second: float


class Point(NamedTuple):
    """What a setting reaches.

    Attributes:
      setting: of the backend; None: exact search.
      recall: the mean share of a query's results that score no less than the exact k-th.
      error: standard error of `recall`.
      queries_per_second: in one batch, on all cores of the host; 0 if not timed.
    """

    setting: backends.Setting | None
    recall: float
    error: float
    queries_per_second: float


def queries(
    index: Index,
    vectors: Float[np.ndarray, "queries dim"],
    k: int,
    own: Int[np.ndarray, " queries"] | None = None,
) -> Queries:
    """Queries with their exact results.

    Args:
      index: that is searched.
      vectors: of queries.
      k: results of a query; fewer where there are fewer items.
      own: rows of the items that the queries are, which are no results of theirs.
    """
    k = max(1, min(k, len(index) - (own is not None)))
    excluded = None if own is None else np.stack([np.arange(len(own)), own], axis=1)
    exactly = dataclasses.replace(index, backend=None)
    exactly.search(vectors[:EXACT_QUERIES], k)  # compiles
    start = time.perf_counter()
    scores, _ = exactly.search(vectors, k, excluded=excluded)
    seconds = time.perf_counter() - start
    return Queries(vectors, k, excluded, scores[:, -1], len(vectors) / seconds)


def measure(index: Index, queries: Queries) -> Point:
    """Recall and speed of an index with its setting."""
    if index.backend is None:
        return Point(None, 1.0, 0.0, queries.exact_per_second)
    return _timed(index, queries, [_tried(index, queries)])[0]


def curve(index: Index, queries: Queries) -> list[Point]:
    """The settings that no other one beats in both recall and speed, from fast to thorough.

    Args:
      index: whose backend is tried with all of its settings.
      queries: that it is tried on.
    """
    if index.backend is None:
        return [measure(index, queries)]
    points = []
    for ladder in index.backend.ladders(queries.k):
        points += _climb(index, queries, ladder, 1.0)
    points = sorted(_timed(index, queries, points), key=lambda point: -point.queries_per_second)
    best = points[:1]
    for point in points:
        if point.recall > best[-1].recall:
            best.append(point)
    return best


def tune(index: Index, queries: Queries, recall: float) -> Index:
    """The index with its fastest setting that surely reaches a recall.

    Raises:
      InputError: if none does.
    """
    if index.backend is None:
        return index
    enough, start = [], 0
    for ladder in index.backend.ladders(queries.k):
        points = _climb(index, queries, ladder[start:], recall)
        best = points[-1]
        if not _reaches(best, recall):
            break
        enough.append(best)
        start += len(points) - 1  # a ladder of less effort needs no lower step
    if not enough:
        raise InputError(
            f"{index.backend.name} reaches recall@{queries.k} {best.recall:.4f}, with two standard "
            f"errors of {best.error:.4f}, on {len(queries.vectors):,} queries; expected {recall}: "
            "ask for less, or choose another backend"
        )
    fastest = max(_timed(index, queries, enough), key=lambda point: point.queries_per_second)
    return dataclasses.replace(index, setting=fastest.setting)


def _climb(
    index: Index, queries: Queries, ladder: list[backends.Setting], recall: float
) -> list[Point]:
    """What the settings of a ladder reach, up to a recall, not timed."""
    points: list[Point] = []
    for setting in ladder:
        points.append(_tried(dataclasses.replace(index, setting=setting), queries))
        before = points[-1 - _DOUBLING].recall if len(points) > _DOUBLING else -1.0
        if _reaches(points[-1], recall) or points[-1].recall - before < _GAIN:
            break
    return points


def _reaches(point: Point, recall: float) -> bool:
    return point.recall - ERRORS * point.error >= recall


def _tried(index: Index, queries: Queries) -> Point:
    """What an index reaches, not timed."""
    scores, _ = index.search(queries.vectors, queries.k, excluded=queries.excluded)
    # Any of equal scores may be returned, as in ann-benchmarks.
    shares = np.mean(scores >= queries.kth[:, None] - _TIE, axis=1)
    return Point(index.setting, float(shares.mean()), float(shares.std() / len(shares) ** 0.5), 0.0)


def _timed(index: Index, queries: Queries, points: list[Point]) -> list[Point]:
    """Points with their speeds, timed in turn, so that what else is running slows all of them."""
    seconds = np.full(len(points), np.inf)
    for _ in range(_ROUNDS):
        for place, point in enumerate(points):
            tried = dataclasses.replace(index, setting=point.setting)
            start = time.perf_counter()
            tried.search(queries.vectors, queries.k, excluded=queries.excluded)
            seconds[place] = min(seconds[place], time.perf_counter() - start)
    rates = len(queries.vectors) / seconds
    return [x._replace(queries_per_second=float(y)) for x, y in zip(points, rates, strict=True)]
