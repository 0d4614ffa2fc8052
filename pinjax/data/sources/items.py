"""Tables of items: read, joined with further files, and checked. No bad row is tolerated."""

import dataclasses
from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from pinjax.data.catalogue import SHOWN
from pinjax.data.sources import reading, rows
from pinjax.data.sources.columns import LATEST, TIMESTAMP, Column, are_integers
from pinjax.data.sources.engine import Database, Job, name_of, numbered
from pinjax.data.sources.reading import File
from pinjax.errors import InputError

_EXAMPLES = 3
VECTORS = ("content", "images")
# SQL of the nonzero images of an item of `given`.
IMAGES = f"list_filter(coalesce(g.images, []), {rows.NOT_ZERO})"


@dataclasses.dataclass(frozen=True)
class Sources:
    """The files of items.

    Attributes:
      main: of the table itself.
      sides: further files to join, by name.
    """

    main: Sequence[File]
    sides: Mapping[str, Sequence[File]]


@dataclasses.dataclass(frozen=True)
class _Field:
    """An attribute of items.

    Attributes:
      name: in `given`.
      side: name of its files, "" for the table itself.
      column: in these files.
    """

    name: str
    side: str
    column: str

    def value(self, file: File, config: ConfigDict) -> str:
        """SQL of the attribute; -1 for an unreadable date."""
        column, catalogue = Column(file, self.column), config.catalogue
        match self.name:
            case "created":
                timestamp = column.timestamp(catalogue.created_unit)
                given = f"{name_of(self.column)} IS NOT NULL"
                return f"CASE WHEN {given} THEN coalesce({timestamp}, -1) END"
            case "content" | "images":
                return column.vectors()
            case "tags":
                return column.texts(catalogue.tag_separator)
            case _:
                return column.text()


def _fields(config: ConfigDict) -> list[_Field]:
    catalogue = config.catalogue
    named = [(name, catalogue[name]) for name in ("created", "topic", *SHOWN, *VECTORS, "tags")]
    named += [(f"text {feature}", column) for feature, column in catalogue.texts]
    fields = []
    for name, column in named:
        side, dot, rest = column.partition(".")
        looked_up = dot and side in config.sides
        fields.append(_Field(name, side, rest) if looked_up else _Field(name, "", column))
    return [field for field in fields if field.column]


def _described(config: ConfigDict) -> str:
    """SQL of whether an item of `given` has a text or an image; true if the map names neither."""
    has = [f"coalesce(g.{name_of(f'text {name}')}, '') <> ''" for name, _ in config.catalogue.texts]
    has += [f"len({IMAGES}) > 0"] if config.catalogue.images else []
    return " OR ".join(has) or "true"


