"""The first pass over a log: its rows are read and checked, and divided by users.

What needs all rows ends in small tables: ids, first times, vocabularies. By these the rows become
numbers, which lie in shards of users as Parquet, and the second pass takes one after the other.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import duckdb
from ml_collections import ConfigDict

from pinjax import settings
from pinjax.data.sources import column_map, columns, rows
from pinjax.data.sources.columns import Column
from pinjax.data.sources.engine import literal, name_of, numbered
from pinjax.data.sources.reading import File
from pinjax.data.timelines import UNKNOWN
from pinjax.errors import InputError

SECOND = 1_000_000  # in microseconds
_EARLY = 94_694_400 * SECOND  # 1973: what a moment in s reads as in ms is before it
_ROWS_A_SHARD = 2**20
_COLUMNS = ("user", "item", "time", "duration", "action", "surface")
_COLUMNS += ("query", "grp", "position", "tests")


@dataclasses.dataclass(frozen=True)
class Log:
    """A log whose usable rows are the view `rows` of a database.

    Its columns are user, item, time (us), duration (s), action, surface, query, grp, position,
    tests and place; those that the map does not name are null. Places are those of `rows.select`.

    Attributes:
      number: of usable rows.
      first, last: times of the first and last row, in us; None without times.
      report: what was read and dropped.
      remarks: what looks wrong with the times.
    """

    number: int
    first: int | None
    last: int | None
    report: dict[str, int]
    remarks: list[str]


class _Check(NamedTuple):
    """What a row has to be.

    Attributes:
      label: for the report of the rows that are dropped.
      holds: SQL.
      column: the user's, whose value is told.
      expected: of it; "" where rows are dropped in silence.
    """

    label: str
    holds: str
    column: str
    expected: str = ""


class _State(NamedTuple):
    """The rows of a file in a state, from before 1973 or not.

    Attributes:
      file: its number.
      state: the number from 1 of the first check that fails, 0 for a good row.
      early: whether they are from before 1973.
      count: how many they are.
      place: of the first.
      first, last: their times.
    """

    file: int
    state: int
    early: bool
    count: int
    place: int
    first: int | None
    last: int | None


def columns_of(config: ConfigDict) -> list[str]:
    """The columns of the events' files that a map names."""
    events = config.events
    named = [events.user, events.item, events.time, events.duration, events.action, events.query]
    named += [events.group, events.position, config.split.column, *events.surface]
    named += [column for _, column, _ in events.action_rules]
    named += [column for column, _ in events.least]
    return list(dict.fromkeys(filter(None, named)))


