"""How user embeddings are judged: by what the users engage with next (PinnerFormer, §4.1).

Recall@10 is the share of a user's labels (`held_out`) among the ten items of the index that are
nearest to the user's embedding.
"""

import collections
import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from pinjax.data import windows
from pinjax.data.dataset import Dataset
from pinjax.distributed import batching
from pinjax.errors import InputError
from pinjax.evaluation import held_out, metrics
from pinjax.retrieval import exact, scann_index
from pinjax.systems import system

_DEEPEST = 50  # results that count: Interest Entropy@50 looks at all, the other metrics at 10
_LISTED = _DEEPEST + 1  # one more shows whether the last of them has equals
_QUERIES = 1024  # searched at a time
_HAS_SCANN = importlib.util.find_spec("scann") is not None  # it has wheels for Linux alone
_SUFFIX = {"window": "", "daily": ", daily", "realtime": ", real time"}


class Towers(NamedTuple):
    """What embeds at a moment.

    Attributes:
      users: from histories, fields of (batch, length), to (batch, dim).
      items: from rows of the catalogue, (n,), to (n, dim).
    """

    users: Callable[[dict[str, np.ndarray]], jax.Array]
    items: Callable[[np.ndarray], np.ndarray]


class Found(NamedTuple):
    """What an index answers.

    Attributes:
      rows: int32 (queries, k), best first, -1 where there are fewer results.
      scores: floats (queries, k).
      label_scores: floats (labels,), the labels' own scores for their queries, -inf where one
        cannot be found.
      rounding: by how much equal scores may differ.
    """

    rows: np.ndarray
    scores: np.ndarray
    label_scores: np.ndarray
    rounding: float = metrics.ROUNDING


