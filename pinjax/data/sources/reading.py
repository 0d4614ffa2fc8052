"""Users' files as relations of DuckDB: Parquet, CSV, JSON lines and npz, several of a kind.

DuckDB reads, converts, joins and sorts, within a memory budget. What is here says what a column has
to be, and in one line which file, row and value is not.
"""

import bz2
import contextlib
import csv
import dataclasses
import datetime
import difflib
import glob
import gzip
import io
import lzma
import os
import pathlib
import re
import reprlib
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from pinjax.data.sources import column_map
from pinjax.errors import InputError

WRITTEN = "WRITTEN"  # the type of text in a file without types: a number, perhaps
LATEST = 2**32 * 1_000_000  # times are seconds in 32 bits on disk: 2106
ROW = '"@row"'  # SQL of the column that numbers a file's rows: no name that a user's has
_INTEGERS = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")
_LARGE_INTEGERS = ("UBIGINT", "HUGEINT", "UHUGEINT")
_FLOATS = ("FLOAT", "DOUBLE")
_TEXTS = ("VARCHAR", "UUID", WRITTEN)
_TIMES = ("TIMESTAMP", "DATE")  # and what begins so
_CANONICAL = "0|-?[1-9][0-9]{0,17}"  # integers as one writes them: neither 007 nor 7.0
_SPACES = "".join(map(chr, filter(lambda code: chr(code).isspace(), range(0x3001))))
_JSON = {"BIGINT": "HUGEINT", "UBIGINT": "HUGEINT"}
_KINDS = {".parquet": "Parquet", ".npz": "npz"} | dict.fromkeys(
    (".jsonl", ".ndjson", ".json"), "JSON lines"
)
_UNREADABLE = (
    *(duckdb.Error, pa.ArrowException, OSError, ValueError, EOFError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
_READERS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@dataclasses.dataclass(frozen=True)
class File:
    """A file.

    Attributes:
      path: as messages name it.
      types: DuckDB's type of each column.
      relation: SQL of its columns and, as `ROW`, the number of each row from 1.
      rows: how many there are.
      numbered: whether rows know their numbers, in whatever order they are read.
    """

    path: str
    types: dict[str, str]
    relation: str
    rows: int
    numbered: bool = False

    def type_of(self, column: str) -> str:
        """The type of a column.

        Raises:
          InputError: where there is no such column.
        """
        if column not in self.types:
            near = difflib.get_close_matches(column, self.types, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            names = ", ".join(self.types)
            raise InputError(f"{self.path}: no column {column!r} among {names}{hint}")
        return self.types[column]

    def unfit(self, column: str, expected: str) -> InputError:
        return InputError(f"{self.path}: {column} is {self.type_of(column)}; expected {expected}")


@contextlib.contextmanager
def database(directory: pathlib.Path, memory: int | None) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database that keeps what it cannot hold in memory in a directory.

    Args:
      directory: for its files, which exists.
      memory: bytes; None: half of what DuckDB finds.

    Raises:
      InputError: where the memory is not enough.
    """
    if memory is None:  # DuckDB would take 80 % of it
        with duckdb.connect() as connection:
            (memory,) = first_row(
                connection, "SELECT parse_formatted_bytes(current_setting('memory_limit'))"
            )
        memory = memory * 5 // 8
    settings = {
        "memory_limit": f"{memory}B",
        "threads": max(1, min(len(os.sched_getaffinity(0)), memory // 2**27)),
        "temp_directory": str(directory / "spilled"),
        "autoload_known_extensions": False,
    }
    with duckdb.connect(config=settings) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        try:
            yield connection
        except duckdb.OutOfMemoryException as error:
            told = f"--memory: {memory / 2**20:,.0f} MiB are too little"
            raise InputError(f"{told}: {one_line(error)}") from error
        except (duckdb.DataError, duckdb.IOException, duckdb.InvalidInputException) as error:
            # A file that is damaged further on than `open_files` looks, or a full disk.
            raise InputError(one_line(error)) from error


def expand(flag: str, names: Sequence[str]) -> list[str]:
    """Paths of local files, globs replaced by what they match, in order.

    Raises:
      InputError: for what is no file.
    """
    paths = []
    for name in names:
        if not name:
            raise InputError(f"--{flag} names an empty file; expected names with commas between")
        if "://" in name:
            raise InputError(f"{name}: expected a file on this machine; copy it first")
        if os.path.isdir(name):
            raise InputError(f"{name}: is a directory; expected files, as {name}/*.parquet")
        found = [name] if os.path.exists(name) else sorted(glob.glob(name))
        if not found:
            raise InputError(f"{name}: no such file")
        paths += found
    return paths


def open_files(
    connection: duckdb.DuckDBPyConnection,
    paths: Sequence[str],
    columns: Sequence[str],
    section: ConfigDict,
) -> list[File]:
    """Opens files of one kind, by their suffixes: Parquet, JSON lines, npz, and CSV else.

    Args:
      connection: of `database`.
      paths: of `expand`.
      columns: that are needed.
      section: of the column map, says how CSV files are written.

    Raises:
      InputError: for a file that is unreadable, has no rows, or lacks a column.
    """
    opened = []
    for path in paths:
        suffixes = [suffix for suffix in pathlib.Path(path).suffixes if suffix not in _READERS]
        kind = _KINDS.get(suffixes[-1] if suffixes else "", "CSV")
        try:
            match kind:
                case "Parquet":
                    file = _parquet(connection, path)
                case "npz":
                    file = _npz(connection, path, columns)
                case "JSON lines":
                    file = _json_lines(connection, path, columns)
                case _:
                    file = _csv(connection, path, section)
        except _UNREADABLE as error:
            if isinstance(error, InputError | duckdb.OutOfMemoryException):
                raise
            raise InputError(f"{path}: not readable as {kind}: {one_line(error)}") from error
        if not file.rows:
            raise InputError(f"{path}: has no rows")
        for column in columns:
            file.type_of(column)
        opened.append(file)
    return opened


def _parquet(connection: duckdb.DuckDBPyConnection, path: str) -> File:
    with pq.ParquetFile(path, memory_map=True) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    _check_names(path, schema.names)
    table = f"read_parquet({_exactly(path)}, file_row_number=true)"
    types = _types(connection, table)
    del types["file_row_number"]
    # Which Parquet has as integers of any unit.
    types |= {field.name: "INTERVAL" for field in schema if pa.types.is_duration(field.type)}
    relation = f"(SELECT * EXCLUDE (file_row_number), file_row_number + 1 AS {ROW} FROM {table})"
    return File(path, types, relation, rows, numbered=True)


def _npz(connection: duckdb.DuckDBPyConnection, path: str, columns: Sequence[str]) -> File:
    with open(path, "rb") as file, np.lib.npyio.NpzFile(file) as arrays:
        known = dict.fromkeys(arrays.files, "")
        missing = next((name for name in columns if name not in known), None)
        if missing is not None:
            return File(path, known, "", 1)  # which has no such column
        table = pa.table({name: _lists(arrays[name]) for name in dict.fromkeys(columns)})
    view = f"npz {path}"
    connection.register(view, table)
    relation = f"(SELECT *, row_number() OVER () AS {ROW} FROM {name_of(view)})"
    return File(path, _types(connection, name_of(view)), relation, len(table))


def _lists(array: np.ndarray) -> pa.Array:
    if array.dtype == np.float16:
        array = array.astype(np.float32)
    made = pa.array(array.ravel())
    for size in array.shape[:0:-1]:
        made = pa.FixedSizeListArray.from_arrays(made, size)
    return made.cast(_variable(made.type))


def _variable(kind: pa.DataType) -> pa.DataType:
    """Lists of any length, which DuckDB reads alike wherever they come from."""
    if not pa.types.is_fixed_size_list(kind):
        return kind
    return pa.list_(_variable(kind.value_type))


def _json_lines(connection: duckdb.DuckDBPyConnection, path: str, columns: Sequence[str]) -> File:
    objects = f"read_ndjson_objects({_exactly(path)})"
    rows, *found = first_row(
        connection,
        "SELECT "
        + ", ".join(
            [
                "count(*)",
                *(f"list(DISTINCT json_type(json, {_key(name)}))" for name in columns),
                *(f"list(DISTINCT json_type(json, {_key(name, '[0]')}))" for name in columns),
            ]
        )
        + f" FROM {objects}",
    )
    types, values = {}, []
    for name, own, inner in zip(columns, found, found[len(columns) :], strict=False):
        kinds = set(own or ()) - {None, "NULL"}
        if not kinds and not any(own or ()):
            continue
        if kinds == {"ARRAY"}:
            numbers = set(inner or ()) - {None, "NULL"}
            depth = "[][]" if "ARRAY" in numbers else "[]"
            types[name] = ("VARCHAR" if "VARCHAR" in numbers else "DOUBLE") + depth
        else:
            kinds = {_JSON.get(kind, kind) for kind in kinds}
            types[name] = (
                "DOUBLE"
                if kinds == {"HUGEINT", "DOUBLE"}
                else kinds.pop()
                if len(kinds) == 1
                else "VARCHAR"
            )
        value = f"json ->> {_key(name)}"
        values.append(f"CAST({value} AS {types[name]}) AS {name_of(name)}")
        if types[name] == "OBJECT":
            values.pop()
    if len(types) < len(set(columns)):
        keys = connection.sql(f"SELECT DISTINCT unnest(json_keys(json)) FROM {objects} ORDER BY 1")
        types |= {name: "" for (name,) in keys.fetchall() if name not in types}
    selected = ", ".join([*values, f"row_number() OVER () AS {ROW}"])
    return File(path, types, f"(SELECT {selected} FROM {objects})", rows)


def _key(name: str, rest: str = "") -> str:
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    return literal(f'$."{quoted}"{rest}')


def _csv(connection: duckdb.DuckDBPyConnection, path: str, section: ConfigDict) -> File:
    delimiter, quote, header = section.delimiter, section.quote, section.header
    names = list(header) or _first_line(path, delimiter, quote)
    _check_names(path, names)
    source = _unpacked(connection, path) if path.endswith((".bz2", ".xz")) else path
    columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
    options = {
        "auto_detect": "false",
        "header": "false" if header else "true",
        "delim": literal(delimiter),
        "quote": literal(quote),
        "escape": literal(quote),
        "columns": f"{{{columns}}}",
        "strict_mode": "true",
    }
    if len(names) == 1:
        options["delim"] = literal("\x1f")  # a single column ends where the line does
    settings = ", ".join(f"{name}={value}" for name, value in options.items())
    table = f"read_csv({_exactly(source)}, {settings})"
    if len(names) == 1:  # then an empty line would be a row
        table = f"(FROM {table} WHERE {name_of(names[0])} IS NOT NULL)"
    (rows,) = first_row(connection, f"SELECT count(*) FROM {table}")
    if quote and not section.multiline:
        _check_lines(path, rows + (not header), quote)
    relation = f"(SELECT *, row_number() OVER () AS {ROW} FROM {table})"
    return File(path, dict.fromkeys(names, WRITTEN), relation, rows)


def _exactly(path: str) -> str:
    """SQL of a path, which is no glob even if it looks like one."""
    return literal(re.sub(r"[\[*?]", r"[\g<0>]", path))


def _check_lines(path: str, rows: int, quote: str) -> None:
    """Refuses a file with fewer rows than lines: quotes that are none have joined some."""
    with _bytes(path) as file:
        lines, last = 0, b""
        while piece := file.read(2**24):
            lines += piece.count(b"\n")
            last = piece[-1:]
        lines += last not in (b"\n", b"")
    if lines == rows:
        return
    inside, filled, where = False, 0, 0
    with _bytes(path) as file:
        for number, line in enumerate(file, start=1):
            filled += bool(line.strip(b"\r\n"))
            if not inside and line.count(quote.encode()) % 2:
                where = where or number
            inside ^= bool(line.count(quote.encode()) % 2)
    if filled > rows:
        raise InputError(
            f"{path}: line {where or 1}: a field in {quote} does not end on its line, so that "
            f"{filled:,} lines are {rows:,} rows; expected quote='' in the column map where quotes "
            "mean nothing, or multiline=True where fields hold line breaks"
        )


def _first_line(path: str, delimiter: str, quote: str) -> list[str]:
    with _bytes(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as lines:
        line = lines.readline().rstrip("\r\n")
    if not line:
        raise ValueError("it is empty, or begins with an empty line")
    if len(delimiter) > 1 or not quote:
        return line.split(delimiter)
    return next(csv.reader([line], delimiter=delimiter, quotechar=quote))


def _bytes(path: str) -> io.BufferedIOBase:
    return _READERS.get(pathlib.Path(path).suffix, open)(path, "rb")


def _unpacked(connection: duckdb.DuckDBPyConnection, path: str) -> str:
    """A copy without the compression that DuckDB does not read."""
    (directory,) = first_row(connection, "SELECT current_setting('temp_directory')")
    os.makedirs(directory, exist_ok=True)
    target = os.path.join(directory, f"{abs(hash(path))}.csv")
    with _bytes(path) as source, open(target, "wb") as file:
        shutil.copyfileobj(source, file)
    return target


def _check_names(path: str, names: Sequence[str]) -> None:
    known: dict[str, str] = {}
    for name in names:
        if (other := known.get(name.lower())) is not None:
            told = "expected each name once, in upper or lower case"
            raise InputError(f"{path}: has columns {other!r} and {name!r}; {told}")
        known[name.lower()] = name


def _types(connection: duckdb.DuckDBPyConnection, table: str) -> dict[str, str]:
    rows = connection.execute(f"DESCRIBE SELECT * FROM {table}").fetchall()
    return {name: kind for name, kind, *_ in rows}


def are_integers(connection: duckdb.DuckDBPyConnection, file: File, column: str) -> bool:
    """Whether ids are integers that int64 holds; those without a type, as one writes integers.

    Raises:
      InputError: where they are neither integers nor text.
    """
    kind, name = file.type_of(column), name_of(column)
    if kind in _INTEGERS or kind == '"NULL"':
        return True
    if kind == "VARCHAR" or kind == "UUID" or kind.startswith("ENUM"):
        return False
    if kind in _LARGE_INTEGERS or (kind.startswith("DECIMAL") and kind.endswith(",0)")):
        fits = f"{name} BETWEEN -9223372036854775808 AND 9223372036854775807"
    elif kind == WRITTEN:
        fits = f"regexp_full_match({name}, '{_CANONICAL}')"
    else:
        raise file.unfit(column, "integer or text ids")
    (all_fit,) = first_row(connection, f"SELECT bool_and({fits}) FROM {file.relation}")
    return all_fit in (True, None)


def ids(file: File, column: str, integers: bool) -> str:
    """SQL of a column of ids; text may be empty, which is no id.

    Text of Parquet is left as it is: DuckDB joins it by its dictionary, at half of the cost.
    """
    if file.type_of(column) == "VARCHAR" and not integers:
        return name_of(column)
    return f"CAST({name_of(column)} AS {'BIGINT' if integers else 'VARCHAR'})"


def is_id(file: File, column: str, integers: bool) -> str:
    """SQL of whether there is an id."""
    value = ids(file, column, integers)
    return f"{value} IS NOT NULL" if integers else f"{value} <> ''"


def text(file: File, column: str) -> str:
    """SQL of a plain column as text.

    Raises:
      InputError: for a column of another type.
    """
    kind = file.type_of(column)
    if kind in ("BLOB", "INTERVAL") or (
        kind.endswith(("]", ")", "OBJECT")) and not kind.startswith("DECIMAL")
    ):
        raise file.unfit(column, "text")
    return name_of(column) if kind == "VARCHAR" else f"CAST({name_of(column)} AS VARCHAR)"


def texts(file: File, column: str) -> str:
    """SQL of a column of lists of text or integers as lists of text.

    Raises:
      InputError: for a column of another type.
    """
    if file.type_of(column).removesuffix("[]") not in (*_INTEGERS, "VARCHAR"):
        raise file.unfit(column, "lists of text or integers")
    return f"CAST({name_of(column)} AS VARCHAR[])"


def trimmed(file: File, column: str) -> str:
    """SQL of text without spaces around it, null where nothing is left."""
    return f"nullif(trim({text(file, column)}, {literal(_SPACES)}), '')"


def number(file: File, column: str) -> str:
    """SQL of a column of numbers, or of numbers as text, as doubles, null where not finite.

    NaN is told by `isfinite` alone: `isnan` and comparisons trust the statistics of a Parquet file,
    which know of none.

    Raises:
      InputError: for a column of another type.
    """
    kind = file.type_of(column)
    numbers = (*_INTEGERS, *_LARGE_INTEGERS, *_FLOATS, "VARCHAR", WRITTEN, '"NULL"')
    if kind not in numbers and not kind.startswith("DECIMAL"):
        raise file.unfit(column, "numbers")
    value = f"TRY_CAST({name_of(column)} AS DOUBLE)"
    return f"CASE WHEN isfinite({value}) THEN {value} END"


def moment(file: File, column: str, unit: str) -> str:
    """SQL of a column of times as microseconds since 1970 in UTC, null where unreadable.

    Args:
      file: that has it.
      column: timestamps, dates or ISO 8601 text (without a zone: UTC); with a unit, numbers.
      unit: of `column_map.UNITS`, or "".

    Raises:
      InputError: for a column of another type.
    """
    kind, name = file.type_of(column), name_of(column)
    if kind.startswith(_TIMES):
        return f"epoch_us({name})"
    if unit:
        if kind == "FLOAT":
            raise file.unfit(column, "integers or doubles: 32 bits cannot tell seconds apart")
        scaled = f"round({number(file, column)} * {column_map.UNITS[unit]!r})"
        if unit == "ns":  # a double does not hold all digits
            scaled = f"TRY_CAST({name} AS HUGEINT) // 1000"
        return f"TRY_CAST({scaled} AS BIGINT)"
    if kind in ("VARCHAR", WRITTEN):
        return f"epoch_us(TRY_CAST({name} AS TIMESTAMPTZ))"
    if kind == '"NULL"':
        return "CAST(NULL AS BIGINT)"
    raise file.unfit(column, "timestamps, dates, ISO 8601 text, or a unit in the column map")


def parse_moment(name: str, iso: str) -> int:
    """ISO 8601 text from a config (without a zone: UTC) as unix seconds.

    Raises:
      InputError: where it is none.
    """
    try:
        parsed = datetime.datetime.fromisoformat(iso)
    except ValueError:
        raise InputError(
            f"config.{name} is {iso!r}; expected a moment such as 2023-01-31"
        ) from None
    return int((parsed if parsed.tzinfo else parsed.replace(tzinfo=datetime.UTC)).timestamp())


def bad_row(
    connection: duckdb.DuckDBPyConnection,
    file: File,
    row: int,
    column: str,
    expected: str,
    share: str,
) -> InputError:
    """The error that names a row of a file, its value and what was expected of it."""
    query = f"SELECT {name_of(column)} FROM {file.relation} WHERE {ROW} = {row}"
    return bad_value(file, row, column, connection.sql(query), expected, share)


def bad_value(
    file: File,
    row: int,
    column: str,
    value: duckdb.DuckDBPyRelation,
    expected: str,
    share: str,
) -> InputError:
    """The same of a value that was looked up elsewhere, in a relation of itself alone."""
    ((found,),) = value.fetchall()
    if isinstance(found, list | str):
        found = reprlib.repr(found)
    return InputError(f"{file.path}: row {row}: {column} is {found}; expected {expected} ({share})")


def first_row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple | None:
    """The first row that a query finds, which should find few: all are read.

    An unread row would keep the connection from other queries.
    """
    return next(iter(connection.execute(query).fetchall()), None)


def numbered(order: str) -> str:
    """SQL of the column `row`, which numbers rows from 0 in an order."""
    return f"CAST(row_number() OVER (ORDER BY {order}) - 1 AS INTEGER) AS row"


def name_of(column: str) -> str:
    """A name in SQL."""
    return '"' + column.replace('"', '""') + '"'


def literal(value: str) -> str:
    """Text in SQL."""
    return "'" + value.replace("'", "''") + "'"


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:300] or type(error).__name__
