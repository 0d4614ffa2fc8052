"""Ranks by personalised PageRank against a dense solve."""

import numpy as np
import pytest

from pinjax.graph.pagerank import PageRank, ranked
from tests.graph.graphs import graph_of, random_edges, transitions

ITEMS, GROUPS = 40, 30


def exact(edges, node, restart):
    """By solving for where a walk is in the long run, float64 (items,)."""
    step = transitions(edges, ITEMS, GROUPS)
    start = restart * np.eye(ITEMS)[node]
    return np.linalg.solve(np.eye(ITEMS) - (1 - restart) * step.T, start)


@pytest.mark.parametrize("restart", [0.15, 0.5])
def test_ranks_are_those_of_a_dense_solve(rng, restart):
    edges = random_edges(rng, ITEMS, GROUPS, 0.1)
    graph, nodes = graph_of(edges, ITEMS, GROUPS), np.arange(ITEMS)
    by_rank = [
        ranked(graph, nodes, PageRank(restart, 1e-12), rank, rank, 1, 0)[0][:, 0]
        for rank in range(1, ITEMS)
    ]
    for node, order in zip(nodes, np.transpose(by_rank), strict=True):
        scores = exact(edges, node, restart)
        reached = np.flatnonzero((scores > 1e-14) & (nodes != node))
        found = order[order >= 0]
        np.testing.assert_array_equal(np.sort(found), reached)
        assert np.all(np.diff(scores[found]) < 1e-6 * scores[found[:-1]])
        np.testing.assert_array_equal(order[len(found) :], -1)


def test_a_coarse_push_finds_most_of_the_best(rng):
    edges = random_edges(rng, ITEMS, GROUPS, 0.1)
    graph, nodes = graph_of(edges, ITEMS, GROUPS), np.unique(edges[:, 0])
    found, _ = ranked(graph, nodes, PageRank(0.5, 1e-3), 1, 5, 5, 0)
    best = [np.argsort(-exact(edges, node, 0.5) * (np.arange(ITEMS) != node)) for node in nodes]
    shares = [np.isin(best[row][:5], found[row]).mean() for row in range(len(nodes))]
    assert np.mean(shares) > 0.9


def test_picks_are_random_and_depend_on_nothing_but_seed_and_node(rng):
    graph = graph_of(random_edges(rng, ITEMS, GROUPS, 0.2), ITEMS, GROUPS)
    nodes, pagerank = np.arange(ITEMS), PageRank(0.5, 1e-6)
    window, _ = ranked(graph, nodes, pagerank, 5, 14, 10, 0)
    some, _ = ranked(graph, nodes, pagerank, 5, 14, 3, 1, threads=1)
    for row in nodes:
        assert len(np.unique(window[row])) == 10
        assert len(np.unique(some[row])) == 3
        assert row not in window[row]
        assert np.all(np.isin(some[row], window[row]))
    np.testing.assert_array_equal(ranked(graph, nodes, pagerank, 5, 14, 3, 1, threads=8)[0], some)
    shard = nodes[10:20][::-1]
    np.testing.assert_array_equal(ranked(graph, shard, pagerank, 5, 14, 3, 1)[0], some[shard])
    seeds = [ranked(graph, [0], pagerank, 5, 14, 3, seed)[0][0] for seed in range(1000)]
    picks = np.unique_counts(np.ravel(seeds))
    assert len(picks.values) == 10
    assert np.all(np.abs(picks.counts - 300) < 5 * np.sqrt(1000 * 0.3 * 0.7))


def test_equal_items_are_ranked_by_row_and_missing_ones_are_padding():
    """Items 0 to 3 share a group; 4 has one of its own, and 5 has none."""
    graph = graph_of([(0, 0), (1, 0), (2, 0), (3, 0), (4, 1)], 6, 2)
    for rank, expected in ((1, [1, 0, 0, -1, -1]), (3, [3, 3, 2, -1, -1]), (4, [-1] * 5)):
        found, available = ranked(graph, [0, 1, 3, 4, 5], PageRank(0.5, 1e-9), rank, rank, 1, 0)
        np.testing.assert_array_equal(found[:, 0], expected)
        np.testing.assert_array_equal(available, np.array(expected) >= 0)
    found, available = ranked(graph, [0, 3, 4], PageRank(0.5, 1e-9), 2, 9, 4, 0)
    np.testing.assert_array_equal(np.sort(found[0]), [-1, -1, 2, 3])
    np.testing.assert_array_equal(available, [2, 2, 0])
    with pytest.raises(IndexError, match="to 6: expected"):
        ranked(graph, [0, 6], PageRank(0.5, 1e-9), 1, 1, 1, 0)
