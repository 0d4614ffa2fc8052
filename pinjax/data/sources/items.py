"""Tables of items and of queries: read, looked up in further files, and checked.

No bad row is tolerated here.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

import duckdb
from ml_collections import ConfigDict

from pinjax.data.sources import reading
from pinjax.data.sources.reading import File, literal, name_of
from pinjax.errors import InputError

_LARGEST, _LEAST = 65_504, 2.0**-14  # of float16, with all of its bits
_LISTS = re.compile(r"(?:[A-Z]*INT[A-Z]*|FLOAT|DOUBLE|DECIMAL\(.*\))((?:\[\d*\]){1,2})")
_OUTSIDE = f"created = -1 OR created NOT BETWEEN 0 AND {reading.LATEST - 1}"
_MOMENT = "a moment from 1970 to 2106"

# SQL of the images of an item of `given` that are not zero.
SHOWN = (
    "list_filter(coalesce(g.images, []), "
    "lambda v: list_max(list_transform(v, lambda x: abs(x))) > 0)"
)


@dataclasses.dataclass(frozen=True)
class Sources:
    """The files of items.

    Attributes:
      main: those of the table itself.
      sides: those in which something is looked up, by name.
    """

    main: Sequence[File]
    sides: Mapping[str, Sequence[File]]


@dataclasses.dataclass(frozen=True)
class _Field:
    """Something that is known of an item: its name in `given`, and the user's column for it."""

    name: str
    column: str


def _fields(config: ConfigDict) -> list[_Field]:
    catalogue = config.catalogue
    named = [(name, catalogue[name]) for name in ("created", "topic", "content", "images", "tags")]
    named += [(f"text {feature}", column) for feature, column in catalogue.texts]
    return [_Field(name, column) for name, column in named if column]


def described(config: ConfigDict) -> str:
    """SQL of whether an item of `given` has a text or an image, or the map names neither."""
    has = [f"coalesce(g.{name_of(f'text {name}')}, '') <> ''" for name, _ in config.catalogue.texts]
    has += [f"len({SHOWN}) > 0"] if config.catalogue.images else []
    return " OR ".join(has) or "true"


def open_sources(
    connection: duckdb.DuckDBPyConnection,
    main: Sequence[str],
    others: Mapping[str, Sequence[str]],
    config: ConfigDict,
) -> Sources:
    """Opens the files of items.

    Args:
      connection: of `reading.database`.
      main: paths of the table itself.
      others: paths by name.
      config: a column map.

    Raises:
      InputError: for wrong files.
    """
    if set(others) != set(config.sides):
        given, expected = (", ".join(names) or "nothing" for names in (others, config.sides))
        raise InputError(f"--items has {given} after {main[0]}; expected {expected}")
    wanted: dict[str, list[str]] = {name: [side.id] for name, side in config.sides.items()}
    own = [config.catalogue.id, *(side.on for side in config.sides.values())]
    for field in _fields(config):
        name, column = _place(field.column, config)
        (wanted[name] if name else own).append(column)
    files = reading.open_files(connection, main, own, config.catalogue)
    sides = {
        name: reading.open_files(connection, others[name], columns, config.sides[name])
        for name, columns in wanted.items()
    }
    return Sources(files, sides)


def _place(column: str, config: ConfigDict) -> tuple[str, str]:
    """(name of the side or "", column there)."""
    name, dot, rest = column.partition(".")
    return (name, rest) if dot and name in config.sides else ("", column)


