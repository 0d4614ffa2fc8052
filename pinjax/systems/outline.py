"""A system without its data: what a compiler needs to know of it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from pinjax.distributed import sharded_table
from pinjax.retrieval import exact
from pinjax.systems import system

Shape = jax.ShapeDtypeStruct


@dataclasses.dataclass(frozen=True)
class Outline:
    """A system by its functions and the shapes of what they take.

    Attributes:
      init: as in `System`.
      loss: as in `System`.
      frozen: pytree of shapes, as in `System`; what is not replicated has its sharding.
      batch: shapes of the global batch, by name.
      size: (the config's field, its value) of the global batch.
      embed: from the shapes of the parameters to what embeds, by name: a function and the shapes of
        its arguments, by what they are, in order. Each device embeds its share of the batch.
      search: a function and its arguments, on every device the whole of it.
    """

    init: Callable[[jax.Array], tuple[Any, Any]]
    loss: Callable[..., tuple[jax.Array, tuple[system.Metrics, Any]]]
    frozen: Any
    batch: dict[str, Shape]
    size: tuple[str, int]
    embed: Callable[[Any], dict[str, tuple[Callable[..., Any], dict[str, Any]]]]
    search: tuple[Callable[..., Any], dict[str, Any]]


def placed(tree: Any, sharding: NamedSharding) -> Any:
    """The shapes of arrays as they lie on a mesh: those that do not say where, as told."""
    return jax.tree.map(lambda x: Shape(x.shape, x.dtype, sharding=x.sharding or sharding), tree)


def table(layout: sharded_table.Layout, shape: tuple[int, ...], dtype: Any) -> Shape:
    """The shape of a table with so many rows as it lies on the devices."""
    return Shape((layout.num_rows(shape[0]), *shape[1:]), dtype, sharding=layout.sharding)


def pairs_batch(pairs: int, same_query: int) -> dict[str, Shape]:
    """The shapes of `batches.PairBatches`, for so many pairs of a query in a batch at most."""
    fields = {name: Shape((pairs,), jnp.int32) for name in ("query", "item", "task")}
    return {**fields, "excluded": Shape((pairs, same_query), jnp.int32)}


def search(items: int, dim: int, k: int) -> tuple[Callable[..., Any], dict[str, Any]]:
    """Exact search, as evaluation does it: 1,024 queries at a time."""
    queries, index = Shape((1024, dim), jnp.float32), Shape((items, dim), jnp.float32)

    def function(queries: jax.Array, index: tuple[jax.Array, jax.Array]) -> Any:
        vectors, valid = index
        return exact.search(queries, vectors, min(k, items), valid=valid)

    return function, {"batch": queries, "index": (index, Shape((items,), jnp.bool_))}
