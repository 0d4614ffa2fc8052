"""Tables of items: read, looked up in further files, and checked. No bad row is tolerated."""

import dataclasses
from collections.abc import Mapping, Sequence

import duckdb
from ml_collections import ConfigDict

from pinjax.data.sources import columns, reading, rows
from pinjax.data.sources.columns import Column
from pinjax.data.sources.engine import first_row, name_of
from pinjax.data.sources.reading import File
from pinjax.errors import InputError

VECTORS = ("content", "images")
# SQL of the images of an item of `given` that are not zero.
SHOWN = f"list_filter(coalesce(g.images, []), {rows.NOT_ZERO})"


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
    """Something that is known of an item.

    Attributes:
      name: in `given`.
      side: the name of the files that have it, "" for the table itself.
      column: there.
    """

    name: str
    side: str
    column: str

    def value(self, file: File, config: ConfigDict) -> str:
        """SQL of it; of a date that cannot be read -1."""
        column, catalogue = Column(file, self.column), config.catalogue
        match self.name:
            case "created":
                moment = column.moment(catalogue.created_unit)
                given = f"{name_of(self.column)} IS NOT NULL"
                return f"CASE WHEN {given} THEN coalesce({moment}, -1) END"
            case "content" | "images":
                return column.vectors()
            case "tags":
                return column.texts(catalogue.tag_separator)
            case _:
                return column.text()


