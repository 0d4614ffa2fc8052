"""Fields of a config: a default value, and beside it the type, range and unit that are checked.

    config = Section()
    data = config.data = Section()
    data.users = Int(64, at_least=1)  # users in a batch
    data.name = Text("pinworld/small")

A section holds plain values, as a `ConfigDict` does: `config.data.users` is 64. Every later
value of the field is checked against its declaration, whether a variant, the command line or a
program sets it.
"""

import ast
import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict

from pinjax.errors import InputError

INT32 = 2**31 - 1
UINT32 = 2**32 - 1
_FLOAT32 = float.fromhex("0x1.fffffep127")

T = TypeVar("T")


class Field:
    """The declaration of a field.

    Attributes:
      default: its default value.
      expected: description of the allowed values.
    """

    default: Any = None
    expected: str

    def allows(self, value: Any) -> bool:
        raise NotImplementedError

    def parse(self, text: str) -> Any:
        """The value of a command line's text; the text itself if it cannot be parsed."""
        return text

    def plain(self, value: Any) -> Any:
        """An allowed value in the field's own type."""
        return value

    def check(self, name: str, value: Any) -> Any:
        """The value in the field's own type.

        Raises:
          InputError: if it is not allowed.
        """
        if not self.allows(value):
            raise InputError(f"{name}={value!r}: expected {self.expected}")
        return self.plain(value)


class Bool(Field):
    expected = "True or False"

    def __init__(self, default: bool):
        self.default = default

    def allows(self, value: Any) -> bool:
        return isinstance(value, bool)

    def parse(self, text: str) -> bool | str:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)


class Int(Field):
    """An integer from `at_least` to `at_most`, not a bool."""

    def __init__(
        self,
        default: int | None = None,
        *,
        at_least: int,
        at_most: int = INT32,
        power_of_two: bool = False,
        unit: str = "",
    ):
        self.default = default
        self.at_least, self.at_most = at_least, at_most
        self._power_of_two = power_of_two
        kind = "a power of two" if power_of_two else "an integer"
        self.expected = f"{kind} from {at_least:,} to {at_most:,}" + _of(unit)

    def allows(self, value: Any) -> bool:
        if type(value) is not int or not self.at_least <= value <= self.at_most:
            return False
        return not self._power_of_two or value.bit_count() == 1

    def parse(self, text: str) -> int | str:
        return _parsed(int, text)


class Size(Int):
    """The size of an array's axis."""

    def __init__(self, default: int, *, at_least: int = 1):
        super().__init__(default, at_least=at_least, at_most=2**16)


