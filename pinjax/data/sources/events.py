"""The first pass over a log: its rows are read and checked, and divided by users.

What needs all rows ends in small tables: ids, first times, vocabularies. By these the rows become
numbers, which lie in shards of users as Parquet, and the second pass (`pinjax.data.sources.parts`)
takes one shard after the other.
"""

import collections
import dataclasses
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import duckdb
from ml_collections import ConfigDict

from pinjax.data.sources import column_map, reading
from pinjax.data.sources.reading import literal, name_of
from pinjax.data.timelines import UNKNOWN
from pinjax.errors import InputError

SECOND = 1_000_000  # in microseconds
_EARLY = 94_694_400 * SECOND  # 1973: what a moment in s reads as in ms is before it
_ROWS_A_SHARD = 2**20
_FILE = 2**40  # places in a file
# States of a row; from 1 on: what is bad.
_GOOD, _TOO_EARLY, _TOO_LITTLE = 0, -1, -2
_DROPPED = {_TOO_EARLY: "dropped as too early", _TOO_LITTLE: "dropped as too little"}


@dataclasses.dataclass(frozen=True)
class Log:
    """A log whose usable rows are the view `rows` of a database.

    Its columns are user, item, time (us), duration (s), action, surface, query, grp, position,
    tests and place; those that the map does not name are null. Places are in order of files and
    rows: see `place_of`.

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


class _State(NamedTuple):
    """The rows of a file in a state, from before 1973 or not: how many, the first, and when."""

    file: int
    state: int
    early: bool
    count: int
    row: int
    first: int | None
    last: int | None


@dataclasses.dataclass(frozen=True)
class _Check:
    """What a field of a row has to be: SQL that holds, and how a row is told where it does not."""

    field: str
    column: str
    expected: str
    holds: str


def place_of(place: int) -> tuple[int, int]:
    """The number of the file and of the row in it."""
    return divmod(place, _FILE)


def columns(config: ConfigDict) -> list[str]:
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
    files: Sequence[reading.File],
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
    for name, column in (("user", config.events.user), ("group", config.events.group)):
        if column:
            integers[name] = all([reading.are_integers(connection, f, column) for f in files])
    checks = [_checks(file, integers, config) for file in files]
    selects = [
        _select(number, file, of_file, integers, config)
        for number, (file, of_file) in enumerate(zip(files, checks, strict=True))
    ]
    connection.execute(f"CREATE VIEW stated AS {' UNION ALL '.join(selects)}")
    if not all(file.numbered for file in files):  # to parse text, and number its rows, once
        target = literal(str(directory / "read.parquet"))
        connection.execute(f"COPY stated TO {target}")
        connection.execute(f"CREATE OR REPLACE VIEW stated AS SELECT * FROM read_parquet({target})")
    found = connection.execute(
        f"SELECT place // {_FILE}, state, coalesce(time < {_EARLY}, false), count(*), "
        f"min(place % {_FILE}), min(time), max(time) FROM stated GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    states = [_State(*row) for row in found]
    late = any(state.state == _GOOD and not state.early for state in states)
    mixed = late and bool(config.events.time)
    usable = [x for x in states if x.state == _GOOD and not (x.early and mixed)]
    report = _report(connection, files, checks, states, mixed, config)
    if not usable:
        raise InputError(f"{', '.join(file.path for file in files)}: no usable row is left")
    since = _EARLY if mixed else 0
    connection.execute(
        "CREATE VIEW rows AS SELECT * EXCLUDE (state) FROM stated "
        f"WHERE state = {_GOOD} AND (time IS NULL OR time >= {since})"
    )
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
    columns = {name: name for name in ("time", "duration", "query", "position", "tests", "place")}
    columns |= {"user": "NULL", "grp": "NULL", "item": "i.row"}
    columns |= {name: f"{name}s.code" for name in ("action", "surface")}
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
                f"CREATE TABLE {table} AS SELECT {reading.numbered(order)}, {name} AS id "
                f"FROM (SELECT DISTINCT {name} FROM rows) "
                f"WHERE CAST({name} AS VARCHAR) <> ''"
            )
            columns[name] = f"{table}.row"
            joins += f" LEFT JOIN {table} ON r.{name} = {table}.id"
    shards = max(1, round(log.number / _ROWS_A_SHARD)) if config.events.user else 1
    shard = f"CAST(users.row * CAST({shards} AS BIGINT) // (SELECT count(*) FROM users) AS INTEGER)"
    columns["shard"] = shard if shards > 1 else "0"
    selected = ", ".join(f"{value} AS {name_of(name)}" for name, value in columns.items())
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


def _checks(file: reading.File, integers: dict[str, bool], config: ConfigDict) -> list[_Check]:
    """What the rows of a file have to be, in the order in which it is looked at."""
    events, alone = config.events, len(column_map.parts(config)) == 1
    checks = [
        _Check(c, c, "a number", f"{reading.number(file, c)} IS NOT NULL") for c, _ in events.least
    ]

    def given(field: str, column: str, what: str) -> _Check:
        return _Check(field, column, what, reading.is_id(file, column, integers[field]))

    if events.user:
        checks.append(given("user", events.user, "a user's id"))
    checks.append(given("item", events.item, "an item's id"))
    if events.time:
        moment = reading.moment(file, events.time, events.time_unit)
        unit = f" in {events.time_unit}" if events.time_unit else ""
        within = f"{moment} BETWEEN 0 AND {reading.LATEST - 1}"
        checks.append(_Check("time", events.time, f"a moment from 1970 to 2106{unit}", within))
    if events.duration:
        seconds = _seconds(file, config)
        fits = f"{name_of(events.duration)} IS NULL OR {seconds} BETWEEN 0 AND 1e9"
        checks.append(_Check("duration", events.duration, "a number from 0 to 1e9 s", fits))
    if events.query and alone and not config.pairs.sequence:
        has = f"{reading.trimmed(file, events.query)} IS NOT NULL"
        checks.append(_Check("query", events.query, "the text of a search", has))
    if events.group and not events.user and not events.query:
        checks.append(given("group", events.group, "a group's id"))
    if events.position:
        number = f"{reading.number(file, events.position)} IS NOT NULL"
        checks.append(_Check("position", events.position, "a number", number))
    if config.split.column:
        tests = f"{_tests(file, config)} IS NOT NULL"
        checks.append(_Check("split", config.split.column, "true or false, 1 or 0", tests))
    return checks


def _select(
    number: int,
    file: reading.File,
    checks: Sequence[_Check],
    integers: dict[str, bool],
    config: ConfigDict,
) -> str:
    """SQL of the rows of a file and the state of each."""
    events = config.events
    moment = reading.moment(file, events.time, events.time_unit) if events.time else ""
    states = []
    if events.since:
        since = reading.parse_moment("events.since", events.since) * SECOND
        states.append((f"{moment} < {since}", _TOO_EARLY))
    states += [
        (f"{reading.number(file, column)} < {least!r}", _TOO_LITTLE)
        for column, least in events.least
    ]
    states += [(f"({c.holds}) IS NOT TRUE", state) for state, c in enumerate(checks, start=1)]
    cases = " ".join(f"WHEN {condition} THEN {state}" for condition, state in states)
    fields = {
        "user": events.user and reading.ids(file, events.user, integers["user"]),
        "item": reading.ids(file, events.item, integers["item"]),
        "time": moment and f"TRY_CAST({moment} AS BIGINT)",
        "duration": events.duration and f"TRY_CAST({_seconds(file, config)} AS FLOAT)",
        "action": _action(file, config),
        "surface": _surface(file, config),
        "query": events.query and reading.trimmed(file, events.query),
        "grp": events.group and reading.ids(file, events.group, integers["group"]),
        "position": events.position and reading.number(file, events.position),
        "tests": config.split.column and _tests(file, config),
    }
    values = [f"{value or 'NULL'} AS {name_of(name)}" for name, value in fields.items()]
    values += [
        f"{number} * {_FILE} + {reading.ROW} AS place",
        f"CASE {cases} ELSE {_GOOD} END AS state",
    ]
    return f"SELECT {', '.join(values)} FROM {file.relation}"


def _seconds(file: reading.File, config: ConfigDict) -> str:
    unit = column_map.UNITS[config.events.duration_unit] / SECOND
    return f"({reading.number(file, config.events.duration)} * {unit!r})"


def _tests(file: reading.File, config: ConfigDict) -> str:
    """SQL of whether a row tests."""
    return f"TRY_CAST({reading.text(file, config.split.column)} AS BOOLEAN)"


def _action(file: reading.File, config: ConfigDict) -> str:
    """SQL of the name of each row's action type."""
    events = config.events
    if events.action:
        return reading.text(file, events.action)
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


