"""Runs of the command that several scripts here compare, and what they say of them."""

import json
import pathlib
import statistics
import subprocess
import sys

from pinjax.evaluation import metrics

Rows = dict[str, dict[str, metrics.Estimate]]


def train(config: str, workdir: pathlib.Path, *flags: str) -> Rows:
    """The rows of a run's table; a run that is finished in `workdir` is not made again."""
    results = workdir / "results_test.json"
    if not results.exists():
        command = [sys.executable, "-m", "pinjax.train", f"--config={config}"]
        command += [f"--workdir={workdir}", *flags]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows = json.loads(results.read_text())["rows"]
    return {
        method: {
            name: metrics.Estimate(*(float("nan") if x is None else x for x in estimate))
            for name, estimate in row.items()
        }
        for method, row in rows.items()
    }


def directory(method: str, seed: int) -> str:
    """A directory's name for a method's run."""
    return f"{method}-{seed}".replace(", ", "-").replace(" ", "-").replace("/", "-")


def mean_and_range(values: list[float]) -> str:
    return f"{statistics.mean(values):.4f} ± {(max(values) - min(values)) / 2:.4f}"


def claim(text: str, higher: list[float], lower: list[float]) -> None:
    """Prints whether the first is higher: by mean, and with how many of the seeds."""
    wins = sum(a > b for a, b in zip(higher, lower, strict=True))
    verdict = "holds" if statistics.mean(higher) > statistics.mean(lower) else "does not hold"
    print(f"{text:<60} {verdict}, {wins} of {len(higher)} seeds")
