"""Recall by what is known of queries and items, and by the age of embeddings."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pinjax.evaluation import comparison, tables
from pinjax.evaluation.metrics import Estimate
from pinjax.reporting import blocks, figures
from pinjax.reporting.blocks import Block
from pinjax.reporting.runs import Run
from pinjax.timestamps import DAY

_CADENCES = {"window": "embedded once", "daily": "embedded daily", "realtime": "in real time"}

Labels = dict[str, np.ndarray]


class Bins(NamedTuple):
    """Labels in bins.

    Attributes:
      part: int (labels,), the bin of each label, -1 for none.
      names: of the bins.
    """

    part: np.ndarray
    names: list[str]

    @property
    def counts(self) -> np.ndarray:
        return np.bincount(self.part[self.part >= 0], minlength=len(self.names))


def half_decades(values: np.ndarray, known: np.ndarray) -> Bins:
    """Bins 0, 1-2, 3-9, 10-29, 30-99 and so on, without empty ones at either end.

    Names are short: "1k–3k" is from 1,000 to 2,999.

    Args:
      values: int (labels,).
      known: bool (labels,), which of them count.
    """
    edges = [0, *(k * 10**n for n in range(10) for k in (1, 3))]
    part = np.searchsorted(edges, values, "right") - 1
    names = [_name(low, high) for low, high in itertools.pairwise(edges)]
    return _trimmed(part, known & (values >= 0), names)


def _name(low: int, high: int) -> str:
    if high <= 1_000:
        return f"{low}–{high - 1}" if high > low + 1 else f"{low}"
    unit, sign = (1_000, "k") if high <= 1_000_000 else (1_000_000, "M")
    return f"{low / unit:g}{sign}–{high / unit:g}{sign}"


def history(labels: Labels) -> Bins:
    """Bins of how much is known of the query."""
    return half_decades(labels["history"], np.ones(len(labels["history"]), bool))


def popularity(labels: Labels) -> Bins | None:
    """Bins of the engagements with the item in training; None if records do not tell."""
    counts = labels["label_popularity"]
    return half_decades(counts, np.ones(len(counts), bool)) if counts.any() else None


def age(labels: Labels) -> Bins | None:
    """Bins of the item's age in days; None if no item has a date."""
    seconds = labels["label_age"]
    # An item without a date was created at 0, so that its age is the time of the engagement.
    known = seconds != labels["label_time"]
    return half_decades(seconds // DAY, known) if known.any() else None


def staleness(labels: Labels) -> Bins | None:
    """Bins of the days from the start of the window to the label; None without times."""
    seconds = labels["label_time"] - labels["window"]
    if not labels["window"].all() or not seconds.any():
        return None
    days = np.maximum(seconds - 1, 0) // DAY
    width = 1 if days.max() < 31 else 7
    part = days // width
    lasts = width * np.arange(1, int(part.max()) + 2)
    names = [f"{last}" if width == 1 else f"{last - width + 1}–{last}" for last in lasts]
    return _trimmed(part, np.ones(len(days), bool), names)


def _trimmed(part: np.ndarray, known: np.ndarray, names: list[str]) -> Bins:
    part = np.where(known, part, -1)
    some = np.unique(part[part >= 0])
    first, last = (int(some[0]), int(some[-1])) if len(some) else (0, -1)
    return Bins(np.where(part >= 0, part - first, -1), names[first : last + 1])


_BINS = "R@10 over the labels of each bin, with intervals of 95 %."
_FIGURES = (  # title, what it shows, its axis, bins, whether with every cadence
    *(
        (title, _BINS, axis, bins_of, False)
        for title, axis, bins_of in (
            ("Length of the history", "actions or engagements that are known before", history),
            ("Popularity of the item", "engagements of training users by then", popularity),
            ("Age of the item", "days since the item was created", age),
        )
    ),
    (
        "Staleness",
        "R@10 by the days from the start of the evaluation to the label: the age of the embedding, "
        "where users are embedded once.",
        "day of the evaluation",
        staleness,
        True,
    ),
)


def tab(runs: Sequence[Run]) -> list[Block]:
    """Figures of R@10 by each of these. Comparable runs share them."""
    colours = {run.name: figures.colour(number) for number, run in enumerate(runs)}
    shared: list[list[Run]] = []
    for run in runs:
        if run.chosen is not None:
            same = (g for g in shared if comparison.comparable(g[0].chosen, run.chosen))
            group = next(same, None)
            if group is None:
                shared.append(group := [])
            group.append(run)
    found = []
    for title, told, axis, bins_of, every in _FIGURES:
        for group in shared:
            bins = bins_of(group[0].chosen.labels)
            if bins is not None and len(bins.names) > 1:
                names = f": {', '.join(run.name for run in group)}" if len(shared) > 1 else ""
                drawn = _lines(group, colours, bins, every)
                figure = figures.lines(
                    drawn,
                    axis,
                    "R@10",
                    markers=True,
                    xaxis_type="category",
                    yaxis_rangemode="tozero",
                )
                found.append(blocks.figure(title + names, told, figure))
    return found


def _lines(
    runs: Sequence[Run], colours: dict[str, str], bins: Bins, every: bool
) -> list[figures.Line]:
    """The system of each run, the best baseline, and the oracle if there is one.

    Args:
      runs: that are comparable.
      colours: by name of the run.
      bins: of the labels.
      every: whether systems are shown with every cadence; else with the first alone.
    """
    counts = [f"({count:,} labels)" for count in bins.counts]

    def line(label: str, estimates: list[Estimate], colour: str, dash: str) -> figures.Line:
        return figures.of_estimates(label, bins.names, estimates, counts, colour=colour, dash=dash)

    drawn, others = [], []
    for run in runs:
        records = run.chosen
        recalls = tables.recall_by(records, bins.part, len(bins.names))
        system, first = records.key(records.about.system)
        known = [c for c in _CADENCES if (system, c) in recalls] if every else [first]
        for cadence, dash in zip(known, figures.DASHES, strict=False):
            label = run.name if known == ["window"] else f"{run.name}, {_CADENCES[cadence]}"
            recall = recalls[system, cadence]
            drawn.append(line(label, recall, colours[run.name], dash))
        if run is runs[0]:
            others = [
                line(name, recalls[records.key(name)], figures.GREY, dash)
                for name, dash in ((tables.best_baseline(records), "dash"), (tables.ORACLE, "dot"))
                if records.key(name) in recalls
            ]
    return drawn + others
