"""Applies compiled functions to more rows than fit in one call."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pinjax import signals
from pinjax.errors import InputError


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
    total = len(jax.tree.leaves(arrays)[0])
    results = []
    for start in range(0, total, size):
        signals.check()
        rows = np.minimum(np.arange(start, start + size), total - 1)
        result = function(jax.tree.map(lambda x, rows=rows: x[rows], arrays))
        results.append(jax.tree.map(lambda x, n=total - start: np.asarray(x)[:n], result))
    joined = jax.tree.map(lambda *x: np.concatenate(x), *results)
    if any(np.isnan(x).any() for x in jax.tree.leaves(joined)):
        raise InputError("an embedding is NaN, so some parameters are, too")
    return joined
