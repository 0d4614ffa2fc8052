"""Columns of a Parquet, npz or CSV file, read as ids, moments, numbers or text."""

import datetime
import difflib
import functools
import reprlib
import zipfile
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from etils import epath

from pinjax.data import column_map
from pinjax.errors import InputError

_SEPARATOR = b"\x1f"  # ASCII's own, for a delimiter of more than one character

# What Arrow reads, and the text that it reads as such, but for days that a month does not have.
_NUMBER = (
    r"^[+-]?(?:(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?"
    r"|(?i:inf|infinity|nan(?:\([a-z0-9_]*\))?))$"
)
_DAY = r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
_HOUR, _MINUTE = r"(?:[01][0-9]|2[0-3])", r"[0-5][0-9]"
_TIME = rf"[ T]{_HOUR}(?::{_MINUTE}(?::{_MINUTE}(?:\.[0-9]{{1,6}})?)?)?"
_ZONE = rf"(?:Z|[+-]{_HOUR}(?::?{_MINUTE})?)"
_NUMBERS = ((pa.float64(), _NUMBER),)
_MOMENTS = (
    (pa.timestamp("us"), rf"^{_DAY}(?:{_TIME})?$"),
    (pa.timestamp("us", "UTC"), rf"^{_DAY}{_TIME}{_ZONE}$"),
)


def read_own(path: epath.PathLike) -> pa.Table:
    """A Parquet file that pinjax wrote, which may lie on gs://.

    Neither through a file nor through bytes of Python's: Arrow's threads let go of these later, and
    abort a process that has meanwhile come to its end.

    Raises:
      InputError: where it cannot be read; whoever checks no checksums hears of damage here.
    """
    path = epath.Path(path)
    try:
        buffer = pa.allocate_buffer(path.stat().length)
        with path.open("rb") as file:
            file.readinto(buffer)
        return pq.read_table(pa.BufferReader(buffer))
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not readable as Parquet: {error}") from error


def read(
    path: epath.PathLike, columns: Sequence[str], delimiter: str, header: Sequence[str] = ()
) -> pa.Table:
    """Reads some columns of a file: Parquet or npz by its suffix, everything else as CSV.

    An array of an npz file is a column; where it has more axes than one, a column of lists.

    The columns of a CSV file come as text, so that ids such as "007" stay what they are; an empty
    field is null. Compressed CSV is read by its suffix (.gz, .bz2). A delimiter may have several
    characters; then a quote is a character like any other.

    Raises:
      InputError: for a file that is missing, unreadable, empty, or lacks a column.
    """
    path = epath.Path(path)
    columns = list(dict.fromkeys(columns))
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        if path.suffix == ".parquet":
            file = pq.ParquetFile(path)
            _require(path, columns, file.schema_arrow.names)
            table = file.read(columns)
        elif path.suffix == ".npz":
            table = _read_npz(path, columns)
        else:
            table = _read_csv(path, columns, delimiter, header)
    except InputError:  # a ValueError, too
        raise
    except (pa.ArrowException, OSError, ValueError, zipfile.BadZipFile) as error:
        kind = {".parquet": "Parquet", ".npz": "npz"}.get(path.suffix, "CSV")
        raise InputError(f"{path}: not readable as {kind}: {error}") from error
    if not len(table):
        raise InputError(f"{path}: has no rows")
    decoded = [
        column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column
        for column in table.columns
    ]
    return pa.table(decoded, table.column_names)


def _read_npz(path: epath.Path, columns: Sequence[str]) -> pa.Table:
    with path.open("rb") as file, np.lib.npyio.NpzFile(file) as arrays:
        _require(path, columns, arrays.files)
        return pa.table({name: _lists(arrays[name]) for name in columns})


def _lists(array: np.ndarray) -> pa.Array:
    made = pa.array(array.ravel())
    for size in array.shape[:0:-1]:
        made = pa.FixedSizeListArray.from_arrays(made, size)
    return made


def _read_csv(
    path: epath.Path, columns: Sequence[str], delimiter: str, header: Sequence[str]
) -> pa.Table:
    if len(delimiter) > 1:
        with pa.input_stream(str(path)) as stream:
            lines = stream.read().replace(delimiter.encode(), _SEPARATOR)
        source = functools.partial(pa.BufferReader, lines)
        parse = pa.csv.ParseOptions(delimiter=_SEPARATOR.decode(), quote_char=False)
    else:
        source = functools.partial(epath.Path, path)
        parse = pa.csv.ParseOptions(delimiter=delimiter)

    options = {
        "read_options": pa.csv.ReadOptions(column_names=list(header)),
        "parse_options": parse,
    }
    with pa.csv.open_csv(source(), **options) as reader:
        _require(path, columns, reader.schema.names)
    convert = pa.csv.ConvertOptions(
        include_columns=columns,
        column_types=dict.fromkeys(columns, pa.large_string()),
        null_values=[""],
        strings_can_be_null=True,
    )
    return pa.csv.read_csv(source(), convert_options=convert, **options)


