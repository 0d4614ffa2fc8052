"""Small graphs, and what is known of them exactly."""

import numpy as np

from pinjax.graph import csr


def graph_of(edges, items, groups):
    """A graph in memory."""
    edges = np.unique(np.asarray(edges, np.int64).reshape(-1, 2), axis=0)
    sides = []
    for nodes, own, other in ((items, 0, 1), (groups, 1, 0)):
        ordered = edges[np.lexsort((edges[:, other], edges[:, own]))]
        degrees = np.bincount(ordered[:, own], minlength=nodes)
        offsets = np.concatenate([[0], np.cumsum(degrees)])
        sides.append(csr.Side(offsets, ordered[:, other].astype(np.int32)))
    return csr.Graph(*sides)


def random_edges(rng, items, groups, density):
    return np.argwhere(rng.random((items, groups)) < density)


def transitions(edges, items, groups):
    """Of a step from item to item, float64 (items, items)."""
    adjacent = np.zeros((items, groups))
    adjacent[tuple(np.transpose(edges))] = 1
    to_groups = adjacent / np.maximum(adjacent.sum(1, keepdims=True), 1)
    to_items = adjacent.T / np.maximum(adjacent.sum(0)[:, None], 1)
    return to_groups @ to_items
