"""A plain-text table of results."""

import math
from collections.abc import Sequence

Cell = tuple[float, float | None]

_MISSING: Cell = (math.nan, None)


def format_table(rows: Sequence[tuple[str, dict[str, Cell]]], width: int = 100) -> str:
    """Methods by metrics, aligned; columns that do not fit in the width follow below, for the
    methods that have any of them.

    Args:
      rows: (method, metrics by name) pairs. A metric is its value and the half width of its
        interval or None; one that is missing or NaN is printed as "-".
      width: characters of a line.

    Returns:
      Lines without a newline at the end.

    >>> popularity = {"R@10": (0.021, None)}
    >>> ours = {"R@10": (0.2293, 0.0031), "queries/s": (9e3, None)}
    >>> print(format_table([("popularity", popularity), ("PinnerFormer", ours)]))
    method        R@10             queries/s
    popularity    0.0210                   -
    PinnerFormer  0.2293 ± 0.0031      9,000
    """
    names = dict.fromkeys(name for _, metrics in rows for name in metrics)
    longest = max(map(len, ["method", *(method for method, _ in rows)]))
    blocks, used = [[]], longest
    for name in names:
        column = len(_column(name, [metrics.get(name, _MISSING) for _, metrics in rows])[0])
        used += column + 2
        if used > width and blocks[-1]:
            blocks.append([])
            used = longest + column + 2
        blocks[-1].append(name)
    return "\n\n".join(_block(rows, block) for block in blocks)


def _block(rows: Sequence[tuple[str, dict[str, Cell]]], names: Sequence[str]) -> str:
    """Some of the columns, and the rows that have anything in them."""
    cells = [(method, [metrics.get(name, _MISSING) for name in names]) for method, metrics in rows]
    cells = [row for row in cells if not all(math.isnan(value) for value, _ in row[1])]
    columns = [_pad(["method", *(method for method, _ in cells)], str.ljust)]
    for i, name in enumerate(names):
        columns.append(_column(name, [row[i] for _, row in cells]))
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def _column(name: str, cells: list[Cell]) -> list[str]:
    """The lines of a column: values to the right, their intervals after them."""
    values = _pad([_number(value) for value, _ in cells], str.rjust)
    halves = _pad([_interval(value, half) for value, half in cells], str.ljust)
    texts = [value + half for value, half in zip(values, halves, strict=True)]
    return _pad([name, *texts], str.ljust if halves[0] else str.rjust)


def _pad(texts: list[str], align) -> list[str]:
    width = max(map(len, texts))
    return [align(text, width) for text in texts]


def _number(value: float, like: float | None = None) -> str:
    """Four decimals, or none where the number (or the one that it goes with) is large."""
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if abs(value if like is None else like) < 100 else f"{value:,.0f}"


def _interval(value: float, half: float | None) -> str:
    if half is None or math.isnan(half):
        return ""
    return f" ± {_number(half, like=value)}"
