"""Requests for recommendations, embedded in batches: users, queries, groups or items."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from ml_collections import ConfigDict

from pinjax import ids as ids_lib
from pinjax import ragged
from pinjax.data import catalogue, timelines
from pinjax.data import spec as spec_lib
from pinjax.data.dataset import Dataset
from pinjax.errors import InputError
from pinjax.evaluation import timeline_source
from pinjax.systems import histories, system

_SOME = 4096  # that are embedded and searched for at a time
# Errors of Arrow are of these types.
_UNREADABLE = TypeError, ValueError, OverflowError, NotImplementedError


class RequestBatch(NamedTuple):
    """Some ids of a request, embedded.

    Attributes:
      ids: own ids (n,).
      vectors: float32 (n, dim), or (n, vectors, dim) where zeros are padding.
      seen: int64 (pairs, 2), one of these and an item that it has already.
    """

    ids: pa.Array
    vectors: np.ndarray
    seen: np.ndarray


class Request(NamedTuple):
    """Requests for recommendations.

    Attributes:
      name: "user", "query", "group" or "from_item": the column of its ids.
      kind: the type of its ids.
      as_of: unix seconds, of the items that are searched.
      batches: of its ids, in order.
    """

    name: str
    kind: pa.DataType
    as_of: int
    batches: Iterator[RequestBatch]


class Users:
    """The users of a data set, and others by their histories."""

    def __init__(self, config: ConfigDict, dataset: Dataset):
        self._config, self._dataset = config, dataset
        self._known: tuple[pa.Array, np.ndarray] | None = None
        one_out = dataset.spec.leave_one_out  # then all splits have all users
        self._splits = spec_lib.SPLITS[:1] if one_out else spec_lib.SPLITS

    @property
    def kind(self) -> pa.DataType:
        """The type of ids in tables."""
        return pa.int64() if self._dataset.spec.integer_users else pa.string()

    def known(
        self, embed: system.EmbedUsers, as_of: int, wanted: pa.Array | None
    ) -> Iterator[RequestBatch]:
        """Users by their ids, each once, or all; those who had not acted by then are left out.

        Raises:
          InputError: if an id is unknown.
        """
        if wanted is None:
            for split in self._splits:
                for chunk in self._dataset.chunks(split, _SOME):
                    yield from self._of_some(embed, as_of, chunk)
            return
        ids, rows = self._all
        place = places(wanted, ids, "users")
        place = place[np.sort(np.unique(place, return_index=True)[1])]
        for start in range(0, len(place), _SOME):
            chunk = self._chunk(rows[place[start : start + _SOME]])
            yield from self._of_some(embed, as_of, chunk)

    def of_chunk(
        self, embed: system.EmbedUsers, as_of: int, chunk: timelines.Chunk
    ) -> Iterator[RequestBatch]:
        """The users of any number of timelines, without those who had not acted by then."""
        for start in range(0, len(chunk.users), _SOME):
            rows = np.arange(start, min(start + _SOME, len(chunk.users)))
            yield from self._of_some(embed, as_of, chunk.take(rows))

    def _of_some(
        self, embed: system.EmbedUsers, as_of: int, chunk: timelines.Chunk
    ) -> Iterator[RequestBatch]:
        users, last, history = histories.until(chunk, as_of, self._config.data.length)
        if len(users):
            vectors = embed([history])
            seen = timeline_source.seen(chunk.records, chunk.offsets[users], last)
            yield RequestBatch(pa.array([chunk.users[user] for user in users]), vectors, seen)

    def _chunk(self, rows: np.ndarray) -> timelines.Chunk:
        """The timelines of users, int64 (n, 2), in their order."""
        order = np.argsort(rows[:, 0], kind="stable")
        chunks = []
        for number in np.unique(rows[:, 0]):
            of_split = rows[rows[:, 0] == number, 1].tolist()
            chunks.append(self._dataset.chunk_of(self._splits[number], of_split))
        return timelines.Chunk.join(chunks).take(np.argsort(order))

    @property
    def _all(self) -> tuple[pa.Array, np.ndarray]:
        """The ids of all users, and int64 (users, 2): the split and the row of each."""
        if self._known is None:
            ids, rows = [], [np.zeros((0, 2), np.int64)]
            for number, split in enumerate(self._splits):
                of_split = [id for x in self._dataset.chunks(split, _SOME) for id in x.users]
                row = np.arange(len(of_split))
                rows.append(np.stack([np.full_like(row, number), row], axis=1))
                ids += of_split
            # Those of all users may be more text than a string array holds, 2 GiB.
            kind = pa.large_string() if self.kind == pa.string() else self.kind
            self._known = pa.array(ids, kind), np.concatenate(rows)
        return self._known


def of_rows(
    table: system.EmbeddedRows,
    ids: np.ndarray,
    name: str,
    wanted: pa.Array | None,
    seen: Callable[[np.ndarray], np.ndarray],
) -> Iterator[RequestBatch]:
    """Rows of a table of the data set.

    Args:
      table: with embeddings.
      ids: own ids of all rows, also those without an embedding.
      name: of what they are, for messages.
      wanted: some ids; None: all that have an embedding.
      seen: from rows (n,) to the pairs of `RequestBatch`.

    Raises:
      InputError: if an id has no row, or its row no embedding.
    """
    rows = table.rows
    if wanted is not None:
        rows = rows[places(wanted, catalogue.id_array(ids[rows]), name)]
    for start in range(0, len(rows), _SOME):
        some = rows[start : start + _SOME]
        vectors = np.asarray(table.embed(some), np.float32)
        yield RequestBatch(catalogue.id_array(ids[some]), vectors, seen(some))


def of_texts(embed: Callable[[list[str]], np.ndarray], texts: pa.Array) -> Iterator[RequestBatch]:
    """Any texts of searches."""
    for start in range(0, len(texts), _SOME):
        some = texts.slice(start, _SOME)
        yield RequestBatch(some, embed(some.to_pylist()), np.zeros((0, 2), np.int64))


def in_groups(dataset: Dataset, as_of: int) -> Callable[[np.ndarray], np.ndarray]:
    """From rows of groups to the pairs of them and the items that are in them.

    Edges after training have no times, so that all of them count if `as_of` is later.
    """
    later = [np.zeros((0, 2), np.int32)]
    if as_of > dataset.spec.train_end:
        later += [dataset.held_out_edges(split) for split in spec_lib.SPLITS[1:]]
    edges = np.concatenate(later)
    edges = edges[np.argsort(edges[:, 0], kind="stable")]

    def pairs(rows: np.ndarray) -> np.ndarray:
        place, edge = ragged.places_of(edges[:, 0], rows)
        added = np.stack([place, edges[edge, 1]], axis=1)
        return np.concatenate([dataset.graph.groups.pairs(rows), added])

    return pairs


def themselves(items: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The pairs of rows that are items.

    Args:
      items: int (table,), the item that each row of a table is, or -1.
      rows: of the table.
    """
    place = np.flatnonzero(items[rows] >= 0)
    return np.stack([place, items[rows][place]], axis=1)


