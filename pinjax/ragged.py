"""Lists of different lengths, one after the other in an array, and lengths to pad to."""

import numpy as np


def offsets_of(counts: np.ndarray) -> np.ndarray:
    """The cumulative sums of counts, from 0: int64 (len(counts) + 1,)."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def positions(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`first`, `first + 1` and so on, `counts` of them, for each list: int64 (sum(counts),)."""
    return np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)


def places_of(ascending: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The places of values in an ascending array, as (row of the value, place), by row."""
    first, last = (np.searchsorted(ascending, values, side) for side in ("left", "right"))
    number = last - first
    row = np.repeat(np.arange(len(number)), number)
    return row, positions(first, number)


def power_of_two(least: int) -> int:
    """The smallest power of two that is not below `least`."""
    return 1 << max(least - 1, 0).bit_length()
