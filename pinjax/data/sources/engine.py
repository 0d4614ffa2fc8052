"""DuckDB reads, converts, joins and sorts within a memory budget, and spills to disk."""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterable, Iterator

import duckdb
import pyarrow as pa
from ml_collections import ConfigDict

from pinjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Database:
    """An open database.

    Attributes:
      connection: to it. Results are read to their end: an unread row would block other queries.
      directory: for temporary files.
    """

    connection: duckdb.DuckDBPyConnection
    directory: pathlib.Path

    def run(self, statement: str) -> None:
        self.connection.execute(statement)

    def rows(self, query: str) -> list[tuple]:
        return self.connection.execute(query).fetchall()

    def row(self, query: str) -> tuple:
        """The first row of a small result."""
        return self.rows(query)[0]

    def table(self, query: str) -> pa.Table:
        return self.connection.sql(query).to_arrow_table()

    def pieces(self, query: str, rows: int = 2**17) -> Iterator[pa.Table]:
        """The result of a query, in tables of exactly `rows` rows; the last may have fewer."""
        waiting: list[pa.Table] = []
        count = 0
        for batch in self.connection.sql(query).to_arrow_reader(rows):
            waiting.append(pa.table(batch))
            count += len(batch)
            while count >= rows:
                joined = pa.concat_tables(waiting)
                yield joined[:rows]
                waiting, count = [joined[rows:]], count - rows
        if count:
            yield pa.concat_tables(waiting)

    def make_table(self, name: str, /, **columns: Iterable) -> None:
        """Makes a table of a few columns."""
        self.connection.register("made", pa.table(columns))
        self.run(f"CREATE TABLE {name} AS SELECT * FROM made")
        self.connection.unregister("made")


@dataclasses.dataclass
class Job:
    """The state of preparing a data set, which all steps share.

    Attributes:
      database: with the tables of earlier steps.
      config: a column map.
      made: directory of the data set.
      report: counts of what was read, dropped, joined and written; each step adds to it.
    """

    database: Database
    config: ConfigDict
    made: pathlib.Path
    report: dict[str, int | str]


@contextlib.contextmanager
def open_database(directory: pathlib.Path, memory: int | None) -> Iterator[Database]:
    """A database that spills to a directory.

    Args:
      directory: for its files; it must exist.
      memory: bytes; None: half of the memory that DuckDB finds.

    Raises:
      InputError: if there is not enough memory.
    """
    if memory is None:  # DuckDB would take 80 % of it
        with duckdb.connect() as connection:
            limit = "SELECT parse_formatted_bytes(current_setting('memory_limit'))"
            ((memory,),) = connection.execute(limit).fetchall()
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
            yield Database(connection, directory)
        except duckdb.OutOfMemoryException as error:
            told = f"--memory: {memory / 2**20:,.0f} MiB are too little"
            raise InputError(f"{told}: {one_line(error)}") from error
        except (duckdb.DataError, duckdb.IOException, duckdb.InvalidInputException) as error:
            # A file that is damaged beyond what `open_files` reads, or a full disk.
            raise InputError(one_line(error)) from error


def numbered(order: str) -> str:
    """SQL of the column `row`, the number of a row from 0 in an order."""
    return f"CAST(row_number() OVER (ORDER BY {order}) - 1 AS INTEGER) AS row"


def name_of(column: str) -> str:
    """A name in SQL."""
    return '"' + column.replace('"', '""') + '"'


def literal(value: str) -> str:
    """Text in SQL."""
    return "'" + value.replace("'", "''") + "'"


def one_line(error: BaseException) -> str:
    """The message of an error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:3])[:300] or type(error).__name__
