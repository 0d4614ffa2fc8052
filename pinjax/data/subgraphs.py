"""The nodes that the embeddings of some items depend on, layer by layer.

A convolution of an item reads its own vector and those of its neighbours. For L convolutions of
some targets there are L + 1 lists of nodes: the targets, their distinct neighbours and themselves,
the distinct neighbours of those, and so on down to the nodes whose features are read. Lists are
padded to fixed sizes, so that a compiled step serves all batches. If a list has more nodes than
its size, the neighbours with the least weight are left out.

The first targets, `ends`, have neighbours of their own in every convolution, where all other nodes
have those of a table. So they stand at the beginning of every list but that of the inputs, one by
one, and a node that is also another one's neighbour is there once more.
"""

from typing import NamedTuple

import numpy as np

from pinjax.graph.compiled import compiled
from pinjax.graph.walks import Neighbours


class Hop(NamedTuple):
    """The input of one convolution, as rows of the list of nodes below.

    Attributes:
      own: int32 (nodes,), the row of each node itself.
      neighbours: int32 (nodes, T), rows of its neighbours, -1 for padding.
      weights: float32 (nodes, T).
    """

    own: np.ndarray
    neighbours: np.ndarray
    weights: np.ndarray


class Subgraph(NamedTuple):
    """What targets depend on.

    Attributes:
      nodes: int32 (inputs,), the items whose features are read, padded with -1.
      hops: the convolutions, that of the targets last.
    """

    nodes: np.ndarray
    hops: tuple[Hop, ...]


def most_nodes(targets: int, ends: int, layers: int, top: int, items: int) -> list[int]:
    """The most nodes of each list below the targets, that of the inputs last."""
    sizes = [targets]
    for kept in _kept(ends, layers):
        sizes.append(kept + min(sizes[-1] * (top + 1), items))
    return sizes[1:]


def sample(
    targets: np.ndarray, ends: int, neighbours: Neighbours, table: Neighbours, sizes: list[int]
) -> Subgraph:
    """The subgraph of some targets.

    Args:
      targets: int32 (n,), items; -1 is padding. An item may be there several times.
      ends: how many of the targets, from the first, have their own neighbours in every convolution.
      neighbours: of the targets, (n, T).
      table: of all items.
      sizes: of each list of nodes below the targets, that of the inputs last; its length is the
        number of convolutions.
    """
    nodes, near, hops = targets, neighbours, []
    for kept, size in zip(_kept(ends, len(sizes)), sizes, strict=True):
        if hops:
            near = _near(nodes, ends, neighbours, table)
        nodes, hop = _hop(nodes, near, kept, size)
        hops.append(hop)
    return Subgraph(nodes, tuple(reversed(hops)))


def _kept(ends: int, layers: int) -> list[int]:
    """How many ends stand one by one in each list below the targets: none among the inputs."""
    return [ends] * (layers - 1) + [0] * min(layers, 1)


def _near(nodes: np.ndarray, ends: int, neighbours: Neighbours, table: Neighbours) -> Neighbours:
    """The neighbours of a list of nodes that begins with the ends."""
    near = rows(table, nodes)
    for of_node, own in zip(near, neighbours, strict=True):
        of_node[:ends] = own[:ends]
    return near


def rows(table: Neighbours, nodes: np.ndarray) -> Neighbours:
    """The neighbours of some nodes, (n, T); -1 has none."""
    exists = (nodes >= 0)[:, None]
    return Neighbours(
        np.where(exists, table.ids[nodes], -1),
        np.where(exists, table.weights[nodes], np.float32(0)),
    )


def count(
    targets: np.ndarray, ends: int, neighbours: Neighbours, table: Neighbours, layers: int
) -> list[int]:
    """The number of nodes of each list below the targets, that of the inputs last."""
    found = []
    nodes, near = targets, neighbours
    for kept in _kept(ends, layers):
        if found:
            near = _near(nodes, ends, neighbours, table)
        others = distinct(np.concatenate([nodes[kept:], near.ids.ravel()]))[0]
        nodes = np.concatenate([nodes[:kept], others])
        found.append(len(nodes))
    return found


def _hop(nodes: np.ndarray, neighbours: Neighbours, kept: int, size: int) -> tuple[np.ndarray, Hop]:
    """The list of nodes below, int32 (size,), and how `nodes` are read from it.

    The first `kept` nodes stand at its beginning, as they are.
    """
    found, own = distinct(nodes[kept:])
    most, size = len(found), size - kept
    found, place = distinct(np.concatenate([found, neighbours.ids.ravel()]))
    place = place[most:].reshape(neighbours.ids.shape)
    weights = neighbours.weights
    if len(found) > size:
        if most > size:
            raise ValueError(f"{most + kept} nodes do not fit into {size + kept}")
        total = np.bincount(place[place >= 0], weights[place >= 0], minlength=len(found))
        total[:most] = np.inf
        keep = np.sort(np.argsort(-total, kind="stable")[:size])
        moved = np.full(len(found) + 1, -1, np.int32)  # its last element is for padding
        moved[keep] = np.arange(size)
        found, place, own = found[keep], moved[place], moved[own]
        weights = np.where(place >= 0, weights, 0)
        weights = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    below = np.full(kept + size, -1, np.int32)
    below[:kept], below[kept : kept + len(found)] = nodes[:kept], found
    own = np.concatenate([np.arange(kept, dtype=np.int32), kept + np.maximum(own, 0)])
    place = np.where(place >= 0, kept + place, -1)
    return below, Hop(own, place, np.asarray(weights, np.float32))


def distinct(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct ids that are not -1, in order of first appearance, and each id's place there.

    Args:
      ids: int32 (n,).

    Returns:
      int32 (m,), and int32 (n,), -1 where the id is -1.
    """
    return _distinct(np.ascontiguousarray(ids, np.int32))


@compiled
def _distinct(ids):
    bits = 4
    while (1 << bits) < 2 * len(ids):
        bits += 1
    slots = np.full(1 << bits, -1, np.int32)  # an open hash table of places in `found`
    found = np.empty(len(ids), np.int32)
    places = np.empty(len(ids), np.int32)
    number = 0
    for i in range(len(ids)):
        if ids[i] < 0:
            places[i] = -1
            continue
        # Fibonacci hashing: the high bits of the product depend on all bits of the id.
        slot = np.int64((np.uint32(ids[i]) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - bits))
        while slots[slot] >= 0 and found[slots[slot]] != ids[i]:
            slot = (slot + 1) & ((1 << bits) - 1)
        if slots[slot] < 0:
            slots[slot] = number
            found[number] = ids[i]
            number += 1
        places[i] = slots[slot]
    return found[:number].copy(), places
