"""What a data set is on disk: timelines, a catalogue, and what is known about both.

A data set is one directory, written whole or not at all:

    DIR/
      *.array_record        timelines, one row per user, in splits train, valid, test (TFDS)
      dataset_info.json     ... and what else TFDS keeps beside them
      features.json
      metadata.json         a `Metadata`
      catalogue.parquet     a `Catalogue`, one row per item

`tfds.builder_from_directory(DIR)` reads the timelines; every builder here makes the rest.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from etils import epath

from pinjax.data import tables

SPLITS = ("train", "valid", "test")
CATALOGUE_FILE = "catalogue.parquet"

# One action of a timeline. Times are unix seconds in UTC (uint32 lasts until 2106); duration is
# in seconds, 0 where the log has none; action and surface are rows of `Metadata`'s vocabularies,
# of which row 0 is "unknown". Packed: one view decodes a whole batch.
ACTION = np.dtype(
    [
        ("item", np.int32),
        ("time", np.uint32),
        ("duration", np.float32),
        ("surface", np.uint16),
        ("action", np.uint8),
    ]
)


def timeline_features() -> tfds.features.FeaturesDict:
    """The features of a timeline: `user`, the user's own id as text, and `actions`, packed."""
    return tfds.features.FeaturesDict(
        {
            "user": tfds.features.Text(),
            "actions": tfds.features.Tensor(
                shape=(None, ACTION.itemsize),
                dtype=np.uint8,
                encoding=tfds.features.Encoding.BYTES,
            ),
        }
    )


def pack(actions: np.ndarray) -> np.ndarray:
    """`ACTION` records of shape (n,) as bytes of shape (n, ACTION.itemsize)."""
    return np.ascontiguousarray(actions).view(np.uint8).reshape(len(actions), ACTION.itemsize)


def unpack(rows: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Packed timelines as one array of `ACTION` records and the offsets of each timeline in it.

    Args:
      rows: packed timelines, the i-th of shape (n_i, ACTION.itemsize).

    Returns:
      (records of shape (sum n_i,), offsets int64 of shape (timelines + 1,)).
    """
    rows = list(rows)
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(row) for row in rows], out=offsets[1:])
    return np.concatenate(rows).reshape(-1).view(ACTION), offsets


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What is known about a data set beside its rows.

    Attributes:
      name: the data set's name, as printed in tables.
      actions: the action vocabulary; row 0 is "unknown".
      surfaces: the surface vocabulary; row 0 is "unknown".
      num_items: rows of the catalogue.
      train_end: no action after this moment (unix seconds) may be trained on or counted.
      leave_one_out: True where the last action of each user tests and the one before validates;
        then the splits hold the same users, and `train_end` and the times mean nothing.
      digest: hash of what the data set was made from; a checkpoint remembers it.
      report: counts and other figures from the preparation, for people.
    """

    name: str
    actions: tuple[str, ...]
    surfaces: tuple[str, ...]
    num_items: int
    train_end: int
    leave_one_out: bool = False
    digest: str = ""
    report: dict[str, Any] = dataclasses.field(default_factory=dict)

    def to_tfds(self) -> tfds.core.MetadataDict:
        return tfds.core.MetadataDict(dataclasses.asdict(self))

    @classmethod
    def from_tfds(cls, metadata: dict[str, Any]) -> "Metadata":
        fields = dict(metadata)
        for name in ("actions", "surfaces"):
            fields[name] = tuple(fields[name])
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class Catalogue:
    """The items, by row.

    Attributes:
      ids: the user's own ids, int64 or text, shape (items,).
      topics: int32 (items,), the item's main topic as a row number, -1 where unknown.
      counts: int64 (items,), actions of training users on the item up to `Metadata.train_end`.
      created: uint32 (items,), the moment from which the item exists, in unix seconds.
      content: float16 (items, dim), or None where the data set has no content vectors.
    """

    ids: np.ndarray
    topics: np.ndarray
    counts: np.ndarray
    created: np.ndarray
    content: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def write(self, path: epath.PathLike) -> None:
        columns = {
            "id": pa.array(self.ids),
            "topic": pa.array(self.topics, pa.int32()),
            "count": pa.array(self.counts, pa.int64()),
            "created": pa.array(self.created, pa.uint32()),
        }
        if self.content is not None:
            columns["content"] = vector_array(self.content.astype(np.float16))
        with epath.Path(path).open("wb") as file:
            pq.write_table(pa.table(columns), file, use_dictionary=False)

    @classmethod
    def read(cls, path: epath.PathLike) -> "Catalogue":
        table = tables.read_own(path)
        content = None
        if "content" in table.column_names:
            content = vectors(table["content"])
        return cls(
            ids=table["id"].to_numpy(),
            topics=table["topic"].to_numpy(),
            counts=table["count"].to_numpy(),
            created=table["created"].to_numpy(),
            content=content,
        )


def vector_array(vectors: np.ndarray) -> pa.Array:
    """Rows of a (n, dim) float array as an Arrow column of fixed-size lists."""
    return pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])


def vectors(column: pa.ChunkedArray) -> np.ndarray:
    """An Arrow column of fixed-size lists as a (n, dim) array."""
    flat = column.combine_chunks()
    return flat.values.to_numpy().reshape(len(column), column.type.list_size)
