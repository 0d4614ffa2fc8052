"""Shared by the systems that learn from timelines: batches, and histories of users."""

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax import settings
from pinjax.data import batches, timelines, windows
from pinjax.data import spec as spec_lib
from pinjax.data.dataset import Dataset
from pinjax.distributed import sharding
from pinjax.errors import InputError
from pinjax.systems import system


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Rejects batches that the devices do not divide, or that have too many labels."""
    sharding.check(mesh, config.train)
    sharding.check_batch(mesh, "data.users", config.data.users)
    labels = config.data.users * windows.labels_per_user(
        config.objective.name, config.data.length, config.objective.labels
    )
    if labels > settings.INT32:
        raise InputError(
            f"data.users={config.data.users}: a batch would have {labels:,} labels; expected at "
            f"most {settings.INT32:,}"
        )


def batches_of(config: ConfigDict, sampler: windows.Sampler, dataset: Dataset) -> batches.Batches:
    """Batches of the training users."""
    return batches.Batches(
        timelines=dataset.timelines("train"),
        sampler=sampler,
        users=config.data.users,
        steps=config.train.steps,
        seed=config.train.seed,
        shard=(jax.process_index(), jax.process_count()),
    )


def abstract_batch(
    config: ConfigDict, sampler: windows.Sampler, spec: spec_lib.Spec, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """The abstract shapes of a global batch, from a batch of made-up timelines."""
    users = config.data.users
    fields = batches.Batches(timelines.MadeUp(1), sampler, users=1, steps=1, seed=0)[0]
    # A user has more rows only in a batch at the end of an epoch.
    rows_of_user = math.ceil(users / spec.users["train"])
    fields["same_user"] = np.zeros((1, 2 ** math.ceil(math.log2(rows_of_user))), np.int32)
    return sharding.abstract_batch(mesh, fields, users)


def made_up(length: int) -> system.Batch:
    """The `windows.history` of a user with one action."""
    first = np.zeros(1, np.int64)
    return windows.history(np.zeros(1, timelines.ACTION), first, first, length, first[:, None])


def abstract_history(mesh: Mesh, rows: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The abstract shapes of `windows.history` for `rows` windows, sharded over `data`."""
    return sharding.abstract_batch(mesh, made_up(length), rows)


def check_training(config: ConfigDict, dataset: Dataset, made: batches.Batches) -> None:
    """Rejects data whose first batches have no labels, or no negatives."""
    global_batches = dataclasses.replace(made, shard=(0, 1))  # the same on every host
    tried = min(system.TRIED, global_batches.steps) if len(global_batches.timelines) else 0
    least = 1 if config.loss.num_random_negatives else 2  # users with a label
    most = 0
    for step in range(tried):
        batch = global_batches[step]
        has_label = (batch["label_item"] >= 0).any(axis=1)
        most = max(most, len(np.unique(batch["same_user"].max(axis=1)[has_label])))
        if most >= least:
            return
    about = f"{dataset.spec.name}: the first {tried} batches have"
    if most:
        raise InputError(
            f"{about} one user each, for whom loss.num_random_negatives=0 leaves no negatives"
        )
    positives = global_batches.sampler.positives
    if not any(positives(chunk.records).any() for chunk in dataset.chunks("train")):
        raise InputError(
            f"data.positives={config.data.positives!r}, data.surfaces={config.data.surfaces!r}: no "
            f"training user of {dataset.spec.name} has such an action, so there are no labels"
        )
    raise InputError(
        f"{about} no label; expected positive actions (data.positives, data.surfaces) in the "
        f"objective.horizon={config.objective.horizon} seconds after others, or data.users above "
        f"{config.data.users}"
    )


def summary(spec: spec_lib.Spec, made: batches.Batches) -> dict[str, str]:
    """Lines to print at the start, by name."""
    sampler = made.sampler
    return {
        "data set": f"{spec.name}: {spec.users['train']:,} users, {spec.num_items:,} items",
        "batch": f"{made.users} users x {sampler.length} actions, {sampler.pairs} labels each",
    }


def until(
    chunk: timelines.Chunk, as_of: int, length: int
) -> tuple[np.ndarray, np.ndarray, system.Batch]:
    """The users of a chunk who had acted by a time, and their histories until then.

    Args:
      chunk: timelines.
      as_of: unix seconds, when embeddings are requested; what users did later is not read.
      length: actions of a history, M.

    Returns:
      (rows of the chunk's users (n,), the last action of each (n,), `windows.history`).
    """
    users = np.arange(len(chunk.users))
    keys = windows.time_keys(chunk.records, chunk.offsets)
    last = windows.last_action_before(keys, users, np.full(len(users), as_of))
    users = users[last >= chunk.offsets[:-1]]
    window = chunk.records, chunk.offsets[users], last[users], length
    times = np.full((len(users), 1), as_of)
    return users, last[users], windows.history(*window, request_times=times)
