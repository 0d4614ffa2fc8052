"""The baselines of every table; their parameters are chosen on the validation split."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse

from pinjax.evaluation import metrics, retrievers
from pinjax.evaluation.engagements import MOST, Engagements
from pinjax.evaluation.queries import Candidates, EvalQueries
from pinjax.evaluation.retrievers import Found, Retriever
from pinjax.evaluation.source import Source
from pinjax.timestamps import DAY, HOUR

# Candidate spans of recent popularity, and candidate lengths of an ordered context.
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
LENGTHS = (1, 5, 20, 80, 320)

ALL_TIME = "popularity, all time"
CO_OCCURRENCE = "co-occurrence"

_SCORES = 2**22  # held at a time


@dataclasses.dataclass(frozen=True)
class Popularity:
    """The items with most positive engagements, the same for every query.

    Attributes:
      engagements: of the training users.
      seconds: the span before the time of the candidates; None: all time. Ties are in order of the
        popularity of all time.
    """

    engagements: Engagements
    seconds: int | None = None

    def answer(self, queries: EvalQueries, candidates: Candidates) -> Found:
        score = self.engagements.counts(candidates.time).astype(np.float64)
        if self.seconds is not None:
            score /= 1 + score.max(initial=0)
            score += self.engagements.counts(candidates.time, self.seconds)
        included = np.flatnonzero(candidates.included)
        best = included[np.argsort(-score[included], kind="stable")].astype(np.int32)
        rows = np.full((len(queries), queries.listed), -1, np.int32)
        query, item = queries.excluded_by(np.arange(len(queries))).T
        excluded = np.split(item, np.searchsorted(query, np.arange(1, len(queries))))
        for own, items in zip(rows, excluded, strict=True):
            left = best[: queries.listed + len(items)]
            left = left[~np.isin(left, items)][: queries.listed]
            own[: len(left)] = left
        scores = np.where(rows >= 0, score[rows], -np.inf)
        label_scores = score[queries.label_item]
        ranks = self._ranks(queries, candidates, score) if queries.rank_all else None
        return Found(rows, scores, label_scores, ranks, rounding=0.0)

    def _ranks(self, queries: EvalQueries, candidates: Candidates, score: np.ndarray) -> np.ndarray:
        """Int (labels,): the number of other items that score as high and are not excluded."""
        own, item = score[queries.label_item], queries.label_item
        label, other = queries.excluded_by(queries.label_query).T
        before = candidates.included[other] & (score[other] >= own[label]) & (other != item[label])
        included = np.sort(score[candidates.included])
        ranks = len(included) - np.searchsorted(included, own) - candidates.included[item]
        return ranks - np.bincount(label, before, len(item)).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class CoOccurrence:
    """Items whose users overlap with the users of the items in a query's context.

    The score of an item is Σ |U ∩ V| / sqrt(|U| |V|) over the last items of the query's context,
    where the users V had engaged with the item and the users U with the item of the context. Ties
    go to the more popular item.

    Attributes:
      engagements: of the training users.
      length: items of the context that count.
      may_repeat: whether an item is its own neighbour.
    """

    engagements: Engagements
    length: int
    may_repeat: bool

    def answer(self, queries: EvalQueries, candidates: Candidates) -> Found:
        counts = self.engagements.counts(candidates.time)
        tie = 1e-8 * counts / (1 + counts.max(initial=0))
        scored = retrievers.Scored(queries, candidates)
        for start, overlaps in self._overlaps(queries, candidates.time):
            scored.add(np.arange(start, start + len(overlaps)), overlaps + tie)
        return scored.found()

    def _overlaps(self, queries: EvalQueries, until: int) -> Iterator[tuple[int, np.ndarray]]:
        """(first query, (some queries, items)), some queries at a time."""
        users = self.engagements.matrix(until)
        by_item = users.T.tocsr()
        context = queries.context[:, -self.length :]
        query, _ = np.nonzero(context >= 0)
        items = self.engagements.items
        columns = query, context[context >= 0]
        context = scipy.sparse.csr_array((np.ones(len(query)), columns), (len(queries), items))
        known = np.unique(context.indices)
        # The cheaper order of the two products.
        neighbours = by_item[known] @ users if len(known) < len(queries) else None
        engaged = np.diff(by_item.indptr) > 0
        changes, is_change = _changes(context)
        before, size = np.zeros(items), max(1, _SCORES // items)
        for start in range(0, len(queries), size):
            some, new = (x[start : start + size] for x in (context, changes))
            if neighbours is None:
                overlaps = ((new @ by_item) @ users).toarray()
            else:
                overlaps = (new[:, known] @ neighbours).toarray()
            for row in np.flatnonzero(is_change[start : start + size]):
                overlaps[row] += overlaps[row - 1] if row else before
            before = overlaps[-1].copy()
            if not self.may_repeat:
                overlaps[some.nonzero()] -= some.data * engaged[some.indices]
            # Sums in another order differ in their last digits.
            yield start, np.round(overlaps, 7, out=overlaps)


def _changes(
    context: scipy.sparse.csr_array,
) -> tuple[scipy.sparse.csr_array, np.ndarray]:
    """Each row, or its change from the row before if that has fewer entries; and which it is.

    The queries of a user follow each other, and most of a context is that of the query before.
    """
    change = context[1:] - context[:-1]
    fewer = np.diff(change.indptr) < np.diff(context.indptr)[1:]
    is_change = np.concatenate([[False], fewer])[: context.shape[0]]
    before = scipy.sparse.diags_array(fewer.astype(float)) @ context[:-1]
    first = scipy.sparse.csr_array((min(1, context.shape[0]), context.shape[1]))
    return context - scipy.sparse.vstack([first, before], "csr"), is_change


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

    The longest one is chosen of those whose interval of the paired difference to the best includes
    zero: with few users the best may be so by luck. Without validation labels it is the longest of
    all.
    """
    engagements = source.engagements
    recent = {
        f"popularity, {name}": Popularity(engagements, seconds)
        for name, seconds in SPANS.items()
        if seconds < engagements.seconds  # else it is of all time
    }
    by_length = {n: CoOccurrence(engagements, n, source.may_repeat) for n in source.context_lengths}
    found: dict[str, Retriever] = {ALL_TIME: Popularity(engagements)}
    if recent:
        span = _longest(source, recent)
        found[span] = recent[span]
    length = _longest(source, by_length)
    found[CO_OCCURRENCE] = by_length[length]
    notes = []
    if len(by_length) > 1:
        notes.append(f"{CO_OCCURRENCE}: of the last {length} items of a query")
    if engagements.pairs > MOST:
        notes.append(f"{CO_OCCURRENCE}: of the latest {MOST:,} of {engagements.pairs:,} pairs")
    return Baselines(found, notes)


def recall(source: Source, retriever: Retriever) -> float:
    """Recall@10 on the validation split."""
    return float(_recalls(source, retriever)[0].mean())


def _longest(source: Source, methods: dict[Any, Retriever]) -> Any:
    """The last method whose difference to the best one is not significant."""
    if len(methods) == 1 or not source.queries("valid"):
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
        candidates = source.candidates(start)
        found = retriever.answer(queries, candidates)
        found = retrievers.without_excluded(found, queries)
        ranks = retrievers.ranks(found, queries)
        if source.averaged_over == "labels":
            values.append((ranks < 10).astype(np.float64))
            users.append(np.array(queries.users, object)[queries.label_user])
        else:
            values.append(metrics.recall(ranks, queries.label_user, len(queries.users), 10))
            users.append(np.array(queries.users, object))
    _, cluster = np.unique(np.concatenate(users), return_inverse=True)
    return np.concatenate(values), cluster
