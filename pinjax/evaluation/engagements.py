"""Engagements of training users up to a time, the input of the baselines."""

import functools

import numpy as np
import scipy.sparse

TIERS = ("head", "middle", "tail", "cold")  # of popularity; cold: never in training
MOST = 1_000_000  # entries of `matrix`: its products have up to a hundred times as many


class Engagements:
    """Engagements of training users, or of training queries, in order of time.

    Attributes:
      items: number of items.
    """

    def __init__(
        self,
        actor: np.ndarray,
        item: np.ndarray,
        time: np.ndarray,
        positive: np.ndarray,
        items: int,
    ):
        """From arrays in any order.

        Args:
          actor: int (n,), row of the user, or of the query.
          item: int (n,), row of the item.
          time: int (n,), unix seconds; 0 if unknown.
          positive: bool (n,), whether an engagement is positive; only these count.
          items: number of items.
        """
        # At equal times, as all of a graph's are, actors are in random order, so that the latest
        # engagements are those of any of them.
        place = np.random.default_rng(0).permutation(int(actor.max(initial=-1)) + 1)
        order = np.lexsort((place[actor], time))
        self.items = items
        self._item, self._time = item[order], time[order].astype(np.int64)
        self._actor, self._positive = actor[order], positive[order]

    @property
    def seconds(self) -> int:
        """Seconds from the first engagement to the last."""
        return int(self._time[-1] - self._time[0]) if len(self._time) else 0

    @property
    def pairs(self) -> int:
        """Number of pairs of an actor and an item with a positive engagement."""
        return len(self._first[0])

    def counts(self, until: int, seconds: int | None = None) -> np.ndarray:
        """Int64 (items,): positive engagements in (until - seconds, until], or all until then."""
        rows = self._rows(until, seconds)
        return np.bincount(self._item[rows][self._positive[rows]], minlength=self.items)

    def all_counts(self, until: int) -> np.ndarray:
        """Int64 (items,): all engagements up to a time, positive or not."""
        return np.bincount(self._item[self._rows(until, None)], minlength=self.items)

    def tiers(self, until: int) -> np.ndarray:
        """Int (items,), row of `TIERS`: head, middle and tail each have a third of the engagements.

        Items of equal popularity are in the tier of the first of them.
        """
        counts = self.counts(until)
        falling = -np.sort(-counts)
        before = (np.cumsum(falling) - falling)[np.searchsorted(-falling, -counts)]
        return np.where(counts == 0, TIERS.index("cold"), 3 * before // max(1, counts.sum()))

    @functools.lru_cache(maxsize=2)  # noqa: B019, it lives as long as its command
    def matrix(self, until: int) -> scipy.sparse.csr_array:
        """(actors, items): 1 / sqrt(item degree) for positive engagements, else 0.

        The product of two columns is |U ∩ V| / sqrt(|U| |V|), the cosine of two items. Only the
        latest `MOST` engagements count.
        """
        actor, item, time = self._first
        stop = int(np.searchsorted(time, until, "right"))
        rows = slice(max(0, stop - MOST), stop)
        degree = np.maximum(np.bincount(item[rows], minlength=self.items), 1)
        values = 1 / np.sqrt(degree[item[rows]])
        shape = (int(actor.max(initial=-1)) + 1, self.items)
        return scipy.sparse.csr_array((values, (actor[rows], item[rows])), shape)

    @functools.cached_property
    def _first(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Actor, item and time of the first positive engagement of each pair, by time."""
        actor, item = (x[self._positive] for x in (self._actor, self._item))
        _, first = np.unique(actor * np.int64(self.items) + item, return_index=True)
        first.sort()
        return actor[first], item[first], self._time[self._positive][first]

    def _rows(self, until: int, seconds: int | None) -> slice:
        first = 0 if seconds is None else np.searchsorted(self._time, until - seconds, "right")
        return slice(first, np.searchsorted(self._time, until, "right"))
