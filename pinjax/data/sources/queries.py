"""What leads to items: the queries of the pairs that were found, and their frozen vectors."""

from collections.abc import Sequence

import duckdb
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from pinjax.data import pairs
from pinjax.data.sources import content, items, rows
from pinjax.data.sources.columns import Column
from pinjax.data.sources.engine import first_row, numbered, pieces
from pinjax.data.sources.reading import File
from pinjax.errors import InputError


def read(connection: duckdb.DuckDBPyConnection, files: Sequence[File], config: ConfigDict) -> None:
    """Makes the table `own_vectors` of texts of searches, or ids of items as text, and vectors.

    Raises:
      InputError: naming a row that is wrong.
    """
    named, table = config.queries, "own_vectors"

    def values(number: int, file: File) -> dict[str, str]:
        del number
        id_, vector = Column(file, named.id), Column(file, named.vector)
        return {"id": id_.trimmed(), "vector": vector.vectors()}

    connection.execute(f"CREATE TABLE {table} AS {rows.select(files, values)}")
    expected = "the text of a search or an item's id"
    rows.refuse(connection, files, table, "id IS NULL", named.id, expected)
    rows.refuse_repeats(connection, files, table, "id", named.id, "each query once")
    rows.refuse_vectors(connection, files, table, "vector", named.vector, zeros=False)


def check(
    connection: duckdb.DuckDBPyConnection,
    log_files: Sequence[File],
    given: str,
    config: ConfigDict,
) -> dict[str, int]:
    """Drops pairs of `found` whose query has no vector.

    Args:
      connection: with `events`, `items`, `found` and, where they are, `given` and `own_vectors`.
      log_files: of the events, for messages.
      given: the file of queries' own vectors, or "".
      config: a column map.

    Returns:
      counts for the report.

    Raises:
      InputError: where there is no pair, or more events or pairs than are tolerated are unusable.
    """
    unknown = rows.refuse(
        connection,
        log_files,
        "(SELECT place, described FROM events e JOIN items i ON e.item = i.row)",
        "NOT described",
        config.events.item,
        "an id of the table of items, and a text or image there, for pairs",
        config.tolerance,
    )
    (count,) = first_row(connection, "SELECT count(*) FROM found")
    if not count:
        column = config.events.query or config.events[config.pairs.sequence]
        raise InputError(f"no pair: nothing leads to an item by {column}")
    lacking, where = "false", ""
    if given:
        lacking, where = "query NOT IN (SELECT id FROM own_vectors)", given
    elif config.catalogue.images:
        shown = f"len({items.SHOWN}) > 0"
        with_image = f"SELECT i.row FROM items i JOIN given g ON i.id = g.id WHERE {shown}"
        lacking = f"source IS NOT NULL AND source NOT IN ({with_image})"
        where = f"column {config.catalogue.images}"
    without, place, kind, query = first_row(
        connection,
        "SELECT count(*), min(place), arg_min(kind, place), arg_min(query, place) FROM found "
        f"WHERE {lacking}",
    )
    if without > config.tolerance * count:
        share = f"{without} of {count} pairs have none, tolerance is {config.tolerance:g}"
        if kind == "text":
            column, expected = config.events.query, f"a query with its vector in {where}"
            raise rows.error(connection, log_files, place, column, expected, share)
        number, row = divmod(place, rows.PLACES)
        raise InputError(
            f"{log_files[number].path}: row {row}: item {query} leads to its item and has no "
            f"vector in {where}; expected one of each query ({share})"
        )
    connection.execute(f"DELETE FROM found WHERE {lacking}")
    return {
        "events in no pair: no text or image": unknown,
        "pairs dropped for a query without a vector": without,
    }


def write(
    connection: duckdb.DuckDBPyConnection,
    path: epath.PathLike,
    given: bool,
    made: content.WordVectors,
    config: ConfigDict,
) -> tuple[dict[str, int], dict[str, int]]:
    """Writes the queries of `split_pairs`, and makes the table `queries` of their rows.

    A query's vector is its own where it is given. Or else an item's is that of its first image, and
    a search's is made of its words.

    Returns:
      (what the spec says of queries, counts for the report).

    Raises:
      InputError: where no query has a vector, or searches and items have vectors of other lengths.
    """
    connection.execute(
        "CREATE TABLE queries AS "
        f"SELECT {numbered('kind, item, id')}, * "
        "FROM (SELECT DISTINCT kind, query AS id, source AS item FROM split_pairs)"
    )
    vector, join = "CAST(NULL AS FLOAT[][])", ""
    if given:
        vector, join = "v.vector", "LEFT JOIN own_vectors v ON q.id = v.id"
    elif config.catalogue.images:
        vector = f"CASE WHEN q.item IS NOT NULL THEN [{items.SHOWN}[1]] END"
        join = "LEFT JOIN items i ON q.item = i.row LEFT JOIN given g ON i.id = g.id"
    found = connection.sql(f"SELECT q.*, {vector} AS vector FROM queries q {join} ORDER BY q.row")
    dim = _dim(connection, given, made, config)
    written = {name: [] for name in ("ids", "kinds", "items", "vectors")}
    for piece in pieces(found):
        of_piece = content.first_vectors(piece["vector"], dim)
        search = piece["item"].is_null().to_numpy()
        item = piece["item"].fill_null(-1).to_numpy().astype(np.int32)
        ids = piece["id"].to_numpy()
        if not given and made.space is not None and search.any():
            of_piece[search] = made.space.vectors(ids[search].tolist())
        if not given and made.images is not None:
            of_piece[~search] = made.images[item[~search]]
        columns = ids, piece["kind"].to_numpy(), item, of_piece
        for values, more in zip(written.values(), columns, strict=True):
            values.append(more)
    queries = pairs.Queries(**{name: np.concatenate(rows) for name, rows in written.items()})
    empty = int((~queries.vectors.any(axis=1)).sum())
    if empty == len(queries):
        raise InputError(
            "no query has a vector: no search has a word of the items' texts; expected --queries, "
            "or other config.vectors.texts"
        )
    queries.write(path)
    spec = {"num_queries": len(queries), "query_dim": dim}
    return spec, {"queries": len(queries), "queries without a vector": empty}


def _dim(
    connection: duckdb.DuckDBPyConnection,
    given: bool,
    made: content.WordVectors,
    config: ConfigDict,
) -> int:
    """Numbers of a query's vector."""
    if given:
        query = "SELECT len(vector[1]) FROM own_vectors LIMIT 1"
        return first_row(connection, query)[0]
    dims = {made.space.dim} if made.space else set()
    if config.pairs.sequence:
        of_words = made.images is not None
        dims.add(made.images.shape[1] if of_words else content.dim_of(connection, "images"))
    if len(dims) > 1:
        raise InputError(
            f"config.vectors.dim: searches have vectors of {made.space.dim} numbers, items as "
            f"queries {(dims - {made.space.dim}).pop()}; expected --queries, or no column of images"
        )
    return dims.pop()
