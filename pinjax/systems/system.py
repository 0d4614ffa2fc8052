"""What a system is to the trainer and to the other commands."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from pinjax.errors import InputError
from pinjax.evaluation.tables import Table
from pinjax.losses import count_min_sketch

Batch = dict[str, np.ndarray]
Shard = Callable[[], tuple[np.ndarray, np.ndarray]]
Metrics = dict[str, jax.Array]

SHARD = 2**16  # embeddings to a file
TRIED = 8  # batches, at most, that are looked at before training


@dataclasses.dataclass(frozen=True)
class System:
    """A recommender system as pure functions.

    `frozen` is what a step reads and never changes, the item features above all. It is an argument
    of the step, since what a jitted function closes over is copied into its program.

    Attributes:
      init: (key) -> (params, sketches).
      loss: (params, frozen, sketches, batch, key) -> scalar, (metrics, new sketches). The batch
        is the global one, sharded over the mesh's `data` axis.
      frozen: pytree of device arrays.
      batches: (first step) -> iterator of host batches, this process's share of each.
      evaluate: (params, split) -> a results table; `full` adds what takes longer.
      asked: (split) -> what its table rests on, as "1,987 users, 4,530 labels". It needs no model;
        raises InputError where the split has no labels.
      metrics: the names of the metrics in the first row of `evaluate(params, "valid")`, each with
        "max" or "min", whichever is best.
      embed: (params, moment) -> the tables that serving needs, by name, each as its shards:
        functions that make (own ids (rows,), vectors float32 (rows, dim)).
      embed_as_of: the moment to embed at unless one is given, unix seconds.
      check_training: raises an InputError where training would learn nothing, or by wrong counts;
        it reads some batches.
      summary: what a person wants to know at the start, by name.
      identity: by name, hashes of what a checkpoint belongs to: the data set, frozen tables.
    """

    init: Callable[[jax.Array], tuple[Any, Any]]
    loss: Callable[..., tuple[jax.Array, tuple[Metrics, Any]]]
    frozen: Any
    batches: Callable[[int], Iterator[Batch]]
    evaluate: Callable[..., Table]
    asked: Callable[[str], str]
    metrics: Mapping[str, str]
    embed: Callable[[Any, int], dict[str, list[Shard]]]
    embed_as_of: int
    check_training: Callable[[], None]
    summary: dict[str, str]
    identity: dict[str, str]


def check_heads(model: ConfigDict) -> None:
    """Refuses attention heads that do not divide the width."""
    if model.width % model.heads:
        raise InputError(f"model.width={model.width} is not divisible by model.heads={model.heads}")


class Counted(NamedTuple):
    """What a run counts in a sketch.

    Attributes:
      width: of the sketch.
      counts: int (ids,), how often each of the different ids comes, up to a factor.
      batch: how many come in a batch.
    """

    width: int
    counts: np.ndarray
    batch: int

    def accuracy(self, config: ConfigDict) -> count_min_sketch.Accuracy:
        """At the end of a run with this config."""
        return count_min_sketch.accuracy(
            self.width, config.loss.sketch_decay, self.batch, config.train.steps, self.counts
        )


def sketch_summary(config: ConfigDict, counted: dict[str, Counted]) -> dict[str, str]:
    """How right the counts of sketches are at the end of a run, by what they count."""
    found = {name: things.accuracy(config) for name, things in counted.items()}
    parts = [
        f"{name} {x.mean:,.1f} times (median {x.median:,.1f}), too high by at most {x.error:,.1f}"
        for name, x in found.items()
    ]
    return {"counted": "; ".join(parts)}


def check_counts(config: ConfigDict, counted: dict[str, Counted]) -> None:
    """Refuses sketches whose error is above the counts that the loss asks for."""
    for name, things in counted.items():
        found = things.accuracy(config)
        if not config.loss.log_q or found.error <= found.median:
            continue
        least = f"at least {found.least_width}"
        if found.least_width > count_min_sketch.MAX_WIDTH:
            least = "loss.sketch_decay below 1, so that fewer are remembered, or loss.log_q=False"
        raise InputError(
            f"loss.sketch_width: with {things.width} counters a row, the counts of "
            f"{len(things.counts):,} {name}, whose median is {found.median:,.1f}, may be too high "
            f"by {found.error:,.1f}; expected {least}"
        )


def shards(
    embed: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], rows: np.ndarray
) -> list[Shard]:
    """A table as its shards of `SHARD` rows, each made by `embed`, from rows to ids and vectors."""
    starts = range(0, len(rows), SHARD)
    return [functools.partial(embed, rows[start : start + SHARD]) for start in starts]