class Items(NamedTuple):
    """Embeddings of items.

    Attributes:
      rows: int (n,), ascending, of the catalogue.
      vectors: (n, dim), on the device.
    """

    rows: np.ndarray
    vectors: jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class UserRetrieval:
    """Measures a user tower and an item tower on a data set.

    Attributes:
      name: of the method, for its rows of the table.
      dataset: where users, items and moments come from.
      positives: which actions are labels.
      length: actions in a history.
      config: the `evaluate` section of a run's config.
    """

    name: str
    dataset: Dataset
    positives: windows.Positives
    length: int
    config: ConfigDict

    def __call__(
        self,
        towers: Callable[[int], Towers],
        split: str,
        full: bool,
    ) -> system.Table:
        """The table of a split, over all moments.

        Args:
          towers: those of a moment, unix seconds, for its whole window.
          split: whose users are asked.
          full: with all cadences, the approximate index and the baselines; else the first row.

        Raises:
          InputError: where nobody is asked at any moment.
        """
        notes = self._rests_on(split)
        source, table = self._source, _Table(self._topics)
        for moment in self._moments:
            once = self._questions(split, moment)
            if not once.users:
                continue
            index = source.index(moment)
            embed_users, embed_items = towers(moment)
            items = self._embed(embed_items, index, once)
            counts = source.counts(moment) if full else None
            for cadence in self.config.cadences if full else self.config.cadences[:1]:
                asked = once if cadence == "window" else source.questions(split, moment, cadence)
                users = batching.in_batches(embed_users, asked.histories, self.config.batch)
                name = self.name + _SUFFIX[cadence]
                found = _search(users, items, index, asked)
                one_list = cadence == "window"
                table.add(name, asked, index, found, counts, one_list=one_list)
                if full and one_list and not self.config.filter_seen and _HAS_SCANN:
                    approximate, speed = _search_scann(users, items, index, asked, found)
                    table.add(f"{name}, ScaNN", asked, index, approximate, counts, plain=speed)
                if full and self.dataset.oracle is not None:
                    found = self._oracle(asked, index, cadence)
                    name = "oracle" + _SUFFIX[cadence]
                    table.add(name, asked, index, found, counts, one_list=one_list)
            if full:
                # Of items with as many actions lately the one with more ever is first.
                lately = counts.lately + counts.ever / (1 + counts.ever.max())
                for name, score in (("ever", counts.ever), ("lately", lately)):
                    found = _popular(score.astype(np.float64), index, once)
                    table.add(f"popularity, {name}", once, index, found, counts)
        rows = sorted(table.rows(), key=lambda row: not row.method.startswith(self.name))
        system.add_share_of_oracle(rows)
        overlaps = {row.method: table.overlap(row.method) for row in rows}
        own = {method: x for method, x in overlaps.items() if method.startswith(self.name)}
        popularity = [method for method in overlaps if method.startswith("popularity")]
        return system.Table(rows, [*notes, *system.collapsed(rows, own, popularity)])

    @property
    def metrics(self) -> dict[str, str]:
        """The names of the metrics in the first row where `full` is False, with what is best."""
        names = ["R@10", "HR@10", "NDCG@10", system.COVERAGE]
        if "window" in self.config.cadences[:1] and self._topics is not None:
            names.append("entropy@50")
        return dict.fromkeys(names, "max")

    def asked(self, split: str) -> str:
        """What the table of a split rests on.

        Raises:
          InputError: where nobody is asked at any moment.
        """
        users, labels = self._count(split)
        if not users:
            raise InputError(
                f"{self.dataset.spec.name}, split {split}: at no moment has a user a history "
                f"and a label in the {self.config.window} s after it"
            )
        return f"{users:,} users, {labels:,} labels"

    def _rests_on(self, split: str) -> list[str]:
        """Notes: whom and what was asked, and whether they are few."""
        notes = [self.asked(split)]
        parts = [self._questions(split, moment) for moment in self._moments]
        missing = sum(int((~part.label_exists).sum()) for part in parts)
        if missing:
            notes[0] += f", {missing:,} of which every method misses: the item did not exist yet"
        users, _ = self._count(split)
        if users < system.ENOUGH:
            if any(len(part.users) == self.config.users for part in parts):
                more = "evaluate.users"
            elif self.dataset.spec.leave_one_out:
                more = "the users of the log"
            else:
                more = (
                    f"evaluate.window, evaluate.window_starts, or split.{split} of pinjax.prepare"
                )
            notes.append(system.too_few(f"{users} users", more))
        return notes

    def _count(self, split: str) -> tuple[int, int]:
        """Users that are asked at any moment, and their labels."""
        parts = [self._questions(split, moment) for moment in self._moments]
        users = set().union(*(part.users for part in parts))
        return len(users), sum(len(part.label_item) for part in parts)

    @functools.cached_property
    def _source(self) -> held_out.HeldOut:
        return held_out.HeldOut(
            self.dataset,
            self.positives,
            self.length,
            window=self.config.window,
            max_users=self.config.users,
            index_size=self.config.index_size,
            filter_seen=self.config.filter_seen,
        )

    @property
    def _moments(self) -> tuple[int, ...]:
        return self._source.moments(self.config.window_starts)

    @functools.cache  # noqa: B019, it lives as long as its command
    def _questions(self, split: str, moment: int) -> held_out.Questions:
        return self._source.questions(split, moment)

    @property
    def _topics(self) -> np.ndarray | None:
        """The topics of items, or None where none is known."""
        topics = self.dataset.catalogue.topics
        return topics if (topics >= 0).any() else None

    def _embed(
        self,
        embed_items: Callable[[np.ndarray], np.ndarray],
        index: np.ndarray,
        asked: held_out.Questions,
    ) -> Items:
        """The items of an index and the labels, or the whole catalogue where that is no more."""
        rows = np.arange(len(index))
        if len(rows) > self.config.index_size:
            rows = np.union1d(np.flatnonzero(index), asked.label_item)
        return Items(rows, jnp.asarray(embed_items(rows)))

    def _oracle(self, asked: held_out.Questions, index: np.ndarray, cadence: str) -> Found:
        """The best ranking that a simulated world allows, under the rules of the others.

        Each query is about what is asked of it: the whole window, a day, or the next action.
        """
        expected = self.dataset.oracle.expect(
            [asked.users[user] for user in asked.query_user],
            asked.histories["request_time"][:, -1].astype(np.int64),
            self.config.window if cadence == "window" else held_out.DAY,
            asked.histories if cadence == "realtime" else None,
        )
        depth = _depth(asked, len(index))
        shape = len(asked.query_user), depth
        rows, scores = np.empty(shape, np.int32), np.empty(shape, np.float32)
        for queries, items, some in expected.candidates(index, depth):
            every = np.ones(len(items), bool)
            scores[queries], columns = exact.best(some, every, depth)
            rows[queries] = np.where(columns >= 0, items[columns], -1)
        label_scores = expected.of(asked.label_query, asked.label_item)
        found = Found(rows, scores, label_scores, rounding=0.0)
        return _without_seen(found, asked, len(index))


def _search(users: np.ndarray, items: Items, index: np.ndarray, asked: held_out.Questions) -> Found:
    """Exact search, without what each user had seen where that is to be left out."""
    depth, valid = _depth(asked, len(index)), jnp.asarray(index[items.rows])
    scores, found = batching.in_batches(
        lambda batch: exact.search(batch, items.vectors, depth, valid=valid), users, _QUERIES
    )
    rows = np.where(found >= 0, items.rows[found], -1)
    labels = items.vectors[np.searchsorted(items.rows, asked.label_item)]
    label_scores = np.einsum("ld,ld->l", users[asked.label_query], np.asarray(labels, np.float32))
    return _without_seen(Found(rows, scores, label_scores), asked, len(index))


def _depth(asked: held_out.Questions, items: int) -> int:
    """Results of a query, so many that enough are left without what its user has seen."""
    return _LISTED + min(int(np.bincount(asked.seen[:, 0], minlength=1).max()), items)


