"""The catalogue: the attributes of each item, as one Parquet file that is read by column.

Everywhere else items are identified by their row, from 0. The columns are:

    id        the user's own id, int64 or text
    topic     int32, the item's main topic as a number, -1 where unknown
    count     int64, actions of training users on the item up to the end of training
    created   uint32, unix seconds from which the item exists
    name      text, what people call the item, null where unknown; the column may be missing
    image_url text, where its picture is, null where unknown; the column may be missing
    content   a content vector, float16, zeros where unknown; the column may be missing
    images    float16 vectors of the item's images, any number of them; the column may be missing
    tokens: F token ids of the text feature F, int32, of the data set's vocabulary; any number of F
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from pinjax import ragged
from pinjax.data import parquet
from pinjax.data.text import tokens
from pinjax.errors import InputError

FILE = "items.parquet"
TOKENS = "tokens: "
SHOWN = ("name", "image_url")  # columns for people; nothing is trained on them
ROWS_A_GROUP = 2**16


@dataclasses.dataclass(frozen=True, eq=False)
class Items:
    """Some items, by row.

    Attributes:
      ids: the user's own ids, int64 (n,) or text as objects.
      topics: int32 (n,), -1 where unknown.
      counts: int64 (n,), actions of training users up to the end of training.
      created: uint32 (n,), unix seconds.
      content: float16 (n, dim), zeros where unknown, or None.
      images: float16 (images, dim), item by item, or None.
      image_offsets: int64 (n + 1,), offsets of each item's images; None without images.
      texts: by name of the feature, each item's tokens.
      shown: by name of `SHOWN`, text (n,), None where unknown.
    """

    ids: np.ndarray
    topics: np.ndarray
    counts: np.ndarray
    created: np.ndarray
    content: np.ndarray | None = None
    images: np.ndarray | None = None
    image_offsets: np.ndarray | None = None
    texts: Mapping[str, tokens.Ragged] = dataclasses.field(default_factory=dict)
    shown: Mapping[str, Sequence[str | None]] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def to_arrow(self) -> pa.Table:
        columns = {
            "id": id_array(self.ids),
            "topic": pa.array(self.topics, pa.int32()),
            "count": pa.array(self.counts, pa.int64()),
            "created": pa.array(self.created, pa.uint32()),
        }
        columns |= {name: pa.array(texts, pa.large_string()) for name, texts in self.shown.items()}
        if self.content is not None:
            columns["content"] = vector_array(self.content)
        if self.images is not None:
            columns["images"] = pa.LargeListArray.from_arrays(
                pa.array(self.image_offsets), vector_array(self.images)
            )
        for name, (ids, offsets) in self.texts.items():
            columns[TOKENS + name] = pa.LargeListArray.from_arrays(
                pa.array(offsets), pa.array(ids, pa.int32())
            )
        return pa.table(columns)


@contextlib.contextmanager
def writer(path: epath.PathLike) -> Iterator[Callable[[Items], None]]:
    """A function that appends items to a new catalogue; all calls have the same columns."""
    with contextlib.ExitStack() as stack:
        opened: list[pq.ParquetWriter] = []

        def write(items: Items) -> None:
            table = items.to_arrow()
            if not opened:
                made = pq.ParquetWriter(os.fspath(path), table.schema, use_dictionary=False)
                opened.append(stack.enter_context(made))
            opened[0].write_table(table, row_group_size=ROWS_A_GROUP)

        yield write


class Catalogue:
    """A catalogue on disk. Each attribute of `Items` is read on first access."""

    def __init__(self, path: epath.PathLike):
        self.path = os.fspath(path)
        with parquet.reading(path):
            metadata = pq.read_metadata(self.path)
        self._schema, self._rows = metadata.schema.to_arrow_schema(), metadata.num_rows

    def __len__(self) -> int:
        return self._rows

    @functools.cached_property
    def ids(self) -> np.ndarray:
        return self._column("id").to_numpy()

    @functools.cached_property
    def topics(self) -> np.ndarray:
        return self._column("topic").to_numpy()

    @functools.cached_property
    def counts(self) -> np.ndarray:
        return self._column("count").to_numpy()

    @functools.cached_property
    def created(self) -> np.ndarray:
        return self._column("created").to_numpy()

    @functools.cached_property
    def shown(self) -> dict[str, list[str | None]]:
        names = (name for name in SHOWN if name in self._schema.names)
        return {name: self._column(name).to_pylist() for name in names}

    @functools.cached_property
    def content(self) -> np.ndarray | None:
        return vectors(self._column("content")) if "content" in self._schema.names else None

    def content_parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(rows, their content vectors) of all items, some at a time; of no item without content.

        It holds no more in memory, where `content` holds all.
        """
        if "content" in self._schema.names:
            yield from _numbered(parquet.batches(self.path, "content", ROWS_A_GROUP))

    @property
    def has_images(self) -> bool:
        return "images" in self._schema.names

    @functools.cached_property
    def images(self) -> np.ndarray | None:
        if not self.has_images:
            return None
        return vectors(pa.chunked_array([self._column("images").combine_chunks().flatten()]))

    def image_parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(places in `images`, these vectors) of all images, those of some items at a time."""
        if self.has_images:
            lists = parquet.batches(self.path, "images", ROWS_A_GROUP)
            yield from _numbered(list_.flatten() for list_ in lists)

    def ordered_images(self) -> Iterator[np.ndarray]:
        """The vectors of `images`, in their order, some at a time."""
        return (vectors for _, vectors in self.image_parts())

    @functools.cached_property
    def image_offsets(self) -> np.ndarray:
        """int64 (n + 1,); zeros if there are no images."""
        if not self.has_images:
            return np.zeros(len(self) + 1, np.int64)
        lists = parquet.batches(self.path, "images", ROWS_A_GROUP)
        lengths = np.concatenate([some.value_lengths().fill_null(0).to_numpy() for some in lists])
        return ragged.offsets_of(lengths)

    @property
    def text_features(self) -> tuple[str, ...]:
        """Names of the text features."""
        names = (name for name in self._schema.names if name.startswith(TOKENS))
        return tuple(name.removeprefix(TOKENS) for name in names)

    def text(self, feature: str) -> tokens.Ragged:
        """The tokens of a text feature of all items."""
        column = self._column(TOKENS + feature).combine_chunks()
        return tokens.Ragged(
            column.flatten().to_numpy(), column.offsets.to_numpy() - column.offsets[0].as_py()
        )

    def _column(self, name: str) -> pa.ChunkedArray:
        return parquet.read(self.path, [name])[name]


def _numbered(parts: Iterable[pa.Array]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(places, vectors) of consecutive parts of a column of vectors."""
    start = 0
    for part in parts:
        yield np.arange(start, start + len(part)), vectors(pa.chunked_array([part]))
        start += len(part)