def _require(path: epath.Path, columns: Sequence[str], names: Sequence[str]) -> None:
    for column in columns:
        if column not in names:
            near = difflib.get_close_matches(column, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(f"{path}: no column {column!r} among {', '.join(names)}{hint}")


def text(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Any plain column as text."""
    return column.cast(pa.large_string())


def ids(path: epath.PathLike, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of ids as int64 where they are integers that fit, else as text; "" is null.

    Raises:
      InputError: for a column of another type.
    """
    if pa.types.is_integer(column.type):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:  # uint64, and too large
            return text(column)
    if not _is_text(column.type) and not pa.types.is_null(column.type):
        raise InputError(f"{path}: {name} is {column.type}; expected integer or text ids")
    column = text(column)
    return pc.if_else(pc.equal(column, ""), None, column)


def same_type(
    columns: Sequence[pa.Array | pa.ChunkedArray],
) -> list[pa.Array | pa.ChunkedArray]:
    """Columns of ids, all int64 or else all text, so that they compare."""
    if len({column.type for column in columns}) > 1:
        return [text(column) for column in columns]
    return list(columns)


def numbers(path: epath.PathLike, name: str, column: pa.ChunkedArray) -> np.ndarray:
    """A column of numbers, or of numbers as text, as float64; NaN where null or unreadable.

    Raises:
      InputError: for a column of another type.
    """
    kind = column.type
    if _is_text(kind):
        return _parse(column.combine_chunks(), _NUMBERS)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_null(kind)):
        raise InputError(f"{path}: {name} is {kind}; expected numbers")
    return _float64(column)


def moments(path: epath.PathLike, name: str, column: pa.ChunkedArray, unit: str) -> np.ndarray:
    """A column of moments as microseconds since 1970 in UTC, float64 (exact until 2255).

    Args:
      path: the file, for messages.
      name: the column's name, for messages.
      column: timestamps, dates or ISO 8601 text (without a zone: UTC); with a unit, numbers.
      unit: s, ms, us, or "".

    Returns:
      one moment a row, NaN where null or unreadable.

    Raises:
      InputError: for a column of another type.
    """
    kind = column.type
    if unit and not pa.types.is_temporal(kind):
        return np.round(numbers(path, name, column) * column_map.UNITS[unit])
    if not unit and _is_text(kind):
        return _parse(column.combine_chunks(), _MOMENTS)
    if not unit and (pa.types.is_date(kind) or pa.types.is_timestamp(kind)):
        zone = kind.tz if pa.types.is_timestamp(kind) else None
        return _float64(column.cast(pa.timestamp("us", zone), safe=False).cast(pa.int64()))
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    expected = f"numbers in {unit}" if unit else "timestamps, dates, ISO 8601 text, or a unit"
    raise InputError(f"{path}: {name} is {kind}; expected {expected} in the column map")


def moment(name: str, iso: str) -> int:
    """ISO 8601 text from a config (without a zone: UTC) as unix seconds.

    Raises:
      InputError: where it is none.
    """
    try:
        parsed = datetime.datetime.fromisoformat(iso)
    except ValueError:
        raise InputError(f"{name} is {iso!r}; expected a moment such as 2023-01-31") from None
    return int((parsed if parsed.tzinfo else parsed.replace(tzinfo=datetime.UTC)).timestamp())


class Check(NamedTuple):
    """What a field of a row has to be, and the rows where it is not.

    Attributes:
      field: what the row lacks, as counted in the report.
      column: where it was looked for.
      expected: what was expected, for the message.
      bad: bool (rows,).
    """

    field: str
    column: str
    expected: str
    bad: np.ndarray


def usable(
    path: epath.PathLike, table: pa.Table, checks: Sequence[Check], tolerance: float = 0.0
) -> tuple[np.ndarray, dict[str, int]]:
    """The rows that pass all checks, and how many fail by field; rows count from 1.

    Raises:
      InputError: naming the first bad row, where more than `tolerance` of the rows are bad.
    """
    bad = np.zeros(len(table), bool)
    counts = {}
    for check in checks:
        counts[check.field] = int((check.bad & ~bad).sum())
        bad |= check.bad
    if bad.sum() > tolerance * len(table):
        row = int(np.argmax(bad))
        check = next(check for check in checks if check.bad[row])
        value = table[check.column][row].as_py()
        if isinstance(value, list | str):
            value = reprlib.repr(value)
        share = f"{bad.sum()} of {len(table)} rows are bad, tolerance is {tolerance:g}"
        where = f"{path}: row {row + 1}: {check.column}"
        raise InputError(f"{where} is {value}; expected {check.expected} ({share})")
    return ~bad, counts


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _float64(column: pa.ChunkedArray | pa.Array) -> np.ndarray:
    return column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)


def _parse(values: pa.Array, kinds: Sequence[tuple[pa.DataType, str]]) -> np.ndarray:
    """Text as float64, NaN where it is none of `kinds`: types, and the text that each may be of."""
    for kind, _ in kinds:
        try:
            return _cast(values, kind)
        except pa.ArrowInvalid:
            continue
    parsed = np.full(len(values), np.nan)
    for kind, pattern in kinds:
        # Before the cast, which would tell of one bad row at a time.
        fits = pc.fill_null(pc.match_substring_regex(values, pattern), False)
        parsed[fits.to_numpy(zero_copy_only=False)] = _cast_in_halves(values.filter(fits), kind)
    return parsed


def _cast_in_halves(values: pa.Array, kind: pa.DataType) -> np.ndarray:
    """Text as float64, NaN where the cast fails all the same: for the 30th of February."""
    try:
        return _cast(values, kind)
    except pa.ArrowInvalid:
        if len(values) == 1:
            return np.array([np.nan])
    half = len(values) // 2
    halves = values[:half], values[half:]
    return np.concatenate([_cast_in_halves(part, kind) for part in halves])


def _cast(values: pa.Array, kind: pa.DataType) -> np.ndarray:
    parsed = values.cast(kind)
    return _float64(parsed.cast(pa.int64()) if pa.types.is_timestamp(kind) else parsed)
