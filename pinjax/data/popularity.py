"""Popularity of items as of several times; no paper has it.

An index that is built at a time knows the rates up to then; a training query knows the rates before
its request time. So a table of items has a column for each time, and a query reads the last column
before its request time.
"""

import dataclasses
import functools

import numpy as np

from pinjax.data import timelines
from pinjax.data.dataset import Dataset
from pinjax.data.spec import Spec
from pinjax.errors import InputError
from pinjax.timestamps import DAY


@dataclasses.dataclass(frozen=True)
class Popularity:
    """The times at which rates are counted, and the window before each.

    Attributes:
      window: seconds before a time in which actions count.
      number: of times.
    """

    window: int
    number: int

    @classmethod
    def create(cls, spec: Spec, window: int, number: int) -> "Popularity | None":
        """None if the window is 0.

        Raises:
          InputError: if the data set has ranks instead of times.
        """
        if not window:
            return None
        if spec.leave_one_out:
            raise InputError(
                f"data.popularity_window={window}: {spec.name} has the order of actions, but no "
                "times at which they could be counted; expected 0"
            )
        return cls(window, number)

    def counted(self, dataset: Dataset, as_of: int) -> tuple[np.ndarray, np.ndarray]:
        """The times, uint32 (number,), and `log_popularity` at them, float32 (items, number).

        The times ascend to `as_of` from the first action of a training user, with as many actions
        between any two. So they cover a log of any length, dense where it is.
        """
        _, acted = _training_actions(dataset)
        acted = np.append(acted[: np.searchsorted(acted, as_of, "right")], as_of)
        times = acted[np.linspace(0, len(acted) - 1, self.number).astype(np.int64)]
        return times.astype(np.uint32), log_popularity(dataset, self.window, times)


def log_popularity(dataset: Dataset, window: int, times: np.ndarray) -> np.ndarray:
    """The log of `recent_rates`, with mean 0 and variance 1 over the items that existed at a time.

    It is PinSage's log degree (Ying et al., KDD 2018, §4.1) per day that the item existed in the
    window. The content of an item does not show its popularity. The column of a time depends on
    nothing later.

    Returns:
      float32 (items, times).
    """
    popularity = np.empty((len(dataset.catalogue), len(times)), np.float32)
    for column, time in zip(popularity.T, times, strict=True):
        degree = np.log(recent_rates(dataset, window, time))
        existed = dataset.catalogue.created <= time
        if existed.any():
            degree -= degree[existed].mean()
            degree /= max(degree[existed].std(), 0.1)  # it may be 0 if there are few items
        column[:] = degree
    return popularity


def recent_rates(dataset: Dataset, window: int, time: int) -> np.ndarray:
    """Training users' actions a day on items in the window up to a time: float64 (items,).

    An item's days are counted from its creation or from the start of the window or of the log,
    whichever is latest. A new item has few actions, so its rate is a posterior mean: the prior on
    rates is exponential, and its mean is the mean rate of all items.
    """
    created, until = dataset.catalogue.created.astype(np.float64), int(time)
    item, acted = _training_actions(dataset)
    since = until - window
    start, end = np.searchsorted(acted, [since, until], "right")
    counts = np.bincount(item[start:end], minlength=len(created))
    first = acted[0] if len(acted) else until
    existed = np.maximum(until - np.maximum(created, max(since, first)), 0) / DAY
    # Before the first action all items have the same rate.
    prior = max(existed.sum(), 1) / max(counts.sum(), 1)
    return (counts + 1) / (existed + prior)


@functools.lru_cache(maxsize=1)
def _training_actions(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Item and time of the training users' actions, in order of time."""
    chunks = [chunk.records[["item", "time"]] for chunk in dataset.chunks("train")]
    records = np.concatenate([np.zeros(0, timelines.ACTION)[["item", "time"]], *chunks])
    order = np.argsort(records["time"], kind="stable")
    return records["item"][order], records["time"][order].astype(np.int64)
