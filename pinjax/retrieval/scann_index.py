"""Approximate maximum-inner-product search with ScaNN.

ScaNN (Guo et al., ICML 2020) divides the items into leaves, scores those in the leaves nearest to a
query with quantised vectors, and rescores the best ones exactly.
"""

import contextlib
import importlib
import math
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int32

from pinjax.errors import InputError
from pinjax.retrieval import backends

# Leaves for each root of the number of items. With half as many, of 30,000 items in 870 clusters 64
# had to be searched for a recall of 0.96, in place of 2.
_LEAVES_PER_ROOT = 4
_SAMPLES_PER_LEAF = 50  # more found no more in 100,000 vectors, and neither did more codes' samples
_CODE_SAMPLES = 30_000
# ScaNN merges smaller leaves away; by its own default, 50, most of those of a small sample.
_SMALLEST_LEAF = 5
_REORDER = 20, 10, 5, 3, 2  # candidates rescored for each result


class Scann(backends.Backend):
    """A setting says how many leaves are searched, and how many items rescored."""

    name = "scann"
    vectors_file = "dataset.npy"

    def __init__(self, searcher: Any, items: int):
        """Wraps a scann.scann_ops_pybind.ScannSearcher of so many items."""
        self._searcher, self._items = searcher, items
        self._leaves = round(_LEAVES_PER_ROOT * math.sqrt(items))

    @classmethod
    def build(cls, vectors: Float[np.ndarray, "items dim"]) -> "Scann":
        made = cls(None, len(vectors))
        builder = _scann().builder(np.ascontiguousarray(vectors, np.float32), 1, "dot_product")
        builder.tree(
            num_leaves=made._leaves,
            num_leaves_to_search=1,
            training_sample_size=min(_SAMPLES_PER_LEAF * made._leaves, len(vectors)),
            min_partition_size=_SMALLEST_LEAF,
        )
        # Blocks of two dimensions and this threshold for unit vectors are recommended by ScaNN.
        builder.score_ah(
            2, anisotropic_quantization_threshold=0.2, training_sample_size=_CODE_SAMPLES
        )
        builder.reorder(1)
        with _quiet():
            made._searcher = builder.build()
        return made

    @classmethod
    def load(cls, directory: epath.Path) -> "Scann":
        try:
            with _quiet():
                searcher = _scann().load_searcher(os.path.abspath(directory))
        except (OSError, RuntimeError, ValueError) as error:
            raise InputError(f"{directory}: not readable by ScaNN: {error}") from error
        return cls(searcher, searcher.size())

    def save(self, directory: epath.Path) -> None:
        self._searcher.serialize(os.fspath(directory), relative_path=True)

    def ladders(self, k: int) -> list[list[backends.Setting]]:
        leaves = backends.steps(1, self._leaves)
        return [[{"k": k, "leaves": n, "reorder": k * r} for n in leaves] for r in _REORDER]

    def thorough(self, k: int) -> backends.Setting:
        return {"k": k, "leaves": math.ceil(0.1 * self._leaves), "reorder": k * _REORDER[0]}

    def search(
        self, queries: Float[np.ndarray, "queries dim"], k: int, setting: backends.Setting
    ) -> tuple[Float[np.ndarray, "queries k"], Int32[np.ndarray, "queries k"]]:
        more = max(1, k / setting["k"])
        rows, scores = self._searcher.search_batched_parallel(
            np.ascontiguousarray(queries, np.float32),
            k,
            pre_reorder_num_neighbors=min(math.ceil(setting["reorder"] * more), self._items),
            leaves_to_search=min(math.ceil(setting["leaves"] * math.sqrt(more)), self._leaves),
        )
        return backends.padded(scores, rows.astype(np.int64), k)


def _scann() -> Any:
    """The module of ScaNN that needs no TensorFlow.

    The package imports whatever TensorFlow it finds, and fails on any version but its own.
    """
    absent = object()
    tensorflow = sys.modules.get("tensorflow", absent)
    sys.modules["tensorflow"] = None
    try:
        return importlib.import_module("scann").scann_ops_pybind
    except ModuleNotFoundError as error:
        raise InputError(
            f"ScaNN cannot be imported ({error}); it has wheels for Linux alone, elsewhere use "
            "FAISS or the exact search"
        ) from error
    finally:
        if tensorflow is absent:
            del sys.modules["tensorflow"]
        else:
            sys.modules["tensorflow"] = tensorflow


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drops what ScaNN's C++ logs to the standard error; no setting of its own does."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
