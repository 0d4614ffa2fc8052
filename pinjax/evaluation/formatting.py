"""A plain-text table of results."""

import math
from collections.abc import Sequence

from pinjax.evaluation.metrics import Estimate

_MISSING = Estimate(math.nan)


def format_table(rows: Sequence[tuple[str, dict[str, Estimate]]], width: int = 100) -> str:
    """Methods by metrics, aligned; columns that exceed the width follow below, with the rows that
    have any of them.

    Args:
      rows: (method, metrics by name) pairs. A missing or NaN metric is printed as "-". An
        interval is printed as "± half its width", or by its ends if the value is not its centre.
      width: characters of a line.

    Returns:
      Lines without a newline at the end.

    >>> popularity = {"R@10": Estimate(0.0042, 0.0011, 0.0152)}
    >>> ours = {"R@10": Estimate(0.2293, 0.2262, 0.2324), "queries/s": Estimate(9e3)}
    >>> print(format_table([("popularity", popularity), ("PinnerFormer", ours)]))
    method        R@10                     queries/s
    popularity    0.0042 [0.0011, 0.0152]          -
    PinnerFormer  0.2293 ± 0.0031              9,000
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


def _block(rows: Sequence[tuple[str, dict[str, Estimate]]], names: Sequence[str]) -> str:
    """Some columns, and the rows that have a value in them; all rows if none has."""
    cells = [(method, [metrics.get(name, _MISSING) for name in names]) for method, metrics in rows]
    cells = [row for row in cells if not all(math.isnan(cell.value) for cell in row[1])] or cells
    columns = [_pad(["method", *(method for method, _ in cells)], str.ljust)]
    for i, name in enumerate(names):
        columns.append(_column(name, [row[i] for _, row in cells]))
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def cell(estimate: Estimate) -> tuple[str, str]:
    """An estimate and its interval as text, the latter "" if there is none."""
    return _number(estimate.value), _interval(estimate).strip()


def _column(name: str, cells: list[Estimate]) -> list[str]:
    """The lines of a column: values flush right, then their intervals."""
    values = _pad([_number(cell.value) for cell in cells], str.rjust)
    intervals = _pad([_interval(cell) for cell in cells], str.ljust)
    texts = [value + interval for value, interval in zip(values, intervals, strict=True)]
    return _pad([name, *texts], str.ljust if intervals[0] else str.rjust)


def _pad(texts: list[str], align) -> list[str]:
    width = max(map(len, texts))
    return [align(text, width) for text in texts]


def _number(value: float, like: float | None = None) -> str:
    """Four decimals; none if the number, or `like`, is large."""
    if math.isnan(value):
        return "-"
    return f"{value:.4f}" if abs(value if like is None else like) < 100 else f"{value:,.0f}"


def _interval(cell: Estimate) -> str:
    value, low, high = cell
    if math.isnan(low):
        return ""
    if abs(low + high - 2 * value) <= 0.1 * (high - low) + 1e-9 * abs(value):
        return f" ± {_number((high - low) / 2, like=value)}"
    return f" [{_number(low, like=value)}, {_number(high, like=value)}]"
