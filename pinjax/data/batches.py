"""Training batches, a function of (seed, step) alone.

A run that starts at any step, on any number of hosts, sees exactly the batches that an unbroken
run on one host would have seen.
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


class _Batches:
    """The batch of every step, by random access: a subclass says how many there are and draws."""

    def iterate(self, first_step: int, workers: int) -> Iterator[dict[str, np.ndarray]]:
        """Batches from `first_step` on, read ahead by `workers` processes (0: by threads).

        To close the iterator ends these.
        """
        source = grain.MapDataset.source(self)[first_step:]
        ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        dataset = source.to_iter_dataset(ahead)
        if workers:
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
        with signals.blocked():  # by the workers, too, and for good: this process ends them
            batches = iter(dataset)
            first = next(batches)
        with contextlib.closing(batches):
            yield first
            yield from batches


@dataclasses.dataclass(frozen=True)
class Batches(_Batches):
    """Batches of users' timelines.

    Attributes:
      timelines: random access to packed timelines (`Dataset.timelines`).
      sampler: draws windows and labels.
      users: rows of the global batch; each epoch visits every user once, in a new order.
      steps: how many batches there are.
      seed: of the order and the draws.
      shard: (index, count): which equal share of each batch this host reads.
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
        """The fields of the sampler, and `same_user`, int32 (users, 1).

        The latter are the rows of the global batch that hold the same user. Where a user has
        several, as at the end of an epoch, the field is as much wider as it needs, padded with -1:
        then the step is compiled once more.
        """
        share = _share(self.users, self.shard)
        # Drawn for the global batch, so that a user's draw does not depend on the host's share.
        rng = np.random.default_rng([self.seed, step])
        uniforms = self.sampler.uniforms(rng, self.users)[share]
        visits = range(step * self.users, (step + 1) * self.users)
        rows = np.array(_visited(len(self.timelines), self.seed, visits))
        drawn = (row["actions"] for row in self.timelines.__getitems__(rows[share].tolist()))
        return {
            **self.sampler(*timelines_lib.unpack(drawn), uniforms),
            "same_user": _of_same(rows, np.arange(self.users), 1)[share],
        }


@dataclasses.dataclass(frozen=True)
class Task:
    """A share of every batch.

    Attributes:
      name: of `Spec.tasks`.
      weight: its share is that of its weight among all tasks' weights.
      cap: how many of its pairs one item may be in, at most; 0: any number. Without a cap what
        is learned is to answer with what is popular (SearchSage, 2021).
    """

    name: str
    weight: float
    cap: int


@dataclasses.dataclass(frozen=True, eq=False)
class PairBatches(_Batches):
    """Batches of pairs, divided over tasks (ItemSage, Baltescu et al., KDD 2022, §4.3).

    Attributes:
      pairs: `pairs.PAIR` (pairs,), those of the tasks.
      tasks: rows of `Spec.tasks`, with their weights and caps.
      size: pairs in the global batch; each epoch of a task visits each of its pairs once.
      steps: how many batches there are.
      seed: of the order, and of which pairs a cap leaves out.
      largest_query: by row of the tasks, the largest share of its pairs that one query has.
      shard: (index, count): which equal share of each batch this host takes.
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
        """The fields of `PAIR` but the time, and `excluded`, int32 (pairs, widest).

        The latter are the items of all pairs of the batch with the same query, padded with -1.
        Should a query have more than `widest` of them, the field is as much wider as it needs:
        then the step is compiled once more.
        """
        parts = []
        for task, rows in self._rows.items():
            count = self.shares[task]
            visits = range(step * count, (step + 1) * count)
            parts.append(rows[_visited(len(rows), self.seed, visits)])
        batch = self.pairs[np.concatenate(parts)]
        # Shuffled, so that every device has pairs of every task.
        batch = np.random.default_rng([self.seed, step]).permutation(batch)
        share = _share(self.size, self.shard)
        return {
            **{name: batch[name][share].astype(np.int32) for name in ("query", "item", "task")},
            "excluded": _of_same(batch["query"], batch["item"], self.widest)[share],
        }

    @functools.cached_property
    def shares(self) -> dict[int, int]:
        """Pairs of each task in a batch: they sum to its size, by largest remainder."""
        weights = np.array([task.weight for task in self.tasks.values()])
        exact = self.size * weights / weights.sum()
        counts = np.floor(exact).astype(int)
        left = self.size - counts.sum()
        counts[np.argsort(counts - exact, kind="stable")[:left]] += 1
        return dict(zip(self.tasks, counts.tolist(), strict=True))

    @functools.cached_property
    def widest(self) -> int:
        """A power of two that hardly any batch has a query with more pairs than."""
        expected = sum(count * self.largest_query[task] for task, count in self.shares.items())
        most = expected + 8 * math.sqrt(expected) + 8  # of a Poisson law
        return min(2 ** math.ceil(math.log2(most)), self.size)

    @functools.cached_property
    def _rows(self) -> dict[int, np.ndarray]:
        """Rows of `pairs` by task, as many of each item as the task's cap allows."""
        rng = np.random.default_rng(self.seed)
        result = {}
        for task, settings in self.tasks.items():
            rows = rng.permutation(np.flatnonzero(self.pairs["task"] == task))
            if settings.cap:
                rows = rows[_rank_within(self.pairs["item"][rows]) < settings.cap]
            result[task] = np.sort(rows)
        return result


def _share(size: int, shard: tuple[int, int]) -> slice:
    """The rows of a global batch that a host takes."""
    index, count = shard
    return slice(index * size // count, (index + 1) * size // count)


def _visited(number: int, seed: int, visits: range) -> list[int]:
    """Which of `number` things come at some visits: epoch after epoch, each in a new order."""
    order = grain.MapDataset.range(number).shuffle(seed=seed).repeat()
    return [order[visit] for visit in visits]


def _rank_within(groups: np.ndarray) -> np.ndarray:
    """How many equal values come before each value: int64 (n,)."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    rank = np.empty(len(groups), np.int64)
    rank[order] = np.arange(len(groups)) - np.searchsorted(ordered, ordered)
    return rank


def _of_same(groups: np.ndarray, values: np.ndarray, width: int) -> np.ndarray:
    """For each place the values of all places with its group: int32 (n, width), -1 padded.

    The width is doubled until all have room.
    """
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    while width < counts.max():
        width *= 2
    found = np.full((len(counts), width), -1, np.int32)
    found[group, _rank_within(group)] = values
    return found[group]
