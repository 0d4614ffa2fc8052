"""Parts of a graph against the graph of a part of its edges."""

import numpy as np

from pinjax.graph import csr
from tests.graph.graphs import graph_of, random_edges

ITEMS, GROUPS = 30, 12


def test_the_edges_of_some_items(rng):
    edges = random_edges(rng, ITEMS, GROUPS, 0.2)
    graph, keep = graph_of(edges, ITEMS, GROUPS), rng.random(ITEMS) < 0.6
    found = csr.of_items(graph, keep)
    expected = graph_of(edges[keep[edges[:, 0]]], ITEMS, GROUPS)
    for side in ("items", "groups"):
        for name in ("offsets", "neighbours"):
            array, of_part = (getattr(getattr(g, side), name) for g in (found, expected))
            np.testing.assert_array_equal(array, of_part)
            assert array.dtype == getattr(getattr(graph, side), name).dtype


def test_a_graph_is_itself_if_no_edge_is_left_out(rng):
    edges = random_edges(rng, ITEMS, GROUPS, 0.2)
    graph = graph_of(edges[edges[:, 0] > 2], ITEMS, GROUPS)
    assert csr.of_items(graph, np.arange(ITEMS) > 2) is graph