def id_array(ids: np.ndarray) -> pa.Array:
    """Own ids, int64 (n,) or text as objects, as an Arrow column."""
    return pa.array(ids, pa.large_string() if ids.dtype == object else pa.int64())


def vector_array(vectors: np.ndarray, dtype: str = "float16") -> pa.Array:
    """Rows of a (n, dim) float array as an Arrow column of fixed-size lists of a type."""
    flat = pa.array(np.asarray(vectors, dtype).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])


def vectors(column: pa.ChunkedArray) -> np.ndarray:
    """An Arrow column of fixed-size lists as a (n, dim) array."""
    flat = column.combine_chunks()
    return flat.flatten().to_numpy().reshape(len(column), column.type.list_size)


def given_vectors(column: pa.ChunkedArray, about: str) -> np.ndarray:
    """A user's column of lists of numbers as a float32 (n, dim) array.

    Raises:
      InputError: if it holds anything else, or lists of several lengths; it begins with `about`.
    """
    try:
        lists = column.combine_chunks().cast(pa.list_(pa.float32()))
        numbers, lengths = lists.flatten(), np.diff(lists.offsets.to_numpy())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        numbers, lengths = None, None
    if numbers is None or lists.null_count or numbers.null_count or len(np.unique(lengths)) > 1:
        raise InputError(
            f"{about} is {column.type}; expected lists of numbers, all of one length, without nulls"
        )
    return numbers.to_numpy().reshape(len(lists), lengths[0] if len(lists) else 0)
