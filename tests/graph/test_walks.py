"""Walks against exact probabilities, and against graphs from which edges were deleted."""

import concurrent.futures

import numba.core.caching
import numpy as np
import pytest
import scipy.stats

from pinjax.graph.compiled import compiled
from pinjax.graph.walks import Walks, neighbourhoods
from tests.graph.graphs import graph_of, random_edges, transitions


def visits(step, node, steps, restart):
    """Mean (items,) and covariance (items, items) of the visits of a walk to each item."""
    later = (1 - restart) * step + restart * step[node]
    at = [step[node]]
    while len(at) < steps:
        at.append(at[-1] @ later)
    mean = sum(at)
    products = sum(np.diag(one) for one in at)
    for i in range(steps):
        for j in range(i + 1, steps):
            both = np.diag(at[i]) @ np.linalg.matrix_power(later, j - i)
            products = products + both + both.T
    return mean, products - np.outer(mean, mean)


@pytest.mark.parametrize(("steps", "restart"), [(1, 0.0), (3, 0.0), (4, 0.4)])
@pytest.mark.parametrize("avoided", [False, True])
def test_visits_follow_exact_probabilities(rng, steps, restart, avoided):
    """A chi-square test with the exact covariance of visits, which depend on each other."""
    items, groups, number = 7, 6, 200_000
    edges = random_edges(rng, items, groups, 0.5)
    node = int(edges[0, 0])
    avoid = int(edges[0, 1]) if avoided else -1
    left = edges[1:] if avoided else edges
    found = neighbourhoods(
        graph_of(edges, items, groups), [node], Walks(number, steps, restart, items), 1, [avoid]
    )
    shares = np.zeros(items)
    shares[found.ids[found.ids >= 0]] = found.weights[found.ids >= 0]
    mean, covariance = visits(transitions(left, items, groups), node, steps, restart)
    mean[node] = covariance[node] = covariance[:, node] = 0  # not counted
    expected = mean / mean.sum()
    # The derivative of shares with respect to visits; their number is large.
    shared = (np.eye(items) - expected[:, None]) / mean.sum()
    covariance = shared @ covariance @ shared.T / number
    statistic = (shares - expected) @ np.linalg.pinv(covariance, 1e-9) @ (shares - expected)
    freedom = np.linalg.matrix_rank(covariance, 1e-9 * np.abs(covariance).max())
    assert freedom >= 4
    assert scipy.stats.chi2.sf(statistic, freedom) > 1e-3


def test_an_avoided_edge_is_as_if_it_was_deleted(rng):
    items, groups = 12, 9
    edges = random_edges(rng, items, groups, 0.3)
    graph, walks = graph_of(edges, items, groups), Walks(20, 4, 0.2, 5)
    found = neighbourhoods(graph, edges[:, 0], walks, 3, edges[:, 1])
    for row, (node, _) in enumerate(edges):
        without = graph_of(np.delete(edges, row, 0), items, groups)
        expected = neighbourhoods(without, [node], walks, 3)
        np.testing.assert_array_equal(found.ids[row], expected.ids[0])
        np.testing.assert_array_equal(found.weights[row], expected.weights[0])
    no_edges = np.argwhere(~np.isin(np.arange(items * groups), edges @ [groups, 1]))
    node, group = np.divmod(no_edges[:, 0], groups)
    found = neighbourhoods(graph, node, walks, 3, group)
    np.testing.assert_array_equal(found.ids, neighbourhoods(graph, node, walks, 3).ids)


def test_rows_depend_on_nothing_but_seed_stream_and_node(rng):
    items, groups = 300, 200
    graph = graph_of(random_edges(rng, items, groups, 0.05), items, groups)
    nodes, walks = np.arange(items), Walks(20, 3, 0.1, 8)
    full = neighbourhoods(graph, nodes, walks, 5, threads=1)

    def assert_equal(found, expected):
        for one, other in zip(found, expected, strict=True):
            assert one.tobytes() == np.ascontiguousarray(other).tobytes()

    assert_equal(neighbourhoods(graph, nodes, walks, 5, threads=8), full)
    shard = nodes[100:150][::-1]
    assert_equal(neighbourhoods(graph, shard, walks, 5), [part[shard] for part in full])
    assert_equal(neighbourhoods(graph, nodes, walks, 5, streams=nodes), full)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:  # as from the threads of the input
        for found in pool.map(lambda _: neighbourhoods(graph, nodes, walks, 5), range(8)):
            assert_equal(found, full)
    for other in (
        neighbourhoods(graph, nodes, walks, 6),
        neighbourhoods(graph, nodes, walks, 5, streams=nodes + 1),
    ):
        assert np.mean(np.all(other.ids == full.ids, axis=1)) < 0.1


