"""Draws the README's picture: Recall@10 of every method of some runs, with intervals.

    .venv-peers/bin/python benchmarks/picture.py --out=docs/recall.png \
        "PinnerFormer, ifdb=work/ifdb" "PinnerFormer, pinworld=work/pinnerformer"

A run is a title and a work directory, whose results_test.json is drawn. Methods are in order of
their recall, the system's own in colour. Needs benchmarks/requirements-peers.txt.
"""

import argparse
import json
import math
import pathlib

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

_OURS, _ORACLE, _OTHERS = "#c8102e", "#9aa5b1", "#4b5a6a"
_LEFT_OUT = (", ScaNN", ", daily", ", real time")  # rows of the same method
_MORE = 8  # rows of a panel, at most


def draw(axes: plt.Axes, title: str, rows: dict[str, dict[str, list[float | None]]]) -> None:
    """A bar for each method of a run, the best on top.

    Args:
      axes: to draw on.
      title: "SYSTEM, DATA".
      rows: of results_test.json.
    """
    system, _, data = title.partition(", ")
    found = {
        name: [math.nan if x is None else x for x in cells["R@10"]]
        for name, cells in rows.items()
        if cells.get("R@10") and "/" not in name and not name.endswith(_LEFT_OUT)
    }
    names = sorted(found, key=lambda name: found[name][0])[-_MORE:]
    for place, name in enumerate(names):
        value, low, high = found[name]
        colour = _OURS if name == system else _ORACLE if name == "oracle" else _OTHERS
        axes.barh(place, value, color=colour, height=0.65)
        if not math.isnan(low):
            axes.plot([low, high], [place, place], color="black", linewidth=1)
        axes.text(max(value, 0 if math.isnan(high) else high), place, f" {value:.3f}", va="center")
    axes.set_yticks(range(len(names)), names)
    axes.set_title(f"{system} on {data}: Recall@10", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="where the picture goes")
    parser.add_argument("runs", nargs="+", metavar="SYSTEM, DATA=WORKDIR")
    arguments = parser.parse_args()
    columns = min(2, len(arguments.runs))
    lines = math.ceil(len(arguments.runs) / columns)
    plt.rcParams["font.size"] = 8.5
    figure, axes = plt.subplots(
        lines, columns, figsize=(5.2 * columns, 2.3 * lines), squeeze=False, layout="constrained"
    )
    for place, run in zip(axes.flat, arguments.runs, strict=False):
        title, _, workdir = run.rpartition("=")
        results = json.loads((pathlib.Path(workdir) / "results_test.json").read_text())
        draw(place, title, results["rows"])
    for place in axes.flat[len(arguments.runs) :]:
        place.set_visible(False)
    figure.savefig(arguments.out, dpi=150)


if __name__ == "__main__":
    main()
