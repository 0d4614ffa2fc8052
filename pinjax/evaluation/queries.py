"""Evaluation queries and their labels, in one form for timelines and for pairs.

A query is the history of a user at a request time, or a row of a data set's queries. Its labels are
the items that the user then engaged with.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from pinjax import ragged

MISSED = 2**31 - 1  # the rank of a label that was not found, where every rank counts


@dataclasses.dataclass(frozen=True, eq=False)
class Candidates:
    """The items that may be found in an evaluation window.

    Attributes:
      time: unix seconds, when they are chosen.
      eligible: bool (items,), items that may be candidates. Every method misses other labels.
      included: bool (items,), the candidates: the eligible items, or a sample of them.
    """

    time: int
    eligible: np.ndarray
    included: np.ndarray

    @classmethod
    def create(cls, time: int, eligible: np.ndarray, size: int) -> "Candidates":
        """At most `size` candidates: a seeded sample if more items are eligible."""
        included = eligible.copy()
        surplus = int(included.sum()) - size
        if surplus > 0:
            out = np.random.default_rng(0).choice(np.flatnonzero(included), surplus, replace=False)
            included[out] = False
        return cls(time, eligible, included)


@dataclasses.dataclass(frozen=True, eq=False)
class EvalQueries:
    """Queries at one evaluation window, and their labels.

    A user may have several queries in a window; each label then belongs to the last query before
    it. The order of labels does not depend on the queries they belong to.

    Attributes:
      users: own ids of users, or for pairs of the queries themselves. Intervals are over these.
      query_user: int64 (queries,), row of `users`.
      query_time: int64 (queries,), request time, unix seconds.
      features: inputs of a model, by name, each (queries, ...).
      context: int32 (queries, n), the items that describe a query, oldest first, after padding
        of -1.
      history: int64 (queries,), all that is known of a query: actions of a user, training
        engagements of a query of pairs, training items of a group.
      label_query: int64 (labels,), row of the query.
      label_item: int32 (labels,).
      label_exists: bool (labels,), whether the item is eligible as a candidate.
      label_task: uint8 (labels,), row of the tasks.
      label_time: int64 (labels,), unix seconds of the engagement.
      excluded: int64 (n, 2), queries and items that are not allowed as their results.
      depth: the number of results of a query that count.
      rank_all: whether the ranks of labels count that come after these results.
    """

    users: list[int | str]
    query_user: np.ndarray
    query_time: np.ndarray
    features: dict[str, np.ndarray]
    context: np.ndarray
    history: np.ndarray
    label_query: np.ndarray
    label_item: np.ndarray
    label_exists: np.ndarray
    label_task: np.ndarray
    label_time: np.ndarray
    excluded: np.ndarray
    depth: int
    rank_all: bool = False

    def __len__(self) -> int:
        return len(self.query_user)

    @property
    def label_user(self) -> np.ndarray:
        return self.query_user[self.label_query]

    @functools.cached_property
    def label_excluded(self) -> np.ndarray:
        """Bool (labels,), whether the label's query does not allow it."""
        return self.excludes(self.label_query, self.label_item)

    def excludes(self, query: np.ndarray, item: np.ndarray) -> np.ndarray:
        """Bool, whether queries exclude items: of two arrays of ints that broadcast; -1 is none."""
        width = 1 + max(item.max(initial=0), self.excluded[:, 1].max(initial=0))
        pairs = self.excluded[:, 0] * width + self.excluded[:, 1]
        return np.isin(query * width + item, pairs) & (item >= 0)

    @property
    def max_excluded(self) -> int:
        """The largest number of items that a query excludes."""
        return int(np.bincount(self.excluded[:, 0], minlength=1).max())

    @property
    def listed(self) -> int:
        """Results to list: one more than count, to see whether the last one has equals."""
        return self.depth + 1

    def searched(self, items: int) -> int:
        """Results to search for among `items`, so that enough are left after exclusion.

        It is rounded up, so that windows share compiled programs.
        """
        wanted = self.listed + min(self.max_excluded, items)
        return wanted if wanted <= self.listed + 1 else ragged.power_of_two(wanted)

    @property
    def missed(self) -> int:
        """The rank of a label that was not found."""
        return MISSED if self.rank_all else self.listed

    def excluded_by(self, query: np.ndarray) -> np.ndarray:
        """What some queries exclude: int64 (n, 2), places in `query` and items."""
        order = np.argsort(self.excluded[:, 0], kind="stable")
        row, place = ragged.places_of(self.excluded[order, 0], query)
        return np.stack([row, self.excluded[order[place], 1]], axis=1)

    def by_task(self) -> "EvalQueries":
        """Splits queries by the tasks of their labels; the task is in `features`."""
        return self.split(self.label_task, "task")

    def split(self, parts: np.ndarray, name: str) -> "EvalQueries":
        """Splits queries by parts of their labels, in the order of labels.

        Args:
          parts: int (labels,).
          name: of the part in the `features` of a query.
        """
        pairs = np.stack([parts.astype(np.int64), self.label_query])
        (part, query), label_query = np.unique(pairs, axis=1, return_inverse=True)
        order = np.argsort(query, kind="stable")
        again, nth = ragged.places_of(query[order], self.excluded[:, 0])
        excluded = np.stack([order[nth], self.excluded[again, 1]], axis=1)
        features = {name: values[query] for name, values in self.features.items()}
        return dataclasses.replace(
            self,
            query_user=self.query_user[query],
            query_time=self.query_time[query],
            features=features | {name: part},
            context=self.context[query],
            history=self.history[query],
            label_query=label_query,
            excluded=excluded,
        )


def missed_labels(parts: Iterable[EvalQueries], not_eligible: str, excluded: str) -> str:
    """The number of labels that every method misses, and why, as the end of a sentence.

    Args:
      parts: queries, of several windows.
      not_eligible: why items are not eligible as candidates.
      excluded: why queries exclude items.

    Returns:
      It, empty if there are none.
    """
    number = {not_eligible: 0, excluded: 0}
    for part in parts:
        number[not_eligible] += int((~part.label_exists).sum())
        number[excluded] += int((part.label_exists & part.label_excluded).sum())
    reasons = ", or ".join(reason for reason in number if number[reason])
    return f", {sum(number.values()):,} of which every method misses: {reasons}" if reasons else ""


def concatenate(parts: Sequence[EvalQueries]) -> EvalQueries:
    """Joins queries of disjoint users."""
    users = np.cumsum([0] + [len(part.users) for part in parts])[:-1]
    rows = np.cumsum([0] + [len(part) for part in parts])[:-1]

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    return EvalQueries(
        users=list(itertools.chain.from_iterable(part.users for part in parts)),
        query_user=np.concatenate([p.query_user + n for p, n in zip(parts, users, strict=True)]),
        query_time=joined("query_time"),
        features={
            name: np.concatenate([part.features[name] for part in parts])
            for name in parts[0].features
        },
        context=joined("context"),
        history=joined("history"),
        label_query=np.concatenate([p.label_query + n for p, n in zip(parts, rows, strict=True)]),
        label_item=joined("label_item"),
        label_exists=joined("label_exists"),
        label_task=joined("label_task"),
        label_time=joined("label_time"),
        excluded=np.concatenate(
            [p.excluded + np.array([n, 0]) for p, n in zip(parts, rows, strict=True)]
        ),
        depth=parts[0].depth,
        rank_all=parts[0].rank_all,
    )
