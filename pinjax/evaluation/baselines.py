"""The baselines of every table, and what is chosen for them on the validation split."""

from typing import NamedTuple

import numpy as np

from pinjax.evaluation import metrics, retrievers
from pinjax.evaluation.retrievers import CoOccurrence, Popularity, Retriever

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


class Baselines(NamedTuple):
    """The baselines of a source.

    Attributes:
      retrievers: by name.
      best: name of the one with the highest Recall@10 on the validation split; None where that
        split has no labels.
      notes: what was chosen.
    """

    retrievers: dict[str, Retriever]
    best: str | None
    notes: list[str]


def choose(source) -> Baselines:
    """The baselines of a source (`evaluator.Source`), of the best span and length on validation.

    Without validation labels the span is of a week, and the length the longest.
    """
    engagements = source.engagements
    recent = {f"popularity, {name}": Popularity(engagements, s) for name, s in SPANS.items()}
    by_length = {n: CoOccurrence(engagements, n, source.may_repeat) for n in LENGTHS}
    queries = source.queries("valid")
    if not queries:
        span, length, best = "popularity, 7 days", LENGTHS[-1], None
    else:
        spans = {name: recall(source, retriever) for name, retriever in recent.items()}
        lengths = {n: recall(source, retriever) for n, retriever in by_length.items()}
        span, length = max(spans, key=spans.get), max(lengths, key=lengths.get)
    found = {ALL_TIME: Popularity(engagements)}
    if engagements.timed:
        found[span] = recent[span]
    found[CO_OCCURRENCE] = by_length[length]
    if queries:
        recalls = {name: recall(source, retriever) for name, retriever in found.items()}
        best = max(recalls, key=recalls.get)
    return Baselines(found, best, [f"{CO_OCCURRENCE}: of the newest {length} items of a query"])


def recall(source, retriever: Retriever) -> float:
    """Recall@10 on the validation split."""
    values = []
    for start, queries in source.queries("valid").items():
        index = source.index(start)
        found = retriever.answer(queries, index)
        found = retrievers.without_excluded(found, queries, len(index.held))
        ranks = retrievers.ranks(found, queries)
        if source.averaged_over == "labels":
            values.append(ranks < 10)
        else:
            values.append(metrics.recall(ranks, queries.label_user, len(queries.users), 10))
    return float(np.concatenate(values).mean())
