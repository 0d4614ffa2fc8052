"""Training pairs of PinSage: two items that belong together."""

import dataclasses
from typing import NamedTuple, Protocol

import numpy as np

from pinjax.data import batches
from pinjax.graph import csr
from pinjax.graph import groups as groups_lib


class Pairs(NamedTuple):
    """Pairs of items that belong together.

    Attributes:
      query, item: int32 (pairs,).
      group: int32 (pairs,), a group by which they may be a pair; -1 where there is none.
    """

    query: np.ndarray
    item: np.ndarray
    group: np.ndarray


class Source(Protocol):
    """A source of training pairs.

    Attributes:
      counts: int (items,), how often each item of the catalogue is in pairs, up to a factor.
    """

    @property
    def counts(self) -> np.ndarray: ...

    def __call__(self, seed: int, step: int, number: int) -> Pairs:
        """The pairs of a step."""


@dataclasses.dataclass(frozen=True, eq=False)
class Engagements:
    """Items that were engaged with after one another.

    The data set does not say which edge of the graph an engagement made. If both items are in a
    group, that may be by this pair, so one such group is the pair's.

    Attributes:
      query, item: int32 (n,), of which each epoch visits every pair once, in a new order.
      items: the groups of items.
    """

    query: np.ndarray
    item: np.ndarray
    items: csr.Side

    @property
    def counts(self) -> np.ndarray:
        return np.bincount(self.item, minlength=len(self.items.offsets) - 1)

    def __call__(self, seed: int, step: int, number: int) -> Pairs:
        rows = batches.visited(len(self.query), seed, range(step * number, (step + 1) * number))
        query, item = self.query[rows], self.item[rows]
        return Pairs(query, item, groups_lib.common(self.items, query, item))


@dataclasses.dataclass(frozen=True, eq=False)
class Memberships:
    """Two items of one group: the item of a random edge, and another one of its group.

    Attributes:
      graph: some group must have two items.
      stream: of random numbers.
    """

    graph: csr.Graph
    stream: int

    @property
    def counts(self) -> np.ndarray:
        items, groups = self.graph.items, self.graph.groups
        alone = groups.neighbours[groups.offsets[:-1][np.diff(groups.offsets) == 1]]
        return np.diff(items.offsets) - np.bincount(alone, minlength=len(items.offsets) - 1)

    def __call__(self, seed: int, step: int, number: int) -> Pairs:
        rng = np.random.default_rng([seed, step, self.stream])
        offsets, neighbours = self.graph.groups.offsets, self.graph.groups.neighbours
        edges = np.zeros(0, np.int64)
        while len(edges) < number:  # groups of one item have no pair
            drawn = rng.integers(len(neighbours), size=2 * number)
            group = np.searchsorted(offsets, drawn, "right") - 1
            edges = np.append(edges, drawn[offsets[group + 1] - offsets[group] > 1])
        edges = edges[:number]
        group = np.searchsorted(offsets, edges, "right") - 1
        first, degree = offsets[group], offsets[group + 1] - offsets[group]
        other = first + (edges - first + rng.integers(1, degree)) % degree
        return Pairs(neighbours[other], neighbours[edges], group.astype(np.int32))