def test_ties_go_to_the_lower_item(rng):
    items, groups = 40, 5
    graph = graph_of(random_edges(rng, items, groups, 0.6), items, groups)
    every, few = (
        neighbourhoods(graph, np.arange(items), Walks(30, 2, 0.0, top), 0) for top in (items, 6)
    )
    for ids, weights in zip(*every, strict=True):
        known = ids >= 0
        assert len(np.unique(weights[known])) < known.sum()  # there are ties
        order = np.lexsort((ids[known], -weights[known]))
        np.testing.assert_array_equal(order, np.arange(known.sum()))
        np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
    np.testing.assert_array_equal(few.ids, every.ids[:, :6])
    kept = every.weights[:, :6]
    np.testing.assert_allclose(few.weights, kept / kept.sum(1, keepdims=True), rtol=1e-6)


def test_nodes_without_neighbours():
    """Item 0 has no group, 1 one of its own, 2 and 3 share one that has nobody else, 4 has two."""
    edges = [(1, 0), (2, 1), (3, 1), (4, 2), (4, 3)]
    graph, walks = graph_of(edges, 5, 5), Walks(4, 3, 0.5, 2)
    found = neighbourhoods(graph, [0, 1, 2, 3, 4, 2, 3], walks, 0, [-1, -1, -1, -1, -1, 1, 4])
    expected = [[-1, -1], [-1, -1], [3, -1], [2, -1], [-1, -1], [-1, -1], [2, -1]]
    np.testing.assert_array_equal(found.ids, expected)
    np.testing.assert_array_equal(found.weights, np.asarray(expected) >= 0)
    for lonely in (graph_of([], 3, 0), graph_of([], 3, 2)):
        found = neighbourhoods(lonely, [0, 2], walks, 0)
        assert np.all(found.ids == -1)
        assert np.all(found.weights == 0)
    assert neighbourhoods(graph, [], walks, 0).ids.shape == (0, 2)
    for nodes, avoid in (([2, 5], [0, 0]), ([2, 3], [1, 5])):
        with pytest.raises(IndexError, match="to 5: expected"):
            neighbourhoods(graph, nodes, walks, 0, avoid)


@pytest.mark.parametrize("side", ["item", "group"])
def test_a_node_with_a_million_neighbours(side):
    """Each of them is as likely: counted by thousandths of them, all within a chi-square bound."""
    leaves = 1_000_000
    if side == "group":  # a group has all items
        edges = np.stack([np.arange(leaves), np.zeros(leaves, int)], 1)
        graph, node = graph_of(edges, leaves, 1), 7
    else:  # item 0 is in all groups, with one other item each
        edges = np.stack([np.repeat([0, 1], leaves), np.tile(np.arange(leaves), 2)], 1)
        edges[leaves:, 0] += np.arange(leaves)
        graph, node = graph_of(edges, leaves + 1, leaves), 0
    number = 300_000
    found = neighbourhoods(graph, [node], Walks(number, 1, 0.0, number), 0)
    known = found.ids >= 0
    counts = np.rint(found.weights[known] / found.weights[known].min())
    bins = np.bincount(found.ids[known] * 1000 // (leaves + 1), counts, 1000)
    assert scipy.stats.chisquare(bins).pvalue > 1e-3
    from_a_leaf = neighbourhoods(graph, [leaves - 1], Walks(50, 3, 0.2, 50), 0)
    assert from_a_leaf.ids[0, 0] >= 0


def test_compiles_where_nothing_can_be_cached(monkeypatch):
    monkeypatch.setattr(numba.core.caching.CacheImpl, "_locator_classes", [])
    assert compiled(lambda x: x + 1)(1) == 2
