"""The columns of a log's files as SQL, and the checks of its rows."""

import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from pinjax import timestamps
from pinjax.data.sources import column_map, reading
from pinjax.data.sources.columns import LATEST, TIMESTAMP, Column
from pinjax.data.sources.engine import literal, name_of
from pinjax.data.sources.reading import File
from pinjax.data.timelines import UNKNOWN
from pinjax.errors import InputError

SECOND = 1_000_000  # in microseconds
BAD_TIME = "dropped for a bad time"
# Of `rows` and `events`, see `events`.
COLUMNS = ("user", "item", "time", "duration", "action", "surface")
COLUMNS += ("query", "grp", "position", "tests")


class Check(NamedTuple):
    """A check of a row.

    Attributes:
      label: for the report of dropped rows.
      holds: SQL of whether a row passes.
      column: the user's column, for the message.
      expected: of its value, for the message; "": rows are dropped silently.
    """

    label: str
    holds: str
    column: str
    expected: str = ""


def named(config: ConfigDict) -> list[str]:
    """The columns of the events' files that a column map names."""
    events = config.events
    found = [events.user, events.item, events.time, events.duration, events.action, events.query]
    found += [events.group, events.position, config.split.column, *events.surface]
    found += [column for _, column, _ in events.action_rules]
    found += [column for column, _ in events.least]
    return list(dict.fromkeys(filter(None, found)))


def values(file: File, integers: Mapping[str, bool], config: ConfigDict) -> dict[str, str]:
    """SQL of the columns of `rows` for a file, by name."""
    events = config.events
    ids = {"user": events.user, "item": events.item, "grp": events.group}
    found = {n: Column(file, c).id(integers[n]) for n, c in ids.items() if c}
    if events.time:
        found["time"] = Column(file, events.time).timestamp(events.time_unit)
    if events.duration:
        found["duration"] = f"TRY_CAST({_seconds(file, config)} AS FLOAT)"
    if events.query:
        found["query"] = Column(file, events.query).trimmed()
    if events.position:
        found["position"] = Column(file, events.position).number()
    if config.split.column:
        found["tests"] = f"TRY_CAST({Column(file, config.split.column).text()} AS BOOLEAN)"
    found |= {"action": _action(file, config), "surface": _surface(file, config)}
    return {name: found.get(name) or "NULL" for name in COLUMNS}


def checks(
    file: File, values: Mapping[str, str], integers: Mapping[str, bool], config: ConfigDict
) -> list[Check]:
    """The checks of the rows of a file, in order."""
    events, found = config.events, []
    if events.since:
        since = timestamps.parse("config.events.since", events.since) * SECOND
        late = f"coalesce({values['time']} >= {since}, true)"
        found.append(Check("dropped as too early", late, events.time))
    numbers = [(column, Column(file, column).number()) for column, _ in events.least]
    for (column, number), (_, least) in zip(numbers, events.least, strict=True):
        if file.type_of(column) == "FLOAT":  # which has no 2.3, but the nearest number to it
            least = float(np.float32(least))
        enough = f"coalesce({number} >= {least!r}, true)"
        found.append(Check("dropped as too little", enough, column))

    def expect(what: str, holds: str, column: str, expected: str) -> None:
        found.append(Check(f"dropped for a bad {what}", holds, column, expected))

    def expect_id(what: str, name: str, column: str, expected: str) -> None:
        expect(what, Column(file, column).is_id(integers[name]), column, expected)

    for column, number in numbers:
        expect(column, f"{number} IS NOT NULL", column, "a number")
    if events.user:
        expect_id("user", "user", events.user, "a user's id")
    expect_id("item", "item", events.item, "an item's id")
    if events.time:
        unit = f" in {events.time_unit}" if events.time_unit else ""
        if not unit and file.type_of(events.time) in ("VARCHAR", reading.WRITTEN):
            unit = ", as ISO 8601 text or with events.time_unit"
        within = f"{values['time']} BETWEEN 0 AND {LATEST - 1}"
        expect("time", within, events.time, f"{TIMESTAMP}{unit}")
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
    return found


def stem(path: str) -> str:
    """The name of a file in `action_by_file`: without endings."""
    return pathlib.Path(path).name.split(".")[0]


def _seconds(file: File, config: ConfigDict) -> str:
    unit = column_map.UNITS[config.events.duration_unit] / SECOND
    return f"({Column(file, config.events.duration).number()} * {unit!r})"


def _action(file: File, config: ConfigDict) -> str:
    """SQL of the action type of a row."""
    events = config.events
    if events.action:
        return _named(file, events.action)
    if events.action_by_file:
        types, name = dict(events.action_by_file), stem(file.path)
        if name not in types:
            raise InputError(f"{file.path}: events.action_by_file has only {', '.join(types)}")
        return literal(types[name])
    cases = "".join(
        f" WHEN {_equals(file, column, value)} THEN {literal(kind)}"
        for kind, column, value in events.action_rules
    )
    return f"CASE{cases} ELSE {literal(UNKNOWN)} END" if cases else literal("action")


def _equals(file: File, column: str, value: str | float) -> str:
    """SQL of whether a column equals a value; true equals 1, and numbers may be text."""
    text = Column(file, column).text()
    if isinstance(value, str):
        return f"{text} = {literal(value)}"
    boolean = f"CAST(TRY_CAST({text} AS BOOLEAN) AS DOUBLE)"
    return f"coalesce(TRY_CAST({text} AS DOUBLE), {boolean}) = {float(value)!r}"


def _surface(file: File, config: ConfigDict) -> str:
    if len(config.events.surface) == 1:
        return _named(file, *config.events.surface)
    named = [f"coalesce({_named(file, c)}, {literal(UNKNOWN)})" for c in config.events.surface]
    return " || '|' || ".join(named)


def _named(file: File, column: str) -> str:
    """SQL of a name, null if it is empty: CSV files do not tell these apart."""
    return f"nullif({Column(file, column).text()}, '')"
