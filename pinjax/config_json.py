"""Configs as JSON, in files that say which config made them, and how two of them differ."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The values of a config; tuples become lists."""
    return json.loads(config.to_json())


def from_json(values: Mapping[str, Any]) -> ConfigDict:
    """The config of `to_json`; lists become tuples, as which configs have them."""
    return ConfigDict(with_tuples(values))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings, by names such as "train.steps"."""
    found = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def first_difference(
    old: Mapping[str, Any], new: Mapping[str, Any], names: Iterable[str] | None = None
) -> tuple[str, Any, Any] | None:
    """The first name with different values, and both values; None for a missing one.

    Args:
      old: values by name.
      new: values by name.
      names: those to compare, in order; by default all, sorted.
    """
    for name in sorted(old.keys() | new.keys()) if names is None else names:
        if old.get(name) != new.get(name):
            return name, old.get(name), new.get(name)
    return None


def with_tuples(value: Any) -> Any:
    """A value of JSON with tuples for lists."""
    if isinstance(value, Mapping):
        return {name: with_tuples(of_name) for name, of_name in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, list) else value
