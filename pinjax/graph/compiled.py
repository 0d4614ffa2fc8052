"""What functions that Numba compiles need around them."""

import concurrent.futures
import os
from collections.abc import Callable

import numba
import numpy as np


def compiled(function: Callable) -> Callable:
    """Compiles a function when it is first called; it runs without Python's lock.

    It may call compiled functions of its own module alone: the cache does not notice that another
    module has changed.

    Threads are ours, by `over_ranges`, and not those of Numba's `parallel`: of its layers OpenMP
    ends a process that forks later, workqueue one that calls it from two threads at once, as the
    input pipeline does, and TBB would be one more dependency.
    """
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:  # neither the package nor the user's cache directory can be written
        return numba.njit(nogil=True)(function)


def read_only(array: np.ndarray) -> np.ndarray:
    """A view of an array or a memory map, of one type, so that functions are compiled once."""
    view = np.asarray(array).view()
    view.flags.writeable = False
    return view


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