def _fields(config: ConfigDict) -> list[_Field]:
    catalogue = config.catalogue
    named = [(name, catalogue[name]) for name in ("created", "topic", *VECTORS, "tags")]
    named += [(f"text {feature}", column) for feature, column in catalogue.texts]
    fields = []
    for name, column in named:
        side, dot, rest = column.partition(".")
        looked_up = dot and side in config.sides
        fields.append(_Field(name, side, rest) if looked_up else _Field(name, "", column))
    return [field for field in fields if field.column]


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
      connection: of `engine.database`.
      main: paths of the table itself.
      others: paths by name.
      config: a column map.

    Raises:
      InputError: for wrong files.
    """
    if set(others) != set(config.sides):
        given, expected = (", ".join(names) or "nothing" for names in (others, config.sides))
        raise InputError(f"--items has {given} after {main[0]}; expected {expected}")
    wanted = {"": [config.catalogue.id, *(side.on for side in config.sides.values())]}
    wanted |= {name: [side.id] for name, side in config.sides.items()}
    for field in _fields(config):
        wanted[field.side].append(field.column)
    files = reading.open_files(connection, main, wanted.pop(""), config.catalogue)
    sides = {
        name: reading.open_files(connection, others[name], named, config.sides[name])
        for name, named in wanted.items()
    }
    return Sources(files, sides)


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
        name: columns.are_integers(
            connection,
            [Column(file, side.on) for file in sources.main]
            + [Column(file, side.id) for file in sources.sides[name]],
        )
        for name, side in config.sides.items()
    }
    for name, side in config.sides.items():
        ids = {"id": (side.id, keys[name])}
        _read_rows(connection, sources.sides[name], name, ids, "each id once", config)
    ids = {f"key {name}": (side.on, keys[name]) for name, side in config.sides.items()}
    ids = {"id": (catalogue.id, integers), **ids}
    tag_rows = not catalogue.tag_separator and any(
        field.name == "tags"
        and not field.side
        and not any(Column(file, field.column).is_list for file in sources.main)
        for field in fields
    )
    once = "" if catalogue.repeats or tag_rows else "each item once"
    _read_rows(connection, sources.main, "", ids, once, config)

    selected, joins = ["m.*"], f"{_rows('')} m"
    for name in config.sides:
        selected += [f"{_rows(name)}.{name_of(f.name)}" for f in fields if f.side == name]
        selected.append(f"{_rows(name)}.id IS NOT NULL AS {name_of(f'in {name}')}")
        joins += f" LEFT JOIN {_rows(name)} ON m.{name_of(f'key {name}')} = {_rows(name)}.id"
    connection.execute(f"CREATE VIEW item_rows AS SELECT {', '.join(selected)} FROM {joins}")
    report = {}
    for name, side in config.sides.items():
        where = ", ".join(file.path for file in sources.sides[name])
        key, known = name_of(f"key {name}"), name_of(f"in {name}")
        if not side.partial:
            lacks, told = f"{key} IS NOT NULL AND NOT {known}", f"an id of {where}"
            rows.refuse(connection, sources.main, "item_rows", lacks, side.on, told)
        share, own, other = first_row(
            connection,
            f"SELECT avg(CAST({known} AS INTEGER)), min({key}), (SELECT min(id) FROM "
            f"{_rows(name)}) FROM item_rows WHERE {key} IS NOT NULL",
        )
        if not share:
            raise InputError(
                f"{where}: no {side.on} of the items is in it; they have {own!r}, the file "
                f"{other!r}: expected ids that are written alike"
            )
        report[f"items whose {side.on} is in {name}"] = f"{share:.1%}"
    for field in fields:
        if field.name in VECTORS:
            some = f"len(list_filter({field.name}, {rows.NOT_ZERO})) > 0"
            if not first_row(connection, f"SELECT bool_or({some}) FROM item_rows")[0]:
                paths = ", ".join(file.path for file in sources.sides.get(field.side, sources.main))
                told = "is 0 or null in all rows; expected vectors"
                raise InputError(f"{paths}: {field.column} {told}")
    if catalogue.tags:
        connection.execute(
            "CREATE TABLE tags AS SELECT DISTINCT id, trim(tag) AS tag FROM "
            "(SELECT id, unnest(tags) AS tag FROM item_rows) WHERE trim(tag) <> ''"
        )
    kept = ", ".join(["id", *(name_of(f.name) for f in fields if f.name != "tags")])
    connection.execute(
        f"CREATE TABLE given AS SELECT {kept} FROM item_rows "
        "QUALIFY row_number() OVER (PARTITION BY id ORDER BY place) = 1"
    )
    connection.execute("DROP VIEW item_rows")
    for name in ("", *config.sides):
        connection.execute(f"DROP TABLE {_rows(name)}")
    return report


def _rows(side: str) -> str:
    """The name of the table of the rows of a side, or of the table of items."""
    return name_of(f"rows {side}")


def _read_rows(
    connection: duckdb.DuckDBPyConnection,
    files: Sequence[File],
    side: str,
    ids: Mapping[str, tuple[str, bool]],
    once: str,
    config: ConfigDict,
) -> None:
    """Makes the table of the rows of some files.

    Args:
      connection: to make it in.
      files: to read.
      side: what they are called, "" for the table of items.
      ids: of each column of ids the user's column, and whether they are integers.
      once: what the first of them has to be, "" where one may come again.
      config: a column map.

    Raises:
      InputError: naming a row that is wrong.
    """
    fields = [field for field in _fields(config) if field.side == side]

    def values(number: int, file: File) -> dict[str, str]:
        del number
        found = {name: Column(file, column).id(kind) for name, (column, kind) in ids.items()}
        return found | {field.name: field.value(file, config) for field in fields}

    table, own = _rows(side), ids["id"][0]
    connection.execute(f"CREATE TABLE {table} AS {rows.select(files, values)}")
    expected = "an id" if side else "an item's id"
    rows.refuse(connection, files, table, "coalesce(CAST(id AS VARCHAR), '') = ''", own, expected)
    if once:
        rows.refuse_repeats(connection, files, table, "id", own, once)
    for field in fields:
        if field.name == "created":
            outside = f"created NOT BETWEEN 0 AND {columns.LATEST - 1}"
            rows.refuse(connection, files, table, outside, field.column, columns.MOMENT)
        elif field.name in VECTORS:
            rows.refuse_vectors(connection, files, table, field.name, field.column, zeros=True)
