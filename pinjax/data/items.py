"""The items of a log, and what a table of items adds: dates, topics and content vectors."""

import dataclasses

import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse
from etils import epath

from pinjax.data import logs, schema, tables
from pinjax.errors import InputError

_LATEST = 2**32  # `schema.Catalogue` holds seconds in 32 bits: 2106


@dataclasses.dataclass(frozen=True)
class Items:
    """A table of items.

    Attributes:
      ids: the items' own ids, int64 or text, each once.
      created: unix seconds, float64 (items,), NaN where unknown.
      topics: int32 (items,), -1 where unknown.
      content: float16 (items, dim), zeros where unknown, or None.
    """

    ids: pa.Array
    created: np.ndarray
    topics: np.ndarray
    content: np.ndarray | None


def read(path: epath.PathLike, config: ml_collections.ConfigDict) -> Items:
    """Reads a table of items by the `catalogue` section of a column map.

    Raises:
      InputError: for wrong input; here no bad row is tolerated.
    """
    names = config.catalogue
    wanted = [names.id, names.created, names.topic, names.content, names.tags]
    table = tables.read(path, list(filter(None, wanted)), config.delimiter)
    ids = tables.ids(path, names.id, table[names.id]).combine_chunks()
    checks = [tables.Check("item", names.id, "an item's id", ids.is_null().to_numpy(False))]
    distinct = ids.unique()
    item = pc.index_in(ids, distinct).to_numpy()
    first = np.unique(item, return_index=True)[1]
    if not names.tags or names.tag_separator:
        repeated = np.ones(len(table), bool)
        repeated[first] = False
        checks.append(tables.Check("item", names.id, "each item once", repeated))
    created = np.full(len(table), np.nan)
    if names.created:
        column = table[names.created]
        created = tables.moments(path, names.created, column, names.created_unit) / 1e6
        bad = column.is_valid().to_numpy() & ~((created >= 0) & (created < _LATEST))
        checks.append(tables.Check("created", names.created, "a moment from 1970 to 2106", bad))
    given = None
    if names.content:
        given, bad = vectors(path, names.content, table[names.content])
        expected = f"{given.shape[1]} finite numbers, as in the first row"
        checks.append(tables.Check("content", names.content, expected, bad))
    tables.usable(path, table, checks)

    content = None if given is None else given[first]
    topics = np.full(len(distinct), -1, np.int32)
    if names.tags:
        row, tag = _tags(table[names.tags], names.tag_separator)
        content = tag_vectors(path, item[row], tag, len(distinct), names.tag_dim)
        topics = _commonest(item[row], tag, len(distinct))
    if names.topic:
        encoded = tables.text(table[names.topic]).combine_chunks().dictionary_encode()
        topics = encoded.indices.fill_null(-1).to_numpy()[first]
    return Items(distinct, created[first], topics, content)


def join(
    items: Items | None, log: logs.Log, config: ml_collections.ConfigDict
) -> tuple[schema.Catalogue, np.ndarray, dict[str, int]]:
    """The catalogue of a log: the table's items in its order, then others by first row in the log.

    An item that only the log has is kept, without content. An item exists from its date in the
    table or from its first action, whichever is earlier; one that has neither, or whose times are
    ranks, from 0.

    Args:
      items: the table, or None.
      log: the log.
      config: a column map.

    Returns:
      (the catalogue with all counts 0, int32 (len(log.items),) the catalogue rows of log.items,
      counts for the report).
    """
    if items is None:
        items = Items(log.items[:0], np.zeros(0), np.zeros(0, np.int32), None)
    in_table, in_log = tables.same_type([items.ids, log.items])
    keep = np.arange(len(in_table))
    if not config.catalogue.keep_unseen:
        keep = np.flatnonzero(pc.is_in(in_table, in_log).to_numpy(False))
    ids = pa.concat_arrays([in_table.take(pa.array(keep)), in_log]).unique()
    rows = pc.index_in(in_log, ids).to_numpy()
    others = len(ids) - len(keep)

    created = np.append(items.created[keep], np.full(others, np.nan))
    if config.split.kind == "leave_one_out":
        created[:] = 0
    else:
        first = np.full(len(ids), np.inf)
        np.minimum.at(first, rows[log.records["item"]], log.records["time"])
        created = np.fmin(created, first)
        created[~np.isfinite(created)] = 0
    report = {"items": len(ids), "items in the log": len(in_log)}
    if len(items.ids):
        report["items not in the table"] = others
    content = None
    if items.content is not None:
        content = np.zeros((len(ids), items.content.shape[1]), np.float16)
        content[: len(keep)] = items.content[keep]
        report["items without content"] = int((~content.any(axis=1)).sum())
    catalogue = schema.Catalogue(
        ids=ids.to_numpy(zero_copy_only=False),
        topics=np.append(items.topics[keep], np.full(others, -1, np.int32)),
        counts=np.zeros(len(ids), np.int64),
        created=created.astype(np.uint32),
        content=content,
    )
    return catalogue, rows, report


