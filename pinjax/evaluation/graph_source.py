"""Evaluation queries from the graph: groups, and the items of their held-out edges.

A group is a board, a basket, or the user of a bipartite graph. The protocol is that of LightGCN
(He et al., SIGIR 2020): all items are ranked but those that the group has in training, and in
testing those that it has in validation; recall is over all held-out items of a group, and means are
over groups.
"""

import dataclasses
import functools

import numpy as np

from pinjax.data.dataset import Dataset
from pinjax.evaluation import one_window, pair_source
from pinjax.evaluation.engagements import Engagements
from pinjax.evaluation.queries import EvalQueries

CONTEXT = 4_096  # the most items of a group that describe it


@dataclasses.dataclass(frozen=True, eq=False)
class GraphSource(one_window.OneWindow):
    """The evaluation queries of a data set's graph; eligible items are the `known_items`, mostly.

    The feature of a query is its row among the groups, `group`. Groups without a training edge are
    no queries: nothing is known of them.
    """

    averaged_over = "users"
    depth = 20
    main_metrics = ("R@10", "R@20", "NDCG@20")
    tasks = ()
    may_repeat = False
    few_excluded = False
    context_lengths = (CONTEXT,)  # items of a group have no order
    described = ("groups", "held-out edges")
    lacking = "no group with a training edge has a held-out one"

    @property
    def validates(self) -> bool:
        return self.dataset.spec.edges.get("valid", 0) > 0

    @functools.cached_property
    def engagements(self) -> Engagements:
        """The training edges, as engagements of groups at the end of training."""
        groups = self.dataset.graph.groups
        group = np.repeat(np.arange(len(groups.offsets) - 1), np.diff(groups.offsets))
        time = np.full(len(group), self.dataset.spec.train_end)
        every = np.ones(len(group), bool)
        return Engagements(group, np.asarray(groups.neighbours), time, every, len(self.eligible))

    def oracle(self, cadence: str) -> None:
        """No simulated world says what the best answers to a group are."""

    def _queries(self, split: str) -> EvalQueries | None:
        degrees = np.diff(self.dataset.graph.groups.offsets)
        edges = self.dataset.held_out_edges(split)
        edges = edges[degrees[edges[:, 0]] > 0]
        groups = np.unique(edges[:, 0])
        if len(groups) > self.config.queries:
            groups = np.random.default_rng(0).choice(groups, self.config.queries, replace=False)
            edges = edges[np.isin(edges[:, 0], groups)]
        if not len(edges):
            return None
        groups, label_query = np.unique(edges[:, 0], return_inverse=True)
        start = self.dataset.spec.train_end
        return EvalQueries(
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
            excluded=self._excluded(groups, split),
            depth=self.depth,
        )

    def _excluded(self, groups: np.ndarray, split: str) -> np.ndarray:
        """Int64 (n, 2): places among ascending groups, and the items that are known of them."""
        known = self.dataset.graph.groups.pairs(groups)
        if split != "test":
            return known
        edges = self.dataset.held_out_edges("valid")
        group, item = edges[np.isin(edges[:, 0], groups)].T
        return np.concatenate([known, np.stack([np.searchsorted(groups, group), item], axis=1)])

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