class Float(Field):
    """A number in a range, within float32; integers are allowed."""

    def __init__(
        self,
        default: float | None = None,
        *,
        at_least: float = -math.inf,
        above: float = -math.inf,
        at_most: float = math.inf,
        below: float = math.inf,
        unit: str = "",
    ):
        self.default = default
        self._bounds = at_least, above, at_most, below
        words = zip(("at least", "above", "at most", "below"), self._bounds, strict=True)
        limits = " and ".join(f"{word} {x:,}" for word, x in words if math.isfinite(x))
        self.expected = (f"a number {limits}" if limits else "a finite number") + _of(unit)

    def allows(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        at_least, above, at_most, below = self._bounds
        return abs(value) <= _FLOAT32 and at_least <= value <= at_most and above < value < below

    def parse(self, text: str) -> float | str:
        return _parsed(float, text)

    def plain(self, value: int | float) -> float:
        return float(value)


class Choice(Field):
    """One of some names. The first is the default."""

    def __init__(self, *names: str):
        self.default, self._names = names[0], names
        self.expected = f"one of {', '.join(names)}"

    def allows(self, value: Any) -> bool:
        return isinstance(value, str) and value in self._names


class Text(Field):
    """Text, all of which matches a pattern."""

    def __init__(self, default: str = "", pattern: str = ".*", expected: str = "text"):
        self.default, self._pattern, self.expected = default, pattern, expected

    def allows(self, value: Any) -> bool:
        return (
            isinstance(value, str)
            and value.isprintable()
            and re.fullmatch(self._pattern, value) is not None
        )


class Row(Field):
    """A tuple of different fields, by name."""

    def __init__(self, **fields: Field):
        self._fields = fields
        parts = (f"{name}: {field.expected}" for name, field in fields.items())
        self.expected = f"({'; '.join(parts)})"

    def allows(self, value: Any) -> bool:
        fields = self._fields.values()
        return (
            isinstance(value, tuple | list)
            and len(value) == len(fields)
            and all(field.allows(x) for field, x in zip(fields, value, strict=True))
        )

    def plain(self, value: Iterable[Any]) -> tuple[Any, ...]:
        fields = self._fields.values()
        return tuple(field.plain(x) for field, x in zip(fields, value, strict=True))


class Tuple(Field):
    """Distinct elements of one kind, of any number. Rows are distinct by their first field."""

    def __init__(
        self, default: tuple[Any, ...], of: Field, *, at_least: int, distinct: bool = True
    ):
        self.default, self._of, self._at_least = default, of, at_least
        self._distinct = distinct
        once = " none twice," if distinct else ""
        self.expected = f"a tuple of at least {at_least},{once} each {of.expected}"

    def allows(self, value: Any) -> bool:
        if not isinstance(value, tuple | list) or len(value) < self._at_least:
            return False
        if not all(map(self._of.allows, value)):
            return False
        different = {x[0] if isinstance(self._of, Row) else x for x in value}
        return len(different) == len(value) or not self._distinct

    def parse(self, text: str) -> tuple[Any, ...]:
        return _parsed_tuple(text)

    def plain(self, value: Iterable[Any]) -> tuple[Any, ...]:
        return tuple(map(self._of.plain, value))


class Section(ConfigDict):
    """A `ConfigDict` that checks values against the declarations of their fields.

    A field is declared by assigning a `Field`. Copies have no declarations.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        object.__setattr__(self, "_declared", {})
        object.__setattr__(self, "_prefix", "")
        super().__init__(*args, **kwargs)

    def __setitem__(self, key: str, value: Any) -> None:
        if isinstance(value, Field):
            self._declared[key], value = value, value.default
        elif isinstance(value, Section):
            object.__setattr__(value, "_prefix", f"{self._prefix}{key}.")
        if key in self._declared:
            value = self._declared[key].check(f"{self._prefix}{key}", value)
        super().__setitem__(key, value)

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise _MissingField(
            f"the config has no field {self._prefix}{name}{_did_you_mean(name, self)}"
        )


class _MissingField(InputError, AttributeError):
    """A missing attribute, for `hasattr`, and an error line for the user."""


def check(config: ConfigDict) -> None:
    """Rejects a config with an undeclared field, such as a misspelt one, or a deleted field.

    Raises:
      InputError: naming the field.
    """
    fields = list(_fields(config))
    declared = [name for name, section, key in fields if _declaration(section, key)]
    for name, _, _ in fields:
        if name not in declared:
            hint = _did_you_mean(name, declared) or "; declare its type and range in the config"
            raise InputError(f"the config's field {name} is not declared{hint}")
    for _, section, _ in fields:
        for key in section._declared.keys() - section.keys():
            raise InputError(f"the config's field {section._prefix}{key} was deleted")


def override(config: ConfigDict, name: str, text: str) -> None:
    """Sets a field, "train.steps", from a command line's text. All fields are declared.

    Raises:
      InputError: if there is no such field, or it does not allow the value.
    """
    for found, section, key in (fields := list(_fields(config))):
        if found == name:
            section[key] = _declaration(section, key).parse(text)
            return
    names = [found for found, _, _ in fields]
    inside = [found for found in names if found.startswith(f"{name}.")]
    if inside:
        raise InputError(f"--config.{name} is a section; expected a field such as {inside[0]}")
    raise InputError(f"--config.{name}: no such field{_did_you_mean(name, names)}")


def named(known: Mapping[str, T], name: str, what: str = "variant") -> T:
    """The value of a name.

    Raises:
      InputError: if the name is not known.
    """
    if name not in known:
        hint = _did_you_mean(name, known)
        raise InputError(f"{what} {name!r} is none of {', '.join(known)}{hint}")
    return known[name]


def _fields(config: ConfigDict, prefix: str = "") -> Iterator[tuple[str, ConfigDict, str]]:
    """(name, section, key in it) of every field."""
    for key, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _fields(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", config, key


def _declaration(section: ConfigDict, key: str) -> Field | None:
    return section._declared.get(key) if isinstance(section, Section) else None


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {near[0]}?" if near else ""


def _of(unit: str) -> str:
    return f" ({unit})" if unit else ""


def _parsed(kind: type[T], text: str) -> T | str:
    try:
        return kind(text)
    except ValueError:
        return text


def _parsed_tuple(text: str) -> tuple[Any, ...]:
    """A tuple from a literal; any other literal, or a bare word, becomes its only element."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = text
    return tuple(value) if isinstance(value, tuple | list) else (value,)
