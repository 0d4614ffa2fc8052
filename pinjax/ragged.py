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


def power_of_two(least: int) -> int:
    """The smallest power of two that is not below `least`."""
    return 1 << max(least - 1, 0).bit_length()
