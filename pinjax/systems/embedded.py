"""The tables of embeddings that a system writes, a shard at a time."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from pinjax import ids as ids_lib
from pinjax.data import spec as spec_lib
from pinjax.data.dataset import Dataset
from pinjax.data.kept import Kept
from pinjax.distributed import batching
from pinjax.errors import InputError
from pinjax.systems import histories, system

SHARD = 2**16  # embeddings of a file
_READ = 2**13  # users read at a time


class Part(NamedTuple):
    """The content of a file.

    Attributes:
      ids: own ids (rows,); a user of several vectors has a row for each, in their order.
      vectors: float32 (rows, dim).
      as_of: unix seconds when they were computed, of all or int64 (rows,).
    """

    ids: np.ndarray
    vectors: np.ndarray
    as_of: int | np.ndarray


Shard = Callable[[], Part]


def tables(
    config: ConfigDict, made: system.System, params: Any, as_of: int, kept: Kept | None = None
) -> dict[str, list[Shard]]:
    """All tables by name, as functions that make the content of each file.

    Users are those of all splits who had acted by then.

    Args:
      config: of the run.
      made: the system.
      params: of its checkpoint.
      as_of: unix seconds; what users did later is not read.
      kept: users of previous embeddings. Those who did nothing since keep their vectors.

    Raises:
      InputError: if the previous vectors have another dimension.
    """
    dataset, served = made.dataset, made.serve(params, as_of)
    ids = {
        "queries": lambda rows: dataset.queries.ids[rows],
        "groups": lambda rows: dataset.groups[rows],
        "items": lambda rows: dataset.catalogue.ids[rows],
    }
    found = {}
    if served.users:
        users = _Users(config, dataset, served, as_of, kept)
        splits = spec_lib.SPLITS[:1] if dataset.spec.leave_one_out else spec_lib.SPLITS
        found["users"] = [
            functools.partial(users.part, split, start)
            for split in splits
            for start in range(0, len(dataset.timelines(split)), SHARD)
        ]
    for name, ids_of in ids.items():
        table = getattr(served, name)
        if table is not None:
            starts = range(0, len(table.rows), SHARD)
            parts = (table.rows[start : start + SHARD] for start in starts)
            found[name] = [
                functools.partial(_rows, ids_of, table.embed, rows, as_of) for rows in parts
            ]
    return found


def _rows(
    ids_of: Callable[[np.ndarray], np.ndarray],
    embed: Callable[[np.ndarray], np.ndarray],
    rows: np.ndarray,
    as_of: int,
) -> Part:
    return Part(ids_of(rows), embed(rows), as_of)


class _Users:
    """Embeds the users of files; arguments as `tables`."""

    def __init__(
        self,
        config: ConfigDict,
        dataset: Dataset,
        served: system.Served,
        as_of: int,
        kept: Kept | None,
    ):
        self._config, self._dataset, self._served = config, dataset, served
        self._as_of, self._kept = as_of, kept
        if kept and kept.dim not in (None, self._dim):
            raise InputError(
                f"--since: vectors of users have {kept.dim} numbers; expected {self._dim}"
            )

    @functools.cached_property
    def _dim(self) -> int:
        return self._served.items.embed(self._served.items.rows[:1]).shape[1]

    def part(self, split: str, start: int) -> Part:
        """The users of a file, the first of whom is row `start` of a split."""
        ids, computed = [], []

        def histories_of_some() -> Iterator[system.Batch]:
            for some, is_computed, history in batching.ahead(self._read(split, start)):
                ids.append(some)
                computed.append(is_computed)
                yield history

        vectors = self._served.users(histories_of_some())
        ids, computed = np.concatenate(ids), np.concatenate(computed)
        if vectors is None:
            vectors = np.zeros((0, self._dim), np.float32)
        counts = np.ones(len(vectors), np.int64)
        if vectors.ndim == 3:
            exists = vectors.any(axis=2)
            counts, vectors = exists.sum(axis=1), vectors[exists]
        if not self._kept:
            return Part(np.repeat(ids, counts), vectors, self._as_of)
        kept = self._kept.rows(ids[~computed])
        user = np.concatenate(
            [
                np.repeat(np.flatnonzero(computed), counts),
                np.repeat(np.flatnonzero(~computed), kept.counts),
            ]
        )
        order = np.argsort(user, kind="stable")
        times = np.concatenate([np.full(len(vectors), self._as_of), kept.as_of])
        return Part(ids[user[order]], np.concatenate([vectors, kept.vectors])[order], times[order])

    def _read(
        self, split: str, start: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, system.Batch]]:
        """Some users at a time: own ids, who of them is computed, and the histories of those."""
        end = min(start + SHARD, len(self._dataset.timelines(split)))
        for begin in range(start, end, _READ):
            chunk = self._dataset.chunk(split, begin, min(begin + _READ, end))
            users, last, history = histories.until(chunk, self._as_of, self._config.data.length)
            ids = ids_lib.ids_of(chunk.users)[users]
            computed = np.ones(len(ids), bool)
            if self._kept:
                computed = chunk.records["time"][last] > self._kept.as_of
                computed |= self._kept.counts(ids) == 0
                history = {name: field[computed] for name, field in history.items()}
            yield ids, computed, history
