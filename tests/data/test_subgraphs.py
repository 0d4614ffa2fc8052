"""Subgraphs against a recursion over dictionaries."""

import numpy as np
import pytest

from pinjax.data import subgraphs
from pinjax.graph.walks import Neighbours


def table_of(rng, items, top):
    """Random neighbourhoods, some shorter than others."""
    ids = rng.integers(items, size=(items, top)).astype(np.int32)
    ids[np.arange(top) >= rng.integers(top + 1, size=items)[:, None]] = -1
    weights = np.where(ids >= 0, rng.random(ids.shape), 0).astype(np.float32)
    return Neighbours(ids, weights)


def convolved(node, near, table, features, layers, is_end=False):
    """A convolution that adds what neighbours send, by recursion."""
    if node < 0:
        return 0
    if not layers:
        return features[node]
    ids, weights = near
    below = near if is_end else (table.ids[node], table.weights[node])
    below = convolved(node, below, table, features, layers - 1, is_end)
    return below + sum(
        w * convolved(i, (table.ids[i], table.weights[i]), table, features, layers - 1)
        for i, w in zip(ids, weights, strict=True)
        if i >= 0
    )


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("ends", [0, 4])
def test_targets_depend_on_what_the_recursion_reads(rng, ends, layers):
    items, top = 40, 3
    table, features = table_of(rng, items, top), rng.normal(size=items)
    targets = np.append(rng.integers(items, size=6), [-1, 4, 4]).astype(np.int32)
    targets[1] = targets[0]  # twice, each time with neighbours of its own
    near = subgraphs.rows(table_of(rng, items, top), targets)  # not those of the table
    near.ids[-1] = -1
    sizes = subgraphs.most_nodes(len(targets), ends, layers, top, items)
    graph = subgraphs.sample(targets, ends, near, table, sizes)
    assert [len(hop.own) for hop in graph.hops] == [*reversed(sizes), len(targets)][1:]
    values = np.where(graph.nodes >= 0, features[graph.nodes], 0)
    for hop in graph.hops:
        sent = np.where(hop.neighbours >= 0, values[hop.neighbours], 0)
        values = values[hop.own] + (hop.weights * sent).sum(axis=1)
    expected = [
        convolved(node, (i, w), table, features, layers, is_end=row < ends)
        for row, (node, i, w) in enumerate(zip(targets, *near, strict=True))
    ]
    np.testing.assert_allclose(values[targets >= 0], np.array(expected)[targets >= 0], rtol=1e-6)
    inputs = graph.nodes[graph.nodes >= 0]
    assert len(np.unique(inputs)) == len(inputs) or not layers
    if layers:
        counted = subgraphs.count(targets, ends, near, table, layers)
        assert counted[-1] == len(inputs)
        exact = subgraphs.sample(targets, ends, near, table, counted)
        assert [(hop.neighbours >= 0).sum() for hop in exact.hops] == [
            (hop.neighbours >= 0).sum() for hop in graph.hops
        ]


def test_the_lightest_neighbours_are_left_out_where_there_is_no_room():
    targets = np.array([0, 1], np.int32)
    near = Neighbours(
        np.array([[5, 6, 7], [7, 8, -1]], np.int32),
        np.array([[0.5, 0.3, 0.2], [0.6, 0.4, 0]], np.float32),
    )
    nodes, (hop,) = subgraphs.sample(targets, 0, near, near, [5])
    assert sorted(nodes) == [0, 1, 5, 7, 8]  # 6 has the least weight
    np.testing.assert_array_equal(nodes[hop.own], targets)
    kept = hop.neighbours >= 0
    np.testing.assert_array_equal(kept, [[True, False, True], [True, True, False]])
    np.testing.assert_array_equal(nodes[hop.neighbours[kept]], near.ids[kept])
    weights = np.where(kept, near.weights, 0)
    np.testing.assert_allclose(hop.weights, weights / weights.sum(axis=1, keepdims=True), rtol=1e-6)


def test_distinct_ids_keep_their_order(rng):
    ids = np.append(rng.integers(-1, 50, size=200), [2**31 - 1, -1, 2**31 - 1]).astype(np.int32)
    found, places = subgraphs.distinct(ids)
    assert found.tolist() == list(dict.fromkeys(x for x in ids.tolist() if x >= 0))
    np.testing.assert_array_equal(np.where(places >= 0, found[places], -1), ids)


def test_a_list_without_room_for_the_nodes_themselves_is_refused():
    near = Neighbours(np.array([[1], [2], [0]], np.int32), np.ones((3, 1), np.float32))
    with pytest.raises(ValueError, match="3 nodes do not fit into 2"):
        subgraphs.sample(np.arange(3, dtype=np.int32), 0, near, near, [2])
