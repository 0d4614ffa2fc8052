"""Approximate maximum-inner-product search with ScaNN, measured against the exact one.

ScaNN (Guo et al., ICML 2020) divides the index into leaves, scores the leaves nearest to a query
with quantised vectors, and rescores the best results exactly.
"""

import contextlib
import importlib
import math
import os
import pathlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int32

from pinjax.errors import InputError
from pinjax.retrieval import exact

# Below this size brute force is about as fast and misses nothing (ScaNN's docs/algorithms.md).
_BRUTE_FORCE_BELOW = 20_000
_LEAVES_SEARCHED = 0.1
# k-means on fewer samples leaves most of its leaves too small, and ScaNN merges them away.
_SAMPLES_PER_LEAF = 250
# Errors of quantised scores exceed differences between neighbours: candidates rescored per result.
_REORDER_PER_RESULT = 20
_TIE = 1e-5
_BATCH = 256

Searcher = Any  # scann.scann_ops_pybind.ScannSearcher, not importable on every system


class Comparison(NamedTuple):
    """ScaNN compared with the exact search on the same queries.

    Attributes:
      recall: share of the k results that score no less than the exact k-th.
      queries_per_second: of ScaNN, in batches on all cores of the host.
      exact_queries_per_second: of the exact search, in batches on JAX's default device.
    """

    recall: float
    queries_per_second: float
    exact_queries_per_second: float


def build(index: Float[np.ndarray, "items dim"], k: int) -> Searcher:
    """An index for searches of up to about k results.

    Small ones are searched by brute force. Large ones have about sqrt(items) leaves, of which a
    tenth is searched.

    Args:
      index: finite floats of any width; L2-normalised for cosine scores.
      k: results of a query that it is tuned for.

    Raises:
      InputError: if ScaNN is not installed, or the index is empty or not finite.
    """
    index = np.ascontiguousarray(index, np.float32)
    if not len(index):
        raise InputError("ScaNN: the index has no rows, expected at least one")
    finite = np.isfinite(index).all(axis=1)
    if not finite.all():
        raise InputError(f"ScaNN: row {np.argmin(finite)} of the index holds NaN or infinity")
    builder = _scann().builder(index, k, "dot_product")
    if len(index) < _BRUTE_FORCE_BELOW:
        return builder.score_brute_force().build()
    leaves = round(math.sqrt(len(index)))
    builder.tree(
        num_leaves=leaves,
        num_leaves_to_search=math.ceil(_LEAVES_SEARCHED * leaves),
        training_sample_size=min(_SAMPLES_PER_LEAF * leaves, len(index)),
    )
    # Blocks of two dimensions and this threshold for unit vectors are recommended by ScaNN.
    builder.score_ah(2, anisotropic_quantization_threshold=0.2)
    builder.reorder(_REORDER_PER_RESULT * k)
    with _quiet():
        return builder.build()


def search(
    searcher: Searcher, queries: Float[np.ndarray, "queries dim"], k: int
) -> tuple[Float[np.ndarray, "queries {k}"], Int32[np.ndarray, "queries {k}"]]:
    """The k rows of the index with about the largest inner product with each query.

    Returns:
      (scores float32, rows int32) as `exact.search`: best first, -1 with score -inf if fewer
      than k were found.
    """
    found, found_scores = searcher.search_batched_parallel(
        np.ascontiguousarray(queries, np.float32), final_num_neighbors=k
    )
    rows = np.full((len(queries), k), -1, np.int32)
    scores = np.full((len(queries), k), -np.inf, np.float32)
    rows[:, : found.shape[1]] = found
    scores[:, : found.shape[1]] = found_scores
    missing = np.isnan(scores)
    rows[missing], scores[missing] = -1, -np.inf
    return scores, rows


def recall_against_exact(
    searcher: Searcher,
    index: Float[np.ndarray, "items dim"],
    queries: Float[np.ndarray, "queries dim"],
    k: int,
) -> Comparison:
    """Measures a searcher against the exact search of the index that it was built from."""
    (scores, _), seconds = _timed(lambda batch: search(searcher, batch, k), queries)
    on_device = jax.device_put(index)
    (exact_scores, _), exact_seconds = _timed(
        lambda batch: jax.device_get(exact.search(batch, on_device, k)), queries
    )
    kth = exact_scores[:, -1:]
    return Comparison(
        # Any of equal scores may be returned, as in ann-benchmarks.
        recall=float(np.mean(scores >= kth - _TIE)),
        queries_per_second=len(queries) / seconds,
        exact_queries_per_second=len(queries) / exact_seconds,
    )


def save(searcher: Searcher, directory: str | os.PathLike) -> None:
    """Writes the searcher to a directory on a local disk, which may be moved afterwards.

    A directory that exists is replaced once the new one is complete.
    """
    directory = pathlib.Path(directory)
    temporary = directory.with_name(directory.name + ".tmp")
    replaced = directory.with_name(directory.name + ".old")
    for leftover in (temporary, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(parents=True)
    searcher.serialize(str(temporary), relative_path=True)
    if directory.exists():
        directory.rename(replaced)
    temporary.rename(directory)
    shutil.rmtree(replaced, ignore_errors=True)


def load(directory: str | os.PathLike) -> Searcher:
    """Reads what `save` wrote.

    Raises:
      InputError: if the directory holds no index, or ScaNN is not installed.
    """
    if not (pathlib.Path(directory) / "scann_assets.pbtxt").is_file():
        raise InputError(f"{directory}: no ScaNN index, expected scann_assets.pbtxt in it")
    with _quiet():
        return _scann().load_searcher(os.path.abspath(directory))


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
            f"ScaNN cannot be imported ({error}); it has wheels for Linux alone, elsewhere use the "
            "exact search"
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


def _timed(
    search_batch: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], queries: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], float]:
    """Results for all queries, in batches of one shape, and the seconds that they took."""
    batches = [queries[i : i + _BATCH] for i in range(0, len(queries), _BATCH)]
    for batch in batches[0], batches[-1]:  # compiles
        search_batch(batch)
    start = time.perf_counter()
    results = [search_batch(batch) for batch in batches]
    seconds = time.perf_counter() - start
    scores, rows = zip(*results, strict=True)
    return (np.concatenate(scores), np.concatenate(rows)), seconds
