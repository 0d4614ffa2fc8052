"""Popularity of items as of several times; no paper has it.

An index that is built at a time knows the rates up to then; a training query knows the rates before
its request time. So a table of items has a column for each time, and a query reads the last column
that is not after its request time.
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

    def times(self, as_of: int) -> np.ndarray:
        """uint32 (number,), ascending to `as_of`, a twelfth of the window apart."""
        return times_before(as_of, self.window / 12, self.number)

    def columns(self, dataset: Dataset, as_of: int) -> np.ndarray:
        """`log_popularity` at `times(as_of)`: float32 (items, number)."""
        return log_popularity(dataset, self.window, self.times(as_of))


def times_before(as_of: int, apart: float, number: int) -> np.ndarray:
    """uint32 (number,), ascending to `as_of`, `apart` seconds apart."""
    ago = apart * np.arange(number)[::-1]
    return np.maximum(as_of - ago, 0).astype(np.uint32)


def log_popularity(dataset: Dataset, window: int, times: np.ndarray) -> np.ndarray:
    """The log of `recent_rates`, with mean 0 and variance 1 over the items that existed at a time.

    It is PinSage's log degree (Ying et al., KDD 2018, §4.1) per day of an item's life. The content
    of an item does not show its popularity. The column of a time depends on nothing later.

    Returns:
      float32 (items, times).
    """
    popularity = np.log(recent_rates(dataset, window, times))
    for degree, time in zip(popularity.T, times, strict=True):
        existed = dataset.catalogue.created <= time
        if existed.any():
            degree -= degree[existed].mean()
            degree /= max(degree[existed].std(), 0.1)  # it may be 0 if there are few items
    return popularity.astype(np.float32)


def recent_rates(dataset: Dataset, window: int, times: np.ndarray) -> np.ndarray:
    """Training users' actions a day on items in the window up to a time: float64 (items, times).

    An item's days are counted from its creation or from the start of the log, whichever is later. A
    new item has few actions, so its rate is a posterior mean: the prior on rates is exponential,
    and its mean is the mean rate of all items.
    """
    created, until = dataset.catalogue.created.astype(np.float64), times.astype(np.int64)
    item, acted = _training_actions(dataset)
    since = until - window
    bounds = np.searchsorted(acted, np.stack([since, until]), "right")
    counts = np.stack([np.bincount(item[a:b], minlength=len(created)) for a, b in bounds.T])
    first = min(until.max(), acted.min(initial=until.max()))
    existed = until[:, None] - np.maximum(created, np.maximum(since, first)[:, None])
    existed = np.maximum(existed / DAY, 0)
    # Before the first action all items have the same rate.
    prior = np.maximum(existed.sum(axis=1), 1) / np.maximum(counts.sum(axis=1), 1)
    return ((counts + 1) / (existed + prior[:, None])).T


@functools.lru_cache(maxsize=1)
def _training_actions(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Item and time of the training users' actions, in order of time."""
    chunks = [chunk.records[["item", "time"]] for chunk in dataset.chunks("train")]
    records = np.concatenate([np.zeros(0, timelines.ACTION)[["item", "time"]], *chunks])
    order = np.argsort(records["time"], kind="stable")
    return records["item"][order], records["time"][order].astype(np.int64)
