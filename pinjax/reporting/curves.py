"""Curves of training: what metrics.jsonl has of each step."""

import math
from collections.abc import Sequence

import numpy as np

from pinjax.reporting import blocks, figures
from pinjax.reporting.blocks import Block
from pinjax.reporting.runs import Run

POINTS = 1_000  # of a curve
# The figures in their order; a metric belongs to the first whose beginning it has.
_TITLES = (
    ("loss/", "Parts of the loss"),
    ("loss", "Loss"),
    ("valid/R@", "Recall on the validation split"),
    ("valid/", "Other metrics of the validation split"),
    ("temperature", "Temperature of the softmax"),
    ("gradient_norm", "Norm of the gradient"),
    ("", "Other metrics"),
)
_ORDER = (1, 2, 4, 5, 0, 3, 6)


def tab(runs: Sequence[Run]) -> list[Block]:
    """Figures of the metrics of runs, by steps and by time."""
    found: dict[str, list[str]] = {}
    for name in sorted({name for run in runs for line in run.metrics for name in line}):
        if name not in ("step", "time"):
            start = next(start for start, _ in _TITLES if name.startswith(start))
            found.setdefault(start, []).append(name)
    titles = (_TITLES[place] for place in _ORDER)
    made = [_figure(runs, title, found[start]) for start, title in titles if start in found]
    longest = max((len(run.metrics) for run in runs), default=0)
    if longest > POINTS:
        told = f"Of up to {longest:,} lines a curve has at most {POINTS:,}, at even spaces."
        made.insert(0, blocks.text(told))
    return made


def _figure(runs: Sequence[Run], title: str, names: Sequence[str]) -> Block:
    choices = {}
    for by, axis in (("steps", "steps"), ("time", "minutes")):
        drawn = []
        for number, run in enumerate(runs):
            for place, name in enumerate(names):
                x, y = series(run.metrics, name, by)
                if not len(x):
                    continue
                label, colour, dash = name, place, 0
                if len(runs) > 1:
                    label = f"{run.name} · {name}" if len(names) > 1 else run.name
                    colour, dash = number, place % len(figures.DASHES)
                style = {"colour": figures.colour(colour), "dash": figures.DASHES[dash]}
                drawn.append(figures.Line(label, x, y, **style))
        few = max(len(line.x) for line in drawn) < 30
        choices[by] = figures.lines(drawn, axis, names[0] if len(names) == 1 else "", few)
    return blocks.figure(title, "", choices)


def series(metrics: Sequence[dict], name: str, by: str) -> tuple[np.ndarray, np.ndarray]:
    """A metric by "steps", or by minutes of training, at most `POINTS` of it.

    Minutes are those between lines. An interruption, a pause more than ten minutes longer than ten
    times the median one, counts as a median pause, since nothing trained meanwhile.

    Returns:
      (x, y) of the lines that have the metric.
    """
    step = np.array([line["step"] for line in metrics], float)
    time = np.array([line["time"] for line in metrics], float)
    gap, steps = np.diff(time, prepend=time[:1]), np.maximum(np.diff(step, prepend=0), 1)
    usual = np.median(gap[1:] / steps[1:]) * steps if len(gap) > 1 else gap
    minutes = np.cumsum(np.where(gap > 10 * usual + 600, usual, gap)) / 60
    rows = [row for row, line in enumerate(metrics) if line.get(name) is not None]
    rows = rows[:: math.ceil(len(rows) / POINTS) or 1]
    x = step if by == "steps" else minutes
    return x[rows], np.array([metrics[row][name] for row in rows], float)
