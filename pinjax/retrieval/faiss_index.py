"""Approximate maximum-inner-product search with FAISS (Douze et al., 2024), an optional package.

HNSW (Malkov and Yashunin, 2018) walks a graph of near vectors, IVF scans the lists whose centroids
are nearest to a query. Both keep the vectors themselves, so that their scores are exact.
"""

import importlib
import math
import os
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float, Int32

from pinjax.errors import InputError
from pinjax.retrieval import backends

_FILE = "index.faiss"
_NEIGHBOURS = 16  # of a vector in HNSW's graph; 32 take 1.5 times as long to build
_CONSTRUCTION = 100  # candidates for them
_LISTS_PER_ROOT = 4  # IVF's lists for each root of the number of items
_SAMPLES_PER_LIST = 50


class _Faiss(backends.Backend):
    """What the two kinds share."""

    vectors_file = backends.VECTORS

    def __init__(self, index: Any):
        """Wraps a faiss.Index."""
        self._index = index

    @classmethod
    def load(cls, directory: epath.Path) -> "_Faiss":
        faiss, path = _faiss(), os.fspath(directory / _FILE)
        try:
            return cls(faiss.read_index(path, faiss.IO_FLAG_MMAP_IFC))
        except RuntimeError as error:
            raise InputError(f"{path}: not readable by FAISS: {error}") from error

    def save(self, directory: epath.Path) -> None:
        _faiss().write_index(self._index, os.fspath(directory / _FILE))

    def _search(self, queries: np.ndarray, k: int, parameters: Any):
        queries = np.ascontiguousarray(queries, np.float32)
        return backends.padded(*self._index.search(queries, k, params=parameters), k)


class Hnsw(_Faiss):
    """A setting says how many candidates a walk keeps."""

    name = "faiss_hnsw"

    @classmethod
    def build(cls, vectors: Float[np.ndarray, "items dim"]) -> "Hnsw":
        faiss = _faiss()
        index = faiss.IndexHNSWFlat(vectors.shape[1], _NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _CONSTRUCTION
        index.add(np.ascontiguousarray(vectors, np.float32))
        return cls(index)

    def ladders(self, k: int) -> list[list[backends.Setting]]:
        most = min(64 * k, max(k, self._index.ntotal))
        return [[{"k": k, "candidates": n} for n in backends.steps(k, most)]]

    def thorough(self, k: int) -> backends.Setting:
        return {"k": k, "candidates": 16 * k}

    def search(
        self, queries: Float[np.ndarray, "queries dim"], k: int, setting: backends.Setting
    ) -> tuple[Float[np.ndarray, "queries k"], Int32[np.ndarray, "queries k"]]:
        candidates = math.ceil(setting["candidates"] * max(1, k / setting["k"]))
        return self._search(queries, k, _faiss().SearchParametersHNSW(efSearch=candidates))


class Ivf(_Faiss):
    """A setting says how many lists are scanned."""

    name = "faiss_ivf"

    @classmethod
    def build(cls, vectors: Float[np.ndarray, "items dim"]) -> "Ivf":
        faiss, (items, dim) = _faiss(), vectors.shape
        vectors = np.ascontiguousarray(vectors, np.float32)
        lists = min(round(_LISTS_PER_ROOT * math.sqrt(items)), items)
        quantizer = faiss.IndexFlatIP(dim)
        index = faiss.IndexIVFFlat(quantizer, dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.min_points_per_centroid = 1  # otherwise it prints a warning of few
        index.cp.max_points_per_centroid = _SAMPLES_PER_LIST
        index.train(vectors)
        index.add(vectors)
        return cls(index)

    def ladders(self, k: int) -> list[list[backends.Setting]]:
        return [[{"k": k, "lists": n} for n in backends.steps(1, self._index.nlist)]]

    def thorough(self, k: int) -> backends.Setting:
        return {"k": k, "lists": math.ceil(0.1 * self._index.nlist)}

    def search(
        self, queries: Float[np.ndarray, "queries dim"], k: int, setting: backends.Setting
    ) -> tuple[Float[np.ndarray, "queries k"], Int32[np.ndarray, "queries k"]]:
        lists = math.ceil(setting["lists"] * math.sqrt(max(1, k / setting["k"])))
        return self._search(queries, k, _faiss().SearchParametersIVF(nprobe=lists))


def _faiss() -> Any:
    try:
        return importlib.import_module("faiss")
    except ModuleNotFoundError as error:
        raise InputError(
            f"FAISS cannot be imported ({error}): pip install -r requirements-faiss.txt"
        ) from error
