"""Random walks: steps a second and core, and memory, beside the same walks in NumPy.

    python -m benchmarks.walks --data=DIR [--edges=100000000] [--workdir=work/walks]

DIR has pinterest_graph/edges.parquet. The other graph is random, of --edges edges, each of which
takes 8 bytes in --workdir until the end.

A step is from an item to a group and on to an item. Walks are of 5 steps, 100 or 400 from each
item, with a restart of 0.15, and the 50 items visited most are kept. Steps are counted for a second
of the process's own time, with one thread, the best of several repetitions over 10,000 or 50,000
random items; compiling is not counted. NumPy takes each step for all walks of 256 items at once,
and sorts their visits.

Memory is the most that a process had (ru_maxrss) that opened the graph and walked on it before
NumPy did. Pages of the graph's files that it touched count.
"""

import concurrent.futures
import multiprocessing
import pathlib
import resource
import tempfile
import time

import numpy as np
from absl import app, flags

from benchmarks import graphs
from pinjax.graph import csr
from pinjax.graph.walks import Neighbours, Walks, neighbourhoods

_DATA = flags.DEFINE_string("data", None, "directory of the raw sets", required=True)
_EDGES = flags.DEFINE_integer("edges", 100_000_000, "of the random graph")
_WORKDIR = flags.DEFINE_string("workdir", "work/walks", "where graphs are written; removed after")

STEPS, RESTART, TOP = 5, 0.15, 50
NUMPY_NODES = 256  # at a time


def numpy_neighbourhoods(
    graph: csr.Graph, nodes: np.ndarray, walks: Walks, rng: np.random.Generator
) -> Neighbours:
    """The same, of a few nodes that have edges; equally visited items by row, too."""
    start = np.repeat(nodes, walks.number)
    rows = np.repeat(np.arange(len(nodes)), walks.number)
    at, visited = start, []
    for step in range(walks.steps):
        if step > 0:
            at = np.where(rng.random(len(at)) < walks.restart, start, at)
        for side in (graph.items, graph.groups):
            offsets, neighbours = np.asarray(side.offsets), np.asarray(side.neighbours)
            degrees = offsets[at + 1] - offsets[at]
            at = neighbours[offsets[at] + (rng.random(len(at)) * degrees).astype(np.int64)]
        visited.append((rows.astype(np.int64) << 32 | at)[at != start])
    keys, counts = np.unique(np.concatenate(visited), return_counts=True)
    rows, items = keys >> 32, keys & (2**32 - 1)
    order = np.lexsort((items, -counts, rows))
    rows, items, counts = rows[order], items[order], counts[order]
    rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
    kept = rank < walks.top
    ids = np.full((len(nodes), walks.top), -1, np.int32)
    weights = np.zeros((len(nodes), walks.top), np.float32)
    ids[rows[kept], rank[kept]] = items[kept]
    weights[rows[kept], rank[kept]] = counts[kept]
    return Neighbours(ids, weights / np.maximum(weights.sum(1, keepdims=True), 1))


def measure(directory: pathlib.Path, number: int, count: int, repetitions: int) -> tuple:
    """Steps a second of NumPy and of pinjax; peak memory before NumPy walked."""
    graph, walks = csr.read(directory), Walks(number, STEPS, RESTART, TOP)
    rng = np.random.default_rng(0)
    nodes = rng.integers(0, len(graph.items.offsets) - 1, count, np.int32)
    nodes = nodes[graph.items.offsets[nodes + 1] > graph.items.offsets[nodes]]
    neighbourhoods(graph, nodes[:1], walks, 0, threads=1)  # compiles
    steps = number * STEPS
    compiled = []
    for seed in range(repetitions):
        start = time.process_time()
        neighbourhoods(graph, nodes, walks, seed, threads=1)
        compiled.append(len(nodes) * steps / (time.process_time() - start))
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    of_numpy = []
    for first in range(0, min(len(nodes), 8 * NUMPY_NODES), NUMPY_NODES):
        some = nodes[first : first + NUMPY_NODES]
        start = time.process_time()
        numpy_neighbourhoods(graph, some, walks, rng)
        of_numpy.append(len(some) * steps / (time.process_time() - start))
    return max(of_numpy), max(compiled), memory


def main(_):
    pathlib.Path(_WORKDIR.value).mkdir(parents=True, exist_ok=True)
    raw = pathlib.Path(_DATA.value)
    with tempfile.TemporaryDirectory(dir=_WORKDIR.value) as temporary:
        made = pathlib.Path(temporary)
        alone(graphs.public, "pinterest_graph", raw, made / "pinterest_graph")
        alone(graphs.random, _EDGES.value, made / "random")
        print(f"{'million steps a second':>42}{'memory':>17}{'graph':>9}")
        print(f"{'graph':<18}{'walks':>6}{'NumPy':>9}{'pinjax':>9}{'ratio':>8}{'GiB':>9}{'GiB':>9}")
        for name, count, repetitions in (("pinterest_graph", 10_000, 7), ("random", 50_000, 3)):
            size = sum(path.stat().st_size for path in (made / name).iterdir())
            for number in (100, 400):
                of_numpy, rate, memory = alone(measure, made / name, number, count, repetitions)
                print(f"{name:<18}{number:>6}{of_numpy / 1e6:9.2f}{rate / 1e6:9.1f}", end="")
                print(f"{rate / of_numpy:8.1f}{memory / 2**30:9.2f}{size / 2**30:9.2f}")
    print("a step is item -> group -> item: two edges, so edges a second are twice as many")


def alone(function, *args):
    """What a function returns in a process of its own; graphs come back by their files."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn) as pool:
        return pool.submit(function, *args).result()


if __name__ == "__main__":
    app.run(main)
