"""Finds items for embedded requests, by exact search or an index."""

import os
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from pinjax import config_json, timestamps
from pinjax.data import embeddings
from pinjax.errors import InputError
from pinjax.evaluation import vector_search
from pinjax.retrieval import index as index_lib
from pinjax.serving import requests

# From vectors and the pairs of a `RequestBatch` to scores and rows of the catalogue, each (n, k),
# best first; -inf and -1 where there are fewer.
Find = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def exactly(items: vector_search.Items, k: int, allowed: np.ndarray) -> Find:
    """Exact search of the items that are allowed, bool (catalogue,)."""
    valid = jnp.asarray(allowed[items.rows])

    def find(vectors: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return vector_search.nearest(vectors, items, k, valid, seen)

    return find


def open_index(
    directory: os.PathLike, made_from: Mapping[str, Any], as_of: int | None, verify: bool = True
) -> index_lib.Index:
    """Opens an index of embeddings of items.

    Args:
      directory: of the index.
      made_from: what the manifest of the embeddings has to say, by name.
      as_of: unix seconds that they may not be later than; None: any time.
      verify: whether checksums are compared.

    Raises:
      InputError: if it is of others, or as `index.open_index`.
    """
    index = index_lib.open_index(directory, verify)
    found = index.manifest.get("embeddings", {})
    if different := config_json.first_difference(found, made_from, made_from):
        name, other, expected = different
        raise InputError(
            f"{directory} is an index of embeddings of {name} {other}; expected this run's, "
            f"{expected}"
        )
    if (table := index.manifest["table"]) != embeddings.ITEMS:
        raise InputError(f"{directory} is an index of {table}; expected one of {embeddings.ITEMS}")
    if as_of is not None and timestamps.parse(f"{directory}: as_of", found["as_of"]) > as_of:
        raise InputError(
            f"{directory} is an index of embeddings as of {found['as_of']}; expected none later "
            f"than {timestamps.iso(as_of)}"
        )
    return index


def by_index(index: index_lib.Index, own: pa.Array, k: int, allowed: np.ndarray) -> Find:
    """The search of an index. Arguments as `exactly`; `own` are the ids of the catalogue."""
    rows = requests.places(index.ids, own, "index")
    place = np.full(len(own), -1)  # of a row of the catalogue in the index
    place[rows] = np.arange(len(rows))

    def search(vectors: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        excluded = np.stack([seen[:, 0], place[seen[:, 1]]], axis=1)
        excluded = excluded[excluded[:, 1] >= 0]
        return index.search(vectors, k, allowed=allowed[rows], excluded=excluded)

    def find(vectors: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scores, found = vector_search.by_vector(search, vectors, seen)
        return scores, np.where(found >= 0, rows[found], -1)

    return find


def table(
    name: str, ids: pa.Array, own: pa.Array, scores: np.ndarray, rows: np.ndarray
) -> pa.Table:
    """The recommendations as a table of ids (column `name`), item, score and rank."""
    query, place = np.nonzero(rows >= 0)
    return pa.table(
        {
            name: ids.take(pa.array(query)),
            "item": own.take(pa.array(rows[query, place])),
            "score": scores[query, place].astype(np.float32),
            "rank": (place + 1).astype(np.int32),
        }
    )
