"""The scores of all items for users at request times, never all in memory at once."""

import dataclasses
from collections.abc import Iterator

import numpy as np

_REQUESTS = 1024  # scored at a time


@dataclasses.dataclass(frozen=True)
class Expectation:
    """The scores of all items for some requests, each a user at a request time.

    Attributes:
      taste: int (requests,), row of `appeal`.
      rate: float64 (requests, leaves), the score of an item of the leaf per unit of its appeal.
      leaf: int (items,).
      appeal: float32 (tastes, items), within the item's leaf.
    """

    taste: np.ndarray
    rate: np.ndarray
    leaf: np.ndarray
    appeal: np.ndarray

    def of(self, request: np.ndarray, item: np.ndarray) -> np.ndarray:
        """The scores of items for requests, float32, of the broadcast shape of both."""
        rate = self.rate.astype(np.float32)[request, self.leaf[item]]
        return rate * self.appeal[self.taste[request], item]

    def candidates(
        self, index: np.ndarray, depth: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The items that may be among the best of some requests, and their scores.

        Within a leaf items are ordered by appeal, so the best of each leaf are enough.

        Args:
          index: bool (items,), the items that may be returned.
          depth: number of results of a request.

        Yields:
          (requests (n,), items (m,), scores float32 (n, m)).
        """
        allowed = np.flatnonzero(index)
        for taste in np.unique(self.taste):
            order = np.lexsort((-self.appeal[taste, allowed], self.leaf[allowed]))
            items = allowed[order]
            place = np.arange(len(items)) - np.searchsorted(self.leaf[items], self.leaf[items])
            items = items[place < depth]
            requests = np.flatnonzero(self.taste == taste)
            for start in range(0, len(requests), _REQUESTS):
                some = requests[start : start + _REQUESTS]
                yield some, items, self.of(some[:, None], items)
