"""The interface between systems and commands.

The module of a system (`registry`) has three functions:

    check(config, mesh)                     rejects an inconsistent config
    build(config, mesh, spec) -> Trainable  the trainable part, by shapes alone; or None
    bind(trainable, config, mesh, dataset) -> System

`compile` needs only `build`, with the spec of a data set. `train`, `evaluate` and `embed` bind the
result of `build` to the data set, so they run what `compile` compiles.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from pinjax.data.dataset import Dataset
from pinjax.errors import InputError
from pinjax.evaluation.evaluator import Evaluator
from pinjax.evaluation.tables import Table

Batch = dict[str, np.ndarray]
Metrics = dict[str, jax.Array]

TRIED = 8  # the most batches that are checked before training


@dataclasses.dataclass(frozen=True)
class Embedder:
    """A compiled function that embeds users, queries or items.

    Attributes:
      function: (params, constants, batch) -> embeddings of the batch, replicated; each device
        computes its share.
      constants: names of the constants that it reads.
      batch: pytree of abstract shapes of a batch.
    """

    function: Callable[..., jax.Array]
    constants: tuple[str, ...]
    batch: Any

    def reads(self, constants: Mapping[str, Any]) -> dict[str, Any]:
        """The constants that the function reads."""
        return {name: constants[name] for name in self.constants}

    def __call__(self, params: Any, constants: Mapping[str, Any], batch: Any) -> jax.Array:
        return self.function(params, self.reads(constants), batch)


class EmbeddedRows(NamedTuple):
    """A table of the data set with embeddings.

    Attributes:
      rows: int (n,), ascending, those that have an embedding.
      embed: from some of these rows to their embeddings, float32 (rows, dim).
    """

    rows: np.ndarray
    embed: Callable[[np.ndarray], np.ndarray]


EmbedUsers = Callable[[Iterable[Batch]], np.ndarray | None]


class Served(NamedTuple):
    """What a system embeds as of a time. Where a field is None, it embeds no such thing.

    Attributes:
      items: of the catalogue.
      users: from histories of `windows.history`, some at a time, to embeddings (users, dim); or
        (users, vectors, dim) where a user has several, the most important first, zeros padding.
        None for no users.
      queries: of the data set's queries.
      groups: of the groups of its graph.
      texts: from any texts of searches to embeddings (texts, dim).
    """

    items: EmbeddedRows
    users: EmbedUsers | None = None
    queries: EmbeddedRows | None = None
    groups: EmbeddedRows | None = None
    texts: Callable[[list[str]], np.ndarray] | None = None


class Search(NamedTuple):
    """The exact search of an evaluation.

    Attributes:
      items: number of items in the index.
      dim: embedding dimension.
      results: number of results of a query.
    """

    items: int
    dim: int
    results: int


# `Trainable.row_meanings` of learned ids of items, and of bags of tokens.
IDS = {"/id/(embedding|importance)$": "items"}
TEXTS = {"/text/(embedding|importance)$": "tokens"}


@dataclasses.dataclass(frozen=True)
class Trainable:
    """The trainable part of a system: pure functions and the abstract shapes of their arguments.

    A step reads `constants`, mostly item features, and never changes them. They are arguments,
    since arrays that a jitted function closes over are copied into its program.

    Attributes:
      init: (key) -> (params, sketches).
      loss: (params, constants, sketches, batch, key) -> scalar, (metrics, new sketches). The batch
        is the global one, sharded over the mesh's `data` axis.
      constants: by name, pytrees of abstract shapes with shardings.
      batch: by name, abstract shapes of the global batch, sharded over `data`.
      batch_size: the config's field with the batch size, such as "data.users".
      batch_form: how a batch is packed, in words; "" if it is not.
      embedders: by name of the embedded table.
      search: sizes of the search for items.
      row_meanings: which parameters are tables with a row for each item, token and so on, and of
        what: by pattern of the parameter's path, a name of `Dataset.names`.
      sketched_ids: (batch) -> the ids of a host batch that the sketches count, in a tree of the
        same structure; -1 is not counted. None without sketches.
    """

    init: Callable[[jax.Array], tuple[Any, Any]]
    loss: Callable[..., tuple[jax.Array, tuple[Metrics, Any]]]
    constants: dict[str, Any]
    batch: dict[str, jax.ShapeDtypeStruct]
    batch_size: str
    embedders: dict[str, Embedder]
    search: Search
    batch_form: str = ""
    row_meanings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    sketched_ids: Callable[[Batch], Any] | None = None


@dataclasses.dataclass(frozen=True)
class System:
    """A recommender system on a data set.

    Attributes:
      dataset: that it is bound to.
      trainable: of `build`; None for a system without training, whose `params` are None.
      constants: by name, pytrees of device arrays with the shapes of `trainable`.
      batches: (first step) -> iterator of this process's share of the host batches; None without
        training.
      evaluate: (params, split) -> a results table; `full` adds rows that take longer.
      evaluator: that makes the tables; it tells of metrics and labels without a model.
      serve: (params, as_of) -> the embedding functions as of a time, unix seconds.
      check_training: raises an InputError if training would learn nothing, or if sketches are too
        narrow; it reads some batches. None without training.
      summary: lines to print at the start, by name.
      identity: by name, hashes of frozen tables that a checkpoint belongs to; `registry` adds that
        of the data set.
      export: (params, as_of) -> what a service needs, `exports.Exports`; None if there is nothing
        to export.
    """

    dataset: Dataset
    trainable: Trainable | None
    constants: dict[str, Any]
    batches: Callable[[int], Iterator[Batch]] | None
    evaluate: Callable[..., Table]
    evaluator: Evaluator
    serve: Callable[[Any, int], Served]
    check_training: Callable[[], None] | None
    summary: dict[str, str]
    identity: dict[str, str] = dataclasses.field(default_factory=dict)
    export: Callable[[Any, int], Any] | None = None


def check_heads(model: ConfigDict) -> None:
    """Rejects attention heads that do not divide the width."""
    if model.width % model.heads:
        raise InputError(f"model.width={model.width} is not divisible by model.heads={model.heads}")
