"""Hard negatives by forward push and by counting visits of walks, against exact PageRank.

    python -m benchmarks.pagerank --data=DIR      # of DIR/{pinterest_graph,gowalla}/edges.parquet

Of 40 random items each: the items ranked 2,001 to 5,000 by personalised PageRank from it, as each
method finds them, and which of them are so by power iteration in float64. Those that are nearer by
rights may be positives; those that are further away are merely easier. Time is the process's own,
with one thread, and without compiling. Walks are of 30 steps.
"""

import functools
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import scipy.sparse
from absl import app, flags

from benchmarks import graphs
from pinjax.graph import csr
from pinjax.graph.pagerank import PageRank, ranked
from pinjax.graph.walks import Walks, neighbourhoods

_DATA = flags.DEFINE_string("data", None, "directory of the raw sets", required=True)

NODES, FIRST, LAST = 40, 2001, 5000
STEPS = 30
RESTARTS = (0.15, 0.3, 0.5)
EPSILONS = (1e-6, 3e-7, 1e-7, 1e-8)
NUMBERS = (3_000, 10_000, 30_000, 100_000)


def exact_ranks(graph: csr.Graph, nodes: np.ndarray, restart: float) -> np.ndarray:
    """Ranks of all items from each node, int (n, items); 0 of the node itself."""
    to_groups, to_items = (
        scipy.sparse.csr_array(
            (np.repeat(1 / np.maximum(degrees, 1), degrees), side.neighbours, side.offsets),
            (len(degrees), len(other.offsets) - 1),
        ).T.tocsr()
        for side, other, degrees in (
            (graph.items, graph.groups, np.diff(graph.items.offsets)),
            (graph.groups, graph.items, np.diff(graph.groups.offsets)),
        )
    )
    at = np.zeros((len(graph.items.offsets) - 1, len(nodes)))
    at[nodes, np.arange(len(nodes))] = 1
    scores, weight = 0, restart
    while weight > 1e-15:
        scores += weight * at
        at = to_items @ (to_groups @ at)
        weight *= 1 - restart
    scores[nodes, np.arange(len(nodes))] = np.inf
    return np.argsort(np.argsort(-scores, axis=0, kind="stable"), axis=0).T


def methods(graph: csr.Graph, restart: float) -> Iterator[tuple[str, Callable]]:
    """Names and functions from nodes to the items of the window, padded with -1."""
    count = LAST - FIRST + 1

    def pushed(epsilon, nodes):
        pagerank = PageRank(restart, epsilon)
        return ranked(graph, nodes, pagerank, FIRST, LAST, count, 0, threads=1)[0]

    def walked(number, nodes):
        walks = Walks(number, STEPS, restart, LAST)
        return neighbourhoods(graph, nodes, walks, 0, threads=1).ids[:, FIRST - 1 :]

    for epsilon in EPSILONS:
        yield f"push, epsilon {epsilon:g}", functools.partial(pushed, epsilon)
    for number in NUMBERS:
        yield f"{number:,} walks", functools.partial(walked, number)


def main(_):
    print(f"{'':<24}{'ms/item':>9}{'right':>9}{'nearer':>9}")
    for name in graphs.ITEM_COLUMNS:
        with tempfile.TemporaryDirectory() as directory:
            graphs.public(name, pathlib.Path(_DATA.value), directory)
            graph = csr.read(directory)
        nodes = np.flatnonzero(np.diff(graph.items.offsets))
        nodes = np.random.default_rng(0).choice(nodes, NODES, replace=False)
        for restart in RESTARTS:
            print(f"\n{name}, restart {restart}")
            ranks = exact_ranks(graph, nodes, restart)
            for method, find in methods(graph, restart):
                find(nodes[:1])  # compiles
                start = time.process_time()
                found = find(nodes)
                milliseconds = 1000 * (time.process_time() - start) / NODES
                of_found = np.where(found < 0, LAST + 1, np.take_along_axis(ranks, found, axis=1))
                right = np.sum((of_found >= FIRST) & (of_found <= LAST)) / found.size
                nearer = np.mean(of_found < FIRST)
                print(f"{method:<24}{milliseconds:9.1f}{right:9.3f}{nearer:9.3f}", flush=True)


if __name__ == "__main__":
    app.run(main)
