"""Configs as JSON, in files that say which config made them."""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict


def to_json(config: ConfigDict) -> dict[str, Any]:
    """The values of a config; tuples become lists."""
    return json.loads(config.to_json())


def from_json(values: Mapping[str, Any]) -> ConfigDict:
    """The config of `to_json`; lists become tuples, as which configs have them."""
    return ConfigDict(_with_tuples(values))


def _with_tuples(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _with_tuples(of_name) for name, of_name in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value
