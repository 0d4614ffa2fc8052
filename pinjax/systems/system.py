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
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from pinjax.errors import InputError
from pinjax.evaluation.tables import Table

Batch = dict[str, np.ndarray]
Shard = Callable[[], tuple[np.ndarray, np.ndarray]]
Metrics = dict[str, jax.Array]

SHARD = 2**16  # embeddings to a file
TRIED = 8  # batches, at most, that are looked at before training


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
      evaluated_on: (split) -> what its table rests on, as "1,987 users, 4,530 labels". It needs no
        model; raises InputError where the split has no labels.
      metrics: the names of the metrics in the first row of `evaluate(params, "valid")`, each with
        "max" or "min", whichever is best.
      embed: (params, as_of) -> the tables that serving needs, by name, each as its shards:
        functions that make (own ids (rows,), vectors float32 (rows, dim)).
      embed_as_of: the default of `as_of`, unix seconds.
      check_training: raises an InputError where training would learn nothing, or by wrong counts;
        it reads some batches.
      summary: what a person wants to know at the start, by name.
      identity: by name, hashes of what a checkpoint belongs to: the data set, frozen tables.
    """

    trainable: Trainable | None
    constants: dict[str, Any]
    batches: Callable[[int], Iterator[Batch]]
    evaluate: Callable[..., Table]
    evaluated_on: Callable[[str], str]
    metrics: Mapping[str, str]
    embed: Callable[[Any, int], dict[str, list[Shard]]]
    embed_as_of: int
    check_training: Callable[[], None]
    summary: dict[str, str]
    identity: dict[str, str]


def check_heads(model: ConfigDict) -> None:
    """Rejects attention heads that do not divide the width."""
    if model.width % model.heads:
        raise InputError(f"model.width={model.width} is not divisible by model.heads={model.heads}")


def shards(
    embed: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], rows: np.ndarray
) -> list[Shard]:
    """A table as its shards of `SHARD` rows, each made by `embed`, from rows to ids and vectors."""
    starts = range(0, len(rows), SHARD)
    return [functools.partial(embed, rows[start : start + SHARD]) for start in starts]
