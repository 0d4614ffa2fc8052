"""How product embeddings are judged: by what a query led to (ItemSage, §5.1).

Recall@k of a task is the share of its engagements whose product ranks in the top k of the index for
the query. Every engagement counts once, so a product that is engaged with more weighs more. Where a
query is a product, that product is no answer to it.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from pinjax.data import pairs
from pinjax.errors import InputError
from pinjax.retrieval import exact, metrics
from pinjax.systems import batching, system

_DEPTHS = (1, 10, 100)
_QUERIES = 1024  # searched at a time
TIERS = ("head", "middle", "tail", "cold")  # of popularity; cold: never in training


@dataclasses.dataclass(frozen=True)
class ProductRetrieval:
    """Measures product embeddings on the queries of a data set.

    Attributes:
      name: of the method, for its rows of the table.
      dataset: where queries, products and engagements come from.
      tasks: rows of `Metadata.tasks` that are judged.
      config: the `evaluate` section of a run's config.
    """

    name: str
    dataset: pairs.PairSet
    tasks: tuple[int, ...]
    config: ConfigDict

    def __call__(
        self,
        queries: Callable[[np.ndarray], np.ndarray],
        products: jax.Array,
        split: str,
        full: bool,
    ) -> list[system.Row]:
        """The table of a split: a method over all tasks, then by task.

        Args:
          queries: from rows of queries, (n,), to their embeddings, float32 (n, dim).
          products: (products, dim), the embedding of every product.
          split: whose engagements are looked for.
          full: with the tasks apart and the baselines; else the first row.
        """
        engagements = self._asked(split)
        asked, query = np.unique(engagements["query"], return_inverse=True)
        product = engagements["product"]
        index = self._index()
        depth = min(_DEPTHS[-1] + 1, len(products))  # one more for the query itself

        vectors = queries(asked)
        valid = jnp.asarray(index)
        scores, rows = batching.in_batches(
            lambda batch: exact.search(batch, products, depth, valid=valid), vectors, _QUERIES
        )
        itself = self.dataset.queries.products[asked][:, None]
        rows, scores = metrics.leave_out(rows, scores, rows == itself)
        own = np.einsum("ed,ed->e", vectors[query], np.asarray(products, np.float32)[product])
        ranks = metrics.label_ranks(rows, scores, query, product, own)
        table = self._rows(self.name, ranks, engagements, full)
        if not full:
            return table

        if self.dataset.oracle is not None:
            table += self._rows("oracle", self._oracle_ranks(engagements, index), engagements, full)
        popularity = self._training_counts.astype(np.float32)
        top = np.argsort(-np.where(index, popularity, -1), kind="stable")[None, :depth]
        rows = np.broadcast_to(top, (len(asked), depth))
        rows, scores = metrics.leave_out(rows, popularity[rows], rows == itself)
        ranks = metrics.label_ranks(rows, scores, query, product, popularity[product])
        table += self._rows("popularity", ranks, engagements, full)
        system.add_share_of_oracle(table)
        return table

    def asked(self, split: str) -> np.ndarray:
        """Rows of the queries that are judged, (asked,), ascending: all of a split, or a sample."""
        return np.unique(self._asked(split)["query"])

    def of_answers(self, name: str, answers: np.ndarray, split: str) -> list[system.Row]:
        """The table of a method that comes with its answers, over all tasks and by task.

        Args:
          name: of the method.
          answers: rows of products, int (asked, k), to the queries of `asked`, best first, -1 where
            there are fewer. A product that is not among them is missed at any depth.
          split: whose engagements are looked for.
        """
        engagements = self._asked(split)
        _, query = np.unique(engagements["query"], return_inverse=True)
        listed = answers[query] == engagements["product"][:, None]
        ranks = np.where(listed.any(axis=1), listed.argmax(axis=1), len(self.dataset.products))
        return self._rows(name, ranks, engagements, by_task=True)

    def _oracle_ranks(self, engagements: np.ndarray, index: np.ndarray) -> np.ndarray:
        """Ranks of the engagements' products under the best ranking of their task."""
        ranks = np.empty(len(engagements), np.int64)
        order = np.lexsort((engagements["query"], engagements["task"]))
        for start in range(0, len(order), _QUERIES):
            for task in np.unique(engagements["task"][order[start : start + _QUERIES]]):
                rows = order[start : start + _QUERIES]
                rows = rows[engagements["task"][rows] == task]
                asked, query = np.unique(engagements["query"][rows], return_inverse=True)
                scores = self.dataset.oracle(asked, int(task))
                own = scores[query, engagements["product"][rows]]
                ranks[rows] = (np.where(index, scores, -1)[query] > own[:, None]).sum(axis=1)
        return ranks

    def _rows(
        self, name: str, ranks: np.ndarray, engagements: np.ndarray, by_task: bool
    ) -> list[system.Row]:
        """A row over all engagements, with tiers of popularity apart, and one for each task."""

        def cell(depth: int, where: np.ndarray) -> tuple[float, float]:
            hits = (ranks[where] < depth).astype(np.float64)
            return tuple(metrics.estimate(hits, engagements["query"][where]))

        everything = np.ones(len(ranks), bool)
        cells = {f"R@{depth}": cell(depth, everything) for depth in _DEPTHS}
        tier = self._tiers[engagements["product"]]
        cells |= {f"R@10 {tier_name}": cell(10, tier == i) for i, tier_name in enumerate(TIERS)}
        rows = [system.Row(name, cells)]
        for task in self.tasks if by_task else ():
            where = engagements["task"] == task
            cells = {f"R@{depth}": cell(depth, where) for depth in _DEPTHS}
            rows.append(system.Row(f"{name}, {self.dataset.metadata.tasks[task]}", cells))
        return rows

    def _engagements(self, split: str) -> np.ndarray:
        pairs = self.dataset.pairs(split)
        pairs = pairs[np.isin(pairs["task"], self.tasks)]
        if not len(pairs):
            name = self.dataset.metadata.name
            raise InputError(f"{name}, split {split}: no engagement of the tasks that are judged")
        return pairs

    def _asked(self, split: str) -> np.ndarray:
        """The engagements of a seeded sample of a split's queries."""
        engagements = self._engagements(split)
        queries = np.unique(engagements["query"])
        if len(queries) > self.config.queries:
            queries = np.random.default_rng(0).choice(queries, self.config.queries, replace=False)
        return engagements[np.isin(engagements["query"], queries)]

    def _index(self) -> np.ndarray:
        """Bool (products,): which products the index holds, a seeded sample of them."""
        held = np.ones(len(self.dataset.products), bool)
        surplus = len(held) - self.config.index_size
        if surplus > 0:
            held[np.random.default_rng(0).choice(len(held), surplus, replace=False)] = False
        return held

    @functools.cached_property
    def _training_counts(self) -> np.ndarray:
        """Int64 (products,), engagements of the tasks in training."""
        product = self._engagements("train")["product"]
        return np.bincount(product, minlength=len(self.dataset.products))

    @functools.cached_property
    def _tiers(self) -> np.ndarray:
        """Int (products,), row of `TIERS`: head, middle and tail have a third of training each."""
        counts = self._training_counts
        order = np.argsort(-counts, kind="stable")
        before = np.cumsum(counts[order]) - counts[order]
        tiers = np.empty(len(counts), np.int64)
        tiers[order] = 3 * before // counts.sum()
        return np.where(counts == 0, TIERS.index("cold"), tiers)
