"""The kinds of approximate index, behind one interface."""

import math
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from etils import epath
from jaxtyping import Float, Int32

# What a search trades recall against speed by; `k` is the number of results that it was chosen for.
Setting = Mapping[str, int]
VECTORS = "vectors.npy"


@runtime_checkable  # the tests check the types of arguments
class Backend(Protocol):
    """Vectors, arranged for approximate maximum-inner-product search.

    Attributes:
      name: as users choose it.
      vectors_file: the file of a saved directory with the vectors, float32 (items, dim) in NumPy's
        format. `save` writes it, unless it is `VECTORS`.
    """

    name: str
    vectors_file: str

    @classmethod
    def build(cls, vectors: Float[np.ndarray, "items dim"]) -> "Backend":
        """Arranges vectors, of which there is at least one, finite and float32.

        Raises:
          InputError: if the library is not installed.
        """

    @classmethod
    def load(cls, directory: epath.Path) -> "Backend":
        """Reads what `save` wrote.

        Raises:
          InputError: if it cannot be read, or the library is not installed.
        """

    def save(self, directory: epath.Path) -> None:
        """Writes into a directory on this machine, which may be moved afterwards."""

    def ladders(self, k: int) -> list[list[Setting]]:
        """Settings for k results: in each list from fast to thorough.

        Each list spares more in another way than the one before it, and has the same steps.
        """

    def thorough(self, k: int) -> Setting:
        """A setting for k results that finds nearly all of them, without any tuning."""

    def search(
        self, queries: Float[np.ndarray, "queries dim"], k: int, setting: Setting
    ) -> tuple[Float[np.ndarray, "queries k"], Int32[np.ndarray, "queries k"]]:
        """The k rows with about the largest inner product with each query, k at most items.

        Returns:
          (scores float32, rows int32), -1 with the score -inf if fewer than k were found. For more
          results than the setting was chosen for, it searches more thoroughly.
        """


def steps(least: int, most: int) -> list[int]:
    """Four for each doubling of `least`, as 4, 5, 6, 7, 8, 10, 12; the last one is `most`."""
    doublings = max(0, math.ceil(math.log2(most / least)))
    values = {least * 2**p * quarter // 4 for p in range(doublings + 1) for quarter in (4, 5, 6, 7)}
    return [*sorted(x for x in values if x < most), most]


def padded(
    scores: np.ndarray, rows: np.ndarray, k: int
) -> tuple[Float[np.ndarray, "queries k"], Int32[np.ndarray, "queries k"]]:
    """Results of a library as those of `Backend.search`."""
    missing = np.isnan(scores) | (rows < 0)
    width = (0, 0), (0, k - rows.shape[1])
    scores = np.where(missing, -np.inf, scores).astype(np.float32)
    rows = np.where(missing, -1, rows).astype(np.int32)
    return np.pad(scores, width, constant_values=-np.inf), np.pad(rows, width, constant_values=-1)
