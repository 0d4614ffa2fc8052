"""The queries of pairs, and their frozen vectors."""

from collections.abc import Sequence

import numpy as np

from pinjax.data import pairs
from pinjax.data.sources import content, items, rows
from pinjax.data.sources.columns import Column
from pinjax.data.sources.engine import Job, numbered
from pinjax.data.sources.reading import File
from pinjax.errors import InputError


def read(job: Job, files: Sequence[File]) -> None:
    """Makes the table `own_vectors` of texts of searches, or ids of items as text, and vectors.

    Raises:
      InputError: naming a bad row.
    """
    named, table = job.config.queries, rows.Rows(job.database, files, "own_vectors")
    columns = [
        {"id": Column(file, named.id).trimmed(), "vector": Column(file, named.vector).vectors()}
        for file in files
    ]
    job.database.run(f"CREATE TABLE own_vectors AS {rows.select(files, columns)}")
    table.refuse("id IS NULL", named.id, "the text of a search or an item's id")
    table.refuse_repeats(named.id, "each query once")
    table.refuse_vectors("vector", named.vector, zeros=False)


def check(job: Job, log_files: Sequence[File], given: str) -> None:
    """Drops pairs of `found` whose query has no vector.

    Args:
      job: with `events`, `items`, `found` and, if they exist, `given` and `own_vectors`.
      log_files: of the events, for messages.
      given: the file of queries' own vectors, or "".

    Raises:
      InputError: if there is no pair, or too many events or pairs are unusable.
    """
    database, config = job.database, job.config
    joined = "(SELECT place, described FROM events e JOIN items i ON e.item = i.row)"
    log = rows.Rows(database, log_files, joined)
    expected = "an id of the table of items, and a text or image there, for pairs"
    unknown = log.refuse("NOT described", config.events.item, expected, config.tolerance)
    (count,) = database.row("SELECT count(*) FROM found")
    if not count:
        column = config.events.query or config.events[config.pairs.sequence]
        raise InputError(f"no pair: nothing leads to an item by {column}")
    lacking, where = "false", ""
    if given:
        lacking, where = "query NOT IN (SELECT id FROM own_vectors)", given
    elif config.catalogue.images:
        shown = f"len({items.IMAGES}) > 0"
        with_image = f"SELECT i.row FROM items i JOIN given g ON i.id = g.id WHERE {shown}"
        lacking = f"source IS NOT NULL AND source NOT IN ({with_image})"
        where = f"column {config.catalogue.images}"
    without, place, kind, query = database.row(
        "SELECT count(*), min(place), arg_min(kind, place), arg_min(query, place) FROM found "
        f"WHERE {lacking}"
    )
    if without > config.tolerance * count:
        share = f"{without} of {count} pairs have none, tolerance is {config.tolerance:g}"
        if kind == "text":
            column, expected = config.events.query, f"a query with its vector in {where}"
            raise log.error(place, column, expected, share)
        number, row = divmod(place, rows.PLACES)
        raise InputError(
            f"{log_files[number].path}: row {row}: item {query} leads to its item and has no "
            f"vector in {where}; expected one of each query ({share})"
        )
    database.run(f"DELETE FROM found WHERE {lacking}")
    job.report["events in no pair: no text or image"] = unknown
    job.report["pairs dropped for a query without a vector"] = without


def write(job: Job, given: bool, made: content.WordVectors) -> dict[str, int]:
    """Writes the queries of `split_pairs`, and makes the table `queries` of their rows.

    A query has its own vector if that is given. Otherwise an item has the vector of its first
    image, and a search has a vector of its words.

    Returns:
      the fields of the spec for queries.

    Raises:
      InputError: if no query has a vector, or the dimensions of searches and items differ.
    """
    database = job.database
    database.run(
        "CREATE TABLE queries AS "
        f"SELECT {numbered('kind, item, id')}, * "
        "FROM (SELECT DISTINCT kind, query AS id, source AS item FROM split_pairs)"
    )
    vector, join = "CAST(NULL AS FLOAT[][])", ""
    if given:
        vector, join = "v.vector", "LEFT JOIN own_vectors v ON q.id = v.id"
    elif job.config.catalogue.images:
        vector = f"CASE WHEN q.item IS NOT NULL THEN [{items.IMAGES}[1]] END"
        join = "LEFT JOIN items i ON q.item = i.row LEFT JOIN given g ON i.id = g.id"
    found = f"SELECT q.*, {vector} AS vector FROM queries q {join} ORDER BY q.row"
    dim = _dim(job, given, made)
    written = {name: [] for name in ("ids", "kinds", "items", "vectors")}
    for piece in database.pieces(found):
        of_piece = content.only_vectors(piece["vector"], dim)
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
    queries.write(job.made / pairs.QUERIES_FILE)
    job.report |= {"queries": len(queries), "queries without a vector": empty}
    return {"num_queries": len(queries), "query_dim": dim}


def _dim(job: Job, given: bool, made: content.WordVectors) -> int:
    """The dimension of the queries' vectors."""
    if given:
        return job.database.row("SELECT len(vector[1]) FROM own_vectors LIMIT 1")[0]
    dims = {made.space.dim} if made.space else set()
    if job.config.pairs.sequence:
        of_words = made.images is not None
        dims.add(made.images.shape[1] if of_words else content.dim_of(job.database, "images"))
    if len(dims) > 1:
        raise InputError(
            f"config.vectors.dim: searches have vectors of {made.space.dim} numbers, items as "
            f"queries {(dims - {made.space.dim}).pop()}; expected --queries, or no column of images"
        )
    return dims.pop()
