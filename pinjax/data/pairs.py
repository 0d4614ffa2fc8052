"""What a data set of engagements is on disk: queries, products, and pairs of them.

A data set is one directory, written whole or not at all:

    DIR/
      metadata.json       a `Metadata`
      pairs.parquet       `PAIR` and its split, one row an engagement, in order of time
      products.parquet    `Products`: images, and the tokens of each text feature
      queries.parquet     `Queries`: own ids, kinds, texts and frozen vectors
      vocabulary.parquet  the `text.Vocabulary` that the tokens are of

A task is what kind of query led to what kind of engagement, say "image/click". A pair is a few
bytes, so all pairs are held in memory as columns: from records, one at a time, they would be read
far more slowly than a step consumes them.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from pinjax import files
from pinjax.data import schema, tables, text
from pinjax.errors import InputError

# An engagement: rows of `Queries` and `Products`, a row of `Metadata.tasks`, unix seconds.
PAIR = np.dtype([("query", np.int32), ("product", np.int32), ("task", np.uint8), ("time", "u4")])

# From rows of queries, (n,), and a task to the products' scores, float32 (n, products).
Oracle = Callable[[np.ndarray, int], np.ndarray]

PAIRS_FILE = "pairs.parquet"

_METADATA, _PRODUCTS = "metadata.json", "products.parquet"
_QUERIES, _VOCABULARY = "queries.parquet", "vocabulary.parquet"
_TOKENS = "tokens: "


@dataclasses.dataclass(frozen=True)
class Metadata:
    """What is known about a data set beside its rows.

    Attributes:
      name: the data set's name, as printed in tables.
      tasks: names as "KIND OF QUERY/KIND OF ENGAGEMENT".
      train_end: pairs of the split train are not later, unix seconds; 0 where there are no times.
      digest: hash of what the data set was made from; a checkpoint remembers it.
      report: counts and other figures from the preparation, for people.
    """

    name: str
    tasks: tuple[str, ...]
    train_end: int
    digest: str
    report: dict[str, int | float | str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Products:
    """The products, by row.

    Attributes:
      ids: the user's own ids, int64 or text, (products,).
      topics: int32 (products,), -1 where unknown.
      created: uint32 (products,), the moment from which the product exists, unix seconds.
      images: float16 (images, dim), the frozen vectors of all images, product by product.
      image_offsets: int64 (products + 1,), where each product's images begin.
      texts: by name of the feature, each product's tokens.
    """

    ids: np.ndarray
    topics: np.ndarray
    created: np.ndarray
    images: np.ndarray
    image_offsets: np.ndarray
    texts: dict[str, text.Ragged]

    def __len__(self) -> int:
        return len(self.ids)

    def write(self, path: epath.PathLike) -> None:
        images = pa.LargeListArray.from_arrays(
            pa.array(self.image_offsets), schema.vector_array(self.images)
        )
        columns = {
            "id": pa.array(self.ids),
            "topic": pa.array(self.topics, pa.int32()),
            "created": pa.array(self.created, pa.uint32()),
            "images": images,
        }
        for name, ragged in self.texts.items():
            columns[_TOKENS + name] = pa.LargeListArray.from_arrays(
                pa.array(ragged.offsets), pa.array(ragged.tokens, pa.int32())
            )
        _write_table(path, columns)

    @classmethod
    def read(cls, path: epath.PathLike) -> "Products":
        table = tables.read_own(path)
        images = table["images"].combine_chunks()
        texts = {}
        for name in table.column_names:
            if name.startswith(_TOKENS):
                column = table[name].combine_chunks()
                tokens, offsets = column.values.to_numpy(), column.offsets.to_numpy()
                texts[name.removeprefix(_TOKENS)] = text.Ragged(tokens, offsets)
        return cls(
            ids=table["id"].to_numpy(),
            topics=table["topic"].to_numpy(),
            created=table["created"].to_numpy(),
            images=schema.vectors(pa.chunked_array([images.values])),
            image_offsets=images.offsets.to_numpy(),
            texts=texts,
        )


@dataclasses.dataclass(frozen=True)
class Queries:
    """The queries, by row.

    Attributes:
      ids: the user's own ids, int64 or text, (queries,); of a text query, the text itself.
      kinds: text (queries,), "image" or "text".
      vectors: float16 (queries, dim), the frozen vectors.
      products: int32 (queries,), the row of the product that a query is; -1: it is none.
    """

    ids: np.ndarray
    kinds: np.ndarray
    vectors: np.ndarray
    products: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def write(self, path: epath.PathLike) -> None:
        columns = {
            "id": pa.array(self.ids),
            "kind": pa.array(self.kinds),
            "vector": schema.vector_array(self.vectors),
            "product": pa.array(self.products, pa.int32()),
        }
        _write_table(path, columns)

    @classmethod
    def read(cls, path: epath.PathLike) -> "Queries":
        table = tables.read_own(path)
        if "product" not in table.column_names:
            raise InputError(f"{path}: of an older version; prepare the data set again, elsewhere")
        return cls(
            ids=table["id"].to_numpy(),
            kinds=table["kind"].to_numpy(),
            vectors=schema.vectors(table["vector"]),
            products=table["product"].to_numpy(),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class PairSet:
    """A data set of engagements on disk, read as it is needed.

    Attributes:
      directory: where it lies.
      metadata: what is known about it.
      oracle: the best possible ranking, known only of a simulated world.
    """

    directory: epath.Path
    metadata: Metadata
    oracle: Oracle | None = None

    @functools.cached_property
    def products(self) -> Products:
        return Products.read(self.directory / _PRODUCTS)

    @functools.cached_property
    def queries(self) -> Queries:
        return Queries.read(self.directory / _QUERIES)

    @functools.cached_property
    def vocabulary(self) -> text.Vocabulary:
        return text.Vocabulary.load(self.directory / _VOCABULARY)

    @functools.cache  # noqa: B019, a data set lives as long as its command
    def pairs(self, split: str) -> np.ndarray:
        """The pairs of a split, `PAIR` (pairs,), in order of time."""
        table = tables.read_own(self.directory / PAIRS_FILE)
        inside = table["split"].to_numpy() == schema.SPLITS.index(split)
        pairs = np.empty(inside.sum(), PAIR)
        for name in PAIR.names:
            pairs[name] = table[name].to_numpy()[inside]
        return pairs

    @property
    def frozen(self) -> dict[str, str]:
        """Identities of what a model is trained against and has to be used with."""
        return {
            "query vectors": _digest(self.queries.vectors),
            "image vectors": _digest(self.products.images),
            "vocabulary": self.vocabulary.digest,
        }


def write(
    directory: epath.PathLike,
    metadata: Metadata,
    products: Products,
    queries: Queries,
    vocabulary: text.Vocabulary,
    pairs: np.ndarray,
    splits: np.ndarray,
    save_more: Callable[[epath.Path], None] = lambda directory: None,
) -> None:
    """Writes a data set to a directory that is not there yet; nothing is left of a failure.

    Where another process has written one there meanwhile, that one stays.

    Args:
      pairs: `PAIR` (pairs,), in order of time.
      splits: int8 (pairs,), which of `schema.SPLITS` each is of.
      save_more: writes what else belongs into the directory.
    """
    with files.unfinished(directory) as unfinished:
        columns = {name: pa.array(np.ascontiguousarray(pairs[name])) for name in PAIR.names}
        _write_table(unfinished / PAIRS_FILE, {**columns, "split": pa.array(splits, pa.int8())})
        products.write(unfinished / _PRODUCTS)
        queries.write(unfinished / _QUERIES)
        vocabulary.save(unfinished / _VOCABULARY)
        content = json.dumps(dataclasses.asdict(metadata), indent=2)
        (unfinished / _METADATA).write_text(content + "\n")
        save_more(unfinished)
        files.finish(unfinished, directory)


def read(directory: epath.PathLike, oracle: Oracle | None = None) -> PairSet:
    """Opens what `write` wrote.

    Raises:
      InputError: where the directory holds no data set of engagements.
    """
    directory = epath.Path(directory)
    if not (directory / PAIRS_FILE).exists():
        raise InputError(f"{directory}: no data set of engagements, expected {PAIRS_FILE} in it")
    fields = json.loads((directory / _METADATA).read_text())
    return PairSet(directory, Metadata(**{**fields, "tasks": tuple(fields["tasks"])}), oracle)


def _write_table(path: epath.PathLike, columns: dict[str, pa.Array]) -> None:
    with epath.Path(path).open("wb") as file:
        pq.write_table(pa.table(columns), file, use_dictionary=False)


def _digest(array: np.ndarray) -> str:
    whole = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    whole.update(np.ascontiguousarray(array).data)
    return whole.hexdigest()[:16]