def read(
    connection: duckdb.DuckDBPyConnection,
    directory: pathlib.Path,
    files: Sequence[File],
    integer_items: bool,
    config: ConfigDict,
) -> Log:
    """Reads a log.

    Rows without a user, an item, or a time between 1970 and 2106, with a negative or infinite
    duration, or without that of which the only part is made, are bad: more of them in a file than
    `config.tolerance` allows are refused. So are rows from before 1973 where others, of any file,
    are later: a unit or a placeholder is wrong.

    Raises:
      InputError: for wrong input.
    """
    integers = {"item": integer_items}
    for name, column in (("user", config.events.user), ("grp", config.events.group)):
        if column:
            own = [Column(file, column) for file in files]
            integers[name] = columns.are_integers(connection, own)
    values = [_values(file, integers, config) for file in files]
    checks = [
        _checks(file, of_file, integers, config)
        for file, of_file in zip(files, values, strict=True)
    ]

    def stated(number: int, file: File) -> dict[str, str]:
        del file
        failing = enumerate(checks[number], start=1)
        cases = " ".join(f"WHEN ({c.holds}) IS NOT TRUE THEN {state}" for state, c in failing)
        return {**values[number], "state": f"CASE {cases} ELSE 0 END"}

    connection.execute(f"CREATE VIEW stated AS {rows.select(files, stated)}")
    if not all(file.numbered for file in files):  # to parse text, and number its rows, once
        target = literal(str(directory / "read.parquet"))
        connection.execute(f"COPY stated TO {target}")
        connection.execute(f"CREATE OR REPLACE VIEW stated AS SELECT * FROM read_parquet({target})")
    found = connection.execute(
        f"SELECT place // {rows.PLACES}, state, coalesce(time < {_EARLY}, false), count(*), "
        "min(place), min(time), max(time) FROM stated GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    states = [_State(*row) for row in found]
    mixed = len({state.early for state in states if not state.state}) == 2
    usable = [x for x in states if not (x.state or (x.early and mixed))]
    report = _report(connection, files, checks, states, mixed, config)
    if not usable:
        raise InputError(f"{', '.join(file.path for file in files)}: no usable row is left")
    where = f"WHERE state = 0 AND (time IS NULL OR time >= {_EARLY if mixed else 0})"
    if usable == states:  # all: then nobody has to look again
        where = ""
    connection.execute(f"CREATE VIEW rows AS SELECT * EXCLUDE (state) FROM stated {where}")
    number = report["events"] = sum(state.count for state in usable)
    first = last = None
    if config.events.time:
        first, last = min(x.first for x in usable), max(x.last for x in usable)
    return Log(number, first, last, report, _remarks(first, last))


def divide(
    connection: duckdb.DuckDBPyConnection, directory: pathlib.Path, log: Log, config: ConfigDict
) -> int:
    """Makes the view `events` of the rows of `rows` as numbers, divided by users.

    Its columns are those of `rows` but user, item and grp as rows of the tables `users`, `items`
    and `groups`, which have a row and an id, action and surface as codes of the tables `actions`
    and `surfaces`, and shard. Of these tables `users` and `groups` are made here; users are in the
    order of a hash of their ids.

    Returns:
      how many shards there are.
    """
    fields = {name: name for name in ("time", "duration", "query", "position", "tests", "place")}
    fields |= {"user": "NULL", "grp": "NULL", "item": "i.row"}
    fields |= {name: f"{name}s.code" for name in ("action", "surface")}
    joins = "JOIN items i ON r.item = i.id"
    joins += "".join(
        f" LEFT JOIN {name}s ON r.{name} = {name}s.name" for name in ("action", "surface")
    )
    for name, column, order in (
        ("user", config.events.user, "hash(CAST(user AS VARCHAR)), user"),
        ("grp", config.events.group, "grp"),
    ):
        if column:
            table = {"user": "users", "grp": "groups"}[name]
            connection.execute(
                f"CREATE TABLE {table} AS SELECT {numbered(order)}, {name} AS id "
                f"FROM (SELECT DISTINCT {name} FROM rows) "
                f"WHERE CAST({name} AS VARCHAR) <> ''"
            )
            fields[name] = f"{table}.row"
            joins += f" LEFT JOIN {table} ON r.{name} = {table}.id"
    shards = max(1, round(log.number / _ROWS_A_SHARD)) if config.events.user else 1
    shard = f"CAST(users.row * CAST({shards} AS BIGINT) // (SELECT count(*) FROM users) AS INTEGER)"
    fields["shard"] = shard if shards > 1 else "0"
    selected = ", ".join(f"{value} AS {name_of(name)}" for name, value in fields.items())
    target = literal(str(directory / "events"))
    # Each shard has rows that wait to be written: few, and in no order, which `place` restores.
    connection.execute("SET partitioned_write_flush_threshold = 65536")
    connection.execute("SET preserve_insertion_order = false")
    connection.execute(
        f"COPY (SELECT {selected} FROM rows r {joins}) TO {target} (FORMAT parquet, "
        "PARTITION_BY (shard), COMPRESSION uncompressed, DICTIONARY_SIZE_LIMIT 1000, "
        "ROW_GROUP_SIZE 16384)"
    )
    connection.execute(
        f"CREATE VIEW events AS SELECT * FROM read_parquet({target} || '/*/*.parquet')"
    )
    connection.execute("RESET preserve_insertion_order")
    return shards


def _values(file: File, integers: Mapping[str, bool], config: ConfigDict) -> dict[str, str]:
    """SQL of the columns of `rows` by name, of a file."""
    events = config.events
    ids = {"user": events.user, "item": events.item, "grp": events.group}
    values = {n: Column(file, c).id(integers[n]) for n, c in ids.items() if c}
    if events.time:
        values["time"] = Column(file, events.time).moment(events.time_unit)
    if events.duration:
        values["duration"] = f"TRY_CAST({_seconds(file, config)} AS FLOAT)"
    if events.query:
        values["query"] = Column(file, events.query).trimmed()
    if events.position:
        values["position"] = Column(file, events.position).number()
    if config.split.column:
        values["tests"] = f"TRY_CAST({Column(file, config.split.column).text()} AS BOOLEAN)"
    values |= {"action": _action(file, config), "surface": _surface(file, config)}
    return {name: values.get(name) or "NULL" for name in _COLUMNS}


def _checks(
    file: File, values: Mapping[str, str], integers: Mapping[str, bool], config: ConfigDict
) -> list[_Check]:
    """What the rows of a file have to be, in the order in which it is looked at."""
    events, checks = config.events, []
    if events.since:
        since = settings.parse_moment("config.events.since", events.since) * SECOND
        late = f"coalesce({values['time']} >= {since}, true)"
        checks.append(_Check("dropped as too early", late, events.time))
    numbers = [(column, Column(file, column).number(), least) for column, least in events.least]
    for column, number, least in numbers:
        enough = f"coalesce({number} >= {least!r}, true)"
        checks.append(_Check("dropped as too little", enough, column))

    def expect(what: str, holds: str, column: str, expected: str) -> None:
        checks.append(_Check(f"dropped for a bad {what}", holds, column, expected))

    def expect_id(what: str, name: str, column: str, expected: str) -> None:
        expect(what, Column(file, column).is_id(integers[name]), column, expected)

    for column, number, _ in numbers:
        expect(column, f"{number} IS NOT NULL", column, "a number")
    if events.user:
        expect_id("user", "user", events.user, "a user's id")
    expect_id("item", "item", events.item, "an item's id")
    if events.time:
        unit = f" in {events.time_unit}" if events.time_unit else ""
        within = f"{values['time']} BETWEEN 0 AND {columns.LATEST - 1}"
        expect("time", within, events.time, f"{columns.MOMENT}{unit}")
    if events.duration:
        fits = f"{name_of(events.duration)} IS NULL OR {_seconds(file, config)} BETWEEN 0 AND 1e9"
        expect("duration", fits, events.duration, "a number from 0 to 1e9 s")
    if column_map.parts(config) == ("pairs",) and not config.pairs.sequence:
        has = f"{values['query']} IS NOT NULL"
        expect("query", has, events.query, "the text of a search")
    if events.group and not events.user and not events.query:
        expect_id("group", "grp", events.group, "a group's id")
    if events.position:
        expect("position", f"{values['position']} IS NOT NULL", events.position, "a number")
    if config.split.column:
        told = f"{values['tests']} IS NOT NULL"
        expect("split", told, config.split.column, "true or false, 1 or 0")
    return checks


def _seconds(file: File, config: ConfigDict) -> str:
    unit = column_map.UNITS[config.events.duration_unit] / SECOND
    return f"({Column(file, config.events.duration).number()} * {unit!r})"


def _action(file: File, config: ConfigDict) -> str:
    """SQL of the name of each row's action type."""
    events = config.events
    if events.action:
        return Column(file, events.action).text()
    if events.action_by_file:
        types, name = dict(events.action_by_file), pathlib.Path(file.path).name.split(".")[0]
        if name not in types:
            raise InputError(f"{file.path}: events.action_by_file has only {', '.join(types)}")
        return literal(types[name])
    cases = "".join(
        f" WHEN {_equals(file, column, value)} THEN {literal(kind)}"
        for kind, column, value in events.action_rules
    )
    return f"CASE{cases} ELSE {literal(UNKNOWN)} END" if cases else literal("action")


def _equals(file: File, column: str, value: str | float) -> str:
    """SQL of whether a column has a value; true is 1, and numbers may be written as text."""
    text = Column(file, column).text()
    if isinstance(value, str):
        return f"{text} = {literal(value)}"
    boolean = f"CAST(TRY_CAST({text} AS BOOLEAN) AS DOUBLE)"
    return f"coalesce(TRY_CAST({text} AS DOUBLE), {boolean}) = {float(value)!r}"


def _surface(file: File, config: ConfigDict) -> str:
    if len(config.events.surface) == 1:
        return Column(file, *config.events.surface).text()
    named = [
        f"coalesce({Column(file, c).text()}, {literal(UNKNOWN)})" for c in config.events.surface
    ]
    return " || '|' || ".join(named)


def _report(
    connection: duckdb.DuckDBPyConnection,
    files: Sequence[File],
    checks: Sequence[Sequence[_Check]],
    states: Sequence[_State],
    mixed: bool,
    config: ConfigDict,
) -> dict[str, int]:
    """Counts by state; where units are mixed, rows from before 1973 are bad, too.

    Raises:
      InputError: naming the first bad row of a file with more of them than are tolerated.
    """
    report = collections.Counter({"rows read": sum(file.rows for file in files)})
    for number, file in enumerate(files):
        bad: list[tuple[int, int, _Check]] = []  # (first place, how many, check)
        for state in (state for state in states if state.file == number):
            if state.state:
                check = checks[number][state.state - 1]
            elif state.early and mixed:
                check = [c for c in checks[number] if c.label == "dropped for a bad time"][-1]
                told = "not before 1973 as others are later (mixed units or a placeholder?)"
                check = check._replace(expected=f"{check.expected}, and {told}")
            else:
                continue
            report[check.label] += state.count
            if check.expected:
                bad.append((state.place, state.count, check))
        total = sum(count for _, count, _ in bad)
        if total > config.tolerance * file.rows:
            place, _, check = min(bad, key=lambda found: found[0])
            share = f"{total} of {file.rows} rows are bad, tolerance is {config.tolerance:g}"
            raise rows.error(connection, files, place, check.column, check.expected, share)
    return dict(report)


def _remarks(first: int | None, last: int | None) -> list[str]:
    remarks = []
    if last is not None and last < _EARLY:
        remarks.append("the log ends before 1973: is events.time_unit right?")
    if last is not None and last - first < 60 * SECOND:
        remarks.append("the log spans less than a minute: is events.time_unit right?")
    return remarks


def vocabularies(
    connection: duckdb.DuckDBPyConnection, sizes: dict[str, int]
) -> dict[str, tuple[tuple[str, ...], int]]:
    """The most frequent values of columns of `rows` after "unknown", and how many rows are left.

    Of equally frequent ones those come first that are smaller as text.
    """
    counts: dict[str, dict[str, int]] = {column: {} for column in sizes}
    sets = ", ".join(f"({column})" for column in sizes)
    for *values, count in connection.execute(
        f"SELECT {', '.join(sizes)}, count(*) FROM rows GROUP BY GROUPING SETS ({sets})"
    ).fetchall():
        for column, value in zip(sizes, values, strict=True):
            if value not in (None, UNKNOWN):
                counts[column][value] = count
    found = {}
    for column, size in sizes.items():
        names = sorted(counts[column], key=lambda name: (-counts[column][name], name))
        rest = sum(counts[column][name] for name in names[size:])
        found[column] = (UNKNOWN, *names[:size]), rest
    return found
