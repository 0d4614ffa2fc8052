"""DuckDB, which reads, converts, joins and sorts within a memory budget, and spills to disk."""

import contextlib
import os
import pathlib
from collections.abc import Iterable, Iterator

import duckdb
import pyarrow as pa

from pinjax.errors import InputError


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


def first_row(connection: duckdb.DuckDBPyConnection, query: str) -> tuple | None:
    """The first row that a query finds, which should find few: all are read.

    An unread row would keep the connection from other queries.
    """
    return next(iter(connection.execute(query).fetchall()), None)


def pieces(found: duckdb.DuckDBPyRelation, rows: int = 2**17) -> Iterator[pa.Table]:
    """What a query found, in tables of exactly `rows` rows, of which the last may have fewer."""
    waiting: list[pa.Table] = []
    count = 0
    for batch in found.to_arrow_reader(rows):
        waiting.append(pa.table(batch))
        count += len(batch)
        while count >= rows:
            whole = pa.concat_tables(waiting)
            yield whole[:rows]
            waiting, count = [whole[rows:]], count - rows
    if count:
        yield pa.concat_tables(waiting)


def make_table(connection: duckdb.DuckDBPyConnection, table: str, /, **columns: Iterable) -> None:
    """Makes a table of a few columns."""
    made = pa.table(columns)
    connection.register("made", made)
    connection.execute(f"CREATE TABLE {table} AS SELECT * FROM made")
    connection.unregister("made")


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
