"""Evaluation queries from the graph: groups, and the items of their held-out edges.

A group is a board, a basket, or the user of a bipartite graph. The protocol is that of LightGCN
(He et al., SIGIR 2020): all items are ranked but those that the group has in training; recall is
over all held-out items of a group, and means are over groups.
"""

import dataclasses
import functools

import numpy as np
from ml_collections import ConfigDict

from pinjax.data.dataset import Dataset
from pinjax.errors import InputError
from pinjax.evaluation import pair_source, tables
from pinjax.evaluation.engagements import TIERS, Engagements
from pinjax.evaluation.queries import EvalQueries, Index

CONTEXT = 4_096  # the most items of a group that describe it


@dataclasses.dataclass(frozen=True, eq=False)
class GraphSource:
    """The evaluation queries of a data set's graph. There is one evaluation window, all of a split.

    The feature of a query is its row among the groups, `group`. Groups without a training edge are
    no queries: nothing is known of them.

    Attributes:
      name: of the system, for messages.
      dataset: where groups and edges come from.
      eligible: bool (items,), the items that may be in an index, for any method; see `known_items`.
      config: the `evaluate` section of a run's config.
    """

    name: str
    dataset: Dataset
    eligible: np.ndarray
    config: ConfigDict

    averaged_over = "users"
    depth = 20
    main_metrics = ("R@10", "R@20", "NDCG@20")
    tiers = TIERS
    always_tiers = True
    cadences = ("window",)
    tasks = ()
    may_repeat = False
    few_excluded = False
    context_lengths = (CONTEXT,)  # items of a group have no order
    topics = None

    def __post_init__(self):
        if not self.eligible.any():
            name = self.dataset.spec.name
            raise InputError(f"data.name: no item of {name} has features that {self.name} uses")

    @property
    def validates(self) -> bool:
        return self.dataset.spec.edges.get("valid", 0) > 0

    @functools.cache  # noqa: B019, it lives as long as its command
    def index(self, start: int) -> Index:
        return Index.create(start, self.eligible, self.config.index_size)

    @functools.cached_property
    def engagements(self) -> Engagements:
        """The training edges, as engagements of groups at the end of training."""
        groups = self.dataset.graph.groups
        group = np.repeat(np.arange(len(groups.offsets) - 1), np.diff(groups.offsets))
        time = np.full(len(group), self.dataset.spec.train_end)
        every = np.ones(len(group), bool)
        return Engagements(group, np.asarray(groups.neighbours), time, every, len(self.eligible))

    def item_tiers(self, start: int) -> np.ndarray:
        """Int (items,), row of `tiers`."""
        return self.engagements.tiers(start)

    def oracle(self, cadence: str) -> None:
        """No simulated world says what the best answers to a group are."""

    def describe(self, split: str) -> str:
        """A description of a split's labels.

        Raises:
          InputError: if it has none.
        """
        if not (parts := self.queries(split)):
            raise InputError(
                f"{self.dataset.spec.name}, split {split}: no group with a training edge has a "
                "held-out one"
            )
        (queries,) = parts.values()
        return f"{len(queries):,} groups, {len(queries.label_item):,} held-out edges"

    def notes(self, split: str) -> list[str]:
        """The description, and a note if there are few groups."""
        description = self.describe(split)
        (queries,) = self.queries(split).values()
        more = f"split.{split} or split.test_days of pinjax.prepare"
        if len(queries) == self.config.queries:
            more = "evaluate.queries"
        return [description, *tables.too_few(len(queries), "groups", more)]

    def queries(self, split: str, cadence: str = "window") -> dict[int, EvalQueries]:
        """The queries of a split, ascending, or a seeded sample; by the start of the window."""
        del cadence
        return self._queries(split)

    @functools.cache  # noqa: B019, it lives as long as its command
    def _queries(self, split: str) -> dict[int, EvalQueries]:
        degrees = np.diff(self.dataset.graph.groups.offsets)
        edges = self.dataset.held_out_edges(split)
        edges = edges[degrees[edges[:, 0]] > 0]
        groups = np.unique(edges[:, 0])
        if len(groups) > self.config.queries:
            groups = np.random.default_rng(0).choice(groups, self.config.queries, replace=False)
            edges = edges[np.isin(edges[:, 0], groups)]
        if not len(edges):
            return {}
        groups, label_query = np.unique(edges[:, 0], return_inverse=True)
        start = self.dataset.spec.train_end
        return {
            start: EvalQueries(
                users=self.dataset.groups[groups].tolist(),
                query_user=np.arange(len(groups)),
                query_time=np.full(len(groups), start, np.int64),
                features={"group": groups},
                context=self._context(groups),
                history=degrees[groups],
                label_query=label_query,
                label_item=edges[:, 1],
                label_exists=self.eligible[edges[:, 1]],
                label_task=np.zeros(len(edges), np.uint8),
                label_time=np.full(len(edges), start, np.int64),
                excluded=self._trained(groups),
                depth=self.depth,
            )
        }

    def _trained(self, groups: np.ndarray) -> np.ndarray:
        """Int64 (n, 2): pairs of a query and a training item of its group."""
        side = self.dataset.graph.groups
        first, degree = side.offsets[groups], np.diff(side.offsets)[groups]
        query = np.repeat(np.arange(len(groups)), degree)
        place = np.arange(len(query)) - np.repeat(np.cumsum(degree) - degree - first, degree)
        return np.stack([query, side.neighbours[place]], axis=1)

    def _context(self, groups: np.ndarray) -> np.ndarray:
        """The training items of groups; evenly spaced ones of a group with more than `CONTEXT`."""
        side = self.dataset.graph.groups
        first, degree = side.offsets[groups, None], np.diff(side.offsets)[groups, None]
        width = min(CONTEXT, int(degree.max()))
        left = np.arange(width, 0, -1)
        place = degree - -(-left * np.maximum(degree, width) // width)
        return np.where(place >= 0, side.neighbours[first + np.maximum(place, 0)], -1)


def known_items(dataset: Dataset) -> np.ndarray:
    """Bool (items,): whether an item has a training edge, content, an image or a text."""
    known = (np.diff(dataset.graph.items.offsets) > 0) | pair_source.products(dataset)
    if dataset.catalogue.content is not None:
        known |= dataset.catalogue.content.any(axis=1)
    return known
