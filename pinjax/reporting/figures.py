"""Figures of a report, as plotly draws them.

Colours of runs are readable on light and on dark paper; what is not a run is grey. Everything else
that depends on the paper is set by the page.
"""

import html
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from pinjax.evaluation.metrics import Estimate

COLOURS = ("#3b82d6", "#e0851b", "#1f9e78", "#d24d57", "#9167d0", "#20a0bd", "#cf5f96", "#87972a")
GREY = "#8a8f98"
DASHES = ("solid", "dash", "dot", "dashdot")


class Line(NamedTuple):
    """A line of a figure.

    Attributes:
      name: in the legend.
      x, y: of its points.
      colour: of the line.
      dash: one of `DASHES`.
      low, high: ends of the intervals of `y`, if there are any.
      told: more about each point, shown beside the pointer.
    """

    name: str
    x: Sequence[Any]
    y: Sequence[float]
    colour: str = GREY
    dash: str = "solid"
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None
    told: Sequence[str] | None = None


def colour(number: int) -> str:
    """The colour of a run."""
    return COLOURS[number % len(COLOURS)]


def of_estimates(
    name: str, x: Sequence[Any], estimates: Sequence[Estimate], told: Sequence[str], **style: str
) -> Line:
    """A line of estimates with their intervals."""
    value, low, high = (np.array(part, float) for part in zip(*estimates, strict=True))
    return Line(name, x, value, low=low, high=high, told=told, **style)


def lines(drawn: Sequence[Line], x: str, y: str, markers: bool = False, **layout: Any) -> dict:
    """A figure of lines.

    Args:
      drawn: the lines.
      x, y: titles of the axes.
      markers: whether points are marked.
      layout: settings of plotly's layout, such as `xaxis_type`.
    """
    from plotly import graph_objects

    figure = graph_objects.Figure()
    for line in drawn:
        error = None
        if line.low is not None:
            above, below = np.subtract(line.high, line.y), np.subtract(line.y, line.low)
            error = {"array": known(above), "arrayminus": known(below), "thickness": 1, "width": 2}
        figure.add_scatter(
            name=escaped(line.name),
            x=list(line.x) if isinstance(line.x, list) else known(line.x),
            y=known(line.y),
            error_y=error,
            mode="lines+markers" if markers else "lines",
            line={"color": line.colour, "dash": line.dash, "width": 2},
            marker={"size": 6},
            text=None if line.told is None else [escaped(text) for text in line.told],
            hovertemplate="%{y:.4~g} %{text}" if line.told is not None else "%{y:.4~g}",
        )
    figure.update_layout(
        template=None,
        xaxis_title=x,
        yaxis_title=escaped(y),
        hovermode="x unified",
        **layout,
    )
    return plain(figure)


def plain(figure: Any) -> dict[str, Any]:
    """A plotly figure as JSON."""
    return json.loads(figure.to_json())


def escaped(text: str) -> str:
    """Text for plotly, which reads a little HTML."""
    return html.escape(text, quote=False)


def known(values: Sequence[float]) -> list[float | None]:
    """Numbers rounded to five digits, None for NaN."""
    return [float(f"{x:.5g}") if np.isfinite(x) else None for x in np.asarray(values, float)]
