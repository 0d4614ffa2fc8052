"""Training batches, a function of (seed, step) alone.

A run that starts at any step, on any number of hosts, sees exactly the batches that an unbroken
run on one host would have seen.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from pinjax.data import schema, windows


@dataclasses.dataclass(frozen=True)
class Batches:
    """The batch of every step, by random access.

    Attributes:
      timelines: random access to packed timelines (`Dataset.timelines`).
      sampler: draws windows and labels.
      users: users in the global batch; each epoch visits every user once, in a new order.
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
        index, count = self.shard
        share = slice(index * self.users // count, (index + 1) * self.users // count)
        # Drawn for the whole batch, so that a user's draw does not depend on the host's share.
        rng = np.random.default_rng([self.seed, step])
        uniforms = self.sampler.uniforms(rng, self.users)[share]
        order = grain.MapDataset.range(len(self.timelines)).shuffle(seed=self.seed).repeat()
        first = step * self.users
        rows = [order[i] for i in range(first + share.start, first + share.stop)]
        timelines = (row["actions"] for row in self.timelines.__getitems__(rows))
        return self.sampler(*schema.unpack(timelines), uniforms)

    def iterate(self, first_step: int, workers: int) -> Iterator[dict[str, np.ndarray]]:
        """Batches from `first_step` on, read ahead by `workers` processes (0: by threads)."""
        source = grain.MapDataset.source(self)[first_step:]
        ahead = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
        dataset = source.to_iter_dataset(ahead)
        if workers:
            dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
        return iter(dataset)
