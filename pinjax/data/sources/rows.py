"""Rows of several files as one table, and what they have to be.

A row's place is in order of files and rows. Messages name its file, its number there, the column,
its value and what was expected.
"""

import reprlib
from collections.abc import Callable, Mapping, Sequence

import duckdb

from pinjax.data.sources import reading
from pinjax.data.sources.engine import first_row, name_of
from pinjax.errors import InputError

PLACES = 2**40  # in a file
_LARGEST, _LEAST = 65_504, 2.0**-14  # of float16, with all of its bits
_SIZE = "list_max(list_transform(v, lambda x: abs(x)))"
NOT_ZERO = f"lambda v: {_SIZE} > 0"  # SQL of whether a vector is


def select(
    files: Sequence[reading.File], values: Callable[[int, reading.File], Mapping[str, str]]
) -> str:
    """SQL of the rows of files: their places, and columns by name.

    Args:
      files: whose rows they are.
      values: from the number of a file and the file to SQL of each column.
    """
    selects = []
    for number, file in enumerate(files):
        columns = {"place": f"{number} * {PLACES} + {reading.ROW}", **values(number, file)}
        named = ", ".join(f"{value} AS {name_of(name)}" for name, value in columns.items())
        selects.append(f"SELECT {named} FROM {file.relation}")
    return " UNION ALL ".join(selects)


def error(
    connection: duckdb.DuckDBPyConnection,
    files: Sequence[reading.File],
    place: int,
    column: str,
    expected: str,
    share: str,
) -> InputError:
    """The error that names a row, its value in a user's column and what was expected of it."""
    number, row = divmod(place, PLACES)
    file = files[number]
    (value,) = first_row(
        connection, f"SELECT {name_of(column)} FROM {file.relation} WHERE {reading.ROW} = {row}"
    )
    if isinstance(value, list | str):
        value = reprlib.repr(value)
    return InputError(f"{file.path}: row {row}: {column} is {value}; expected {expected} ({share})")


def refuse(
    connection: duckdb.DuckDBPyConnection,
    files: Sequence[reading.File],
    table: str,
    condition: str,
    column: str,
    expected: str,
    tolerance: float = 0.0,
) -> int:
    """How many rows of a table are bad.

    Args:
      connection: with the table.
      files: whose rows they are.
      table: SQL of one with a column place.
      condition: SQL of whether a row is bad.
      column: the user's, whose value is told.
      expected: of it.
      tolerance: the share of the rows that may be bad.

    Raises:
      InputError: where more are; it names the first.
    """
    total, bad, place = first_row(
        connection,
        f"SELECT count(*), count(*) FILTER ({condition}), min(place) FILTER ({condition}) "
        f"FROM {table}",
    )
    if bad > tolerance * total:
        share = f"{bad} of {total} rows are bad, tolerance is {tolerance:g}"
        raise error(connection, files, place, column, expected, share)
    return bad


def refuse_repeats(
    connection: duckdb.DuckDBPyConnection,
    files: Sequence[reading.File],
    table: str,
    key: str,
    column: str,
    expected: str,
) -> None:
    """Refuses rows of a table with the key of an earlier one; arguments as of `refuse`."""
    again = f"row_number() OVER (PARTITION BY {key} ORDER BY place) > 1"
    repeated = f"place IN (SELECT place FROM {table} QUALIFY {again})"
    refuse(connection, files, table, repeated, column, expected)


def refuse_vectors(
    connection: duckdb.DuckDBPyConnection,
    files: Sequence[reading.File],
    table: str,
    name: str,
    column: str,
    zeros: bool,
) -> None:
    """Refuses vectors of other lengths than the first, and numbers that float16 does not hold.

    Args:
      connection: with the table.
      files: whose rows they are.
      table: with a column place.
      name: of the column of lists of vectors in it.
      column: the user's name for it.
      zeros: whether a vector may be missing or zero.
    """
    (first,) = first_row(
        connection, f"SELECT arg_min(len({name}[1]), place) FROM {table} WHERE len({name}) > 0"
    )
    if not first:
        paths = ", ".join(file.path for file in files)
        raise InputError(f"{paths}: {column} has no numbers; expected a vector in the first row")
    odd = f"lambda x: x IS NULL OR NOT isfinite(x) OR abs(x) > {_LARGEST}"
    bad = (
        f"lambda v: v IS NULL OR len(v) <> {first} OR len(list_filter(v, {odd})) > 0 "
        f"OR ({_SIZE} > 0 AND {_SIZE} < {_LEAST!r})" + ("" if zeros else f" OR {_SIZE} = 0")
    )
    condition = f"len(list_filter({name}, {bad})) > 0" + ("" if zeros else f" OR {name} IS NULL")
    each = " an image" if name == "images" else ""
    rest = "" if zeros else ", not all of them 0"
    expected = (
        f"{first} finite numbers{each} as in the first row{rest}, the largest in size from "
        f"{_LEAST:.2g} to {_LARGEST:,}"
    )
    refuse(connection, files, table, condition, column, expected)