def open_sources(
    database: Database,
    main: Sequence[str],
    others: Mapping[str, Sequence[str]],
    config: ConfigDict,
) -> Sources:
    """Opens the files of items.

    Args:
      database: to read them with.
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
    files = reading.open_files(database, main, wanted.pop(""), config.catalogue)
    sides = {
        name: reading.open_files(database, others[name], named, config.sides[name])
        for name, named in wanted.items()
    }
    return Sources(files, sides)


def read(job: Job, sources: Sources, integers: bool) -> None:
    """Makes the table `given` with a row per item, and the table `tags` of items and their tags.

    The columns of `given` are id and the names of `_fields`, without tags.

    Raises:
      InputError: naming a bad row.
    """
    database, config = job.database, job.config
    catalogue, sides, fields = config.catalogue, config.sides, _fields(config)
    ids, once = {"id": (catalogue.id, integers)}, "each item once"
    tables = {}
    for name, side in sides.items():
        files = sources.sides[name]
        keys = [Column(file, side.on) for file in sources.main]
        kind = are_integers(database, keys + [Column(file, side.id) for file in files])
        ids[f"key {name}"] = side.on, kind
        tables[name] = _read_rows(job, files, name, {"id": (side.id, kind)}, "each id once")
    tags = [field for field in fields if field.name == "tags"]
    lists = any(f.side or Column(file, f.column).is_list for f in tags for file in sources.main)
    if catalogue.repeats or (tags and not catalogue.tag_separator and not lists):
        once = ""  # one tag per row
    main = _read_rows(job, sources.main, "", ids, once)

    selected, joins = ["m.*"], f"{main.table} m"
    for name, side in tables.items():
        selected += [f"{side.table}.{name_of(f.name)}" for f in fields if f.side == name]
        selected.append(f"{side.table}.id IS NOT NULL AS {name_of(f'in {name}')}")
        joins += f" LEFT JOIN {side.table} ON m.{name_of(f'key {name}')} = {side.table}.id"
    database.run(f"CREATE VIEW item_rows AS SELECT {', '.join(selected)} FROM {joins}")
    joined = rows.Rows(database, sources.main, "item_rows")
    for name, side in sides.items():
        on, where = side.on, tables[name].paths
        key, known = name_of(f"key {name}"), name_of(f"in {name}")
        if not side.partial:
            joined.refuse(f"{key} IS NOT NULL AND NOT {known}", on, f"an id of {where}")
        share, own, other = database.row(
            f"SELECT avg(CAST({known} AS INTEGER)), min({key}), (SELECT min(id) FROM "
            f"{tables[name].table}) FROM item_rows WHERE {key} IS NOT NULL"
        )
        if not share:
            raise InputError(
                f"{where}: no {on} of the items is in it; they have {own!r}, the file {other!r}: "
                "expected ids that are written alike"
            )
        job.report[f"items whose {on} is in {name}"] = f"{share:.1%}"
    if tags:
        database.run(
            "CREATE TABLE tags AS SELECT DISTINCT id, trim(tag) AS tag FROM "
            "(SELECT id, unnest(tags) AS tag FROM item_rows) WHERE trim(tag) <> ''"
        )
    kept = ", ".join(["id", *(name_of(f.name) for f in fields if f.name != "tags")])
    database.run(
        f"CREATE TABLE given AS SELECT {kept} FROM item_rows "
        "QUALIFY row_number() OVER (PARTITION BY id ORDER BY place) = 1"
    )
    for field in fields:
        if field.name in VECTORS:
            some = f"len(list_filter({field.name}, {rows.NOT_ZERO})) > 0"
            if not database.row(f"SELECT bool_or({some}) FROM given")[0]:
                paths = tables.get(field.side, main).paths
                where = "all rows" if once else "the first row of each item"
                raise InputError(
                    f"{paths}: {field.column} is 0 or null in {where}; expected vectors"
                )
    database.run("DROP VIEW item_rows")
    for table in (main, *tables.values()):
        database.run(f"DROP TABLE {table.table}")


def _read_rows(
    job: Job, files: Sequence[File], side: str, ids: Mapping[str, tuple[str, bool]], once: str
) -> rows.Rows:
    """Makes a table of the rows of some files.

    Args:
      job: with the database.
      files: to read.
      side: name of the files, "" for the table of items.
      ids: for each column of ids the user's column, and whether the ids are integers.
      once: what is expected of a repeated id, for the message; "": ids may repeat.

    Raises:
      InputError: naming a bad row.
    """
    fields = [field for field in _fields(job.config) if field.side == side]
    columns = []
    for file in files:
        values = {name: Column(file, column).id(kind) for name, (column, kind) in ids.items()}
        columns.append(values | {field.name: field.value(file, job.config) for field in fields})
    table, own = rows.Rows(job.database, files, name_of(f"rows {side}")), ids["id"][0]
    job.database.run(f"CREATE TABLE {table.table} AS {rows.select(files, columns)}")
    table.refuse("coalesce(CAST(id AS VARCHAR), '') = ''", own, "an id" if side else "an item's id")
    if once:
        table.refuse_repeats(own, once)
    for field in fields:
        if field.name == "created":
            table.refuse(f"created NOT BETWEEN 0 AND {LATEST - 1}", field.column, TIMESTAMP)
        elif field.name in VECTORS:
            table.refuse_vectors(field.name, field.column, zeros=True)
    return table


def join(job: Job, table: str) -> int:
    """Makes the table `items` of row, id, first (us), events, known and described.

    An item is known if the user's table has it, and described if it has a text or an image there.
    Rows are in order of ids, so they do not depend on the order of rows in the files.

    Args:
      job: with `rows` and, if there is a table, `given`.
      table: the file of items, "" for none.

    Returns:
      the number of items.

    Raises:
      InputError: if events and table have no item in common.
    """
    database, report = job.database, job.report
    found = (
        "SELECT item AS id, min(time) AS first, count(*) AS events, false AS known, "
        f"{not table} AS described FROM rows GROUP BY 1"
    )
    if table:
        found += f" UNION ALL SELECT id, NULL, 0, true, {_described(job.config)} FROM given g"
        found = (
            "SELECT id, min(first) AS first, sum(events) AS events, bool_or(known) AS known, "
            f"bool_or(described) AS described FROM ({found}) GROUP BY id"
        )
    kept = "" if job.config.catalogue.keep_unseen else "WHERE events > 0"
    database.run(f"CREATE TABLE items AS SELECT {numbered('id')}, * FROM ({found}) {kept}")
    number, unseen, share = database.row(
        "SELECT count(*), count(*) FILTER (events = 0), "
        "sum(events) FILTER (known) / sum(events) FROM items"
    )

    def examples(condition: str) -> str:
        some = f"SELECT id FROM items WHERE {condition} ORDER BY row LIMIT {_EXAMPLES}"
        return ", ".join(repr(id_) for (id_,) in database.rows(some))

    report |= {"items": number, "items of the events": number - unseen}
    if not table:
        return number
    strangers = examples("NOT known")
    if not share:
        raise InputError(
            f"{table}: no item of the events is in it; the events have {strangers}, the table "
            f"{examples('known')}: expected ids that are written alike"
        )
    report["events whose item is in the table"] = f"{share:.1%}"
    if strangers:
        report["items that the table lacks, as"] = strangers
    if unseen:
        report |= {"items without an event": unseen, "of them": examples("events = 0")}
    return number
