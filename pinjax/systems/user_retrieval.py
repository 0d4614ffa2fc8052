"""How user embeddings are judged: by what the users engage with next (PinnerFormer, §4.1).

Recall@10 is the share of a user's labels (`data.held_out`) among the ten items of the index that
are nearest to the user's embedding.
"""

import collections
import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from pinjax.data import datasets, held_out, windows
from pinjax.errors import InputError
from pinjax.retrieval import exact, metrics, scann_index
from pinjax.systems import batching, system

_DEEPEST = 50  # results of a query: Interest Entropy@50 looks at all, the other metrics at 10
_QUERIES = 1024  # searched at a time
_USERS = 256  # ranked by the oracle at a time
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
      scores: float32 (queries, k).
      label_scores: float32 (labels,), the labels' own scores for their queries.
    """

    rows: np.ndarray
    scores: np.ndarray
    label_scores: np.ndarray


class Items(NamedTuple):
    """Embeddings of items.

    Attributes:
      rows: int (n,), ascending, of the catalogue.
      vectors: (n, dim), on the device.
    """

    rows: np.ndarray
    vectors: jax.Array


@dataclasses.dataclass(frozen=True)
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
    dataset: datasets.Dataset
    positives: windows.Positives
    length: int
    config: ConfigDict

    def __post_init__(self):
        for cadence in self.config.cadences:
            system.check_choice("evaluate.cadences", cadence, held_out.CADENCES)

    def __call__(
        self,
        towers: Callable[[int], Towers],
        split: str,
        full: bool,
    ) -> list[system.Row]:
        """The table of a split, over all moments.

        Args:
          towers: those of a moment, unix seconds, for its whole window.
          split: whose users are asked.
          full: with all cadences, the approximate index and the baselines; else the first row.

        Raises:
          InputError: where nobody is asked at any moment.
        """
        source = held_out.HeldOut(
            self.dataset,
            self.positives,
            self.length,
            window=self.config.window,
            max_users=self.config.users,
            index_size=self.config.index_size,
            filter_seen=self.config.filter_seen,
        )
        table = _Table(self.dataset.catalogue.topics)
        for moment in source.moments(self.config.moments):
            once = source.questions(split, moment)
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
                table.add(name, asked, index, found, counts, one_list=cadence == "window")
                if full and cadence == "window" and not self.config.filter_seen and _HAS_SCANN:
                    approximate, speed = _search_scann(users, items, index, asked, found)
                    table.add(f"{name}, ScaNN", asked, index, approximate, counts, plain=speed)
            if not full:
                continue
            if self.dataset.oracle is not None:
                table.add("oracle", once, index, self._oracle(once, moment, index), counts)
            for name, score in (("ever", counts.ever), ("lately", counts.lately)):
                found = _popular(score.astype(np.float32), index, once)
                table.add(f"popularity, {name}", once, index, found, counts)
        rows = table.rows()
        if not rows:
            raise InputError(
                f"{self.dataset.metadata.name}, split {split}: at no moment has a user a history "
                f"and a label in the {self.config.window} s after it"
            )
        return rows

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

    def _oracle(self, asked: held_out.Questions, moment: int, index: np.ndarray) -> Found:
        """The best ranking that a simulated world allows; its queries are users."""
        rows, scores, label_scores = [], [], np.empty(len(asked.label_item), np.float32)
        for start in range(0, len(asked.users), _USERS):
            users = asked.users[start : start + _USERS]
            expected = self.dataset.oracle.scores(users, moment, self.config.window)
            label = np.flatnonzero(
                (asked.label_user >= start) & (asked.label_user < start + _USERS)
            )
            label_scores[label] = expected[asked.label_user[label] - start, asked.label_item[label]]
            top = _best(np.where(index, expected, -1))
            rows.append(top)
            scores.append(np.take_along_axis(expected, top, axis=1))
        return Found(np.concatenate(rows), np.concatenate(scores), label_scores)


def _search(users: np.ndarray, items: Items, index: np.ndarray, asked: held_out.Questions) -> Found:
    """Exact search, without what each user had seen where that is to be left out."""
    depth = min(_depth(asked), len(items.rows))
    valid = jnp.asarray(index[items.rows])
    scores, found = batching.in_batches(
        lambda batch: exact.search(batch, items.vectors, depth, valid=valid), users, _QUERIES
    )
    rows = np.where(found >= 0, items.rows[found], -1)
    labels = items.vectors[np.searchsorted(items.rows, asked.label_item)]
    label_scores = np.einsum("ld,ld->l", users[asked.label_query], np.asarray(labels, np.float32))
    return _without_seen(Found(rows, scores, label_scores), asked, len(index))


def _depth(asked: held_out.Questions) -> int:
    """Results of a query, so many that enough are left without what its user has seen."""
    return _DEEPEST + int(np.bincount(asked.seen[:, 0], minlength=1).max())


def _without_seen(found: Found, asked: held_out.Questions, items: int) -> Found:
    """Moves the others up. A label that its user had seen is not found, whatever its score."""
    query = np.arange(len(found.rows))[:, None]
    pairs = asked.seen[:, 0] * items + asked.seen[:, 1]
    seen = np.isin(query * items + found.rows, pairs)
    rows, scores = metrics.leave_out(found.rows, found.scores, seen)
    seen_label = np.isin(asked.label_query * items + asked.label_item, pairs)
    return Found(
        rows[:, :_DEEPEST],
        scores[:, :_DEEPEST],
        np.where(seen_label, -np.inf, found.label_scores),
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
    searcher = scann_index.build(vectors, _DEEPEST)
    scores, found = scann_index.search(searcher, users, _DEEPEST)
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
    top = _best(np.where(index, score, -1)[None], _depth(asked))
    shape = (len(asked.query_user), top.shape[1])
    rows, scores = np.broadcast_to(top, shape), np.broadcast_to(score[top], shape)
    return _without_seen(Found(rows, scores, score[asked.label_item]), asked, len(index))


def _best(scores: np.ndarray, depth: int = _DEEPEST) -> np.ndarray:
    """The rows of the highest scores, best first: int64 (queries, depth)."""
    depth = min(depth, scores.shape[1])
    top = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
    order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1, kind="stable")
    return np.take_along_axis(top, order, axis=1)


class _Table:
    """Gathers the numbers of each method, user by user, over moments."""

    def __init__(self, topics: np.ndarray):
        self._topics = topics
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
          one_list: whether a user has one query; else there is no list to measure diversity by.
          plain: numbers of the method, not of users.
        """
        ranks = metrics.label_ranks(
            found.rows, found.scores, asked.label_query, asked.label_item, found.label_scores
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
        if one_list:
            values["entropy@50"] = metrics.interest_entropy(found.rows, self._topics)
            share = metrics.coverage(found.rows[:, :10], len(index))
            plain = {"P90 cov@10": share * len(index) / index.sum(), **plain}
        self._users[method] += asked.users
        for name, value in values.items():
            self._values[method][name].append(value)
        for name, value in plain.items():
            self._plain[method][name].append(value)

    def rows(self) -> list[system.Row]:
        """A row for each method, in the order in which they came."""
        rows = []
        for method, values in self._values.items():
            _, cluster = np.unique(self._users[method], return_inverse=True)
            cells = {
                name: tuple(metrics.estimate(np.concatenate(value), cluster))
                for name, value in values.items()
            }
            for name, value in self._plain[method].items():
                cells[name] = (float(np.mean(value)), None)
            rows.append(system.Row(method, cells))
        system.add_share_of_oracle(rows)
        return rows
