"""What a system is to the trainer and to the other commands.

The module of a system (`registry`) has three functions:

    check(config, mesh)                     refuses a config that does not fit itself or the mesh
    build(config, mesh, spec) -> Trainable  what is trained, by shapes alone; None: nothing is
    bind(trainable, config, mesh, dataset) -> System

`compile` needs no more than `build`, from the spec of a data set. `train`, `evaluate` and `embed`
bind what was built to the data set itself, so what is compiled is what runs.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from pinjax.errors import InputError
from pinjax.evaluation.metrics import Estimate

Batch = dict[str, np.ndarray]
Shard = Callable[[], tuple[np.ndarray, np.ndarray]]
Metrics = dict[str, jax.Array]

SHARD = 2**16  # embeddings to a file
ENOUGH = 100  # users or queries; a table that rests on fewer says so
COVERAGE = "P90 cov@10"
TRIED = 8  # batches, at most, that are looked at before training
_ALIKE = 0.9  # overlap of lists that are nearly the same


@dataclasses.dataclass(frozen=True)
class Embedder:
    """A compiled function that embeds users, queries or items.

    Attributes:
      function: (params, constants, batch) -> embeddings, a row for each of the batch, on every
        device. Each device computes its share.
      constants: the names of the constants that it reads.
      batch: pytree of shapes, of the rows that it embeds at a time.
    """

    function: Callable[..., jax.Array]
    constants: tuple[str, ...]
    batch: Any

    def reads(self, constants: Mapping[str, Any]) -> dict[str, Any]:
        """Those constants that the function reads."""
        return {name: constants[name] for name in self.constants}

    def __call__(self, params: Any, constants: Mapping[str, Any], batch: Any) -> jax.Array:
        return self.function(params, self.reads(constants), batch)


class Search(NamedTuple):
    """The exact search of an evaluation.

    Attributes:
      items: in the index.
      dim: numbers of an embedding.
      results: of a query.
    """

    items: int
    dim: int
    results: int


@dataclasses.dataclass(frozen=True)
class Trainable:
    """What of a system is trained, as pure functions and the shapes of what they take.

    `constants` is what a step reads and never changes, the item features above all. It is an
    argument of the step, since what a jitted function closes over is copied into its program.

    Attributes:
      init: (key) -> (params, sketches).
      loss: (params, constants, sketches, batch, key) -> scalar, (metrics, new sketches). The batch
        is the global one, sharded over the mesh's `data` axis.
      constants: by name, pytrees of shapes as they lie on the mesh.
      batch: by name, shapes of the global batch, sharded over `data`.
      batch_size: the config's field that says how large a batch is, as "data.users".
      embedders: by what they embed.
      search: what finds the embedded items.
    """

    init: Callable[[jax.Array], tuple[Any, Any]]
    loss: Callable[..., tuple[jax.Array, tuple[Metrics, Any]]]
    constants: dict[str, Any]
    batch: dict[str, jax.ShapeDtypeStruct]
    batch_size: str
    embedders: dict[str, Embedder]
    search: Search


@dataclasses.dataclass(frozen=True)
class System:
    """A recommender system on a data set.

    Attributes:
      trainable: what `build` gave; None for a system that is not trained. Then `params` are None.
      constants: by name, pytrees of device arrays, as `trainable` says.
      batches: (first step) -> iterator of host batches, this process's share of each.
      evaluate: (params, split) -> a results table; `full` adds what takes longer.
      asked: (split) -> what its table rests on, as "1,987 users, 4,530 labels". It needs no model;
        raises InputError where the split has nothing to ask.
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

    trainable: Trainable | None
    constants: dict[str, Any]
    batches: Callable[[int], Iterator[Batch]]
    evaluate: Callable[..., "Table"]
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


def shards(
    embed: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], rows: np.ndarray
) -> list[Shard]:
    """A table as its shards of `SHARD` rows, each made by `embed`, from rows to ids and vectors."""
    starts = range(0, len(rows), SHARD)
    return [functools.partial(embed, rows[start : start + SHARD]) for start in starts]


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a results table.

    Attributes:
      method: what was measured.
      metrics: by name.
    """

    method: str
    metrics: dict[str, Estimate]


@dataclasses.dataclass(frozen=True)
class Table:
    """A results table.

    Attributes:
      rows: the system's own first.
      notes: lines to print below: what the figures rest on, and what speaks against them.
    """

    rows: list[Row]
    notes: list[str]


def add_share_of_oracle(rows: list[Row]) -> None:
    """Adds each row's share of the oracle's Recall@10.

    A row "METHOD, PART" is held against "oracle, PART" where there is such a row, and else against
    "oracle", if there is that.
    """
    best = {row.method: row.metrics["R@10"].value for row in rows}
    for row in rows:
        _, _, part = row.method.partition(", ")
        oracle = best.get(f"oracle, {part}", best.get("oracle"))
        if oracle is not None:
            share = row.metrics["R@10"].value / oracle if oracle else math.nan
            row.metrics["of oracle"] = Estimate(share)


def too_few(asked: str, more: str) -> str:
    """The note of a table that rests on fewer than `ENOUGH`.

    Args:
      asked: how many of what.
      more: the settings that leave more of them.
    """
    return f"{asked} are too few to tell methods apart; for more, raise {more}"


def collapsed(
    rows: Sequence[Row], overlaps: Mapping[str, float], popularity: Sequence[str]
) -> list[str]:
    """A note for each method whose results are nearly the same for everybody.

    Args:
      rows: of the table.
      overlaps: by method, `metrics.overlap` of its results; those of other methods are not judged.
      popularity: methods that show the same to everybody by intention, which are held against.
    """
    coverage = {row.method: row.metrics[COVERAGE].value for row in rows if COVERAGE in row.metrics}
    usual = max((coverage[name] for name in popularity if name in coverage), default=0.0)
    notes = []
    for method, overlap in overlaps.items():
        why = []
        if coverage[method] < 2 * usual:
            why.append(f"its {COVERAGE} is below twice popularity's")
        if overlap > _ALIKE:
            why.append(f"two of its lists have {overlap:.0%} in common")
        if why:
            notes.append(f"{method} has collapsed: {' and '.join(why)}")
    return notes
