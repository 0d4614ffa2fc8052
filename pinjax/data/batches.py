"""Training batches, a function of (seed, step) alone.

A run that resumes at any step, on any number of hosts with as many devices in all, gets exactly the
batches of an uninterrupted run on one host.
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
from pinjax.data import packing, windows
from pinjax.data import timelines as timelines_lib

_ROUNDS = 32  # of a shuffle; a row changes place in none of them with a probability of 2^-32


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


@dataclasses.dataclass(frozen=True, eq=False)
class Batches(RandomAccess):
    """Batches of users' timelines, packed.

    Every batch has users with short and long histories in the same proportions, so that they take
    about equally many rows: an epoch divides its users by the length of their timelines into
    as many strata as a batch has users, and a batch has a user of each. Each epoch visits a user at
    most once, in a new order, and leaves out fewer than a batch, drawn anew. If a batch has more
    users than there are, each is visited as often as needed.

    Attributes:
      timelines: random access to packed timelines, see `Dataset.timelines`.
      lengths: int (users,), the actions of each until the end of training.
      sampler: draws windows and labels.
      layout: of the global batch.
      steps: number of batches.
      seed: of the order and the draws.
      shard: (index, count), the share of each batch that this host reads.
    """

    timelines: Any
    lengths: np.ndarray
    sampler: windows.Sampler
    layout: packing.Layout
    steps: int
    seed: int
    shard: tuple[int, int] = (0, 1)
    _epochs: dict[int, np.ndarray] = dataclasses.field(default_factory=dict, init=False)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """The fields of `packing.pack`; `same_user` has rows of the global batch."""
        users = self.layout.users
        share = share_of(users, self.shard)
        # Drawn for the global batch, so that a user's draw does not depend on the host's share.
        rng = np.random.default_rng([self.seed, step])
        uniforms = self.sampler.uniforms(rng, users)[share]
        rows = self.users_of(step)
        drawn = (row["actions"] for row in self.timelines.__getitems__(rows[share].tolist()))
        made = self.sampler(*timelines_lib.unpack(drawn), uniforms)
        own = self.layout.share(self.shard[1])
        batch = packing.pack(made, own)
        same = batch["same_user"]
        if self._copies > 1:  # where each has one row
            batch["same_user"] = values_by_group(rows, np.arange(users), self._copies)[share]
        else:
            batch["same_user"] = np.where(same < 0, same, same + self.shard[0] * own.label_rows)
        return batch

    def users_of(self, step: int) -> np.ndarray:
        """The rows of the users of the global batch, in order: int64 (users,)."""
        epoch, place = divmod(step, self.steps_of_epoch)
        return self._epoch(epoch)[:, place]

    @property
    def steps_of_epoch(self) -> int:
        return self._copies * len(self.lengths) // self.layout.users

    @property
    def _copies(self) -> int:
        """Places of a user in a batch, at most."""
        return -(-self.layout.users // len(self.lengths))

    def _epoch(self, epoch: int) -> np.ndarray:
        """The rows of users: int64 (users of a batch, steps)."""
        if (found := self._epochs.get(epoch)) is None:
            users, steps = self.layout.users, self.steps_of_epoch
            rng = np.random.default_rng([self.seed, epoch, 1])
            kept = rng.permutation(self._copies * len(self.lengths))[: users * steps]
            kept %= len(self.lengths)
            kept = kept[np.argsort(self.lengths[kept], kind="stable")]
            found = rng.permuted(kept.reshape(users, steps), axis=1)[balanced_order(users)]
            for old in list(self._epochs):  # which another thread may change
                if abs(old - epoch) > 1:
                    self._epochs.pop(old, None)
            self._epochs[epoch] = found
        return found


def balanced_order(number: int) -> np.ndarray:
    """The numbers from 0 in an order whose equal parts have about the same sum: int64 (number,).

    They are dealt to two halves by the sequence of Thue and Morse, and so on within each half. So
    the devices' users have about equally many actions, whatever the number of devices.
    """

    def deal(numbers: np.ndarray) -> np.ndarray:
        if len(numbers) < 2:
            return numbers
        second = np.bitwise_count(np.arange(len(numbers))) % 2 == 1
        return np.concatenate([deal(numbers[~second]), deal(numbers[second])])

    return deal(np.arange(number))


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
            seed = task << 32 | self.seed  # tasks with as many pairs are in different orders
            parts.append(rows[visited(len(rows), seed, visits)])
        batch = self.pairs[np.concatenate(parts)]
        # Shuffled, so that every device has pairs of every task.
        batch = np.random.default_rng([self.seed, step]).permutation(batch)
        share = share_of(self.size, self.shard)
        return {
            **{name: batch[name][share].astype(np.int32) for name in ("query", "item", "task")},
            "excluded": values_by_group(batch["query"], batch["item"], self.widest)[share],
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
    def visits(self) -> np.ndarray:
        """How often a batch has each of `pairs`, on average: float64 (pairs,), of sum `size`."""
        found = np.zeros(len(self.pairs))
        for task, rows in self._rows.items():
            found[rows] = self.shares[task] / len(rows)
        return found

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


def visited(number: int, seed: int, visits: range) -> np.ndarray:
    """The rows at some visits of `number` rows, which every epoch visits in a new order.

    The order is a swap-or-not shuffle (Hoang, Morris and Rogaway, CRYPTO 2012), which gives any
    place of a permutation without the others: in each round rows are paired by a random sum, and
    the two rows of half of the pairs change places.

    Returns:
      int64 (visits,).
    """
    # With an int64, NumPy would make floats of them.
    seeds, rounds = np.array([seed], np.uint64), np.arange(_ROUNDS, dtype=np.uint64)
    size = np.uint64(number)
    epoch, row = np.divmod(np.arange(visits.start, visits.stop, dtype=np.uint64), size)
    epochs, of_visit = np.unique(epoch, return_inverse=True)
    keys = _mixed(_mixed(_mixed(seeds) + epochs) + rounds[:, None])
    for key, total in zip(keys, keys % size, strict=True):
        other = total[of_visit] + (size - row)
        other -= size * (other >= size)
        swaps = _mixed(key[of_visit] + np.maximum(row, other)) >> np.uint64(63)
        row = np.where(swaps, other, row)
    return row.astype(np.int64)


def _mixed(x: np.ndarray) -> np.ndarray:
    """Random bits, uint64, of uint64: the output of SplitMix64 (Steele et al., OOPSLA 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


def _rank_within(groups: np.ndarray) -> np.ndarray:
    """The number of equal values before each value: int64 (n,)."""
    order = np.argsort(groups, kind="stable")
    ordered = groups[order]
    rank = np.empty(len(groups), np.int64)
    rank[order] = np.arange(len(groups)) - np.searchsorted(ordered, ordered)
    return rank


def values_by_group(groups: np.ndarray, values: np.ndarray, width: int) -> np.ndarray:
    """The values of all rows with the same group, for each row: int32 (n, width), padded with -1.

    The width is doubled until it fits.
    """
    _, group, counts = np.unique(groups, return_inverse=True, return_counts=True)
    while width < counts.max(initial=0):
        width *= 2
    found = np.full((len(counts), width), -1, np.int32)
    found[group, _rank_within(group)] = values
    return found[group]
