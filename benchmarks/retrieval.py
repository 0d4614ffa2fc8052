"""Exact search in JAX, ScaNN, and NumPy brute force on one index, in one run.

    python -m benchmarks.retrieval [--items=200000] [--dim=64] [--queries=2048] [--k=10]

The vectors lie around topic centres of Zipf popularity, as embeddings do.
"""

import os
import time

import jax
import numpy as np
from absl import app, flags

from pinjax.retrieval import exact, scann_index

_ITEMS = flags.DEFINE_integer("items", 200_000, "vectors in the index")
_DIM = flags.DEFINE_integer("dim", 64, "numbers of a vector")
_QUERIES = flags.DEFINE_integer("queries", 2048, "queries; NumPy answers the first 256 of them")
_K = flags.DEFINE_integer("k", 10, "results of a query")
_TOPICS = 350


def unit_vectors(rng: np.random.Generator, num: int, dim: int, centres: np.ndarray) -> np.ndarray:
    popularity = 1 / np.arange(1, len(centres) + 1)
    topic = rng.choice(len(centres), num, p=popularity / popularity.sum())
    vectors = centres[topic] + 0.7 * rng.standard_normal((num, dim), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def numpy_search(queries: np.ndarray, index: np.ndarray, k: int) -> np.ndarray:
    scores = queries @ index.T
    top = np.argpartition(-scores, k, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, top, axis=1), axis=1)
    return np.take_along_axis(top, order, axis=1)


def main(_):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((_TOPICS, _DIM.value), np.float32)
    index = unit_vectors(rng, _ITEMS.value, _DIM.value, centres)
    queries = unit_vectors(rng, _QUERIES.value, _DIM.value, centres)
    k = _K.value

    start = time.perf_counter()
    searcher = scann_index.build(index, k)
    build = time.perf_counter() - start
    result = scann_index.recall_against_exact(searcher, index, queries, k)

    few = queries[:256]
    start = time.perf_counter()
    expected = np.concatenate([numpy_search(few[i : i + 32], index, k) for i in range(0, 256, 32)])
    numpy_rate = len(few) / (time.perf_counter() - start)
    agreement = np.mean(np.asarray(exact.search(few, index, k)[1]) == expected)

    print(f"{_ITEMS.value:,} x {_DIM.value}, top {k}, {jax.devices()[0].device_kind}, ", end="")
    print(f"{os.cpu_count()} cores")
    print(f"{'':<24}{'queries/s':>12}{'of NumPy':>10}{'recall':>9}{'build':>9}")
    for name, rate, recall, seconds in (
        ("NumPy, argpartition", numpy_rate, 1.0, 0.0),
        ("exact.search", result.exact_queries_per_second, agreement, 0.0),
        ("ScaNN", result.queries_per_second, result.recall, build),
    ):
        print(f"{name:<24}{rate:>12,.0f}{rate / numpy_rate:>9.1f}x{recall:>9.4f}{seconds:>7.1f} s")


if __name__ == "__main__":
    app.run(main)
