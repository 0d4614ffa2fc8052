"""What the systems that learn from engagements share: their batches, and what is said of them."""

import dataclasses

import jax
import numpy as np
from ml_collections import ConfigDict

from pinjax.data import batches
from pinjax.data.dataset import Dataset
from pinjax.errors import InputError
from pinjax.systems import system


def train_batches(config: ConfigDict, dataset: Dataset) -> batches.PairBatches:
    """Batches of the training pairs, divided over the tasks that the config names.

    Raises:
      InputError: for a task that the data set does not have, or has no training pair of, or that
        is given no pair of a batch.
    """
    spec, train = dataset.spec, dataset.pairs("train")
    tasks = {}
    for name, weight, cap in config.tasks:
        if name not in spec.tasks:
            known = ", ".join(spec.tasks)
            raise InputError(f"tasks: {spec.name} has no task {name!r}; it has {known}")
        task = spec.tasks.index(name)
        if not (train["task"] == task).any():
            raise InputError(f"tasks: {spec.name} has no training pair of {name!r}")
        tasks[task] = batches.Task(name, weight, cap)
    made = batches.PairBatches(
        pairs=train[np.isin(train["task"], list(tasks))],
        tasks=tasks,
        size=config.data.pairs,
        steps=config.train.steps,
        seed=config.train.seed,
        shard=(jax.process_index(), jax.process_count()),
    )
    for task, pairs_of_task in made.shares.items():
        if not pairs_of_task:
            raise InputError(
                f"tasks: {tasks[task].name} has no pair in a batch of data.pairs={made.size}; "
                "expected a larger weight or batch"
            )
    return made


def check_training(made: batches.PairBatches, in_batch: bool) -> None:
    """Refuses to train on nothing.

    Args:
      made: of `train_batches`.
      in_batch: whether all negatives are the batch's other items.

    Raises:
      InputError: where the first batches have no negatives.
    """
    whole = dataclasses.replace(made, shard=(0, 1))  # the same on every host
    tried = min(system.TRIED, made.steps)
    if in_batch and all(len(np.unique(whole[step]["query"])) == 1 for step in range(tried)):
        raise InputError(
            f"data.pairs={made.size}: the first {tried} batches have one query each, for which "
            "there are no negatives; expected more pairs or queries"
        )


def summary(dataset: Dataset, made: batches.PairBatches) -> dict[str, str]:
    """What a person wants to know at the start, by name."""
    spec = dataset.spec
    return {
        "data set": f"{spec.name}: {len(made.pairs):,} pairs of "
        f"{spec.num_queries:,} queries and {spec.num_items:,} items",
        "batch": ", ".join(f"{n} {spec.tasks[task]}" for task, n in made.shares.items()),
    }