def read(
    connection: duckdb.DuckDBPyConnection, sources: Sources, integers: bool, config: ConfigDict
) -> dict[str, str]:
    """Makes the table `given` of one row an item, and the table `tags` of items and their tags.

    The columns of `given` are id and the names of `_fields`, without tags.

    Returns:
      for the report, how many items were found in each of the other files.

    Raises:
      InputError: naming a row that is wrong.
    """
    catalogue, fields = config.catalogue, _fields(config)
    keys = {
        name: all(
            [reading.are_integers(connection, file, side.on) for file in sources.main]
            + [reading.are_integers(connection, file, side.id) for file in sources.sides[name]]
        )
        for name, side in config.sides.items()
    }
    selects = []
    for number, file in enumerate(sources.main):
        values = [
            f"{number} AS file",
            f"{reading.ROW} AS row",
            f"{reading.ids(file, catalogue.id, integers)} AS id",
        ]
        for name, side in config.sides.items():
            values.append(f"{reading.ids(file, side.on, keys[name])} AS {name_of(f'key {name}')}")
        values += [
            _value(file, field, config) for field in fields if not _place(field.column, config)[0]
        ]
        selects.append(f"SELECT {', '.join(values)} FROM {file.relation}")
    joined = f"({' UNION ALL '.join(selects)}) m"
    for name in config.sides:
        table = _side(connection, sources.sides[name], name, keys[name], fields, config)
        joined += f" LEFT JOIN {table} ON m.{name_of(f'key {name}')} = {table}.key"
    columns = ", ".join(["file", "row", "id", *(name_of(field.name) for field in fields)])
    for name in config.sides:
        key = name_of(f"key {name}")
        columns += (
            f", {key}, {key} IS NOT NULL AND {_side_name(name)}.key IS NULL "
            f"AS {name_of(f'lacks {name}')}"
        )
    connection.execute(f"CREATE TABLE item_rows AS SELECT {columns} FROM {joined}")

    def refuse(condition: str, column: str, expected: str, name: str = "") -> None:
        _refuse(connection, "item_rows", sources.main, condition, column, expected, name)

    refuse("coalesce(CAST(id AS VARCHAR), '') = ''", catalogue.id, "an item's id")
    lists = any(file.types.get(catalogue.tags, "").endswith("[]") for file in sources.main)
    looked_up = _place(catalogue.tags, config)[0]
    tag_rows = catalogue.tags and not (catalogue.tag_separator or lists or looked_up)
    if not (catalogue.repeats or tag_rows):
        refuse(_repeated("item_rows", "id"), catalogue.id, "each item once")
    report = {}
    for name, side in config.sides.items():
        where = ", ".join(file.path for file in sources.sides[name])
        lacks = name_of(f"lacks {name}")
        if not side.partial:
            refuse(lacks, side.on, f"an id of {where}")
        found, keys_, lacking, known = reading.first_row(
            connection,
            f"SELECT count(*) FILTER (NOT {lacks}), count(*), min({name_of(f'key {name}')}), "
            f"(SELECT min(key) FROM {_side_name(name)}) FROM item_rows "
            f"WHERE {name_of(f'key {name}')} IS NOT NULL",
        )
        if not found:
            raise InputError(
                f"{where}: no {side.on} of the items is in it; they have {lacking!r}, the file "
                f"{known!r}: expected ids that are written alike"
            )
        report[f"items whose {side.on} is in {name}"] = f"{found / keys_:.1%}"
    for field in fields:
        if field.name == "created" and not _place(field.column, config)[0]:
            refuse(_OUTSIDE, field.column, _MOMENT)
        if field.name in ("content", "images"):
            refuse_vectors(connection, "item_rows", sources.main, field.name, field.column)
    if catalogue.tags:
        connection.execute(
            "CREATE TABLE tags AS SELECT DISTINCT id, trim(tag) AS tag FROM "
            "(SELECT id, unnest(tags) AS tag FROM item_rows) WHERE trim(tag) <> ''"
        )
    kept = ", ".join(["id", *(name_of(f.name) for f in fields if f.name != "tags")])
    connection.execute(
        f"CREATE TABLE given AS SELECT {kept} FROM item_rows "
        "QUALIFY row_number() OVER (PARTITION BY id ORDER BY file, row) = 1"
    )
    connection.execute("DROP TABLE item_rows")
    return report


def _side_name(name: str) -> str:
    return name_of(f"side {name}")


def _side(
    connection: duckdb.DuckDBPyConnection,
    files: Sequence[File],
    name: str,
    integers: bool,
    fields: Sequence[_Field],
    config: ConfigDict,
) -> str:
    """The name of a table of what is looked up in some files, by `key`."""
    side, table, selects = config.sides[name], _side_name(name), []
    for number, file in enumerate(files):
        values = [
            f"{number} AS file",
            f"{reading.ROW} AS row",
            f"{reading.ids(file, side.id, integers)} AS key",
        ]
        values += [
            _value(file, field, config)
            for field in fields
            if _place(field.column, config)[0] == name
        ]
        selects.append(f"SELECT {', '.join(values)} FROM {file.relation}")
    connection.execute(f"CREATE TABLE {table} AS {' UNION ALL '.join(selects)}")
    _refuse(connection, table, files, "coalesce(CAST(key AS VARCHAR), '') = ''", side.id, "an id")
    _refuse(connection, table, files, _repeated(table, "key"), side.id, "each id once")
    for field in fields:
        place, column = _place(field.column, config)
        if field.name == "created" and place == name:
            _refuse(connection, table, files, _OUTSIDE, column, _MOMENT)
    for column in ("file", "row"):
        connection.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    return table


def _value(file: File, field: _Field, config: ConfigDict) -> str:
    """SQL of what is known of an item: of its date -1 where it cannot be read."""
    _, column = _place(field.column, config)
    match field.name:
        case "created":
            moment = reading.moment(file, column, config.catalogue.created_unit)
            value = f"CASE WHEN {name_of(column)} IS NOT NULL THEN coalesce({moment}, -1) END"
        case "content" | "images":
            value = vectors(file, column)
        case "tags" if file.type_of(column).endswith("[]"):
            value = reading.texts(file, column)
        case "tags":
            value, separator = reading.text(file, column), config.catalogue.tag_separator
            value = f"string_split({value}, {literal(separator)})" if separator else f"[{value}]"
        case _:
            value = reading.text(file, column)
    return f"{value} AS {name_of(field.name)}"


