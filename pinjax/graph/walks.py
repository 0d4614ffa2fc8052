"""Neighbourhoods by short random walks: PinSage's importance pooling (arXiv 1806.01973, §3.2).

A step goes from an item to one of its groups and on to one of that group's items, each drawn
uniformly. The neighbours of an item are the items that its walks visit most.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from pinjax.graph import csr
from pinjax.graph.compiled import arrays_of, compiled, nodes_of, over_ranges, read_only


@dataclasses.dataclass(frozen=True)
class Walks:
    """The random walks of a node.

    Attributes:
      number: of walks.
      steps: of a walk.
      restart: probability of returning to the node before a step after the first.
      top: T, number of neighbours kept.
    """

    number: int
    steps: int
    restart: float
    top: int


class Neighbours(NamedTuple):
    """The neighbourhoods of n nodes.

    Attributes:
      ids: int32 (n, T), items, most visited first, -1 where there are fewer.
      weights: float32 (n, T), visits, divided by their sum over a row; 0 where there are fewer.
    """

    ids: np.ndarray
    weights: np.ndarray


def neighbourhoods(
    graph: csr.Graph,
    nodes: np.ndarray,
    walks: Walks,
    seed: int,
    avoid: np.ndarray | None = None,
    streams: np.ndarray | None = None,
    threads: int | None = None,
) -> Neighbours:
    """The neighbourhood of each node; no node is its own neighbour.

    A row is a function of its node, avoided group and stream, the seed and the graph alone. A
    neighbour's probability of being drawn is off by at most its node's degree / 2^53 of itself.

    Args:
      graph: both sides of it.
      nodes: int (n,), items.
      walks: how to walk.
      seed: of all rows.
      avoid: int (n,), a group whose edge with the node is not walked either way, as if it was not
        in the graph; -1 for none.
      streams: uint64 (n,), which of the seed's random numbers a row takes; the node if None.
      threads: number of them; one a core if None.

    Raises:
      IndexError: if a node or group is not in the graph.
    """
    nodes = nodes_of(graph.items, nodes)
    avoid = np.full_like(nodes, -1) if avoid is None else avoid
    avoid = nodes_of(graph.groups, avoid, first=-1)
    streams = read_only(np.ascontiguousarray(nodes if streams is None else streams, np.uint64))
    arrays = arrays_of(graph)
    ids = np.empty((len(nodes), walks.top), np.int32)
    weights = np.empty((len(nodes), walks.top), np.float32)

    def fill(start: int, stop: int) -> None:
        _fill(
            *arrays,
            nodes[start:stop],
            avoid[start:stop],
            streams[start:stop],
            np.uint64(seed),
            walks.number,
            walks.steps,
            float(walks.restart),
            ids[start:stop],
            weights[start:stop],
        )

    over_ranges(fill, len(nodes), threads)
    return Neighbours(ids, weights)


_INCREMENT = np.uint64(0x9E3779B97F4A7C15)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


@compiled
def _mixed(x):
    """The output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    x += _INCREMENT
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@compiled
def _uniform(x):
    """A number in [0, 1) of the upper 53 bits of a random integer."""
    return np.float64(np.int64(x >> np.uint64(11))) * 2.0**-53


