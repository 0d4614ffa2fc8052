"""Recall by what is known of queries and items, and by the age of embeddings."""

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from pinjax.evaluation import comparison, tables
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


def history(labels: Labels) -> Bins | None:
    """Bins of how much is known of the query; None if records do not tell."""
    if "history" not in labels:
        return None
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


def tab(runs: Sequence[Run]) -> list[Block]:
    """Figures of R@10 by each of these. Runs with the same labels share them."""
    shared: list[list[Run]] = []
    for run in runs:
        if run.chosen is not None:
            same = (g for g in shared if comparison.same_labels(g[0].chosen, run.chosen))
            group = next(same, None)
            if group is None:
                shared.append(group := [])
            group.append(run)
    colours = {run.name: figures.colour(number) for number, run in enumerate(runs)}
    found = []
    told = "R@10 over the labels of each bin, with intervals of 95 %."
    for title, bins_of, axis in (
        ("Length of the history", history, "actions or engagements that are known before"),
        ("Popularity of the item", popularity, "engagements of training users by then"),
        ("Age of the item", age, "days since the item was created"),
    ):
        found += [_figure(group, colours, title, told, axis, bins_of) for group in shared]
    told = (
        "R@10 by the days from the start of the evaluation to the label: the age of the embedding, "
        "where users are embedded once."
    )
    for group in shared:
        args = group, colours, "Staleness", told, "day of the evaluation", staleness
        found.append(_figure(*args, list(_CADENCES)))
    several = len(shared) > 1
    return [
        block | {"title": f"{block['title']}: {', '.join(r.name for r in group)}"}
        if several
        else block
        for block, group in zip(found, shared * 4, strict=True)
        if block is not None
    ]


def _figure(
    runs: Sequence[Run],
    colours: dict[str, str],
    title: str,
    told: str,
    axis: str,
    bins_of: Callable[[Labels], Bins | None],
    cadences: Sequence[str] = ("window",),
) -> Block | None:
    """A figure of runs with the same labels."""
    bins = bins_of(runs[0].chosen.labels)
    if bins is None or len(bins.names) < 2:
        return None
    counts = [f"({count:,} labels)" for count in bins.counts]
    drawn = []
    for run in runs:
        records = run.chosen
        recalls = tables.recall_by(records, bins.part, len(bins.names))
        lines = []  # (label, method and cadence, colour, dash)
        known = [c for c in cadences if (records.about.system, c) in recalls]
        for cadence, dash in zip(known, figures.DASHES, strict=False):
            label = f"{run.name}, {_CADENCES[cadence]}" if len(known) > 1 else run.name
            lines.append((label, (records.about.system, cadence), colours[run.name], dash))
        if run is runs[0]:
            for other, dash in ((tables.best_baseline(records), "dash"), (tables.ORACLE, "dot")):
                if (other, "window") in recalls:
                    lines.append((other, (other, "window"), figures.GREY, dash))
        drawn += [
            figures.of_estimates(
                *(label, bins.names, recalls[key], counts), colour=colour, dash=dash
            )
            for label, key, colour, dash in lines
        ]
    figure = figures.lines(
        drawn, axis, "R@10", markers=True, xaxis_type="category", yaxis_rangemode="tozero"
    )
    return blocks.figure(title, told, figure)
