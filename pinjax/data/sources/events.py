"""The first pass over a log: its rows are read and checked, and divided by users.

Aggregates over all rows are small tables: ids, first times, vocabularies. With these tables rows
are encoded as numbers, and written as Parquet to shards of users, which the second pass reads one
by one.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa

from pinjax.data.sources import event_columns, reading, rows
from pinjax.data.sources.columns import Column, are_integers
from pinjax.data.sources.engine import Database, Job, literal, name_of, numbered
from pinjax.data.sources.event_columns import BAD_TIME, SECOND, Check
from pinjax.data.sources.reading import File
from pinjax.data.timelines import UNKNOWN
from pinjax.errors import InputError

_EARLY = 94_694_400 * SECOND  # 1973: seconds that are read as milliseconds lie before it
_ROWS_A_SHARD = 2**20


@dataclasses.dataclass(frozen=True)
class Log:
    """A log whose usable rows are the view `rows` of a database.

    Its columns are user, item, time (us), duration (s), action, surface, query, grp, position,
    tests and place; columns that the map does not name are null. Places are as in `rows.select`.

    Attributes:
      number: of usable rows.
      first, last: times of the first and last row, in us; None without times.
      remarks: warnings about the times.
    """

    number: int
    first: int | None = None
    last: int | None = None
    remarks: Sequence[str] = ()


class _State(NamedTuple):
    """The rows of a file with the same state, before 1973 or later.

    Attributes:
      file: number of the file.
      state: number from 1 of the first check that fails, 0 for good rows.
      early: whether the rows are from before 1973.
      count: number of rows.
      place: of the first row.
      first, last: times of the first and last row.
    """

    file: int
    state: int
    early: bool
    count: int
    place: int
    first: int | None
    last: int | None


def read(job: Job, files: Sequence[File], integer_items: bool) -> Log:
    """Reads a log.

    A row is bad if it has no user, no item, no time between 1970 and 2106, a negative or infinite
    duration, or no value for the only part of the data set. So is a row from before 1973 if other
    rows, of any file, are later: then a unit or a placeholder is wrong. A file with more bad rows
    than `config.tolerance` allows is rejected.

    Raises:
      InputError: for wrong input.
    """
    database, config = job.database, job.config
    integers = {"item": integer_items}
    for name, column in (("user", config.events.user), ("grp", config.events.group)):
        if column:
            integers[name] = are_integers(database, [Column(file, column) for file in files])
    values = [event_columns.values(file, integers, config) for file in files]
    checks = [
        event_columns.checks(file, of_file, integers, config)
        for file, of_file in zip(files, values, strict=True)
    ]
    for of_file, to_hold in zip(values, checks, strict=True):
        failing = enumerate(to_hold, start=1)
        cases = " ".join(f"WHEN ({c.holds}) IS NOT TRUE THEN {state}" for state, c in failing)
        of_file["state"] = f"CASE {cases} ELSE 0 END"
    database.run(f"CREATE VIEW stated AS {rows.select(files, values)}")
    if not all(file.numbered for file in files):  # parse text and number its rows only once
        target = str(database.directory / "read.parquet")
        database.run(f"COPY stated TO {literal(target)}")
        parsed = f"read_parquet({reading.exactly(target)}, {reading.PLAIN})"
        database.run(f"CREATE OR REPLACE VIEW stated AS SELECT * FROM {parsed}")
    found = database.rows(
        f"SELECT place // {rows.PLACES}, state, coalesce(time < {_EARLY}, false), count(*), "
        "min(place), min(time), max(time) FROM stated GROUP BY ALL ORDER BY ALL"
    )
    states = [_State(*row) for row in found]
    mixed = len({state.early for state in states if not state.state}) == 2
    _refuse(job, files, checks, states, mixed)
    usable = [x for x in states if not (x.state or (x.early and mixed))]
    if not usable:
        raise InputError(f"{', '.join(file.path for file in files)}: no usable row is left")
    where = f"WHERE state = 0 AND (time IS NULL OR time >= {_EARLY if mixed else 0})"
    if usable == states:  # all rows: no further check is needed
        where = ""
    database.run(f"CREATE VIEW rows AS SELECT * EXCLUDE (state) FROM stated {where}")
    job.report["events"] = sum(state.count for state in usable)
    if not config.events.time:
        return Log(job.report["events"])
    first, last = min(x.first for x in usable), max(x.last for x in usable)
    remarks = []
    if last < _EARLY:
        remarks.append("the log ends before 1973: is events.time_unit right?")
    if last - first < 60 * SECOND:
        remarks.append("the log spans less than a minute: is events.time_unit right?")
    return Log(job.report["events"], first, last, remarks)


def _refuse(
    job: Job,
    files: Sequence[File],
    checks: Sequence[Sequence[Check]],
    states: Sequence[_State],
    mixed: bool,
) -> None:
    """Counts rows by state; if units are mixed, rows from before 1973 are bad, too.

    Raises:
      InputError: naming the first bad row of a file with too many of them.
    """
    report = collections.Counter({"rows read": sum(file.rows for file in files)})
    tolerance = job.config.tolerance
    for number, file in enumerate(files):
        bad: list[tuple[int, int, Check]] = []  # (first place, count, check)
        for state in (state for state in states if state.file == number):
            if state.state:
                check = checks[number][state.state - 1]
            elif state.early and mixed:
                check = [c for c in checks[number] if c.label == BAD_TIME][-1]
                told = "not before 1973 as others are later (mixed units or a placeholder?)"
                check = check._replace(expected=f"{check.expected}, and {told}")
            else:
                continue
            report[check.label] += state.count
            if check.expected:
                bad.append((state.place, state.count, check))
        total = sum(count for _, count, _ in bad)
        if total > tolerance * file.rows:
            place, _, check = min(bad, key=lambda found: found[0])
            share = f"{total} of {file.rows} rows are bad, tolerance is {tolerance:g}"
            log = rows.Rows(job.database, files, "stated")
            raise log.error(place, check.column, check.expected, share)
    job.report |= report


def divide(job: Job, log: Log) -> int:
    """Makes the view `events` of the encoded rows of `rows`, in shards of users.

    It has the columns of `rows`, and shard. User, item and grp are rows of the tables `users`,
    `items` and `groups` of rows and ids; action and surface are codes of the tables `actions` and
    `surfaces`. The tables `users` and `groups` are made here; users are in the order of a hash of
    their ids.

    Returns:
      the number of shards.
    """
    database, config = job.database, job.config
    named = {"tests": config.split.column, "place": "place"}
    named |= {n: config.events[n] for n in ("time", "duration", "query", "position")}
    fields = {name: name for name, column in named.items() if column}
    fields |= {"item": "i.row", "action": "actions.code", "surface": "surfaces.code"}
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
            database.run(
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
    target = str(database.directory / "events")
    # Each shard buffers few rows before it writes them, unordered; `place` restores the order.
    database.run("SET partitioned_write_flush_threshold = 65536")
    database.run("SET preserve_insertion_order = false")
    database.run(
        f"COPY (SELECT {selected} FROM rows r {joins}) TO {literal(target)} (FORMAT parquet, "
        "PARTITION_BY (shard), WRITE_PARTITION_COLUMNS true, COMPRESSION uncompressed, "
        "DICTIONARY_SIZE_LIMIT 1000, ROW_GROUP_SIZE 16384)"
    )
    absent = [name for name in event_columns.COLUMNS if name not in fields]
    nulls = "".join(f", NULL AS {name}" for name in absent)
    shard_files = f"{reading.exactly(target)} || '/shard=' || shard || '/*.parquet'"
    for made, files in (
        ("VIEW events AS", f"{reading.exactly(target)} || '/*/*.parquet'"),
        ("MACRO events_of(shard) AS TABLE", shard_files),
    ):
        source = f"read_parquet({files}, {reading.PLAIN})"
        database.run(f"CREATE {made} SELECT *{nulls} FROM {source}")
    database.run("RESET preserve_insertion_order")
    return shards


def of_shard(database: Database, shard: int) -> str:
    """SQL of the rows of `events` in a shard, without opening the files of all others."""
    some = (database.directory / "events" / f"shard={shard}").exists()
    return f"events_of({shard})" if some else "(FROM events LIMIT 0)"


def make_vocabularies(job: Job) -> dict[str, tuple[str, ...]]:
    """Makes the tables `actions` and `surfaces` of names and codes.

    They are "unknown" and the most frequent values in `rows`; ties are in order of the text.

    Returns:
      the names by table.
    """
    limits, vocabularies = job.config.events, {}
    for column, size in (("action", limits.max_actions), ("surface", limits.max_surfaces)):
        counts = job.database.rows(
            f"SELECT {column}, count(*) FROM rows WHERE {column} <> {literal(UNKNOWN)} GROUP BY 1"
        )
        counts = sorted(counts, key=lambda row: (-row[1], row[0]))
        names = UNKNOWN, *(name for name, _ in counts[:size])
        job.report[f"{column}s outside the vocabulary"] = sum(n for _, n in counts[size:])
        codes = pa.array(range(len(names)), pa.uint16())
        job.database.make_table(f"{column}s", name=pa.array(names), code=codes)
        vocabularies[f"{column}s"] = names
    return vocabularies
