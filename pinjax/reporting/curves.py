"""Curves of training: what metrics.jsonl has of each step."""

import math
from collections.abc import Sequence

import numpy as np

from pinjax.reporting import blocks, figures
from pinjax.reporting.blocks import Block
from pinjax.reporting.runs import Run

POINTS = 1_000  # of a curve
# Metrics with a figure of their own, then the beginnings of those that share one; in this order.
_ALONE = {
    "loss": "Loss",
    "valid/R@10": "Recall on the validation split",
    "temperature": "Temperature of the softmax",
    "gradient_norm": "Norm of the gradient",
}
_TOGETHER = {
    "loss/": "Parts of the loss",
    "valid/": "More metrics of the validation split",
    "": "More metrics",
}


def tab(runs: Sequence[Run]) -> list[Block]:
    """Figures of the metrics of runs, by steps and by time."""
    left = sorted({name for run in runs for line in run.metrics for name in line})
    left = [name for name in left if name not in ("step", "time")]
    made = []
    for name, title in _ALONE.items():
        if name in left:
            left.remove(name)
            lines = [(run.name, run, name, i) for i, run in enumerate(runs)]
            made.append(_figure(title, lines))
    for start, title in _TOGETHER.items():
        names = [name for name in left if name.startswith(start)]
        left = [name for name in left if name not in names]
        for run in runs:
            known = [name for name in names if any(name in line for line in run.metrics)]
            if known:
                of_run = f"{title}: {run.name}" if len(runs) > 1 else title
                made.append(_figure(of_run, [(n, run, n, i) for i, n in enumerate(known)]))
    longest = max((len(run.metrics) for run in runs), default=0)
    if longest > POINTS:
        told = f"Of up to {longest:,} lines a curve has at most {POINTS:,}, at even spaces."
        made.insert(0, blocks.text(told))
    return made


def _figure(title: str, lines: Sequence[tuple[str, Run, str, int]]) -> Block:
    """A figure of (label, run, metric, number of the colour)."""
    choices = {}
    for by, axis in (("steps", "steps"), ("time", "minutes")):
        drawn = []
        for label, run, name, number in lines:
            x, y = series(run.metrics, name, by)
            if len(x):
                drawn.append(figures.Line(label, x, y, figures.colour(number)))
        few = max(len(line.x) for line in drawn) < 30
        metrics = dict.fromkeys(name for _, _, name, _ in lines)
        choices[by] = figures.lines(
            drawn,
            axis,
            next(iter(metrics)) if len(metrics) == 1 else "",
            few,
            xaxis_rangemode="tozero",
            yaxis_rangemode="tozero" if any(n.startswith("valid/") for n in metrics) else "normal",
        )
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
