"""Recall by what is known of queries and items, and by the age of embeddings."""

import itertools
from collections.abc import Callable, Sequence
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

    Args:
      values: int (labels,).
      known: bool (labels,), which of them count.
    """
    edges = [0, *(k * 10**n for n in range(10) for k in (1, 3))]
    part = np.searchsorted(edges, values, "right") - 1
    names = [
        f"{low:,}" if low == high - 1 else f"{low:,}–{high - 1:,}"
        for low, high in itertools.pairwise(edges)
    ]
    return _trimmed(part, known & (values >= 0), names)


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
    names = [f"{width * i}–{width * (i + 1)}" for i in range(int(part.max()) + 1)]
    return _trimmed(part, np.ones(len(days), bool), names)


def _trimmed(part: np.ndarray, known: np.ndarray, names: list[str]) -> Bins:
    part = np.where(known, part, -1)
    some = np.unique(part[part >= 0])
    first, last = (int(some[0]), int(some[-1])) if len(some) else (0, -1)
    return Bins(np.where(part >= 0, part - first, -1), names[first : last + 1])


def tab(runs: Sequence[Run]) -> list[Block]:
    """Figures of R@10 by each of these."""
    found = []
    told = "R@10 over the labels of each bin, with intervals of 95 %."
    for title, bins_of, axis in (
        ("Length of the history", history, "actions or engagements that are known before"),
        ("Popularity of the item", popularity, "engagements of training users by then"),
        ("Age of the item", age, "days since the item was created"),
    ):
        found.append(_figure(runs, title, told, axis, bins_of, ["window"]))
    told = (
        "R@10 by the days from the start of the evaluation to the label: the age of the embedding, "
        "where users are embedded once."
    )
    axis = "days since the evaluation began"
    found.append(_figure(runs, "Staleness", told, axis, staleness, list(_CADENCES)))
    return [block for block in found if block is not None]


def _figure(
    runs: Sequence[Run],
    title: str,
    told: str,
    axis: str,
    bins_of: Callable[[Labels], Bins | None],
    cadences: Sequence[str],
) -> Block | None:
    drawn = []
    for number, run in enumerate(runs):
        bins = None if run.chosen is None else bins_of(run.chosen.labels)
        if bins is not None and len(bins.names) > 1:
            drawn += _lines(number, run, runs, bins, cadences)
    if not drawn:
        return None
    names = {name: int(name.partition("–")[0].replace(",", "")) for x in drawn for name in x.x}
    figure = figures.lines(
        *(drawn, axis, "R@10"),
        markers=True,
        xaxis_type="category",
        xaxis_categoryorder="array",
        xaxis_categoryarray=sorted(names, key=names.get),
        yaxis_rangemode="tozero",
    )
    return blocks.figure(title, told, figure)


def _lines(
    number: int, run: Run, runs: Sequence[Run], bins: Bins, cadences: Sequence[str]
) -> list[figures.Line]:
    """The system at each cadence; of the first run with these labels the best baseline and the
    oracle."""
    records = run.chosen
    recalls = tables.recall_by(records, bins.part, len(bins.names))
    told = [f"({count:,} labels)" for count in bins.counts]

    def line(label: str, estimates: list[Estimate], **style: str) -> figures.Line:
        return figures.of_estimates(label, bins.names, estimates, told, **style)

    name = f"{run.name} · {records.about.system}" if len(runs) > 1 else records.about.system
    of_system = [c for c in cadences if (records.about.system, c) in recalls]
    found = []
    for cadence, dash in zip(of_system, figures.DASHES, strict=False):
        label = f"{name}, {_CADENCES[cadence]}" if len(of_system) > 1 else name
        estimates = recalls[records.about.system, cadence]
        found.append(line(label, estimates, colour=figures.colour(number), dash=dash))
    with_records = (other for other in runs if other.chosen is not None)
    if next(o for o in with_records if comparison.same_labels(o.chosen, records)) is run:
        for other, dash in ((tables.best_baseline(records), "dash"), (tables.ORACLE, "dot")):
            if (other, "window") in recalls:
                found.append(line(other, recalls[other, "window"], dash=dash))
    return found
