"""The tables of embeddings that a system writes, a shard at a time."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from pinjax.data import spec as spec_lib
from pinjax.data.dataset import Dataset
from pinjax.distributed import batching
from pinjax.systems import histories, system

Shard = Callable[[], tuple[np.ndarray, np.ndarray]]
SHARD = 2**16  # embeddings of a file


def tables(
    config: ConfigDict, made: system.System, params: Any, as_of: int
) -> dict[str, list[Shard]]:
    """All tables by name, as functions that make (own ids (rows,), vectors float32 (rows, dim)).

    Users are those of all splits who had acted by then. A user of several vectors has a row for
    each, in their order.

    Args:
      config: of the run.
      made: the system.
      params: of its checkpoint.
      as_of: unix seconds; what users did later is not read.
    """
    dataset, served = made.dataset, made.serve(params, as_of)
    ids = {
        "queries": lambda rows: dataset.queries.ids[rows],
        "groups": lambda rows: dataset.groups[rows],
        "items": lambda rows: dataset.catalogue.ids[rows],
    }
    found = {}
    if served.users:
        found["users"] = _users(config, dataset, served, as_of)
    for name, ids_of in ids.items():
        table = getattr(served, name)
        if table is not None:
            starts = range(0, len(table.rows), SHARD)
            parts = (table.rows[start : start + SHARD] for start in starts)
            found[name] = [functools.partial(_rows, ids_of, table.embed, rows) for rows in parts]
    return found


def _rows(
    ids_of: Callable[[np.ndarray], np.ndarray],
    embed: Callable[[np.ndarray], np.ndarray],
    rows: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    return ids_of(rows), embed(rows)


def _users(config: ConfigDict, dataset: Dataset, served: system.Served, as_of: int) -> list[Shard]:
    def shard(split: str, start: int) -> tuple[np.ndarray, np.ndarray]:
        chunk = dataset.chunk(split, start, start + SHARD)
        users, _, history = histories.until(chunk, as_of, config.data.length)
        # As objects: fixed-width text would be as wide as the longest id.
        kind = np.int64 if dataset.spec.integer_users else object
        ids = np.array(chunk.users, kind)[users]
        if not len(ids):
            return ids, served.items.embed(served.items.rows[:1])[:0]
        vectors = batching.in_batches(served.users, history, config.evaluate.batch)
        if vectors.ndim == 2:
            return ids, vectors
        exists = vectors.any(axis=2)
        return np.repeat(ids, exists.sum(axis=1)), vectors[exists]

    splits = spec_lib.SPLITS[:1] if dataset.spec.leave_one_out else spec_lib.SPLITS
    return [
        functools.partial(shard, split, start)
        for split in splits
        for start in range(0, len(dataset.timelines(split)), SHARD)
    ]
