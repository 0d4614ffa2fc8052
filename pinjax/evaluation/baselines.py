"""The baselines of every table, and what is chosen for them on the validation split."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from pinjax.evaluation import metrics, retrievers
from pinjax.evaluation.engagements import Engagements
from pinjax.evaluation.queries import EvalQueries, Index
from pinjax.evaluation.retrievers import Found, Retriever
from pinjax.evaluation.source import Source
from pinjax.retrieval import exact

HOUR = 3600
DAY = 24 * HOUR
# What may count as recent, and how many of a query's newest items co-occurrence may look at.
SPANS = {
    "1 hour": HOUR,
    "6 hours": 6 * HOUR,
    "1 day": DAY,
    "3 days": 3 * DAY,
    "7 days": 7 * DAY,
    "28 days": 28 * DAY,
    "91 days": 91 * DAY,
    "365 days": 365 * DAY,
}
LENGTHS = (1, 5, 20, 100)

ALL_TIME = "popularity, all time"
CO_OCCURRENCE = "co-occurrence"

_QUERIES = 1024  # scored at a time


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

    def _overlaps(
        self, queries: EvalQueries, until: int
    ) -> Iterator[tuple[int, scipy.sparse.csr_array]]:
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


class Baselines(NamedTuple):
    """The baselines of a source.

    Attributes:
      retrievers: by name.
      notes: what was chosen.
    """

    retrievers: dict[str, Retriever]
    notes: list[str]


def choose(source: Source) -> Baselines:
    """The baselines of a source, with the span and the length that are best on validation.

    Of those that are not worse than the best by more than chance (the interval of their paired
    difference) it is the longest, which few users tell from others least by luck. Without
    validation labels it is the longest of all.
    """
    engagements = source.engagements
    recent = {
        f"popularity, {name}": Popularity(engagements, seconds)
        for name, seconds in SPANS.items()
        if seconds < engagements.seconds  # else it is of all time
    }
    by_length = {n: CoOccurrence(engagements, n, source.may_repeat) for n in LENGTHS}
    found: dict[str, Retriever] = {ALL_TIME: Popularity(engagements)}
    if recent:
        span = _longest(source, recent)
        found[span] = recent[span]
    length = _longest(source, by_length)
    found[CO_OCCURRENCE] = by_length[length]
    return Baselines(found, [f"{CO_OCCURRENCE}: of the newest {length} items of a query"])


def recall(source: Source, retriever: Retriever) -> float:
    """Recall@10 on the validation split."""
    return float(_recalls(source, retriever)[0].mean())


def _longest(source: Source, methods: dict[Any, Retriever]) -> Any:
    """The last of the methods that is not worse than the best by more than chance."""
    if not source.queries("valid"):
        return list(methods)[-1]
    recalls = {name: _recalls(source, method) for name, method in methods.items()}
    best, cluster = max(recalls.values(), key=lambda values: values[0].mean())
    differences = {
        name: metrics.paired_difference(best, values, cluster)
        for name, (values, _) in recalls.items()
    }
    return [name for name, difference in differences.items() if difference.low <= 0][-1]


def _recalls(source: Source, retriever: Retriever) -> tuple[np.ndarray, np.ndarray]:
    """Recall@10 of each user and window, or of each label, of the validation split, and the user.

    Users are numbers, the same for every retriever.
    """
    values, users = [], []
    for start, queries in source.queries("valid").items():
        index = source.index(start)
        found = retriever.answer(queries, index)
        found = retrievers.without_excluded(found, queries, len(index.held))
        ranks = retrievers.ranks(found, queries)
        if source.averaged_over == "labels":
            values.append((ranks < 10).astype(np.float64))
            users.append(np.array(queries.users, object)[queries.label_user])
        else:
            values.append(metrics.recall(ranks, queries.label_user, len(queries.users), 10))
            users.append(np.array(queries.users, object))
    _, cluster = np.unique(np.concatenate(users), return_inverse=True)
    return np.concatenate(values), cluster