def tag_vectors(
    path: epath.PathLike, item: np.ndarray, tag: np.ndarray, items: int, dim: int
) -> np.ndarray:
    """Unit vectors from tags: TF-IDF, then a truncated SVD (latent semantic analysis).

    Args:
      path: the file, for messages.
      item: int (pairs,), rows of items.
      tag: int (pairs,), rows of tags; a pair that comes twice counts once.
      items: how many there are.
      dim: numbers in a vector; fewer where there are not as many tags or items.

    Returns:
      float16 (items, dim), zeros for an item without tags.

    Raises:
      InputError: where there are not two tags and two items.
    """
    shape = (items, int(tag.max(initial=-1)) + 1)
    if min(shape) < 2:
        raise InputError(f"{path}: {shape[1]} tags on {items} items; expected 2 or more of each")
    matrix = scipy.sparse.csr_array((np.ones(len(item)), (item, tag)), shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1
    matrix = weighted(matrix, inverse_frequency(matrix))
    return unit_rows(matrix @ latent_space(matrix, dim))


def inverse_frequency(matrix: scipy.sparse.csr_array) -> np.ndarray:
    """The weight of each column by how many of the n rows have it: log((1 + n) / (1 + rows)) + 1.

    Args:
      matrix: (rows, columns), without duplicates.
    """
    carriers = np.bincount(matrix.indices, minlength=matrix.shape[1])
    return np.log((1 + matrix.shape[0]) / (1 + carriers)) + 1


def weighted(matrix: scipy.sparse.csr_array, weights: np.ndarray) -> scipy.sparse.csr_array:
    """The columns times their weights, then the rows at unit length: TF-IDF."""
    matrix = (matrix @ scipy.sparse.diags_array(weights)).tocsr()
    return scipy.sparse.diags_array(1 / _lengths(matrix)) @ matrix


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows of unit length as float16, zeros where they are (almost) zero."""
    return (vectors / _lengths(vectors)[:, None]).astype(np.float16)


def latent_space(matrix: scipy.sparse.csr_array, rank: int) -> np.ndarray:
    """The right singular vectors of the largest singular values, (columns, at most `rank`).

    A seeded range finder with power iterations (Halko, Martinsson & Tropp, SIAM Review 2011,
    Algorithm 4.4), so that the result is a function of the matrix alone.
    """
    basis = np.random.default_rng(0).standard_normal((matrix.shape[1], rank + 16))
    for _ in range(5):
        basis, _ = np.linalg.qr(matrix.T @ (matrix @ basis))
    # Those of the triangular factor, which is small where there are many rows.
    _, _, right = np.linalg.svd(np.linalg.qr(matrix @ basis, mode="r"), full_matrices=False)
    return basis @ right[:rank].T


def _lengths(rows: np.ndarray | scipy.sparse.csr_array) -> np.ndarray:
    """The rows' lengths, 1 where they are 0."""
    lengths = np.sqrt((rows * rows).sum(axis=1))
    return np.where(lengths < 1e-9, 1, lengths)


def _tags(column: pa.ChunkedArray, separator: str) -> tuple[np.ndarray, np.ndarray]:
    """(row, tag), int (pairs,): which row of the column carries which tag."""
    column = tables.text(column).combine_chunks()
    row = np.arange(len(column))
    if separator:
        lists = pc.split_pattern(column, separator)
        row, column = pc.list_parent_indices(lists).to_numpy(), pc.list_flatten(lists)
    column = pc.utf8_trim_whitespace(column)
    named = pc.not_equal(column, "").fill_null(False)
    encoded = column.filter(named).dictionary_encode()
    return row[named.to_numpy(False)], encoded.indices.to_numpy()


def _commonest(item: np.ndarray, tag: np.ndarray, items: int) -> np.ndarray:
    """Of each item's tags the one that the most items carry, int32 (items,), -1 without tags."""
    topics = np.full(items, -1, np.int32)
    if len(item):
        item, tag = np.unique(np.stack([item, tag]), axis=1)
        carriers = np.bincount(tag)[tag]
        order = np.lexsort((-tag, carriers))  # the last that is written stays
        topics[item[order]] = tag[order]
    return topics


def vectors(
    path: epath.PathLike, name: str, column: pa.ChunkedArray
) -> tuple[np.ndarray, np.ndarray]:
    """A column of lists as (float16 (rows, dim), zeros where null; bool (rows,), what is bad)."""
    kind = column.type
    types = pa.types
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not (lists and (types.is_floating(kind.value_type) or types.is_integer(kind.value_type))):
        raise InputError(f"{path}: {name} is {kind}; expected lists of numbers")
    column = column.combine_chunks()
    length = pc.list_value_length(column).fill_null(0).to_numpy()
    known = column.is_valid().to_numpy(False)
    dim = int(next(iter(length[known]), 0))
    if not dim:
        raise InputError(f"{path}: {name} has no numbers; expected a vector in the first row")
    bad = known & (length != dim)
    whole = column.filter(pa.array(known & ~bad))
    values = pc.list_flatten(whole).cast(pa.float32()).to_numpy(zero_copy_only=False)
    made = np.zeros((len(column), dim), np.float16)
    with np.errstate(over="ignore"):
        made[known & ~bad] = values.reshape(-1, dim)
    return made, bad | ~np.isfinite(made).all(axis=1)
