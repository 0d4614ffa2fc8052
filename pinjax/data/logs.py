"""Any log in: files of events, read by a column map, checked, and sorted into timelines."""

import dataclasses
from collections.abc import Sequence

import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from etils import epath

from pinjax.data import column_map, schema, tables
from pinjax.errors import InputError

UNKNOWN = "unknown"
_SECOND = 1_000_000
_LATEST = 2**32 * _SECOND  # `schema.ACTION` holds seconds in 32 bits: 2106
_EARLY = 94_694_400 * _SECOND  # 1973: what a moment in s reads as in ms is before it


@dataclasses.dataclass(frozen=True)
class Log:
    """The actions of a log, by user and time; ties keep their order in the log.

    Attributes:
      users: the users' own ids, int64 or text, in the order of their first rows.
      items: the items' own ids, int64 or text, in the order of their first rows.
      records: `schema.ACTION` (n,), `item` a row of `items`; times are ranks from 0 where the
        split is leave-one-out.
      offsets: int64 (users + 1,), where each user's records begin.
      actions: the action vocabulary, row 0 "unknown".
      surfaces: the surface vocabulary, row 0 "unknown".
      report: what was read and dropped.
    """

    users: pa.Array
    items: pa.Array
    records: np.ndarray
    offsets: np.ndarray
    actions: tuple[str, ...]
    surfaces: tuple[str, ...]
    report: dict[str, int]


def read(paths: Sequence[epath.PathLike], config: ml_collections.ConfigDict) -> Log:
    """Reads a log.

    Rows without a user, an item, or a time between 1970 and 2106, and those with a negative or
    NaN duration, are bad: more of them than `config.tolerance` allows are refused. So are rows
    from before 1973 where others are later: a unit or a placeholder is wrong. Rows that repeat
    another's user, item, time and action are dropped. Both are counted, and so are the rows
    earlier than the row of the same user before them.

    Args:
      paths: Parquet, npz or CSV files, in the order of the log.
      config: a column map, see `pinjax.data.column_map`.

    Raises:
      InputError: for wrong input.
    """
    report: dict[str, int] = {"rows read": 0}
    parts = []
    for path in map(epath.Path, paths):
        part, counts = _read_file(path, config)
        parts.append(part)
        for name, count in counts.items():
            report[name] = report.get(name, 0) + count
    table = _concatenate(parts)
    if not len(table):
        raise InputError(f"{', '.join(map(str, paths))}: no usable row is left")

    users, user = encode(table["user"])
    items, item = encode(table["item"])
    time = table["time"].to_numpy()
    actions, action, rare_actions = vocabulary(table["action"], config.max_actions)
    surfaces, surface, rare_surfaces = vocabulary(table["surface"], config.max_surfaces)
    report["actions outside the vocabulary"] = rare_actions
    report["surfaces outside the vocabulary"] = rare_surfaces

    in_log_order = np.argsort(user, kind="stable")
    backwards = np.diff(time[in_log_order]) < 0
    same_user = np.diff(user[in_log_order]) == 0
    report["out of order"] = int((backwards & same_user).sum())
    keep = np.ones(len(table), bool)
    if config.events.time:
        keep = ~_repeats(user, time, item, action)
    report["duplicates dropped"] = int((~keep).sum())
    count = np.bincount(user[keep], minlength=len(users))
    report["users with too few actions"] = int((count < config.min_actions).sum())
    keep &= (count >= config.min_actions)[user]
    if not keep.any():
        most = int(count.max())
        raise InputError(f"min_actions is {config.min_actions}; the most of any user is {most}")

    order = np.flatnonzero(keep)
    order = order[np.lexsort((time[order], user[order]))]
    records = np.zeros(len(order), schema.ACTION)
    records["time"] = time[order] // _SECOND
    records["duration"] = table["duration"].to_numpy()[order]
    records["surface"] = surface[order]
    records["action"] = action[order]
    # Users and items of whom nothing is left are forgotten; the others keep their order.
    user_rows, user = np.unique(user[order], return_inverse=True)
    item_rows, records["item"] = np.unique(item[order], return_inverse=True)
    offsets = np.zeros(len(user_rows) + 1, np.int64)
    np.cumsum(np.bincount(user), out=offsets[1:])
    if config.split.kind == "leave_one_out":
        records["time"] = np.arange(len(records)) - offsets[user]
    return Log(
        users=users.take(pa.array(user_rows)),
        items=items.take(pa.array(item_rows)),
        records=records,
        offsets=offsets,
        actions=actions,
        surfaces=surfaces,
        report=report,
    )


