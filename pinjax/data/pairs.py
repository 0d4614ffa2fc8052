"""Pairs: a query that led to an engagement, and the item that was engaged with.

    queries.parquet      `Queries`, one row a query
    pairs/train.parquet  `PAIR`, one row an engagement, in order of time; likewise valid and test

A query is a search (kind "text") or an item (kind "image"; at Pinterest, a close-up of an image). A
task is a kind of query and a kind of engagement, such as "text/click". A pair takes a few bytes, so
all pairs of a split are held in memory.
"""

import dataclasses
import functools
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from pinjax.data import catalogue, parquet

QUERIES_FILE = "queries.parquet"

# An engagement: row of the queries, row of the catalogue, row of the tasks, unix seconds (0 without
# times).
PAIR = np.dtype([("query", np.int32), ("item", np.int32), ("task", np.uint8), ("time", "u4")])

SCHEMA = pa.schema([(name, pa.from_numpy_dtype(PAIR[name])) for name in PAIR.names])


@dataclasses.dataclass(frozen=True, eq=False)
class Queries:
    """The queries, by row.

    Attributes:
      ids: text as objects (queries,): the text of a search, or the own id of an item.
      kinds: text as objects (queries,), "image" or "text".
      vectors: float16 (queries, dim), frozen vectors, zeros where unknown.
      items: int32 (queries,), the catalogue row of the item that a query is; -1 for a search.
    """

    ids: np.ndarray
    kinds: np.ndarray
    vectors: np.ndarray
    items: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def searches(self) -> list[str]:
        """The text of every query, "" for items."""
        return np.where(self.kinds == "text", self.ids, "").tolist()

    @functools.cached_property
    def row_of(self) -> dict[str, int]:
        """The rows of searches, by text."""
        return {text: row for row, text in enumerate(self.searches) if text}

    def write(self, path: epath.PathLike) -> None:
        columns = {
            "id": pa.array(self.ids, pa.large_string()),
            "kind": pa.array(self.kinds, pa.string()),
            "vector": catalogue.vector_array(self.vectors),
            "item": pa.array(self.items, pa.int32()),
        }
        # Arrow writes a vector's numbers with 16 bytes each, as many as are in a group of rows.
        rows = catalogue.ROWS_A_GROUP
        pq.write_table(
            pa.table(columns), os.fspath(path), use_dictionary=False, row_group_size=rows
        )

    @classmethod
    def read(cls, path: epath.PathLike) -> "Queries":
        table = parquet.read(path)
        return cls(
            ids=table["id"].to_numpy(),
            kinds=table["kind"].to_numpy(),
            vectors=catalogue.vectors(table["vector"]),
            items=table["item"].to_numpy(),
        )


def write(path: epath.PathLike, pairs: np.ndarray) -> None:
    """Writes `PAIR` records (n,) in order of time."""
    columns = {name: pa.array(np.ascontiguousarray(pairs[name])) for name in PAIR.names}
    parquet.write(path, SCHEMA, [pa.table(columns)])


def read(path: epath.PathLike) -> np.ndarray:
    """Reads what `write` wrote: `PAIR` (n,).

    Raises:
      InputError: if it cannot be read.
    """
    table = parquet.read(path)
    pairs = np.empty(len(table), PAIR)
    for name in PAIR.names:
        pairs[name] = table[name].to_numpy()
    return pairs