def _equals(file: reading.File, column: str, value: str | float) -> str:
    """SQL of whether a column has a value; true is 1, and numbers may be written as text."""
    text = reading.text(file, column)
    if isinstance(value, str):
        return f"{text} = {literal(value)}"
    boolean = f"CAST(TRY_CAST({text} AS BOOLEAN) AS DOUBLE)"
    return f"coalesce(TRY_CAST({text} AS DOUBLE), {boolean}) = {float(value)!r}"


def _surface(file: reading.File, config: ConfigDict) -> str:
    if len(config.events.surface) == 1:
        return reading.text(file, *config.events.surface)
    named = [
        f"coalesce({reading.text(file, c)}, {literal(UNKNOWN)})" for c in config.events.surface
    ]
    return " || '|' || ".join(named)


def _report(
    connection: duckdb.DuckDBPyConnection,
    files: Sequence[reading.File],
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
        bad: list[tuple[int, int, _Check]] = []  # (first row, how many, check)
        for of_file in (state for state in states if state.file == number):
            if of_file.state in _DROPPED:
                report[_DROPPED[of_file.state]] += of_file.count
            elif of_file.state != _GOOD:
                bad.append((of_file.row, of_file.count, checks[number][of_file.state - 1]))
            elif of_file.early and mixed:
                (check,) = (check for check in checks[number] if check.field == "time")
                told = "not before 1973 as others are later (mixed units or a placeholder?)"
                told = dataclasses.replace(check, expected=f"{check.expected}, and {told}")
                bad.append((of_file.row, of_file.count, told))
        total = sum(count for _, count, _ in bad)
        if total > config.tolerance * file.rows:
            row, _, check = min(bad, key=lambda found: found[0])
            share = f"{total} of {file.rows} rows are bad, tolerance is {config.tolerance:g}"
            raise reading.bad_row(connection, file, row, check.column, check.expected, share)
        for _, count, check in bad:
            report[f"dropped for a bad {check.field}"] += count
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
