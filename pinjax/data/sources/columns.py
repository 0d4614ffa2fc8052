"""Columns of users' files as SQL: ids, text, numbers, times and vectors."""

import dataclasses
import re
from collections.abc import Iterable

from pinjax.data.sources import column_map
from pinjax.data.sources.engine import Database, literal, name_of
from pinjax.data.sources.reading import WRITTEN, File
from pinjax.errors import InputError

LATEST = 2**32 * 1_000_000  # times are seconds in 32 bits on disk: 2106
TIMESTAMP = "a timestamp from 1970 to 2106"
# Types, as regular expressions.
_INT64 = "U?(?:TINYINT|SMALLINT|INTEGER)|BIGINT"
_INTEGER = rf"{_INT64}|UBIGINT|U?HUGEINT"
_NUMBER = rf"{_INTEGER}|FLOAT|DOUBLE|DECIMAL\(.*\)"
_TEXT = f"VARCHAR|UUID|{WRITTEN}"
_NULL = '"NULL"'
_ID = rf"{_INTEGER}|DECIMAL\(\d+,0\)|{_TEXT}|{_NULL}"
_PLAIN = r"(?!(?:BLOB|INTERVAL|OBJECT)$)(?:DECIMAL.*|[^\])]*)"
_TIME = r"(?:TIMESTAMP|DATE)[^\[]*"
_CANONICAL = "0|-?[1-9][0-9]{0,17}"  # integers in canonical form: neither 007 nor 7.0
_SPACES = "".join(map(chr, filter(lambda code: chr(code).isspace(), range(0x3001))))


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a file; its methods return SQL of its values.

    All but `is_integer` raise InputError for types that they do not read.

    Attributes:
      file: of the column.
      name: of the column.
    """

    file: File
    name: str

    @property
    def type(self) -> str:
        return self.file.type_of(self.name)

    @property
    def is_list(self) -> bool:
        return self.type.endswith("]")

    def id(self, integers: bool) -> str:
        """Ids, integers or text; empty text is not an id.

        Text of Parquet is not cast: DuckDB joins it by its dictionary, at half of the cost.
        """
        return self._cast(_ID, "integer or text ids", "BIGINT" if integers else "VARCHAR")

    def is_id(self, integers: bool) -> str:
        """Whether a value is an id."""
        value = self.id(integers)
        return f"{value} IS NOT NULL" if integers else f"{value} <> ''"

    def text(self) -> str:
        """Scalars as text; a whole number is written alike in every type."""
        text = self._cast(_PLAIN, "text", "VARCHAR")
        if self.type not in ("FLOAT", "DOUBLE"):
            return text
        name = name_of(self.name)
        whole = f"{name} = trunc({name}) AND abs({name}) < 1e15"
        return f"CASE WHEN {whole} THEN CAST(CAST({name} AS BIGINT) AS VARCHAR) ELSE {text} END"

    def trimmed(self) -> str:
        """Text without surrounding spaces, null if nothing is left."""
        return f"nullif(trim({self.text()}, {literal(_SPACES)}), '')"

    def texts(self, separator: str) -> str:
        """Lists of text, from lists, from text with a separator, or from single values."""
        if self.is_list:
            lists = rf"(?:{_INTEGER}|VARCHAR)\[\]"
            return self._cast(lists, "lists of text or integers", "VARCHAR[]")
        text = self.text()
        return f"string_split({text}, {literal(separator)})" if separator else f"[{text}]"

    def number(self) -> str:
        """Numbers, or numbers as text, as doubles, null if not finite.

        Only `isfinite` finds NaN: `isnan` and comparisons trust the statistics of a Parquet file,
        which ignore NaN.
        """
        name = self._read_as(f"{_NUMBER}|VARCHAR|{WRITTEN}|{_NULL}", "numbers")
        value = f"TRY_CAST({name} AS DOUBLE)"
        return f"CASE WHEN isfinite({value}) THEN {value} END"

    def timestamp(self, unit: str) -> str:
        """Times as microseconds since 1970 in UTC, null where unreadable.

        Values are timestamps, dates or ISO 8601 text (without a zone: UTC); or numbers, with a
        unit of `column_map.UNITS`.
        """
        name = name_of(self.name)
        if re.fullmatch(_TIME, self.type):
            return f"epoch_us({name})"
        if unit:
            told = "integers or doubles: 32 bits cannot tell seconds apart"
            self._read_as("(?!FLOAT).*", told)
            scaled = f"round({self.number()} * {column_map.UNITS[unit]!r})"
            if unit == "ns":  # a double cannot hold all digits
                scaled = f"TRY_CAST({name} AS HUGEINT) // 1000"
            return f"TRY_CAST({scaled} AS BIGINT)"
        told = "timestamps, dates, ISO 8601 text, or a unit in the column map"
        name = self._read_as(f"VARCHAR|{WRITTEN}|{_NULL}", told)
        return f"epoch_us(TRY_CAST({name} AS TIMESTAMPTZ))"

    def vectors(self) -> str:
        """Lists of vectors, from vectors or lists of vectors; too large numbers are null."""
        name = self._read_as(rf"(?:{_NUMBER})(?:\[\d*\]){{1,2}}", "lists of numbers")
        if self.type.count("[") == 1:
            name = f"CASE WHEN {name} IS NOT NULL THEN [{name}] END"
        return f"TRY_CAST({name} AS FLOAT[][])"

    def is_integer(self, database: Database) -> bool:
        """Whether ids are int64 integers; ids without a type must be in canonical form.

        Raises:
          InputError: if they are neither integers nor text.
        """
        name, kind = self._read_as(_ID, "integer or text ids"), self.type
        if re.fullmatch(f"{_INT64}|{_NULL}", kind):
            return True
        if kind == WRITTEN:
            fits = f"regexp_full_match({name}, '{_CANONICAL}')"
        elif re.fullmatch(_TEXT, kind):
            return False
        else:
            fits = f"{name} BETWEEN -9223372036854775808 AND 9223372036854775807"
        (all_fit,) = database.row(f"SELECT bool_and({fits}) FROM {self.file.relation}")
        return all_fit in (True, None)

    def _read_as(self, types: str, expected: str) -> str:
        """SQL of the column, if its type is one of `types`."""
        if not re.fullmatch(types, self.type):
            raise InputError(f"{self.file.path}: {self.name} is {self.type}; expected {expected}")
        return name_of(self.name)

    def _cast(self, types: str, expected: str, to: str) -> str:
        name = self._read_as(types, expected)
        return name if self.type == to else f"CAST({name} AS {to})"


def are_integers(database: Database, columns: Iterable[Column]) -> bool:
    """Whether the ids of all columns are integers; each column is checked."""
    return all([column.is_integer(database) for column in columns])
