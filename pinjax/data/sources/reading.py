"""Users' files as relations of DuckDB: Parquet, CSV, JSON lines and npz, several of a kind."""

import bz2
import csv
import dataclasses
import difflib
import glob
import gzip
import itertools
import lzma
import os
import pathlib
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from typing import BinaryIO

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from pinjax.data.sources.engine import Database, literal, name_of, one_line
from pinjax.errors import InputError

WRITTEN = "WRITTEN"  # the type of a column in a file without types
ROW = '"@row"'  # SQL of the column of row numbers; users' columns cannot have this name
# Else a directory `name=value` in a path would be a column, in place of the file's own.
PLAIN = "hive_partitioning=false"
_KINDS = {".parquet": "Parquet", ".npz": "npz"} | dict.fromkeys(
    (".jsonl", ".ndjson", ".json"), "JSON lines"
)
_UNREADABLE = (
    duckdb.Error,
    pa.ArrowException,
    OSError,
    ValueError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
_UNPACK = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
_VIEWS = itertools.count()  # so that two tables of one name have two views


@dataclasses.dataclass(frozen=True)
class File:
    """A file.

    Attributes:
      path: for messages.
      types: DuckDB's type of each column, or `WRITTEN`.
      relation: SQL of its columns and, as `ROW`, the number of each row from 1.
      rows: number of rows.
      numbered: whether row numbers do not depend on the order of reading.
    """

    path: str
    types: dict[str, str]
    relation: str
    rows: int
    numbered: bool = False

    def type_of(self, column: str) -> str:
        """The type of a column.

        Raises:
          InputError: if there is no such column.
        """
        if column not in self.types:
            near = difflib.get_close_matches(column, self.types, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            names = ", ".join(self.types)
            raise InputError(f"{self.path}: no column {column!r} among {names}{hint}")
        return self.types[column]


def expand(flag: str, names: Sequence[str]) -> list[str]:
    """Paths of local files, with expanded globs, in order.

    Raises:
      InputError: if a name is not a file, or two are the same one.
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
    seen = set()
    for path in paths:
        if (file := os.path.realpath(path)) in seen:
            raise InputError(f"--{flag} names {path} twice; expected each file once")
        seen.add(file)
    return paths


def open_files(
    database: Database,
    paths: Sequence[str],
    columns: Sequence[str],
    section: ConfigDict,
) -> list[File]:
    """Opens files of one kind, by their suffixes: Parquet, JSON lines, npz, and CSV else.

    Files without rows, which some programs write among others, are left out.

    Args:
      database: to read them with.
      paths: of `expand`.
      columns: that must exist.
      section: of the column map, with the format of CSV files.

    Raises:
      InputError: for a file that is unreadable or lacks a column, or if none has a row.
    """
    opened = []
    for path in paths:
        suffixes = [suffix for suffix in pathlib.Path(path).suffixes if suffix not in _UNPACK]
        kind = _KINDS.get(suffixes[-1] if suffixes else "", "CSV")
        try:
            match kind:
                case "Parquet":
                    file = _parquet(database, path)
                case "npz":
                    file = _npz(database, path, columns)
                case "JSON lines":
                    file = _json_lines(database, path, columns)
                case _:
                    file = _csv(database, path, section)
        except _UNREADABLE as error:
            if isinstance(error, InputError | duckdb.OutOfMemoryException):
                raise
            raise InputError(f"{path}: not readable as {kind}: {one_line(error)}") from error
        if file.rows:
            for column in columns:
                file.type_of(column)
            opened.append(file)
    if not opened:
        raise InputError(f"{', '.join(paths)}: has no rows")
    return opened


def _parquet(database: Database, path: str) -> File:
    with pq.ParquetFile(path, memory_map=True) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    _check_names(path, schema.names)
    table = f"read_parquet({exactly(path)}, file_row_number=true, {PLAIN})"
    types = _types(database, table)
    del types["file_row_number"]
    # Which Parquet has as integers of any unit.
    types |= {field.name: "INTERVAL" for field in schema if pa.types.is_duration(field.type)}
    relation = f"(SELECT * EXCLUDE (file_row_number), file_row_number + 1 AS {ROW} FROM {table})"
    return File(path, types, relation, rows, numbered=True)


def _npz(database: Database, path: str, columns: Sequence[str]) -> File:
    with open(path, "rb") as file, np.lib.npyio.NpzFile(file) as arrays:
        types = dict.fromkeys(arrays.files, "")
        if not types.keys() >= set(columns):
            return File(path, types, "", 1)  # which has no such column
        table = pa.table({name: _lists(arrays[name]) for name in dict.fromkeys(columns)})
    return of_table(database, path, table)


def of_table(database: Database, name: str, table: pa.Table) -> File:
    """A table in memory as a file of that name.

    Raises:
      InputError: if it has columns of a type that DuckDB lacks.
    """
    view = f"table {next(_VIEWS)}"
    try:
        database.connection.register(view, table)
        types = _types(database, name_of(view))
    except duckdb.Error as error:
        columns = ", ".join(f"{field.name}: {field.type}" for field in table.schema)
        raise InputError(f"{name}: {one_line(error)}, among {columns}") from error
    return File(name, types, _numbered(name_of(view)), len(table))


def _lists(array: np.ndarray) -> pa.Array:
    """An array as variable-length lists, the type of lists from other files."""
    made = pa.array(array.astype(np.float32 if array.dtype == np.float16 else array.dtype).ravel())
    kind = made.type
    for size in array.shape[:0:-1]:
        made, kind = pa.FixedSizeListArray.from_arrays(made, size), pa.list_(kind)
    return made.cast(kind)


def _json_lines(database: Database, path: str, columns: Sequence[str]) -> File:
    objects = f"read_ndjson_objects({exactly(_unpacked(database, path))}, {PLAIN})"
    columns = list(dict.fromkeys(columns))
    kinds = [f"json_type(json, {_key(name)})" for name in columns]
    kinds += [f"list_distinct(json_type(json, {_key(name, '[*]')}))" for name in columns]
    lists = ", ".join(f"list(DISTINCT {kind})" for kind in kinds)
    rows, *found = database.row(f"SELECT count(*), {lists} FROM {objects}")
    types, values = {}, []
    for name, own, inner in zip(columns, found, found[len(columns) :], strict=False):
        if not any(own or ()):
            continue  # no line has it
        kind = _json_type(own)
        if kind == "ARRAY":
            kind = _json_type(itertools.chain(*inner), "DOUBLE").replace("ARRAY", "DOUBLE[]") + "[]"
        types[name] = kind
        if "OBJECT" not in kind:
            values.append(f"CAST(json ->> {_key(name)} AS {kind}) AS {name_of(name)}")
    if len(types) < len(columns):
        keys = database.rows(f"SELECT DISTINCT unnest(json_keys(json)) FROM {objects} ORDER BY 1")
        types |= {name: "" for (name,) in keys if name not in types}
    selected = ", ".join([*values, f"row_number() OVER () AS {ROW}"])
    return File(path, types, f"(SELECT {selected} FROM {objects})", rows)


def _json_type(kinds: Iterable[str | None], otherwise: str = "VARCHAR") -> str:
    """The type for values of several JSON kinds."""
    found = {"HUGEINT" if kind in ("BIGINT", "UBIGINT") else kind for kind in kinds}
    found -= {None, "NULL"}
    if found == {"HUGEINT", "DOUBLE"}:
        return "DOUBLE"
    if found:
        otherwise = "VARCHAR"
    return found.pop() if len(found) == 1 else otherwise


def _key(name: str, rest: str = "") -> str:
    quoted = name.replace("\\", "\\\\").replace('"', '\\"')
    return literal(f'$."{quoted}"{rest}')


def _csv(database: Database, path: str, section: ConfigDict) -> File:
    delimiter, quote, header = section.delimiter, section.quote, section.header
    plain = _unpacked(database, path)
    names = list(header) or _first_line(plain, delimiter, quote)
    _check_names(path, names)
    columns = ", ".join(f"{literal(name)}: 'VARCHAR'" for name in names)
    alone = len(names) == 1  # then a field ends where the line does, and an empty line is a row
    options = {
        "auto_detect": "false",
        "header": "false" if header else "true",
        "delim": literal("\x1f" if alone else delimiter),
        "quote": literal(quote),
        "escape": literal(quote),
        "columns": f"{{{columns}}}",
        "strict_mode": "true",
    }
    settings = ", ".join(f"{name}={value}" for name, value in options.items())
    table = f"read_csv({exactly(plain)}, {settings}, {PLAIN})"
    if alone:
        table = f"(FROM {table} WHERE {name_of(names[0])} IS NOT NULL)"
    (rows,) = database.row(f"SELECT count(*) FROM {table}")
    if quote and not section.multiline:
        with open(plain, "rb") as file:
            _check_lines(path, file, rows + (not header), quote.encode())
    return File(path, dict.fromkeys(names, WRITTEN), _numbered(table), rows)


def _unpacked(database: Database, path: str) -> str:
    """The path of the uncompressed file, a copy if it is compressed."""
    unpack = _UNPACK.get(pathlib.Path(path).suffix)
    if not unpack:
        return path
    descriptor, target = tempfile.mkstemp(".csv", dir=database.directory)
    with unpack(path, "rb") as source, open(descriptor, "wb") as file:
        shutil.copyfileobj(source, file)
    return target


def _first_line(path: str, delimiter: str, quote: str) -> list[str]:
    with open(path, encoding="utf-8-sig", newline="") as lines:
        line = lines.readline().rstrip("\r\n")
    if not line:
        raise ValueError("it is empty, or begins with an empty line")
    if len(delimiter) > 1 or not quote:
        return line.split(delimiter)
    return next(csv.reader([line], delimiter=delimiter, quotechar=quote))


def _check_lines(path: str, file: BinaryIO, rows: int, quote: bytes) -> None:
    """Rejects a file with fewer rows than lines: stray quotes have joined some lines."""
    lines, last = 0, b""
    while piece := file.read(2**24):
        lines += piece.count(b"\n")
        last = piece[-1:]
    if lines + (last not in (b"\n", b"")) == rows:
        return
    file.seek(0)
    filled, where = 0, 0
    for number, line in enumerate(file, start=1):
        filled += bool(line.strip(b"\r\n"))
        if not where and line.count(quote) % 2:
            where = number
    if filled > rows:
        raise InputError(
            f"{path}: line {where or 1}: a field in {quote.decode()} does not end on its line, so "
            f"that {filled:,} lines are {rows:,} rows; expected quote='' in the column map where "
            "quotes mean nothing, or multiline=True where fields hold line breaks"
        )


def _check_names(path: str, names: Sequence[str]) -> None:
    known: dict[str, str] = {}
    for name in names:
        if (other := known.get(name.lower())) is not None:
            told = "expected each name once, in upper or lower case"
            raise InputError(f"{path}: has columns {other!r} and {name!r}; {told}")
        known[name.lower()] = name


def exactly(path: str) -> str:
    """SQL of a path with escaped globs."""
    return literal(re.sub(r"[\[*?]", r"[\g<0>]", path))


def _numbered(table: str) -> str:
    return f"(SELECT *, row_number() OVER () AS {ROW} FROM {table})"


def _types(database: Database, table: str) -> dict[str, str]:
    described = database.rows(f"DESCRIBE SELECT * FROM {table}")
    return {name: kind for name, kind, *_ in described}
