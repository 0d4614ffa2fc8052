"""Shared by the systems that learn from engagements: batches and their checks."""

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.data import batches, pairs
from pinjax.data.dataset import Dataset
from pinjax.data.spec import Spec
from pinjax.distributed import processes, sharding
from pinjax.errors import InputError
from pinjax.systems import system


def batches_of(config: ConfigDict, spec: Spec, train: np.ndarray) -> batches.PairBatches:
    """Batches of training pairs, divided over the tasks that the config names.

    Args:
      config: of the run.
      spec: of the data set.
      train: `pairs.PAIR` (n,), of any tasks.

    Raises:
      InputError: if the data set does not have a task, or no training pair of it, or if a batch
        has no pair of it.
    """
    tasks = {}
    for name, weight, cap in config.tasks:
        if name not in spec.tasks:
            known = ", ".join(spec.tasks)
            raise InputError(f"tasks: {spec.name} has no task {name!r}; it has {known}")
        if name not in spec.largest_query:
            raise InputError(f"tasks: {spec.name} has no training pair of {name!r}")
        tasks[spec.tasks.index(name)] = batches.Task(name, weight, cap)
    made = batches.PairBatches(
        pairs=train[np.isin(train["task"], list(tasks))],
        tasks=tasks,
        size=config.data.pairs,
        steps=config.train.steps,
        seed=config.train.seed,
        largest_query={row: spec.largest_query[task.name] for row, task in tasks.items()},
        shard=processes.shard(),
    )
    for task, pairs_of_task in made.shares.items():
        if not pairs_of_task:
            raise InputError(
                f"tasks: {tasks[task].name} has no pair in a batch of data.pairs={made.size}; "
                "expected a larger weight or batch"
            )
    return made


def pairs_of(config: ConfigDict, dataset: Dataset, findable: np.ndarray, what: str) -> np.ndarray:
    """The training pairs of items that can be found: `pairs.PAIR` (n,).

    All other items have the same embedding: a query would only be pushed away from the rest.

    Args:
      config: of the run.
      dataset: with pairs of each task that the config names.
      findable: bool (items,), whether an item can be found.
      what: it needs for that.

    Raises:
      InputError: if no pair of a task is left.
    """
    spec, train = dataset.spec, dataset.pairs("train")
    train = train[findable[train["item"]]]
    for name, *_ in config.tasks:
        if name in spec.largest_query and spec.tasks.index(name) not in train["task"]:
            raise InputError(
                f"tasks: {spec.name} has no training pair of {name!r} whose item has a {what}"
            )
    return train


def without_data(config: ConfigDict, spec: Spec) -> batches.PairBatches:
    """Batches of made-up pairs, one of each task."""
    made_up = np.zeros(len(spec.tasks), pairs.PAIR)
    made_up["task"] = np.arange(len(spec.tasks))
    return batches_of(config, spec, made_up)


def abstract_batch(mesh: Mesh, made_up: batches.PairBatches) -> dict[str, jax.ShapeDtypeStruct]:
    """The abstract shapes of a global batch, from a small batch of made-up pairs."""
    few = dataclasses.replace(made_up, size=len(made_up.tasks), shard=(0, 1))[0]
    few["excluded"] = np.zeros((1, made_up.widest), np.int32)
    return sharding.abstract_batch(mesh, few, made_up.size)


def check_training(made: batches.PairBatches, in_batch: bool) -> None:
    """Rejects batches without negatives.

    Args:
      made: of `batches_of`.
      in_batch: whether all negatives are in-batch.

    Raises:
      InputError: if the first batches have no negatives.
    """
    global_batches = dataclasses.replace(made, shard=(0, 1))  # the same on every host
    tried = min(system.TRIED, made.steps)
    if in_batch and all(
        len(np.unique(global_batches[step]["query"])) == 1 for step in range(tried)
    ):
        raise InputError(
            f"data.pairs={made.size}: the first {tried} batches have one query each, for which "
            "there are no negatives; expected more pairs or queries"
        )


def summary(dataset: Dataset, made: batches.PairBatches) -> dict[str, str]:
    """Lines to print at the start, by name."""
    spec = dataset.spec
    return {
        "data set": f"{spec.name}: {len(made.pairs):,} pairs of "
        f"{spec.num_queries:,} queries and {spec.num_items:,} items",
        "batch": ", ".join(f"{n} {spec.tasks[task]}" for task, n in made.shares.items()),
    }
