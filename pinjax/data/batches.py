"""Training batches, a function of (seed, step) alone.

A run that resumes at any step, on any number of hosts, gets exactly the batches of an uninterrupted
run on one host.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import grain
import numpy as np

from pinjax import signals
from pinjax.data import timelines as timelines_lib
from pinjax.data import windows


class RandomAccess:
    """Random access to the batch of every step; subclasses define length and items."""

    def iterate(self, first_step: int, workers: int) -> Iterator[dict[str, np.ndarray]]:
        """Batches from `first_step` on, prefetched by `workers` processes (0: by threads).

        Closing the iterator ends them.
        """
        source = grain.MapDataset.source(self)[first_step:]
        ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        dataset = source.to_iter_dataset(ahead)
        if workers:
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
        with signals.blocked():  # workers inherit this: only this process ends them
            batches = iter(dataset)
            first = next(batches)
        with contextlib.closing(batches):
            yield first
            yield from batches


@dataclasses.dataclass(frozen=True)
class Batches(RandomAccess):
    """Batches of users' timelines.

    Attributes:
      timelines: random access to packed timelines, see `Dataset.timelines`.
      sampler: draws windows and labels.
      users: rows of the global batch; each epoch visits every user once, in a new order.
      steps: number of batches.
      seed: of the order and the draws.
      shard: (index, count), the share of each batch that this host reads.
    """

    timelines: Any
    sampler: windows.Sampler
    users: int
    steps: int
    seed: int
    shard: tuple[int, int] = (0, 1)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """The fields of the sampler, and `same_user`, int32 (users, n).

        `same_user` has the rows of the global batch with the same user, padded with -1. Usually n
        is 1. At the end of an epoch a user may have several rows; then n is larger, and the step is
        compiled once more.
        """
        share = share_of(self.users, self.shard)
        # Drawn for the global batch, so that a user's draw does not depend on the host's share.
        rng = np.random.default_rng([self.seed, step])
        uniforms = self.sampler.uniforms(rng, self.users)[share]
        visits = range(step * self.users, (step + 1) * self.users)
        rows = np.array(visited(len(self.timelines), self.seed, visits))
        drawn = (row["actions"] for row in self.timelines.__getitems__(rows[share].tolist()))
        return {
            **self.sampler(*timelines_lib.unpack(drawn), uniforms),
            "same_user": of_same(rows, np.arange(self.users), 1)[share],
        }


@dataclasses.dataclass(frozen=True)
class Task:
    """A share of every batch.

    Attributes:
      name: of `Spec.tasks`.
      weight: the share of the batch is proportional to it.
      cap: the most pairs with the same item; 0: no limit. Without a cap a model learns to return
        popular items (SearchSage, 2021).
    """

    name: str
    weight: float
    cap: int


@dataclasses.dataclass(frozen=True, eq=False)
class PairBatches(RandomAccess):
    """Batches of pairs, divided over tasks (ItemSage, Baltescu et al., KDD 2022, §4.3).

    Attributes:
      pairs: `pairs.PAIR` (pairs,), of the tasks.
      tasks: rows of `Spec.tasks`, with their weights and caps.
      size: pairs in the global batch; each epoch of a task visits each of its pairs once.
      steps: number of batches.
      seed: of the order, and of the pairs that a cap leaves out.
      largest_query: by row of the tasks, the largest share of its pairs that one query has.
      shard: (index, count), the share of each batch that this host takes.
    """

    pairs: np.ndarray
    tasks: dict[int, Task]
    size: int
    steps: int
    seed: int
    largest_query: Mapping[int, float]
    shard: tuple[int, int] = (0, 1)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """The fields of `PAIR` except the time, and `excluded`, int32 (pairs, widest).

        `excluded` has the items of all pairs of the batch with the same query, padded with -1. If a
        query has more than `widest` pairs, the field is wider, and the step is compiled once more.
        """
        parts = []
        for task, rows in self._rows.items():
            count = self.shares[task]
            visits = range(step * count, (step + 1) * count)
            parts.append(rows[visited(len(rows), self.seed, visits)])
        batch = self.pairs[np.concatenate(parts)]
        # Shuffled, so that every device has pairs of every task.
        batch = np.random.default_rng([self.seed, step]).permutation(batch)
        share = share_of(self.size, self.shard)
        return {
            **{name: batch[name][share].astype(np.int32) for name in ("query", "item", "task")},
            "excluded": of_same(batch["query"], batch["item"], self.widest)[share],
        }

    @functools.cached_property
    def shares(self) -> dict[int, int]:
        """Pairs of each task in a batch, rounded by the largest-remainder method."""
        weights = np.array([task.weight for task in self.tasks.values()])
        exact = self.size * weights / weights.sum()
        counts = np.floor(exact).astype(int)
        left = self.size - counts.sum()
        counts[np.argsort(counts - exact, kind="stable")[:left]] += 1
        return dict(zip(self.tasks, counts.tolist(), strict=True))

    @functools.cached_property
    def widest(self) -> int:
        """A power of two; a query of a batch almost never has more pairs."""
        expected = sum(count * self.largest_query[task] for task, count in self.shares.items())
        most = expected + 8 * math.sqrt(expected) + 8  # 8 standard deviations of a Poisson variable
        return min(2 ** math.ceil(math.log2(most)), self.size)

    @functools.cached_property
    def _rows(self) -> dict[int, np.ndarray]:
        """Rows of `pairs` by task, at most the task's cap for each item."""
        rng = np.random.default_rng(self.seed)
        result = {}
        for task, settings in self.tasks.items():
            rows = rng.permutation(np.flatnonzero(self.pairs["task"] == task))
            if settings.cap:
                rows = rows[_rank_within(self.pairs["item"][rows]) < settings.cap]
            result[task] = np.sort(rows)
        return result


def share_of(size: int, shard: tuple[int, int]) -> slice:
    """The rows of a global batch that a host takes."""
    index, count = shard
    return slice(index * size // count, (index + 1) * size // count)


def visited(number: int, seed: int, visits: range) -> list[int]:
    """The rows at some visits of `number` rows, which every epoch visits in a new order."""
    order = grain.MapDataset.range(number).shuffle(seed=seed).repeat()
    return [order[visit] for visit in visits]


def _rank_within(groups: np.ndarray) -> np.ndarray:
    """The number of equal values before each value: int64 (n,)."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    rank = np.empty(len(groups), np.int64)
    rank[order] = np.arange(len(groups)) - np.searchsorted(ordered, ordered)
    return rank


def of_same(groups: np.ndarray, values: np.ndarray, width: int) -> np.ndarray:
    """The values of all rows with the same group, for each row: int32 (n, width), padded with -1.

    The width is doubled until it fits.
    """
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    while width < counts.max(initial=0):
        width *= 2
    found = np.full((len(counts), width), -1, np.int32)
    found[group, _rank_within(group)] = values
    return found[group]
