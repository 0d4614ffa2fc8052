"""The attributes of a catalogue's items: texts as tokens, content vectors, images and topics.

They are made from the tables `items` and, if there is a table of items, `given` and `tags`. Items
are read in chunks, in order of their rows.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse

from pinjax import ragged
from pinjax.data import catalogue
from pinjax.data import spec as spec_lib
from pinjax.data.sources import vectors
from pinjax.data.sources.engine import Database, Job, name_of
from pinjax.data.sources.event_columns import SECOND
from pinjax.data.text import tokens
from pinjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class WordVectors:
    """Vectors that are made from words.

    Attributes:
      space: of the vectors of searches; None if these are given.
      images: float16 (items, dim), one per item, zeros without a word; None if images are given.
    """

    space: vectors.WordSpace | None = None
    images: np.ndarray | None = None


def make_vocabulary(job: Job, trained: str, searches: bool) -> tokens.Vocabulary:
    """Makes the vocabulary of the texts of the items for which the SQL `trained` holds.

    With `searches` it is of each search in training, too, whose words may be no item's.
    """
    features = [feature for feature, _ in job.config.catalogue.texts]
    pieces = [_texts(job.database, features, trained)]
    if searches:
        found = "SELECT DISTINCT query FROM split_pairs WHERE kind = 'text' AND split = 0"
        pieces.append(job.database.pieces(found, 2**14))
    lines = _lines(itertools.chain(*pieces))
    vocabulary = tokens.Vocabulary.build(lines, **job.config.vocabulary)
    vocabulary.save(job.made / spec_lib.VOCABULARY_FILE)
    sizes = zip(tokens.KINDS, vocabulary.sizes, strict=True)
    job.report |= {f"{kind}s": size for kind, size in sizes}
    return vocabulary


def make_word_vectors(job: Job, table: str, searches: bool) -> WordVectors:
    """Makes vectors if none are given.

    Args:
      job: with `items` and `given`.
      table: the file of items, for messages; "" for none.
      searches: whether searches need vectors.

    Raises:
      InputError: if there are too few words.
    """
    config = job.config
    shown = bool(config.catalogue.images)
    if not searches and (shown or not table):
        return WordVectors()
    names = config.vectors.texts
    # From all items: words that no engaged item has also tell which items are similar.
    sizes = {**config.vocabulary, "bigrams": 0, "trigrams": 0}
    vocabulary = tokens.Vocabulary.build(_lines(_texts(job.database, names)), **sizes)
    space = vectors.WordSpace(vocabulary, config.vectors.language)
    counts = [
        space.counts([column.to_pylist() for column in piece])
        for piece in _texts(job.database, names)
    ]
    counts = scipy.sparse.vstack(counts).tocsr()
    if min(counts.shape) < 2:
        found = f"{counts.shape[1]} words on {counts.shape[0]} items"
        raise InputError(f"{table}: {found}; expected 2 or more of each to make vectors from")
    images = space.fit(counts, config.vectors.dim)
    return WordVectors(space if searches else None, None if shown else images)


def write(
    job: Job,
    counts: np.ndarray,
    vocabulary: tokens.Vocabulary | None,
    made: WordVectors,
    table: str,
) -> dict[str, Any]:
    """Writes the catalogue.

    Args:
      job: with `items`, and with `given` and `tags` if there is a table.
      counts: int64 (items,), actions in training.
      vocabulary: of the texts, if there are any.
      made: images if none are given.
      table: the file of items, or "".

    Returns:
      the fields of the spec for content, images and texts.
    """
    database, named = job.database, job.config.catalogue
    content = topics = None
    if named.tags:
        content, topics = _of_tags(database, table, len(counts), named.tag_dim)
    if named.topic:
        topics = _topics(database, len(counts))
    features = [feature for feature, _ in named.texts]
    shown = [name for name in catalogue.SHOWN if named[name]]
    columns = [name for name in (*shown, "content", "images") if named[name]]
    columns = ", ".join(["i.row", "i.id", *map(name_of, [*columns, *map(_column, features)])])
    # An item exists from its date or its first event; 0 if both are unknown.
    created = f"least(i.first, {'g.created' if named.created else 'NULL'})"
    if job.config.split.kind == "leave_one_out" or not job.config.events.time:
        created = "NULL"
    join = "LEFT JOIN given g ON i.id = g.id" if table else ""
    found = (
        f"SELECT {columns}, CAST(coalesce({created}, 0) // {SECOND} AS UINTEGER) AS created "
        f"FROM items i {join} ORDER BY i.row"
    )
    dims = {name: dim_of(database, name) for name in ("content", "images") if named[name]}
    spec: dict[str, Any] = {}
    empty = 0
    with catalogue.writer(job.made / catalogue.FILE) as add:
        for piece in database.pieces(found, catalogue.ROWS_A_GROUP):
            rows = piece["row"].to_numpy()
            some = slice(rows[0], rows[-1] + 1)
            of_piece: dict[str, Any] = {}
            if named.content:
                of_piece["content"] = only_vectors(piece["content"], dims["content"])
            elif content is not None:
                of_piece["content"] = content[some]
            if named.images:
                pictures, offsets = _flat_vectors(piece["images"], dims["images"])
                of_piece |= {"images": pictures, "image_offsets": offsets}
            elif made.images is not None:
                has = made.images[some].any(axis=1)
                offsets = ragged.offsets_of(has)
                of_piece |= {"images": made.images[some][has], "image_offsets": offsets}
            if "content" in of_piece:
                empty += int((~of_piece["content"].any(axis=1)).sum())
                spec["content_dim"] = of_piece["content"].shape[1]
            if "images" in of_piece:
                spec["image_dim"] = of_piece["images"].shape[1]
            add(
                catalogue.Items(
                    ids=piece["id"].to_numpy(),
                    topics=np.full(len(rows), -1, np.int32) if topics is None else topics[some],
                    counts=counts[some],
                    created=piece["created"].to_numpy(),
                    shown={name: piece[name].to_pylist() for name in shown},
                    texts={
                        feature: vocabulary.encode(piece[_column(feature)].to_pylist())
                        for feature in features
                    },
                    **of_piece,
                )
            )
    if "content_dim" in spec:
        job.report["items without content"] = empty
    return {**spec, "text_features": tuple(features)}


def dim_of(database: Database, name: str) -> int:
    """The dimension of the vectors in a column of `given`."""
    return database.row(f"SELECT len({name}[1]) FROM given WHERE len({name}) > 0 LIMIT 1")[0]


def only_vectors(column: pa.ChunkedArray, dim: int) -> np.ndarray:
    """The only vector of each list, float16 (n, dim), zeros where there is no list."""
    made = np.zeros((len(column), dim), np.float16)
    known = column.is_valid().to_numpy()
    flat = column.combine_chunks().filter(pa.array(known)).flatten().flatten()
    if len(flat):
        made[known] = flat.to_numpy().reshape(-1, dim)
    return made


def _flat_vectors(column: pa.ChunkedArray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """All nonzero vectors of lists, float16 (m, dim), and the offsets of the lists."""
    lists = column.combine_chunks()
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy()
    flat = lists.flatten().flatten().to_numpy().reshape(-1, dim).astype(np.float16)
    shown = flat.any(axis=1)
    row = np.repeat(np.arange(len(lists)), lengths)[shown]
    counts = np.bincount(row, minlength=len(lists))
    return flat[shown], ragged.offsets_of(counts)


def _column(feature: str) -> str:
    """The column of `given` with a text feature."""
    return f"text {feature}"


def _texts(database: Database, features: Sequence[str], where: str = "true") -> Iterator[pa.Table]:
    """Text features of items for which a condition holds, in chunks."""
    if features:
        columns = ", ".join(name_of(_column(feature)) for feature in features)
        found = (
            f"SELECT {columns} FROM items i LEFT JOIN given g ON i.id = g.id "
            f"WHERE {where} ORDER BY i.row"
        )
        yield from database.pieces(found, 2**14)


def _lines(pieces: Iterator[pa.Table]) -> Iterator[str | None]:
    return itertools.chain.from_iterable(column.to_pylist() for piece in pieces for column in piece)


def _of_tags(database: Database, table: str, items: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Content vectors and topics of items by their tags, see `vectors`."""
    found = database.table(
        "SELECT i.row, CAST(dense_rank() OVER (ORDER BY tag) - 1 AS INTEGER) AS code "
        "FROM tags t JOIN items i ON t.id = i.id ORDER BY ALL"
    )
    item, tag = found["row"].to_numpy(), found["code"].to_numpy()
    tags = len(np.unique(tag))
    if min(items, tags) < 2:
        raise InputError(f"{table}: {tags} tags on {items} items; expected 2 or more of each")
    return vectors.of_tags(item, tag, items, dim), vectors.commonest_tags(item, tag, items)


def _topics(database: Database, items: int) -> np.ndarray:
    """The main topics of items as ranks of their names, int32 (items,)."""
    topics = np.full(items, -1, np.int32)
    found = database.table(
        "SELECT i.row, CAST(dense_rank() OVER (ORDER BY topic) - 1 AS INTEGER) AS topic "
        "FROM given g JOIN items i ON g.id = i.id WHERE topic IS NOT NULL"
    )
    topics[found["row"].to_numpy()] = found["topic"].to_numpy()
    return topics