@compiled
def _fill(
    item_offsets,
    item_neighbours,
    group_offsets,
    group_neighbours,
    nodes,
    avoid,
    streams,
    seed,
    number,
    steps,
    restart,
    ids,
    weights,
):
    """Fills rows of ids and weights. All walks of a node take a step together (see `_cross`)."""
    visits = min(number * steps, len(item_offsets) - 1)
    bits = 1
    while 2**bits < 2 * visits:
        bits += 1
    # Items visited, hashed, at most half of the table; sorting all visits takes twice as long.
    table = np.full(2**bits, -1, np.int32)
    counts = np.zeros(2**bits, np.int32)
    slots = np.empty(visits, np.int32)  # places of the table that are taken
    found = np.empty(visits, np.uint64)
    at = np.empty(number, np.int32)
    edges = np.empty(number, np.int64)
    for row in range(len(nodes)):
        node, group = nodes[row], avoid[row]
        # Where the edge that is not walked stands among the neighbours of either end.
        in_item = in_group = -1
        if group >= 0:
            in_item = _position(item_offsets, item_neighbours, node, group)
            in_group = _position(group_offsets, group_neighbours, group, node)
        distinct = 0
        if item_offsets[node + 1] - item_offsets[node] > (in_item >= 0):
            draw = _mixed(_mixed(_mixed(seed) + streams[row]) + np.uint64(node))
            at[:] = node
            for step in range(steps):
                if step > 0 and restart > 0:
                    for walk in range(number):
                        if _uniform(_mixed(draw)) < restart:
                            at[walk] = node
                        draw += _INCREMENT
                draw = _cross(item_offsets, item_neighbours, at, edges, draw, node, in_item)
                draw = _cross(group_offsets, group_neighbours, at, edges, draw, group, in_group)
                for item in at:
                    if item == node:
                        continue
                    slot = np.int64((np.uint64(item) * _INCREMENT) >> np.uint64(64 - bits))
                    while table[slot] != item and table[slot] >= 0:
                        slot = (slot + 1) % 2**bits
                    if table[slot] < 0:
                        table[slot] = item
                        slots[distinct] = slot
                        distinct += 1
                    counts[slot] += 1
        for i in range(distinct):  # larger with more visits and, of as many, for a lower item
            slot = slots[i]
            found[i] = (np.uint64(counts[slot]) << _32) | (_LOW - np.uint64(table[slot]))
            table[slot] = -1
            counts[slot] = 0
        kept = _keep_largest(found[:distinct], ids.shape[1])
        total = 0
        for i in range(len(kept)):
            total += np.int64(kept[i] >> _32)
        for i in range(len(kept)):
            ids[row, i] = np.int64(_LOW - (kept[i] & _LOW))
            weights[row, i] = np.int64(kept[i] >> _32) / total
        ids[row, len(kept) :] = -1
        weights[row, len(kept) :] = 0


@compiled
def _position(offsets, neighbours, node, neighbour):
    """The place of a neighbour among those of a node, or -1."""
    of_node = neighbours[offsets[node] : offsets[node + 1]]
    place = np.searchsorted(of_node, neighbour)
    return place if place < len(of_node) and of_node[place] == neighbour else -1


@compiled
def _cross(offsets, neighbours, at, edges, draw, node, left_out):
    """Moves all walks to random neighbours on the other side.

    Edges are drawn before any is looked up: no walk waits for another one's memory.

    Args:
      offsets: of the side.
      neighbours: of the side.
      at: where the walks are; changed.
      edges: scratch.
      draw: state of the random numbers.
      node: one of the side.
      left_out: the place among its neighbours that is not drawn, or -1.

    Returns:
      the state of the random numbers.
    """
    for walk in range(len(at)):
        first = offsets[at[walk]]
        degree = offsets[at[walk] + 1] - first
        if left_out >= 0 and at[walk] == node:
            place = np.int64(_uniform(_mixed(draw)) * (degree - 1))
            place += place >= left_out
        else:
            place = np.int64(_uniform(_mixed(draw)) * degree)
        edges[walk] = first + place
        draw += _INCREMENT
    for walk in range(len(at)):
        at[walk] = neighbours[edges[walk]]
    return draw


@compiled
def _keep_largest(values, count):
    """The `count` largest values, or all if they are fewer, largest first; changes `values`."""
    if len(values) > count:
        heap = values[:count]  # the smallest on top
        for top in range(count // 2 - 1, -1, -1):
            _sift(heap, top)
        for value in values[count:]:
            if value > heap[0]:
                heap[0] = value
                _sift(heap, 0)
        values = heap
    return np.sort(values)[::-1]


@compiled
def _sift(heap, top):
    """Moves the value at `top` of a heap down to where it belongs."""
    value = heap[top]
    child = 2 * top + 1
    while child < len(heap):
        if child + 1 < len(heap) and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[top] = heap[child]
        top, child = child, 2 * child + 1
    heap[top] = value
