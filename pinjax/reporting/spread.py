"""How recommendations spread over the catalogue."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pinjax.reporting import blocks, breakdowns, figures
from pinjax.reporting.blocks import Block

K = 10  # recommendations of a user
POINTS = 200  # of a curve


class Counted(NamedTuple):
    """How often each item was recommended, or acted on.

    Attributes:
      name: of the run, for people.
      counts: int (items,).
      colour, dash: of its lines.
    """

    name: str
    counts: np.ndarray
    colour: str = figures.GREY
    dash: str = "dot"


def share(counts: np.ndarray) -> float:
    """The share of items that come at all."""
    return float((counts > 0).mean())


def gini(counts: np.ndarray) -> float:
    """The Gini coefficient: 0 if all items come equally often, almost 1 if one item alone comes."""
    rising, n = np.sort(counts).astype(float), len(counts)
    return float((2 * np.arange(1, n + 1) - n - 1) @ rising / (n * rising.sum()))


def top_share(counts: np.ndarray, top: float = 0.01) -> float:
    """The share of recommendations that the most frequent `top` share of items has."""
    most = max(1, round(top * len(counts)))
    return float(np.sort(counts)[::-1][:most].sum() / counts.sum())


def curve(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(x, y): the most frequent share x of items has the share y of recommendations."""
    cumulative = np.cumsum(np.sort(counts)[::-1]) / counts.sum()
    rows = np.unique(np.geomspace(1, len(counts), POINTS).round().astype(int)) - 1
    return (rows + 1) / len(counts), cumulative[rows]


def tab(counted: Sequence[Counted], popularity: np.ndarray, who: str) -> list[Block]:
    """A table and figures.

    Args:
      counted: what is compared.
      popularity: int (items,), actions in training.
      who: gets the recommendations, for people.
    """
    rows = [
        [x.name, f"{share(x.counts):.1%}", f"{gini(x.counts):.3f}", f"{top_share(x.counts):.1%}"]
        for x in counted
    ]
    told = (
        f"The best {K} items for {who}, beside what they then did. Share of the catalogue: items "
        "that come at all. Gini: 0 if all items come equally often, 1 if one comes alone. Top 1 %: "
        "what share of the recommendations the most frequent hundredth of the items has."
    )
    columns = ["", "share of the catalogue", "Gini", "top 1 %"]
    bins = breakdowns.half_decades(popularity, np.ones(len(popularity), bool))

    def line(x: Counted, points: tuple) -> figures.Line:
        return figures.Line(x.name, *points, colour=x.colour, dash=x.dash)

    concentration = figures.lines(
        [line(x, curve(x.counts)) for x in counted],
        "share of the catalogue, most frequent first",
        "share of recommendations",
        xaxis_type="log",
        xaxis_tickformat="~%",
        xaxis_dtick=1,
        yaxis_tickformat=".0%",
    )
    shares = [np.bincount(bins.part, x.counts, len(bins.names)) / x.counts.sum() for x in counted]
    by_popularity = figures.lines(
        [line(x, (bins.names, y)) for x, y in zip(counted, shares, strict=True)],
        "actions on the item in training",
        "share of recommendations",
        markers=True,
        xaxis_type="category",
        yaxis_tickformat=".0%",
    )
    return [
        blocks.table("Coverage and concentration", told, columns, rows),
        blocks.figure("Concentration", "The lower a curve, the more even.", concentration),
        blocks.figure("Popularity of what is recommended", "", by_popularity),
    ]
