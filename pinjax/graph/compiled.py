"""What functions that Numba compiles need around them."""

import concurrent.futures
import os
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from pinjax.graph import csr


def compiled(function: Callable, **options: Any) -> Callable:
    """Compiles a function when it is first called; it runs without Python's lock.

    It may call compiled functions of its own module alone: the cache does not notice that another
    module has changed.

    Threads are ours, by `over_ranges`, and not those of Numba's `parallel`: of its layers OpenMP
    ends a process that forks later, workqueue one that calls it from two threads at once, as the
    input pipeline does, and TBB would be one more dependency.

    Args:
      function: to compile.
      options: more of `numba.njit`.
    """
    try:
        return numba.njit(nogil=True, cache=True, **options)(function)
    except RuntimeError:  # neither the package nor the user's cache directory can be written
        return numba.njit(nogil=True, **options)(function)


def read_only(array: np.ndarray) -> np.ndarray:
    """A view of an array or a memory map, of one type, so that functions are compiled once."""
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


def arrays_of(graph: csr.Graph) -> list[np.ndarray]:
    """Offsets and neighbours of items and of groups, by `read_only`."""
    sides = (graph.items, graph.groups)
    return [read_only(array) for side in sides for array in (side.offsets, side.neighbours)]


def nodes_of(side: csr.Side, nodes: np.ndarray, first: int = 0) -> np.ndarray:
    """Nodes of a side as int32, by `read_only`, checked since compiled functions check no bounds.

    Raises:
      IndexError: if one is below `first`, or is not in the graph.
    """
    nodes = read_only(np.ascontiguousarray(nodes, np.int32))
    end = len(side.offsets) - 1
    if len(nodes) and not first <= nodes.min() <= nodes.max() < end:
        raise IndexError(f"{nodes.min()} to {nodes.max()}: expected {first} to {end - 1}")
    return nodes


def over_ranges(function: Callable[[int, int], None], rows: int, threads: int | None) -> None:
    """Calls `function(start, stop)` on ranges that make up all rows.

    Args:
      function: releases Python's lock.
      rows: number of rows.
      threads: that run it; as many as this process has cores if None.
    """
    threads = threads or len(os.sched_getaffinity(0))
    if threads == 1:
        function(0, rows)
        return
    ranges = 4 * threads  # so that all end at about the same time
    bounds = [rows * part // ranges for part in range(ranges + 1)]
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        list(pool.map(function, bounds[:-1], bounds[1:]))