def _read_file(
    path: epath.Path, config: ml_collections.ConfigDict
) -> tuple[pa.Table, dict[str, int]]:
    """The usable rows of one file: user, item, time (us), duration (s), action, surface."""
    events = config.events
    wanted = [events.user, events.item, events.time, events.duration, events.action]
    wanted += [*events.surface, *(column for _, column, _ in events.action_rules)]
    table = tables.read(path, list(filter(None, wanted)), config.delimiter, events.header)
    rows = len(table)

    user = tables.ids(path, events.user, table[events.user])
    item = tables.ids(path, events.item, table[events.item])
    checks = [
        tables.Check("user", events.user, "a user's id", _mask(user.is_null())),
        tables.Check("item", events.item, "an item's id", _mask(item.is_null())),
    ]
    time, dropped = np.zeros(rows), np.zeros(rows, bool)
    if events.time:
        time = tables.moments(path, events.time, table[events.time], events.time_unit)
        if events.since:
            dropped = time < tables.moment("events.since", events.since) * _SECOND
        checks.append(check_time(table, time, dropped, events))
    duration = np.zeros(rows)
    if events.duration:
        column = table[events.duration]
        unit = column_map.UNITS[events.duration_unit] / _SECOND
        duration = tables.numbers(path, events.duration, column) * unit
        duration[_mask(column.is_null())] = 0
        bad = ~(np.isfinite(duration) & (duration >= 0))
        checks.append(tables.Check("duration", events.duration, "a number from 0 up", bad))

    checks = [check._replace(bad=check.bad & ~dropped) for check in checks]
    good, counts = tables.usable(path, table, checks, config.tolerance)
    counts = {f"dropped for a bad {field}": count for field, count in counts.items()}
    columns = {
        "user": user,
        "item": item,
        "time": np.where(good & ~dropped, time, 0).astype(np.int64),
        "duration": duration.astype(np.float32),
        "action": action_types(path, table, events),
        "surface": _surface(table, events.surface),
    }
    report = {"rows read": rows, "dropped as too early": int(dropped.sum()), **counts}
    return pa.table(columns).filter(pa.array(good & ~dropped)), report


def _concatenate(parts: Sequence[pa.Table]) -> pa.Table:
    """Tables of `_read_file` as one, their ids of one type."""
    for name in ("user", "item"):
        columns = tables.same_type([part[name] for part in parts])
        parts = [
            part.set_column(part.column_names.index(name), name, column)
            for part, column in zip(parts, columns, strict=True)
        ]
    return pa.concat_tables(parts)


def check_time(
    table: pa.Table, time: np.ndarray, dropped: np.ndarray, events: ml_collections.ConfigDict
) -> tables.Check:
    """Moments, in microseconds, have to be from 1970 to 2106, and of one unit."""
    known = (time >= 0) & (time < _LATEST)
    late = known & (time >= _EARLY)
    expected = "a moment from 1970 to 2106"
    if events.time_unit:
        expected += f" in {events.time_unit}"
    if (known & ~late & ~dropped).any() and late.any():
        expected += ", and not before 1973 as others are later (mixed units or a placeholder?)"
        known = late
    return tables.Check("time", events.time, expected, ~known)


def action_types(
    path: epath.Path, table: pa.Table, events: ml_collections.ConfigDict
) -> pa.Array | pa.ChunkedArray:
    """The name of each row's action type, as a column map's `events` say."""
    rows = len(table)
    if events.action:
        return tables.text(table[events.action])
    if events.action_by_file:
        stems = dict(events.action_by_file)
        if path.stem not in stems:
            raise InputError(f"{path}: events.action_by_file has only {', '.join(stems)}")
        return pa.repeat(pa.scalar(stems[path.stem], pa.large_string()), rows)
    if events.action_rules:
        kinds, names, values = zip(*events.action_rules, strict=True)
        holds = [
            _mask(pc.equal(tables.text(table[name]), str(value)))
            for name, value in zip(names, values, strict=True)
        ]
        return pa.array(np.select(holds, kinds, UNKNOWN), pa.large_string())
    return pa.repeat(pa.scalar("action", pa.large_string()), rows)


def _surface(table: pa.Table, names: Sequence[str]) -> pa.Array | pa.ChunkedArray:
    if not names:
        return pa.repeat(pa.scalar(UNKNOWN, pa.large_string()), len(table))
    columns = [tables.text(table[name]) for name in names]
    separator = pa.scalar("|", pa.large_string())
    return pc.binary_join_element_wise(
        *columns, separator, null_handling="replace", null_replacement=UNKNOWN
    )


def _repeats(*keys: np.ndarray) -> np.ndarray:
    """Bool (n,): the rows that equal an earlier row in all keys."""
    order = np.lexsort(keys[::-1])
    same = np.logical_and.reduce([np.diff(key[order]) == 0 for key in keys])
    repeats = np.zeros(len(order), bool)
    repeats[order[1:]] = same
    return repeats


def encode(column: pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """Distinct values in the order of their first rows, and the row of each value in them."""
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary, encoded.indices.to_numpy()


def vocabulary(column: pa.ChunkedArray, size: int) -> tuple[tuple[str, ...], np.ndarray, int]:
    """The most frequent values after "unknown", each row's place among them, and the rows left."""
    distinct, codes = encode(column.fill_null(UNKNOWN))
    names = distinct.to_pylist()
    count = np.bincount(codes, minlength=len(names))
    ranked = sorted(range(len(names)), key=lambda code: (-count[code], names[code]))
    ranked = [code for code in ranked if names[code] != UNKNOWN]
    kept = ranked[:size]
    place = np.zeros(len(names), np.int32)
    place[kept] = np.arange(1, len(kept) + 1)
    return (UNKNOWN, *(names[code] for code in kept)), place[codes], int(count[ranked[size:]].sum())


def _mask(column: pa.ChunkedArray) -> np.ndarray:
    return column.fill_null(False).to_numpy()
