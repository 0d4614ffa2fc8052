"""Tables of results, and several runs beside each other."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pinjax.evaluation import comparison, tables
from pinjax.evaluation.metrics import Estimate
from pinjax.reporting import blocks, figures
from pinjax.reporting.blocks import Block
from pinjax.reporting.runs import Run

Rows = Sequence[tuple[str, dict[str, Estimate]]]


def tab(runs: Sequence[Run]) -> list[Block]:
    """The runs beside each other, then every table of each."""
    made = []
    for split in dict.fromkeys(split for run in runs for split in run.records):
        known = {run.name: run.records[split] for run in runs if split in run.records}
        if len(known) > 1:
            told = (
                "Runs with the same labels and the same items to rank share the rows of baselines, "
                "and have the paired difference to the first of them. Intervals are of 95 %."
            )
            made.append(_table(f"Side by side, {split}", told, comparison.rows(known)))
    for number, run in enumerate(runs):
        for split, result in run.results.items():
            rows = [(name, estimates(cells)) for name, cells in result["rows"].items()]
            # Only rows over all tasks have a coverage.
            of_all = [row for row in rows if tables.COVERAGE in row[1]] or rows
            of_task = [row for row in rows if row not in of_all]
            step = f", step {result['step']:,}" if result["step"] else ""
            title = f"{run.name}, {split}{step}"
            made.append(_table(title, "\n".join(result["notes"]), of_all))
            made.append(_intervals(title, of_all, figures.colour(number), run.system))
            if of_task:
                made.append(_table(f"{title}, by task", "", of_task))
    return made


def estimates(cells: Mapping[str, Sequence[float | None]]) -> dict[str, Estimate]:
    """Estimates of a row of results_SPLIT.json, by name of the metric."""
    return {
        name: Estimate(*(math.nan if x is None else x for x in value))
        for name, value in cells.items()
    }


def _table(title: str, told: str, rows: Rows) -> Block:
    names = list(dict.fromkeys(name for _, cells in rows for name in cells))
    missing = Estimate(math.nan)

    def cell(cells: dict[str, Estimate], name: str) -> Any:
        return blocks.cell(cells.get(name, missing), compared=name.startswith("over "))

    lines = [[method.strip(), *(cell(cells, name) for name in names)] for method, cells in rows]
    return blocks.table(title, told, ["method", *names], lines)


def _intervals(title: str, rows: Rows, colour: str, system: str) -> Block:
    """A figure of R@10 with its intervals, the system's rows in the run's colour."""
    from plotly import graph_objects

    figure = graph_objects.Figure()
    for method, cells in reversed(rows):
        value, low, high = cells["R@10"]
        interval = {"array": [high - value], "arrayminus": [value - low], "thickness": 1.5}
        ours = tables.is_of(method, system)
        figure.add_scatter(
            x=[value],
            y=[figures.escaped(method)],
            mode="markers",
            marker={"size": 9, "color": colour if ours else figures.GREY},
            error_x=None if math.isnan(low) else interval,
            hovertemplate="%{y}: %{x:.4f}<extra></extra>",
        )
    figure.update_layout(
        template=None,
        showlegend=False,
        xaxis={"title": "R@10", "rangemode": "tozero"},
        yaxis={"type": "category"},
        height=90 + 26 * len(rows),
    )
    return blocks.figure(f"R@10, {title}", "", figures.plain(figure), wide=True)