def vectors(file: File, column: str) -> str:
    """SQL of a column of vectors, or of lists of them, as lists of vectors.

    Raises:
      InputError: for a column of another type.
    """
    lists = _LISTS.fullmatch(file.type_of(column))
    if not lists:
        raise file.unfit(column, "lists of numbers")
    name = name_of(column)
    single = lists[1].count("[") == 1
    value = f"CASE WHEN {name} IS NOT NULL THEN [{name}] END" if single else name
    return f"TRY_CAST({value} AS FLOAT[][])"  # numbers that are too large become null


def refuse_vectors(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    files: Sequence[File],
    name: str,
    column: str,
    zeros: bool = True,
) -> None:
    """Refuses vectors of other lengths than the first, and numbers that float16 does not hold.

    Args:
      connection: with the table.
      table: with columns file and row.
      files: that it was read from.
      name: of the column of lists of vectors in it.
      column: the user's name for it.
      zeros: whether a vector may be missing or zero.
    """
    (first,) = reading.first_row(
        connection,
        f"SELECT arg_min(len({name}[1]), (file, row)) FROM {table} WHERE len({name}) > 0",
    )
    if not first:
        paths = ", ".join(file.path for file in files)
        raise InputError(f"{paths}: {column} has no numbers; expected a vector in the first row")
    odd = f"lambda x: x IS NULL OR NOT isfinite(x) OR abs(x) > {_LARGEST}"
    size = "list_max(list_transform(v, lambda x: abs(x)))"
    bad = (
        f"lambda v: v IS NULL OR len(v) <> {first} OR len(list_filter(v, {odd})) > 0 "
        f"OR ({size} > 0 AND {size} < {_LEAST!r})" + ("" if zeros else f" OR {size} = 0")
    )
    condition = f"len(list_filter({name}, {bad})) > 0" + ("" if zeros else f" OR {name} IS NULL")
    each = " an image" if name == "images" else ""
    rest = "" if zeros else ", not all of them 0"
    expected = (
        f"{first} finite numbers{each} as in the first row{rest}, the largest in size from "
        f"{_LEAST:.2g} to {_LARGEST:,}"
    )
    _refuse(connection, table, files, condition, column, expected, name)
    if zeros:
        some = f"len(list_filter({name}, lambda v: {size} > 0)) > 0"
        (found,) = reading.first_row(connection, f"SELECT bool_or({some}) FROM {table}")
        if not found:
            paths = ", ".join(file.path for file in files)
            raise InputError(f"{paths}: {column} is 0 or null in all rows; expected vectors")


def _refuse(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    files: Sequence[File],
    condition: str,
    column: str,
    expected: str,
    name: str = "",
) -> None:
    """Raises an InputError that names the first row of a table where a condition holds.

    Its value is that of the user's column, or, where that was looked up in another file, of the
    table's column `name`.
    """
    bad, first = reading.first_row(
        connection, f"SELECT count(*), min((file, row)) FROM {table} WHERE {condition}"
    )
    if bad:
        (rows,) = reading.first_row(connection, f"SELECT count(*) FROM {table}")
        number, row = first
        share = f"{bad} of {rows} rows are bad, tolerance is 0"
        if column not in files[number].types:  # it was looked up
            value = connection.sql(
                f"SELECT {name_of(name)} FROM {table} WHERE file = {number} AND row = {row}"
            )
            raise reading.bad_value(files[number], row, column, value, expected, share)
        raise reading.bad_row(connection, files[number], row, column, expected, share)


def _repeated(table: str, key: str) -> str:
    """SQL of whether an earlier row of a table has the same key."""
    again = f"row_number() OVER (PARTITION BY {key} ORDER BY file, row) > 1"
    return f"(file, row) IN (SELECT (file, row) FROM {table} QUALIFY {again})"


def read_queries(
    connection: duckdb.DuckDBPyConnection, files: Sequence[File], config: ConfigDict
) -> None:
    """Makes the table `own_vectors` of texts of searches, or ids of items as text, and vectors.

    Raises:
      InputError: naming a row that is wrong.
    """
    queries = config.queries
    selects = [
        f"SELECT {number} AS file, {reading.ROW} AS row, "
        f"{reading.trimmed(file, queries.id)} AS id, "
        f"{vectors(file, queries.vector)} AS vector FROM {file.relation}"
        for number, file in enumerate(files)
    ]
    connection.execute(f"CREATE TABLE own_vectors AS {' UNION ALL '.join(selects)}")
    expected = "the text of a search or an item's id"
    _refuse(connection, "own_vectors", files, "id IS NULL", queries.id, expected)
    repeated = _repeated("own_vectors", "id")
    _refuse(connection, "own_vectors", files, repeated, queries.id, "each query once")
    refuse_vectors(connection, "own_vectors", files, "vector", queries.vector, zeros=False)
