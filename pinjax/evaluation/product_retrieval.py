"""How item embeddings are judged: by what a query led to (ItemSage, §5.1).

Recall@k of a task is the share of its engagements whose item ranks in the top k of the index for
the query. Every engagement counts once, so an item that is engaged with more weighs more. Where a
query is an item, that item is no answer to it. Items of which a system sees nothing are not in the
index, for any method: an engagement with one is missed by all.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from pinjax.data.dataset import Dataset
from pinjax.distributed import batching
from pinjax.errors import InputError
from pinjax.evaluation import metrics
from pinjax.retrieval import exact
from pinjax.systems import system

_DEPTHS = (1, 10, 100)
_LISTED = _DEPTHS[-1] + 2  # one more for the query itself, and one that shows equals of the last
_QUERIES = 1024  # searched at a time
TIERS = ("head", "middle", "tail", "cold")  # of popularity; cold: never in training


class Found(NamedTuple):
    """What an index answers to queries.

    Attributes:
      rows: int32 (queries, k), of items, best first, -1 where there are fewer results.
      scores: float32 (queries, k).
      query: int (engagements,), the row of each engagement's query.
      label_scores: float32 (engagements,), the score of each engagement's item.
      rounding: by how much equal scores may differ.
    """

    rows: np.ndarray
    scores: np.ndarray
    query: np.ndarray
    label_scores: np.ndarray
    rounding: float = metrics.ROUNDING


@dataclasses.dataclass(frozen=True, eq=False)
class ProductRetrieval:
    """Measures item embeddings on the queries of a data set.

    Attributes:
      name: of the method, for its rows of the table.
      dataset: where queries, items and engagements come from.
      tasks: rows of `Spec.tasks` that are judged.
      findable: bool (items,), which items an index may hold, for any method.
      config: the `evaluate` section of a run's config.
    """

    name: str
    dataset: Dataset
    tasks: tuple[int, ...]
    findable: np.ndarray
    config: ConfigDict

    def __post_init__(self):
        if not self.findable.any():
            name = self.dataset.spec.name
            raise InputError(f"data.name: no item of {name} has features that {self.name} uses")

    def __call__(
        self,
        queries: Callable[[np.ndarray], np.ndarray],
        items: jax.Array,
        split: str,
        full: bool,
    ) -> system.Table:
        """The table of a split: a method over all tasks, then by task.

        Args:
          queries: from rows of queries, (n,), to their embeddings, float32 (n, dim).
          items: (items, dim), the embedding of every item.
          split: whose engagements are looked for.
          full: with the tasks apart and the baselines; else the first row.

        Raises:
          InputError: where there are none.
        """
        engagements = self._asked(split)
        rows, overlap = self._rows(
            self.name, self._search(queries, items, engagements), engagements, full
        )
        overlaps = {self.name: overlap}
        if full:
            if self.dataset.oracle is not None:
                rows += self._rows("oracle", self._oracle(engagements), engagements, full)[0]
            rows += self._rows("popularity", self._popular(engagements), engagements, full)[0]
        system.add_share_of_oracle(rows)
        notes = [*self._rests_on(split), *system.collapsed(rows, overlaps, ["popularity"])]
        return system.Table(rows, notes)

    @property
    def metrics(self) -> dict[str, str]:
        """The names of the metrics in the first row where `full` is False, with what is best."""
        names = [f"R@{depth}" for depth in _DEPTHS] + [f"R@10 {tier}" for tier in TIERS]
        return dict.fromkeys([*names, system.COVERAGE], "max")

    def asked(self, split: str) -> str:
        """What the table of a split rests on.

        Raises:
          InputError: where there is nothing to ask.
        """
        return f"{len(self.queries(split)):,} queries, {len(self._asked(split)):,} engagements"

    def _rests_on(self, split: str) -> list[str]:
        """Notes: what was asked, and whether it is little."""
        notes = [self.asked(split)]
        queries = len(self.queries(split))
        if queries < system.ENOUGH:
            more = f"split.{split} or split.test_days of pinjax.prepare"
            if queries == self.config.queries:
                more = "evaluate.queries"
            notes.append(system.too_few(f"{queries} queries", more))
        return notes

    def queries(self, split: str) -> np.ndarray:
        """Rows of the queries that are judged, (asked,), ascending: all of a split, or a sample."""
        return np.unique(self._asked(split)["query"])

    def of_answers(self, name: str, answers: np.ndarray, split: str) -> list[system.Row]:
        """The table of a method that comes with its answers, over all tasks and by task.

        Args:
          name: of the method.
          answers: rows of items, int (asked, k), to the queries of `queries`, best first, -1
            where there are fewer. An item that is not among them is missed at any depth.
          split: whose engagements are looked for.
        """
        engagements = self._asked(split)
        _, query = np.unique(engagements["query"], return_inverse=True)
        place = np.broadcast_to(-np.arange(answers.shape[1], dtype=np.float32), answers.shape)
        out = (answers < 0) | ~self.findable[answers]
        rows, scores = metrics.leave_out(answers, place, out)
        more = (0, 0), (0, _LISTED)
        rows = np.pad(rows, more, constant_values=-1)[:, :_LISTED]
        scores = np.pad(scores, more, constant_values=-np.inf)[:, :_LISTED]
        missed = np.full(len(query), -np.inf, np.float32)
        found = Found(rows, scores, query, missed)
        return self._rows(name, found, engagements, by_task=True)[0]

    def _search(
        self,
        queries: Callable[[np.ndarray], np.ndarray],
        items: jax.Array,
        engagements: np.ndarray,
    ) -> Found:
        """Exact search in the index."""
        asked, query = np.unique(engagements["query"], return_inverse=True)
        vectors, valid = queries(asked), jnp.asarray(self._index)
        scores, rows = batching.in_batches(
            lambda batch: exact.search(batch, items, _LISTED, valid=valid), vectors, _QUERIES
        )
        labels = np.asarray(items, np.float32)[engagements["item"]]
        own = np.einsum("ed,ed->e", vectors[query], labels)
        return self._without_itself(Found(rows, scores, query, own), asked)

    def _popular(self, engagements: np.ndarray) -> Found:
        """The same ranking for every query."""
        asked, query = np.unique(engagements["query"], return_inverse=True)
        counts = self._training_counts.astype(np.float32)
        best = exact.best(counts[None], self._index, _LISTED)
        scores, rows = (np.repeat(x, len(asked), axis=0) for x in best)
        found = Found(rows, scores, query, counts[engagements["item"]], rounding=0.0)
        return self._without_itself(found, asked)

    def _oracle(self, engagements: np.ndarray) -> Found:
        """The best ranking that a simulated world allows: a query's items for a task."""
        pairs = np.stack([engagements["task"], engagements["query"]])
        (tasks, asked), query = np.unique(pairs, axis=1, return_inverse=True)
        rows, scores = np.empty((len(asked), _LISTED), np.int32), np.empty((len(asked), _LISTED))
        label_scores = np.empty(len(engagements), np.float32)
        for task in np.unique(tasks):
            of_task = np.flatnonzero(tasks == task)
            for start in range(0, len(of_task), _QUERIES):
                some = of_task[start : start + _QUERIES]
                expected = self.dataset.oracle.task_scores(asked[some], int(task))
                scores[some], rows[some] = exact.best(expected, self._index, _LISTED)
                label = np.flatnonzero((query >= some[0]) & (query <= some[-1]))
                item = engagements["item"][label]
                label_scores[label] = expected[query[label] - some[0], item]
        return self._without_itself(Found(rows, scores, query, label_scores, 0.0), asked)

    def _without_itself(self, found: Found, asked: np.ndarray) -> Found:
        """Without the item that a query is: nobody is shown what they look at."""
        itself = self.dataset.queries.items[asked][:, None]
        out = (found.rows == itself) & (itself >= 0)
        rows, scores = metrics.leave_out(found.rows, found.scores, out)
        return found._replace(rows=rows, scores=scores)

    def _rows(
        self, name: str, found: Found, engagements: np.ndarray, by_task: bool
    ) -> tuple[list[system.Row], float]:
        """The rows of a method, and how much of a list another one has, too.

        There is a row over all engagements, with tiers of popularity apart, and one for each task.
        """
        item = engagements["item"]
        ranks = metrics.label_ranks(
            *(found.rows, found.scores, found.query, item, found.label_scores, found.rounding)
        )
        ranks = np.where(self.findable[item], ranks, _LISTED)

        def cell(depth: int, where: np.ndarray) -> metrics.Estimate:
            hits = (ranks[where] < depth).astype(np.float64)
            return metrics.estimate(hits, engagements["query"][where])

        everything = np.ones(len(ranks), bool)
        cells = {f"R@{depth}": cell(depth, everything) for depth in _DEPTHS}
        tier = self._tiers[item]
        cells |= {f"R@10 {tier_name}": cell(10, tier == i) for i, tier_name in enumerate(TIERS)}
        top = metrics.untied_top(found.rows, found.scores, 10, found.rounding)
        cells[system.COVERAGE] = metrics.Estimate(metrics.coverage(top, int(self._index.sum())))
        rows = [system.Row(name, cells)]
        for task in self.tasks if by_task else ():
            where = engagements["task"] == task
            cells = {f"R@{depth}": cell(depth, where) for depth in _DEPTHS}
            rows.append(system.Row(f"{name}, {self.dataset.spec.tasks[task]}", cells))
        return rows, metrics.overlap(top)

    def _engagements(self, split: str) -> np.ndarray:
        pairs = self.dataset.pairs(split)
        pairs = pairs[np.isin(pairs["task"], self.tasks)]
        if not len(pairs):
            name = self.dataset.spec.name
            raise InputError(f"{name}, split {split}: no engagement of the tasks that are judged")
        return pairs

    @functools.cache  # noqa: B019, it lives as long as its command
    def _asked(self, split: str) -> np.ndarray:
        """The engagements of a seeded sample of a split's queries."""
        engagements = self._engagements(split)
        queries = np.unique(engagements["query"])
        if len(queries) > self.config.queries:
            queries = np.random.default_rng(0).choice(queries, self.config.queries, replace=False)
        return engagements[np.isin(engagements["query"], queries)]

    @functools.cached_property
    def _index(self) -> np.ndarray:
        """Bool (items,): which items the index holds, a seeded sample of those that it may."""
        held = self.findable.copy()
        surplus = int(held.sum()) - self.config.index_size
        if surplus > 0:
            out = np.random.default_rng(0).choice(np.flatnonzero(held), surplus, replace=False)
            held[out] = False
        return held

    @functools.cached_property
    def _training_counts(self) -> np.ndarray:
        """Int64 (items,), engagements of the tasks in training."""
        item = self._engagements("train")["item"]
        return np.bincount(item, minlength=len(self.findable))

    @functools.cached_property
    def _tiers(self) -> np.ndarray:
        """Int (items,), row of `TIERS`: head, middle and tail have about a third of training.

        Items of equal popularity are in one tier: where the first of them would be.
        """
        counts = self._training_counts
        falling = -np.sort(-counts)
        before = (np.cumsum(falling) - falling)[np.searchsorted(-falling, -counts)]
        return np.where(counts == 0, TIERS.index("cold"), 3 * before // counts.sum())
