"""How popular items were as of some times, which a query may know: it is no part of any paper.

An index that is built at a moment knows the rates at that moment and before it; a training query
knows those before its own time. So a table of items has a column for each time, and whoever reads
it takes the newest that is not after the query.
"""

import dataclasses
import functools

import numpy as np

from pinjax.data import timelines
from pinjax.data.dataset import Dataset
from pinjax.data.spec import Spec
from pinjax.errors import InputError

DAY = 24 * 60 * 60


@dataclasses.dataclass(frozen=True)
class Popularity:
    """When rates are counted, and over how long.

    Attributes:
      window: seconds before a time in which actions count; 0: there are no rates.
      number: of times, the last of which is the moment that is asked for.
    """

    window: int
    number: int

    @classmethod
    def create(cls, spec: Spec, window: int, number: int) -> "Popularity | None":
        """None where the window is 0.

        Raises:
          InputError: where the data set has ranks for times, so that nothing is known before one.
        """
        if not window:
            return None
        if spec.leave_one_out:
            raise InputError(
                f"data.popularity_window={window}: {spec.name} has the order of actions, but no "
                "times at which they could be counted; expected 0"
            )
        return cls(window, number)

    def times(self, moment: int) -> np.ndarray:
        """Those of a moment, a twelfth of the window apart: uint32 (number,), ascending."""
        return times_before(moment, self.window / 12, self.number)

    def columns(self, dataset: Dataset, moment: int) -> np.ndarray:
        """`log_popularity` at the times of a moment: float32 (items, number)."""
        return log_popularity(dataset, self.window, self.times(moment))


def times_before(moment: int, apart: float, number: int) -> np.ndarray:
    """So many times, some seconds apart, the last of which is the moment: uint32 (number,)."""
    ago = apart * np.arange(number)[::-1]
    return np.maximum(moment - ago, 0).astype(np.uint32)


def log_popularity(dataset: Dataset, window: int, times: np.ndarray) -> np.ndarray:
    """The log of `recent_rates`, of mean 0 and variance 1 over the items that existed at a time.

    It is PinSage's log degree (Ying et al., KDD 2018, §4.1), for the days that an item has existed:
    how popular an item is does not show in its content. That of a time depends on nothing later.

    Returns:
      float32 (items, times).
    """
    popularity = np.log(recent_rates(dataset, window, times))
    for degree, time in zip(popularity.T, times, strict=True):
        existed = dataset.catalogue.created <= time
        if existed.any():
            degree -= degree[existed].mean()
            degree /= max(degree[existed].std(), 0.1)  # of few items it may be 0
    return popularity.astype(np.float32)


def recent_rates(dataset: Dataset, window: int, times: np.ndarray) -> np.ndarray:
    """Training users' actions a day on items in the window up to a time: float64 (items, times).

    They are counted from the day on which the item was created or the log began. Of an item that is
    new little is known, so a rate is the mean that follows from the item's actions where rates are
    distributed exponentially about that of all items.
    """
    created, until = dataset.catalogue.created.astype(np.float64), times.astype(np.int64)
    item, acted = _training_actions(dataset)
    since = until - window
    bounds = np.searchsorted(acted, np.stack([since, until]), "right")
    counts = np.stack([np.bincount(item[a:b], minlength=len(created)) for a, b in bounds.T])
    first = min(until.max(), acted.min(initial=until.max()))
    existed = until[:, None] - np.maximum(created, np.maximum(since, first)[:, None])
    existed = np.maximum(existed / DAY, 0)
    # Where nothing has happened yet, all rates are alike.
    prior = np.maximum(existed.sum(axis=1), 1) / np.maximum(counts.sum(axis=1), 1)
    return ((counts + 1) / (existed + prior[:, None])).T


@functools.lru_cache(maxsize=1)
def _training_actions(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Item and time of the training users' actions, in order of time."""
    chunks = [chunk.records[["item", "time"]] for chunk in dataset.chunks("train")]
    records = np.concatenate([np.zeros(0, timelines.ACTION)[["item", "time"]], *chunks])
    order = np.argsort(records["time"], kind="stable")
    return records["item"][order], records["time"][order].astype(np.int64)
