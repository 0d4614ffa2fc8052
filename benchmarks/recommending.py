"""Users a second of recommendations from a million items, exactly and by an index.

    python -m benchmarks.recommending [--users=100000] [--items=1000000]

Items and users are clustered vectors of unit length, as in `benchmarks.index`; 100 items that a
user has seen are left out. The index is tuned to recall@100 of 0.95. Exact search is measured on
the first users alone. The table of ids, items, scores and ranks is part of what is timed; vectors
of users are not. Prints users a second, their ratio, and what the index finds of the exact results.
"""

import time

import numpy as np
import pyarrow as pa
from absl import app, flags

from pinjax.evaluation import vector_search
from pinjax.retrieval import index as index_lib
from pinjax.retrieval import tuning
from pinjax.serving import found, requests

_USERS = flags.DEFINE_integer("users", 100_000, "who get recommendations")
_EXACTLY = flags.DEFINE_integer("exactly", 2_048, "of the users, for exact search")
_ITEMS = flags.DEFINE_integer("items", 1_000_000, "that are searched")
_DIM = flags.DEFINE_integer("dim", 256, "numbers of a vector")
_BACKEND = flags.DEFINE_string("backend", "scann", "of the index")

_K, _SEEN, _RECALL, _TUNED = 100, 100, 0.95, 1_000
_SOME = 4096  # users at a time
_A_CLUSTER, _WIDTH = 200, 0.7  # items of a cluster, and its width where its centre has length 1


def main(_):
    rng = np.random.default_rng(0)
    clusters = max(1, _ITEMS.value // _A_CLUSTER)
    centres = rng.standard_normal((clusters, _DIM.value), np.float32)
    popularity = np.arange(1, clusters + 1) ** -0.5
    popularity /= popularity.sum()

    def draw(number: int) -> np.ndarray:
        vectors = _WIDTH * rng.standard_normal((number, _DIM.value), np.float32)
        vectors += centres[rng.choice(clusters, number, p=popularity)]
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    vectors, users = draw(_ITEMS.value), draw(_USERS.value)
    own, allowed = pa.array(np.arange(len(vectors))), np.ones(len(vectors), bool)
    seen = rng.integers(0, len(vectors), (len(users), _SEEN))

    start = time.perf_counter()
    index = index_lib.create(own, vectors, _BACKEND.value, _K)
    index = tuning.tune(index, tuning.queries(index, draw(_TUNED), _K), _RECALL)
    print(f"{_BACKEND.value} built and tuned in {time.perf_counter() - start:.0f} s", flush=True)
    everything = vector_search.Items.create(np.arange(len(vectors)), vectors)
    finders = {
        "exact": (found.exactly(everything, _K, allowed), min(_EXACTLY.value, len(users))),
        "index": (found.by_index(index, own, _K, allowed), len(users)),
    }
    rates, lists = {}, {}
    for name, (find, number) in finders.items():
        _recommend(find, users[:_SOME], seen[:_SOME], own)  # compiles, for all sizes that follow
        start = time.perf_counter()
        tables = _recommend(find, users[:number], seen[:number], own)
        rates[name] = number / (time.perf_counter() - start)
        lists[name] = tables["item"].to_numpy()
        print(f"{name}: {rates[name]:,.0f} users a second, of {number:,}", flush=True)
    number = finders["exact"][1]
    shared = [
        len(np.intersect1d(*(lists[name][_K * user : _K * (user + 1)] for name in lists)))
        for user in range(number)
    ]
    print(f"ratio {rates['index'] / rates['exact']:.1f}; recall {np.mean(shared) / _K:.4f}")


def _recommend(find: found.Find, users: np.ndarray, seen: np.ndarray, own: pa.Array) -> pa.Table:
    tables = []
    for start in range(0, len(users), _SOME):
        some = requests.RequestBatch(
            pa.array(np.arange(start, min(start + _SOME, len(users)))),
            users[start : start + _SOME],
            _pairs(seen[start : start + _SOME]),
        )
        tables.append(found.table("user", some.ids, own, *find(some.vectors, some.seen)))
    return pa.concat_tables(tables)


def _pairs(seen: np.ndarray) -> np.ndarray:
    return np.unique(np.stack([np.repeat(np.arange(len(seen)), _SEEN), seen.ravel()], 1), axis=0)


if __name__ == "__main__":
    app.run(main)
