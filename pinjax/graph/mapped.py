"""Arrays in files, which worker processes map too, instead of getting copies."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np


class Mapped(np.memmap):
    """A read-only memory map of a file, which is pickled as its path and place.

    Parts of it and results of operations are pickled as other arrays.
    """

    def __reduce__(self) -> tuple[Callable, tuple[Any, ...]]:
        if self.base is not self._mmap:
            return np.array(self, subok=False).__reduce__()
        return _open, (self.filename, self.dtype, self.offset, self.shape)


def load(path: os.PathLike) -> Mapped:
    """Opens a .npy file."""
    found = np.load(path, mmap_mode="r")
    return _open(path, found.dtype, found.offset, found.shape)


def _open(path: os.PathLike, dtype: np.dtype, offset: int, shape: tuple[int, ...]) -> Mapped:
    return Mapped(path, dtype, "r", offset, shape)
