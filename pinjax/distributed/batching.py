"""Applies compiled functions to more rows than fit in one call."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np

from pinjax import signals
from pinjax.errors import InputError

_IN_FLIGHT = 2  # batches of which a device computes one while the host makes the other


def in_batches(function: Callable[[Any], Any], arrays: Any, size: int) -> Any:
    """Applies a compiled function to the rows of arrays, `size` at a time.

    Args:
      function: from a pytree of arrays of `size` rows to another.
      arrays: pytree of arrays with equally many rows; the last batch repeats the last row.
      size: rows of a batch.

    Returns:
      NumPy arrays with a row for each row of `arrays`.

    Raises:
      InputError: if a result is NaN.
      Stopped: after a signal.
    """
    return over_parts(function, [arrays], size)


def over_parts(function: Callable[[Any], Any], parts: Iterable[Any], size: int) -> Any | None:
    """`in_batches` of the rows of all parts, which are read one after the other; None for none."""
    return of_batches(function, _batches(parts, size))


def of_batches(function: Callable[[Any], Any], batches: Iterable[tuple[Any, Any]]) -> Any | None:
    """Applies a compiled function to batches; None for none.

    Args:
      function: from a batch to a pytree of arrays.
      batches: and the rows of their results that count, a slice or int (rows,).

    Returns:
      NumPy arrays with these rows of all results.

    Raises:
      InputError: if a result is NaN.
      Stopped: after a signal.
    """
    waiting, results = collections.deque(), []

    def fetch() -> None:
        result, rows = waiting.popleft()
        results.append(jax.tree.map(lambda x: np.asarray(x)[rows], result))

    for batch, rows in batches:
        signals.check()
        waiting.append((function(batch), rows))
        if len(waiting) == _IN_FLIGHT:
            fetch()
    while waiting:
        fetch()
    if not results:
        return None
    joined = jax.tree.map(lambda *x: np.concatenate(x), *results)
    if any(np.isnan(x).any() for x in jax.tree.leaves(joined)):
        raise InputError("an embedding is NaN, so some parameters are, too")
    return joined


def ahead(values: Iterable[Any]) -> Iterator[Any]:
    """The values, of which a thread makes the next one while one is used."""
    values, end = iter(values), object()
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, values, end)
        while (value := following.result()) is not end:
            following = thread.submit(next, values, end)
            yield value


def _batches(parts: Iterable[Any], size: int) -> Iterator[tuple[Any, slice]]:
    """Batches of `size` rows, and those of them that are no padding."""
    left, rows = None, 0
    for part in parts:
        left = part if not rows else jax.tree.map(lambda *x: np.concatenate(x), left, part)
        rows, start = len(jax.tree.leaves(left)[0]), 0
        while rows >= size:
            yield jax.tree.map(lambda x, start=start: x[start : start + size], left), slice(None)
            start, rows = start + size, rows - size
        left = jax.tree.map(lambda x, start=start: x[start:], left)
    if rows:
        padded = np.minimum(np.arange(size), rows - 1)
        yield jax.tree.map(lambda x: x[padded], left), slice(rows)