def as_array(ids: Any) -> pa.Array | None:
    """Ids or texts of any sequence, array or column of a frame; None stays.

    Raises:
      InputError: if they are something else.
    """
    if ids is None:
        return None
    if isinstance(ids, str):
        raise InputError(f"{ids!r} is one text; expected a list of them")
    try:
        found = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(ids)
    except _UNREADABLE as error:
        raise InputError(f"ids or texts: expected a list of one kind: {error}") from None
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def as_texts(texts: Any) -> pa.Array:
    """Texts as `as_array`, without the spaces around them.

    Raises:
      InputError: if one is empty or no text.
    """
    found = [] if texts is None else as_array(texts).to_pylist()
    for text in found:
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"texts: {text!r} is none; expected some that are not empty")
    return pa.array([text.strip() for text in found], pa.large_string())


def as_table(columns: Any) -> pa.Table:
    """A table of an Arrow, pandas or polars frame, a dict of columns, or a structured array.

    Raises:
      InputError: if it is something else.
    """
    try:
        if isinstance(columns, np.ndarray):
            columns = {name: columns[name] for name in columns.dtype.names}
        return pa.table(columns)
    except _UNREADABLE as error:
        raise InputError(f"histories: expected a table: {error}") from None


def places(wanted: pa.Array, ids: pa.Array, name: str) -> np.ndarray:
    """The place of each wanted id.

    Raises:
      InputError: if one is not there, or is of another type.
    """
    wanted = ids_lib.cast(wanted, ids.type, f"{name}: ids")
    found = ids_lib.rows_of(wanted, ids)
    if unknown := int((found < 0).sum()):
        first = wanted[int(found.argmin())].as_py()
        raise InputError(
            f"{name}: {unknown:,} of {len(wanted):,} ids are unknown or have no embedding, "
            f"{first!r} first"
        )
    return found
