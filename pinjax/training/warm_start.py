"""Parameters of a run on one data set, carried over to the same model on a later one.

Tables have a row for each item, token or action type of a data set. A row goes to where the later
data set has what it stands for, by the user's own ids and names. All else has to have the same
shape. Optimiser, schedule and sketches begin anew: Adam's second moments forget within 50 steps, a
schedule that has ended cannot go on, and sketches count rows, which now stand for others.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from pinjax.distributed import sharded_table, sharding
from pinjax.errors import InputError
from pinjax.ids import rows_of

Names = Callable[[str], Sequence[Any]]


@dataclasses.dataclass(frozen=True)
class End:
    """The data set that parameters were trained on, or are carried over to.

    Attributes:
      names: of what rows stand for, by the values of `Trainable.row_meanings`.
      table_layout: layout of the tables of `sharded_table.PARAMETERS`.
    """

    names: Names
    table_layout: sharded_table.Layout


def carry(
    params: Any, like: Any, rows: Mapping[str, str], former: End, later: End, name: str
) -> Any:
    """Parameters for the later data set.

    Args:
      params: on the former data set, a pytree of NumPy arrays.
      like: for the later one, a pytree of NumPy arrays: the values of rows that are new.
      rows: of `Trainable`.
      former: data set of `params`.
      later: data set of `like`.
      name: of the former run, for messages.

    Returns:
      pytree of NumPy arrays with the structure of `like`.

    Raises:
      InputError: if `params` are of another model, or hashed rows stand for others now.
    """
    given = {sharding.path_name(path): x for path, x in jax.tree.leaves_with_path(params)}
    wanted = {sharding.path_name(path): x for path, x in jax.tree.leaves_with_path(like)}
    if lacking := sorted(given.keys() ^ wanted.keys()):
        which = "this run has" if lacking[0] in given else "it has"
        raise InputError(f"{name}: of another model: {which} no {lacking[0]}")

    def of_leaf(path: Any, fresh: np.ndarray) -> np.ndarray:
        about = sharding.path_name(path)
        old = given[about]
        kind = next((kind for pattern, kind in rows.items() if re.search(pattern, about)), None)
        if kind is None:
            _check_shape(name, about, old.shape, fresh.shape)
            return old
        if _is_hashed(about, given):
            _check_shape(name, about, old.shape, fresh.shape)
            _check_hashed(name, about, kind, former.names(kind), later.names(kind))
            found = np.arange(len(fresh))
        else:
            _check_shape(name, about, old.shape[1:], fresh.shape[1:])
            found = match(former.names(kind), later.names(kind), f"{name}: {kind}")
        known = np.flatnonzero(found >= 0)
        before, after = former.table_layout, later.table_layout
        if not re.search(sharded_table.PARAMETERS, f"/{about}"):
            before = after = sharded_table.REPLICATED
        carried = fresh.copy()
        carried[after.lies_at(known, len(fresh))] = old[before.lies_at(found[known], len(old))]
        return carried

    return jax.tree_util.tree_map_with_path(of_leaf, like)


def match(former: Sequence[Any], later: Sequence[Any], about: str) -> np.ndarray:
    """The place in `former` of each of `later`, -1 for new ones; int64 (later,).

    Raises:
      InputError: if the ones are integers and the others text.
    """
    before, after = pa.array(former), pa.array(later)
    if pa.types.is_integer(before.type) != pa.types.is_integer(after.type):
        raise InputError(f"{about} were {before.type}, now they are {after.type}")
    return rows_of(after, before.cast(after.type))


def place(params: Any, like: Any) -> Any:
    """NumPy arrays, which every process has, with the shardings of a pytree of arrays."""

    def place_one(array: np.ndarray, to: jax.Array) -> jax.Array:
        return jax.make_array_from_callback(to.shape, to.sharding, lambda index: array[index])

    return jax.tree.map(place_one, params, like)


def _is_hashed(path: str, known: Mapping[str, Any]) -> bool:
    """Whether rows are hashed to a table's: `hash_embedding` has importances of them then."""
    return path.endswith("/embedding") and f"{path.removesuffix('embedding')}importance" in known


def _check_hashed(
    name: str, path: str, kind: str, former: Sequence[Any], later: Sequence[Any]
) -> None:
    if not np.array_equal(np.asarray(former), np.asarray(later[: len(former)])):
        raise InputError(
            f"{name}: {path} has hashes of the rows of {kind}, which stand for others now; "
            "expected a table with a row for each"
        )


def _check_shape(name: str, path: str, old: Sequence[int], new: Sequence[int]) -> None:
    if tuple(old) != tuple(new):
        raise InputError(f"{name}: {path} has the shape {list(old)}, this run's has {list(new)}")
