"""The parts of a page, as its script reads them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pinjax.evaluation import formatting
from pinjax.evaluation.metrics import Estimate

Block = dict[str, Any]


def text(*paragraphs: str) -> Block:
    """Paragraphs."""
    return {"type": "text", "paragraphs": paragraphs}


def notes(title: str, lines: Sequence[str]) -> Block:
    """A list that should be read."""
    return {"type": "notes", "title": title, "lines": lines}


def figure(title: str, told: str, drawn: Mapping[str, Any], wide: bool = False) -> Block:
    """A figure.

    Args:
      title: of the figure.
      told: what it shows.
      drawn: a figure of plotly, or several of which one is shown, by name.
      wide: whether it takes all of the page's width.
    """
    choices = {"": drawn} if "data" in drawn else dict(drawn)
    return {"type": "figure", "title": title, "told": told, "choices": choices, "wide": wide}


def table(title: str, told: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> Block:
    """A table; cells are text or what `cell` makes."""
    return {"type": "table", "title": title, "told": told, "columns": columns, "rows": rows}


def cell(estimate: Estimate, compared: bool = False) -> Any:
    """A cell of a table: an estimate, and if it is a difference, whether its interval is above
    zero (1) or below (-1)."""
    if math.isnan(estimate.value):
        return ""
    value, interval = formatting.cell(estimate)
    made = {"value": value, "interval": interval}
    if compared:
        made["sign"] = int(estimate.low > 0) - int(estimate.high < 0)
    return made