def _without_seen(found: Found, asked: held_out.Questions, items: int) -> Found:
    """Moves the others up. A label that its user had seen is not found, whatever its score."""
    query = np.arange(len(found.rows))[:, None]
    pairs = asked.seen[:, 0] * items + asked.seen[:, 1]
    seen = np.isin(query * items + found.rows, pairs)
    rows, scores = metrics.leave_out(found.rows, found.scores, seen)
    seen_label = np.isin(asked.label_query * items + asked.label_item, pairs)
    return Found(
        rows[:, :_LISTED],
        scores[:, :_LISTED],
        np.where(seen_label, -np.inf, found.label_scores),
        found.rounding,
    )


def _search_scann(
    users: np.ndarray,
    items: Items,
    index: np.ndarray,
    asked: held_out.Questions,
    exactly: Found,
) -> tuple[Found, dict[str, float]]:
    """Approximate search, and what it gains and loses beside the exact one.

    A label that is in the index and was not found is missed, however high its score.
    """
    rows = np.flatnonzero(index).astype(np.int32)
    vectors = np.asarray(items.vectors)[index[items.rows]]
    searcher = scann_index.build(vectors, _LISTED)
    scores, found = scann_index.search(searcher, users, _LISTED)
    compared = scann_index.recall_against_exact(searcher, vectors, users, 10)
    speed = {
        "ANN recall@10": compared.recall,
        "queries/s": compared.queries_per_second,
        "exact queries/s": compared.exact_queries_per_second,
    }
    found = np.where(found >= 0, rows[found], -1)
    label_scores = np.where(index[asked.label_item], -np.inf, exactly.label_scores)
    return Found(found, scores, label_scores), speed


def _popular(score: np.ndarray, index: np.ndarray, asked: held_out.Questions) -> Found:
    """The same ranking for everybody, without what each user had seen where that is left out."""
    best = exact.best(score[None], index, _depth(asked, len(index)))
    scores, rows = (np.repeat(x, len(asked.query_user), axis=0) for x in best)
    found = Found(rows, scores, score[asked.label_item], rounding=0.0)
    return _without_seen(found, asked, len(index))


class _Table:
    """Gathers the numbers of each method, user by user, over moments."""

    def __init__(self, topics: np.ndarray | None):
        """A table without entropies where topics are None."""
        self._topics = topics
        self._overlaps = collections.defaultdict(list)
        self._users = collections.defaultdict(list)
        self._values = collections.defaultdict(lambda: collections.defaultdict(list))
        self._plain = collections.defaultdict(lambda: collections.defaultdict(list))

    def add(
        self,
        method: str,
        asked: held_out.Questions,
        index: np.ndarray,
        found: Found,
        counts: held_out.Counts | None,
        *,
        one_list: bool = True,
        plain: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Adds what a method found at a moment.

        Args:
          method: its name.
          asked: the questions.
          index: what was searched.
          found: the answers.
          counts: to tell new labels from known ones, if that is wanted.
          one_list: whether a user has one query; else a user has no one list to have an entropy.
          plain: numbers of the method, not of users.
        """
        # What did not exist is in no index, and no method can find it.
        label_scores = np.where(asked.label_exists, found.label_scores, -np.inf)
        ranks = metrics.label_ranks(
            *(found.rows, found.scores, asked.label_query, asked.label_item, label_scores),
            found.rounding,
        )
        user, number = asked.label_user, len(asked.users)
        values = {
            "R@10": metrics.recall(ranks, user, number, 10),
            "HR@10": metrics.hit_rate(ranks, user, number, 10),
            "NDCG@10": metrics.ndcg(ranks, user, number, 10),
        }
        if counts is not None:
            new = ~counts.known[asked.label_item]
            values["R@10 new"] = metrics.recall(ranks, user, number, 10, where=new)
            values["R@10 known"] = metrics.recall(ranks, user, number, 10, where=~new)
        if one_list and self._topics is not None:
            top = metrics.untied_top(found.rows, found.scores, _DEEPEST, found.rounding)
            values["entropy@50"] = metrics.interest_entropy(top, self._topics)
        top = metrics.untied_top(found.rows, found.scores, 10, found.rounding)
        plain = {system.COVERAGE: metrics.coverage(top, int(index.sum())), **plain}
        self._overlaps[method].append(metrics.overlap(top))
        self._users[method] += asked.users
        for name, value in values.items():
            self._values[method][name].append(value)
        for name, value in plain.items():
            self._plain[method][name].append(value)

    def rows(self) -> list[system.Row]:
        """A row for each method, in the order in which they came."""
        rows = []
        for method, values in self._values.items():
            # As objects, since text of one width would be as wide as the longest id.
            users = np.array(self._users[method], object)
            _, cluster = np.unique(users, return_inverse=True)
            cells = {
                name: metrics.estimate(np.concatenate(value), cluster, share=name != "entropy@50")
                for name, value in values.items()
            }
            for name, value in self._plain[method].items():
                cells[name] = metrics.Estimate(float(np.mean(value)))
            rows.append(system.Row(method, cells))
        return rows

    def overlap(self, method: str) -> float:
        """How much of a list another one has, too, on average over moments."""
        return float(np.mean(self._overlaps[method]))
