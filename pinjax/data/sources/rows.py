"""Rows of several files as one table, and their checks.

The place of a row is in order of files and rows. Messages name its file, its number in the file,
the column, its value and what was expected.
"""

import dataclasses
import reprlib
from collections.abc import Iterable, Mapping, Sequence

from pinjax.data.sources.engine import Database, name_of
from pinjax.data.sources.reading import ROW, File
from pinjax.errors import InputError

PLACES = 2**40  # in a file
_LARGEST, _LEAST = 65_504, 2.0**-14  # of float16, with all of its bits
_SIZE = "list_max(list_transform(v, lambda x: abs(x)))"
NOT_ZERO = f"lambda v: {_SIZE} > 0"  # SQL of whether a vector is nonzero


def select(files: Sequence[File], columns: Iterable[Mapping[str, str]]) -> str:
    """SQL of the rows of files: places, and columns from the SQL by name of each file."""
    selects = []
    for number, (file, of_file) in enumerate(zip(files, columns, strict=True)):
        of_file = {"place": f"{number} * {PLACES} + {ROW}", **of_file}
        values = ", ".join(f"{value} AS {name_of(name)}" for name, value in of_file.items())
        selects.append(f"SELECT {values} FROM {file.relation}")
    return " UNION ALL ".join(selects)


@dataclasses.dataclass(frozen=True)
class Rows:
    """A table of rows of files.

    Attributes:
      database: of the table.
      files: of the rows.
      table: its name or SQL; it has a column place.
    """

    database: Database
    files: Sequence[File]
    table: str

    @property
    def paths(self) -> str:
        """The files, for messages."""
        return ", ".join(file.path for file in self.files)

    def error(self, place: int, column: str, expected: str, share: str) -> InputError:
        """The error that names a row, its value in a user's column and what was expected."""
        number, row = divmod(place, PLACES)
        file = self.files[number]
        (value,) = self.database.row(
            f"SELECT {name_of(column)} FROM {file.relation} WHERE {ROW} = {row}"
        )
        if isinstance(value, list | str):
            value = reprlib.repr(value)
        return InputError(
            f"{file.path}: row {row}: {column} is {value}; expected {expected} ({share})"
        )

    def refuse(self, bad: str, column: str, expected: str, tolerance: float = 0.0) -> int:
        """The number of bad rows.

        Args:
          bad: SQL of whether a row is bad.
          column: the user's column, for the message.
          expected: of its value.
          tolerance: the share of rows that may be bad.

        Raises:
          InputError: if more rows are bad; it names the first.
        """
        total, count, place = self.database.row(
            f"SELECT count(*), count(*) FILTER ({bad}), min(place) FILTER ({bad}) FROM {self.table}"
        )
        if count > tolerance * total:
            share = f"{count} of {total} rows are bad, tolerance is {tolerance:g}"
            raise self.error(place, column, expected, share)
        return count

    def refuse_repeats(self, column: str, expected: str) -> None:
        """Rejects rows with the id of an earlier row; arguments as `refuse`."""
        again = "row_number() OVER (PARTITION BY id ORDER BY place) > 1"
        repeated = f"place IN (SELECT place FROM {self.table} QUALIFY {again})"
        self.refuse(repeated, column, expected)

    def refuse_vectors(self, name: str, column: str, zeros: bool) -> None:
        """Rejects vectors of another dimension than the first, or beyond the range of float16.

        Args:
          name: of the table's column of lists of vectors.
          column: the user's name for it.
          zeros: whether a vector may be missing or zero.
        """
        (first,) = self.database.row(
            f"SELECT arg_min(len({name}[1]), place) FROM {self.table} WHERE len({name}) > 0"
        )
        if not first:
            told = "has no numbers; expected a vector in the first row"
            raise InputError(f"{self.paths}: {column} {told}")
        odd = f"lambda x: x IS NULL OR NOT isfinite(x) OR abs(x) > {_LARGEST}"
        bad = (
            f"v IS NULL OR len(v) <> {first} OR len(list_filter(v, {odd})) > 0 "
            f"OR ({_SIZE} > 0 AND {_SIZE} < {_LEAST!r})"
        )
        missing, rest, each = "false", "", " an image"
        if not zeros:
            bad, missing = f"{bad} OR {_SIZE} = 0", f"{name} IS NULL"
            rest = ", not all of them 0"
        if name != "images":
            missing, each = f"{missing} OR len({name}) <> 1", ""
        expected = (
            f"{first} finite numbers{each} as in the first row{rest}, the largest in size from "
            f"{_LEAST:.2g} to {_LARGEST:,}"
        )
        self.refuse(f"{missing} OR len(list_filter({name}, lambda v: {bad})) > 0", column, expected)
