"""Parquet files that pinjax wrote, on this machine."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from pinjax.errors import InputError


@contextlib.contextmanager
def reading(path: epath.PathLike) -> Iterator[None]:
    """Inside, an InputError says that a file cannot be read.

    Whoever checks no checksums hears of damage here.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not readable as Parquet: {error}") from error


def read(path: epath.PathLike, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads some columns of a file, or all of them.

    By Arrow's own memory map: through a file or bytes of Python's, its threads let go of these too
    late, and abort a process that has meanwhile come to its end.

    Raises:
      InputError: if it cannot be read.
    """
    with reading(path):
        return pq.read_table(os.fspath(path), columns=columns, memory_map=True)


def batches(path: epath.PathLike, column: str, rows: int) -> Iterator[pa.Array]:
    """Reads a column, `rows` at a time; raises as `read`."""
    with reading(path), pq.ParquetFile(os.fspath(path), memory_map=True) as file:
        for batch in file.iter_batches(rows, columns=[column]):
            yield batch.column(0)


def schema(path: epath.PathLike) -> pa.Schema:
    """The columns of a file; raises as `read`."""
    with reading(path):
        return pq.read_schema(os.fspath(path), memory_map=True)


def write(path: epath.PathLike, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Writes tables one after the other, each as a group of rows, cast to a schema."""
    with pq.ParquetWriter(os.fspath(path), schema, use_dictionary=False) as writer:
        for table in tables:
            writer.write_table(table.cast(schema), row_group_size=max(1, len(table)))
