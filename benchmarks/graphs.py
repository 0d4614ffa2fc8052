"""Graphs that several scripts here measure on."""

import pathlib

import numba
import numpy as np
import pyarrow.parquet as pq

from pinjax.graph import csr

ITEM_COLUMNS = {"pinterest_graph": "pin", "gowalla": "item"}
DEGREE = 10  # of an item of the random graph


def public(name: str, raw: pathlib.Path, directory: pathlib.Path) -> None:
    """Writes the graph of the training edges of a public set, items against users.

    Args:
      name: of `ITEM_COLUMNS`.
      raw: directory of all sets.
      directory: where the graph is written.
    """
    table = pq.read_table(raw / name / "edges.parquet")
    edges = np.stack([table[ITEM_COLUMNS[name]].to_numpy(), table["user"].to_numpy()], 1)
    items, groups = edges.max(0) + 1
    csr.write(directory, edges[~table["is_test"].to_numpy()], items, groups)


def random(edges: int, directory: pathlib.Path, degree: int = DEGREE) -> None:
    """Writes a graph whose items have `degree` random groups each, half as many groups as items.

    Its edges do not lie in memory.
    """
    directory.mkdir(parents=True)
    items = edges // degree
    arrays = []
    for side, nodes in zip(csr.SIDES, (items, items // 2), strict=True):
        arrays.append(_new(directory / f"{side}_offsets.npy", np.int64, nodes + 1))
        arrays.append(_new(directory / f"{side}_neighbours.npy", np.int32, items * degree))
    _fill(*arrays, degree, np.random.default_rng(0))


def _new(path: pathlib.Path, dtype: type, length: int) -> np.ndarray:
    return np.lib.format.open_memmap(path, "w+", dtype, (length,))


@numba.njit(cache=True)
def _fill(item_offsets, item_neighbours, group_offsets, group_neighbours, degree, rng):
    groups = len(group_offsets) - 1
    for item in range(len(item_offsets) - 1):
        first = item * degree
        item_offsets[item + 1] = first + degree
        own = item_neighbours[first : first + degree]
        drawn = 0
        while drawn < degree:
            group = rng.integers(0, groups)
            if not np.any(own[:drawn] == group):
                own[drawn] = group
                drawn += 1
                group_offsets[group + 1] += 1
        own.sort()
    ends = np.empty(groups, np.int64)
    for group in range(groups):
        ends[group] = group_offsets[group]
        group_offsets[group + 1] += group_offsets[group]
    for item in range(len(item_offsets) - 1):
        for edge in range(item_offsets[item], item_offsets[item + 1]):
            group = item_neighbours[edge]
            group_neighbours[ends[group]] = item
            ends[group] += 1
