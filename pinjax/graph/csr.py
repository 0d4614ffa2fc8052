"""A bipartite graph of items and groups (boards, baskets, tags) as compressed sparse rows on disk.

    graph/
      item_offsets.npy     int64 (items + 1,): item i's groups are item_neighbours[offsets[i]:
      item_neighbours.npy  int32 (edges,)       offsets[i + 1]], ascending
      group_offsets.npy    int64 (groups + 1,): likewise, the items of a group
      group_neighbours.npy int32 (edges,)

Arrays are memory-mapped, so a graph may be larger than memory. Edges are distinct.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np
from etils import epath

from pinjax import ragged
from pinjax.graph import mapped

SIDES = ("item", "group")


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """The neighbours of the nodes of one side.

    Attributes:
      offsets: int64 (nodes + 1,).
      neighbours: int32 (edges,), nodes of the other side.
    """

    offsets: np.ndarray
    neighbours: np.ndarray

    def of(self, node: int) -> np.ndarray:
        """The neighbours of a node, int32 (degree,), ascending."""
        return self.neighbours[self.offsets[node] : self.offsets[node + 1]]

    def pairs(self, nodes: np.ndarray) -> np.ndarray:
        """Int64 (n, 2): pairs of a place among some nodes and a neighbour of the node there."""
        first, degree = self.offsets[nodes], np.diff(self.offsets)[nodes]
        place = np.repeat(np.arange(len(nodes)), degree)
        return np.stack([place, self.neighbours[ragged.positions(first, degree)]], axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """Both sides of a graph: `items` has the groups of items, `groups` the items of groups."""

    items: Side
    groups: Side


def read(directory: epath.PathLike) -> Graph:
    """Opens a graph as memory maps."""
    sides = []
    for side in SIDES:
        paths = (epath.Path(directory) / f"{side}_{name}.npy" for name in ("offsets", "neighbours"))
        sides.append(Side(*map(mapped.load, paths)))
    return Graph(*sides)


def of_items(graph: Graph, keep: np.ndarray) -> Graph:
    """The edges of some items, in memory; the graph itself if others have none.

    Args:
      graph: of all items.
      keep: bool (items,).
    """
    degrees = np.diff(graph.items.offsets)
    if not degrees[~keep].any():
        return graph
    group = np.repeat(np.arange(len(graph.groups.offsets) - 1), np.diff(graph.groups.offsets))
    kept = keep[graph.groups.neighbours]
    of_groups = np.bincount(group[kept], minlength=len(graph.groups.offsets) - 1)
    sides = (
        (np.where(keep, degrees, 0), graph.items.neighbours[np.repeat(keep, degrees)]),
        (of_groups, graph.groups.neighbours[kept]),
    )
    return Graph(*(Side(ragged.offsets_of(d), np.asarray(n)) for d, n in sides))


def write_side(
    directory: epath.PathLike,
    side: str,
    degrees: np.ndarray,
    neighbours: Iterable[np.ndarray],
) -> None:
    """Writes one side.

    Args:
      directory: of the graph; it must exist.
      side: one of `SIDES`.
      degrees: int (nodes,), number of neighbours.
      neighbours: in order of nodes, ascending for each node, in pieces of any length.
    """
    directory = epath.Path(directory)
    offsets = ragged.offsets_of(degrees)
    np.save(directory / f"{side}_offsets.npy", offsets)
    written = np.lib.format.open_memmap(
        directory / f"{side}_neighbours.npy", "w+", np.int32, (int(offsets[-1]),)
    )
    end = 0
    for piece in neighbours:
        start, end = end, end + len(piece)
        written[start:end] = piece
    written.flush()


def write(directory: epath.PathLike, edges: np.ndarray, items: int, groups: int) -> None:
    """Writes a graph whose edges fit into memory.

    Args:
      directory: made if it does not exist.
      edges: int (edges, 2), items and groups; repeated edges count once.
      items: number of items.
      groups: number of groups.
    """
    epath.Path(directory).mkdir(parents=True, exist_ok=True)
    edges = np.unique(edges, axis=0)
    for side, nodes, (own, other) in zip(SIDES, (items, groups), ((0, 1), (1, 0)), strict=True):
        ordered = edges[np.lexsort((edges[:, other], edges[:, own]))]
        degrees = np.bincount(ordered[:, own], minlength=nodes)
        write_side(directory, side, degrees, [ordered[:, other]])
