"""Shared by the systems that learn from timelines: batches, and histories of users."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax import settings
from pinjax.data import batches, packing, statistics, timelines, windows
from pinjax.data import spec as spec_lib
from pinjax.data.dataset import Dataset
from pinjax.distributed import batching, processes, sharding
from pinjax.errors import InputError
from pinjax.systems import system

_DRAWN = 2**12  # users of a device, in batches that have to fit


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Rejects `request_time` as the only feature, too many labels, and batches that the devices do
    not divide.
    """
    if set(config.model.features) == {"request_time"}:
        raise InputError("model.features: expected a feature of actions beside request_time")
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


def check_spec(config: ConfigDict, spec: spec_lib.Spec) -> None:
    """Rejects data sets without timelines, or with ranks where times are needed."""
    spec.need("timelines")
    if spec.leave_one_out and "request_time" in config.model.features:
        raise InputError(
            f"model.features: {spec.name} has the order of actions, but no times; expected no "
            "request_time"
        )


def layout_of(
    sampler: windows.Sampler, spec: spec_lib.Spec, users: int, mesh: Mesh
) -> packing.Layout:
    """The layout of training batches, in which several drawn ones fit."""
    devices = mesh.shape["data"]
    drawn = min(users, devices * _DRAWN)
    number = min(32, devices * _DRAWN // drawn)
    uniforms = np.random.default_rng(0).random((number, drawn))
    lengths = sampler.lengths(_actions(spec, drawn), uniforms)
    # A user who stands in a batch several times has one row of labels each time.
    several = users > spec.users["train"]
    most = np.full_like(lengths, sampler.pairs) if several else sampler.most_labels(lengths)
    layout = _layout(lengths, mesh, sampler.length).with_labels(most, sampler.pairs)

    def of_all(rows: int) -> int:
        return devices * math.ceil(rows / devices * users / drawn)

    return layout._replace(
        users=users, rows=of_all(layout.rows), label_rows=of_all(layout.label_rows)
    )


def served_layout(config: ConfigDict, spec: spec_lib.Spec, mesh: Mesh) -> packing.Layout:
    """The layout of batches of histories that are embedded, for about `evaluate.batch` users."""
    devices = mesh.shape["data"]
    users = -(-config.evaluate.batch // devices) * devices
    lengths = np.clip(_actions(spec, users), 1, config.data.length)
    return _layout(lengths[None], mesh, config.data.length)


def _actions(spec: spec_lib.Spec, users: int) -> np.ndarray:
    """The actions of the users of a batch, as `Batches` draws it: float (users,)."""
    shares = (np.arange(users) + 0.5) / users
    actions = np.interp(shares, statistics.LENGTH_SHARES, spec.length_quantiles)
    return actions[batches.balanced_order(users)]


def _layout(lengths: np.ndarray, mesh: Mesh, length: int) -> packing.Layout:
    return packing.layout_for(lengths.astype(np.int64), mesh.shape["data"], length)


def batches_of(
    config: ConfigDict, mesh: Mesh, sampler: windows.Sampler, dataset: Dataset
) -> batches.Batches:
    """Batches of the training users."""
    return batches.Batches(
        timelines=dataset.timelines("train"),
        lengths=dataset.lengths,
        sampler=sampler,
        layout=layout_of(sampler, dataset.spec, config.data.users, mesh),
        steps=config.train.steps,
        seed=config.train.seed,
        shard=processes.shard(),
    )


def abstract_batch(
    sampler: windows.Sampler, layout: packing.Layout, spec: spec_lib.Spec, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """The abstract shapes of a global batch, from a batch of made-up timelines."""
    one = packing.Layout(1, 1, 1, layout.length, 1.0, 1, layout.label_width)
    users = timelines.MadeUp()
    fields = batches.Batches(users, np.ones(1, np.int64), sampler, one, steps=1, seed=0)[0]
    copies = math.ceil(layout.users / spec.users["train"])  # of a user in a batch
    if copies > 1:
        fields["same_user"] = np.zeros((1, copies), np.int32)
    return _abstract(fields, layout.rows, layout.label_rows, mesh)


def made_up(length: int) -> system.Batch:
    """The `windows.history` of a user with one action."""
    first = np.zeros(1, np.int64)
    return windows.history(np.zeros(1, timelines.ACTION), first, first, length, first[:, None])


def abstract_histories(layout: packing.Layout, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The abstract shapes of packed histories, see `packing.batches`."""
    one = packing.Layout(1, 1, 1, layout.length)
    ((fields, _),) = packing.batches([made_up(layout.length)], one)
    return _abstract(fields, layout.rows, layout.users, mesh)


def _abstract(
    fields: system.Batch, rows: int, others: int, mesh: Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """Of packed histories, and of other fields with another number of rows."""
    history = {name: fields[name] for name in (*windows.HISTORY, "end")}
    rest = {name: field for name, field in fields.items() if name not in history}
    return {
        **sharding.abstract_batch(mesh, history, rows),
        **sharding.abstract_batch(mesh, rest, others),
    }


def users_of(
    embed: Callable[[system.Batch], jax.Array], layout: packing.Layout
) -> system.EmbedUsers:
    """The embeddings of histories by a function of packed ones."""
    return lambda parts: batching.of_batches(embed, packing.batches(parts, layout))


def unpacked(history: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Histories of `windows.history` as a batch of `packing.batches`, one a row."""
    users, length = history["item"].shape
    last = length - 1
    exists = (history["item"] >= 0).at[:, last].set(True)
    position = length * jnp.arange(users, dtype=jnp.int32)[:, None] + last
    return {**history, "end": jnp.where(exists, last, -1), "position": position}


def check_training(config: ConfigDict, dataset: Dataset, made: batches.Batches) -> None:
    """Rejects data whose first batches have no labels, or no negatives."""
    global_batches = dataclasses.replace(made, shard=(0, 1))  # the same on every host
    tried = min(system.TRIED, global_batches.steps)
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
    layout = made.layout
    return {
        "data set": f"{spec.name}: {spec.users['train']:,} users, {spec.num_items:,} items",
        "batch": layout.describe(),
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
