"""The first pass over a log: its rows are read, checked and divided by users.

What needs all rows ends in small tables: ids, first times, vocabularies. The rows lie in shards of
users as Parquet, and the second pass (`pinjax.data.sources.parts`) takes one after the other.
"""

import dataclasses
import math
import pathlib
from collections.abc import Sequence

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
_GOOD, _TOO_EARLY, _TOO_LITTLE = 0, -1, -2  # states of a row; from 1 on: what is bad


@dataclasses.dataclass(frozen=True)
class Log:
    """A log whose usable rows are the view `events` of a database.

    Its columns are user, item, time (us), duration (s), action, surface, query, grp, position,
    tests, place and shard; those that the map does not name are null. Places are in order of files
    and rows: see `place_of`.

    Attributes:
      shards: how many there are.
      first, last: times of the first and last row, in us; None without times.
      report: what was read and dropped.
      remarks: what looks wrong with the times.
    """

    shards: int
    first: int | None
    last: int | None
    report: dict[str, int]
    remarks: list[str]


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


def stage(
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
    rows = sum(file.rows for file in files)
    bits = max(0, math.ceil(math.log2(rows / _ROWS_A_SHARD)))
    key = f"hash(CAST({'user' if config.events.user else 'item'} AS VARCHAR))"
    shard = f"CAST({key} >> {64 - bits} AS INTEGER)" if bits else "0"
    checks = [_checks(file, integers, config) for file in files]
    selects = [
        _select(number, file, of_file, integers, config)
        for number, (file, of_file) in enumerate(zip(files, checks, strict=True))
    ]
    target = literal(str(directory / "events"))
    connection.execute(
        f"COPY (SELECT *, {shard} AS shard FROM ({' UNION ALL '.join(selects)})) TO {target} "
        "(FORMAT parquet, PARTITION_BY (shard), COMPRESSION uncompressed, "
        "DICTIONARY_SIZE_LIMIT 1000)"
    )
    connection.execute(
        f"CREATE VIEW staged AS SELECT * FROM read_parquet({target} || '/*/*.parquet')"
    )
    late = f"EXISTS (SELECT 1 FROM staged WHERE state = {_GOOD} AND time >= {_EARLY})"
    since = _EARLY if reading.first_row(connection, f"SELECT {late}")[0] else 0
    report = _report(connection, files, checks, since, config)
    connection.execute(
        "CREATE VIEW events AS SELECT * EXCLUDE (state) FROM staged "
        f"WHERE state = {_GOOD} AND (time IS NULL OR time >= {since})"
    )
    found, first, last = reading.first_row(
        connection, "SELECT count(*), min(time), max(time) FROM events"
    )
    if not found:
        raise InputError(f"{', '.join(file.path for file in files)}: no usable row is left")
    report["events"] = found
    return Log(2**bits, first, last, report, _remarks(first, last))


def _checks(file: reading.File, integers: dict[str, bool], config: ConfigDict) -> list[_Check]:
    """What the rows of a file have to be, in the order in which it is looked at."""
    events, alone = config.events, len(column_map.parts(config)) == 1
    checks = [
        _Check(c, c, "a number", f"{reading.number(file, c)} IS NOT NULL") for c, _ in events.least
    ]

    def given(field: str, column: str, what: str) -> _Check:
        return _Check(field, column, what, f"{reading.ids(column, integers[field])} IS NOT NULL")

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
        "user": events.user and reading.ids(events.user, integers["user"]),
        "item": reading.ids(events.item, integers["item"]),
        "time": moment and f"TRY_CAST({moment} AS BIGINT)",
        "duration": events.duration and f"TRY_CAST({_seconds(file, config)} AS FLOAT)",
        "action": _action(file, config),
        "surface": _surface(file, config),
        "query": events.query and reading.trimmed(file, events.query),
        "grp": events.group and reading.ids(events.group, integers["group"]),
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
    named = [
        f"coalesce({reading.text(file, c)}, {literal(UNKNOWN)})" for c in config.events.surface
    ]
    return " || '|' || ".join(named)


def _report(
    connection: duckdb.DuckDBPyConnection,
    files: Sequence[reading.File],
    checks: Sequence[Sequence[_Check]],
    since: int,
    config: ConfigDict,
) -> dict[str, int]:
    """Counts by state.

    Raises:
      InputError: naming the first bad row of a file with more of them than are tolerated.
    """
    report = {"rows read": sum(file.rows for file in files)}
    found = connection.execute(
        f"SELECT place // {_FILE} AS file, state, time < {since} AS early, count(*), "
        f"min(place % {_FILE}) FROM staged GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    for number, file in enumerate(files):
        bad: list[tuple[int, int, _Check]] = []  # (first row, how many, check)
        for of_file, state, early, count, row in found:
            if of_file != number:
                continue
            if state in (_TOO_EARLY, _TOO_LITTLE):
                name = "dropped as too early" if state == _TOO_EARLY else "dropped as too little"
                report[name] = report.get(name, 0) + count
            elif state != _GOOD:
                bad.append((row, count, checks[number][state - 1]))
            elif early:
                (check,) = (check for check in checks[number] if check.field == "time")
                told = "not before 1973 as others are later (mixed units or a placeholder?)"
                told = dataclasses.replace(check, expected=f"{check.expected}, and {told}")
                bad.append((row, count, told))
        total = sum(count for _, count, _ in bad)
        if total > config.tolerance * file.rows:
            row, _, check = min(bad, key=lambda found: found[0])
            share = f"{total} of {file.rows} rows are bad, tolerance is {config.tolerance:g}"
            raise reading.bad_row(connection, file, row, check.column, check.expected, share)
        for _, count, check in bad:
            name = f"dropped for a bad {check.field}"
            report[name] = report.get(name, 0) + count
    return report


def _remarks(first: int | None, last: int | None) -> list[str]:
    remarks = []
    if last is not None and last < _EARLY:
        remarks.append("the log ends before 1973: is events.time_unit right?")
    if last is not None and last - first < 60 * SECOND:
        remarks.append("the log spans less than a minute: is events.time_unit right?")
    return remarks


def vocabulary(
    connection: duckdb.DuckDBPyConnection, column: str, size: int
) -> tuple[tuple[str, ...], int]:
    """The most frequent values of a column of `events` after "unknown", and how many rows are left.

    Of equally frequent ones those come first that are smaller as text.
    """
    counts = connection.execute(
        f"SELECT {column}, count(*) FROM events WHERE {column} IS NOT NULL AND "
        f"{column} <> {literal(UNKNOWN)} GROUP BY ALL ORDER BY 2 DESC, 1"
    ).fetchall()
    names = tuple(name for name, _ in counts[:size])
    return (UNKNOWN, *names), sum(count for _, count in counts[size:])
