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
_GAIN = 1e-3  # where a more thorough search adds less, a ladder ends
ERRORS = 2  # standard errors by which recall has to exceed what is asked for
_TIMINGS = 5  # of which the fastest counts


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
      queries_per_second: in one batch, on all cores of the host.
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
    (scores, _), seconds = _timed(exactly, vectors, k, excluded, timings=1)
    return Queries(vectors, k, excluded, scores[:, -1], len(vectors) / seconds)


def measure(index: Index, queries: Queries) -> Point:
    """Recall and speed of an index with its setting."""
    (scores, _), seconds = _timed(index, queries.vectors, queries.k, queries.excluded, _TIMINGS)
    # Any of equal scores may be returned, as in ann-benchmarks.
    shares = np.mean(scores >= queries.kth[:, None] - _TIE, axis=1)
    error = float(shares.std() / max(1, len(shares)) ** 0.5)
    return Point(index.setting, float(shares.mean()), error, len(queries.vectors) / seconds)


def curve(index: Index, queries: Queries) -> list[Point]:
    """The settings that no other one beats in both recall and speed, from fast to thorough.

    Args:
      index: whose backend is tried with all of its settings.
      queries: that it is tried on.
    """
    if index.backend is None:
        return [Point(None, 1.0, 0.0, queries.exact_per_second)]
    best: list[Point] = []
    points = (point for ladder in _climbed(index, queries, 1.0) for point in ladder)
    for point in sorted(points, key=lambda point: -point.queries_per_second):
        if not best or point.recall > best[-1].recall:
            best.append(point)
    return best


def tune(index: Index, queries: Queries, recall: float) -> Index:
    """The index with its fastest setting that surely reaches a recall.

    Raises:
      InputError: if none does.
    """
    if index.backend is None:
        return index
    tops = [ladder[-1] for ladder in _climbed(index, queries, recall)]
    enough = [point for point in tops if _reaches(point, recall)]
    if not enough:
        best = max(tops, key=lambda point: point.recall)
        raise InputError(
            f"{index.backend.name} reaches recall@{queries.k} {best.recall:.4f}, with two standard "
            f"errors of {best.error:.4f}, on {len(queries.vectors):,} queries; expected {recall}: "
            "ask for less, or choose another backend"
        )
    fastest = max(enough, key=lambda point: point.queries_per_second)
    return dataclasses.replace(index, setting=fastest.setting)


def _climbed(index: Index, queries: Queries, recall: float) -> list[list[Point]]:
    """What each ladder of settings reaches, up to a recall."""
    ladders = []
    for settings in index.backend.ladders(queries.k):
        points: list[Point] = []
        for setting in settings:
            points.append(measure(dataclasses.replace(index, setting=setting), queries))
            gain = points[-1].recall - points[-2].recall if len(points) > 1 else 1.0
            if _reaches(points[-1], recall) or gain < _GAIN:
                break
        ladders.append(points)
    return ladders


def _reaches(point: Point, recall: float) -> bool:
    return point.recall - ERRORS * point.error >= recall


def _timed(
    index: Index, vectors: np.ndarray, k: int, excluded: np.ndarray | None, timings: int
) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """Results, and the seconds of the fastest of some searches."""
    index.search(vectors[:EXACT_QUERIES], k, excluded=None)  # compiles, and starts threads
    seconds = []
    for _ in range(timings):
        start = time.perf_counter()
        found = index.search(vectors, k, excluded=excluded)
        seconds.append(time.perf_counter() - start)
    return found, min(seconds)
