"""Training runs that several scripts here make and compare."""

import json
import os
import pathlib
import statistics
import subprocess
import sys
from typing import Any

from etils import epath

from pinjax.evaluation import records as records_lib
from pinjax.evaluation import tables
from pinjax.evaluation.metrics import Estimate
from pinjax.evaluation.records import Records
from pinjax.training import workdirs

Rows = dict[str, dict[str, Estimate]]


def train(config: str, workdir: pathlib.Path, *flags: str) -> Rows:
    """The rows of a run's table; a run that is finished in `workdir` is not made again.

    Raises:
      SystemExit: if it was made with other flags.
    """
    made_with = workdir / "flags.json"
    if is_finished(workdir):
        before = json.loads(made_with.read_text()) if made_with.exists() else None
        if before != [config, *flags]:
            raise SystemExit(f"{workdir} holds a run with other flags, {before}; remove it")
    else:
        workdir.mkdir(parents=True, exist_ok=True)
        made_with.write_text(json.dumps([config, *flags]))
        call("train", config, workdir, *flags)
    return {row.name: row.metrics for row in tables.table_of(records(workdir)).rows}


def is_finished(workdir: pathlib.Path) -> bool:
    return (workdir / workdirs.records_file("test")).exists()


def metrics(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The metrics of each step that a run wrote some of."""
    lines = (workdir / workdirs.METRICS_FILE).read_text().splitlines()
    return [json.loads(line) for line in lines]


def records(workdir: pathlib.Path) -> Records:
    """The records of a run's test split."""
    return records_lib.read(epath.Path(workdir / workdirs.records_file("test")))


def call(command: str, config: str, workdir: pathlib.Path, *flags: str) -> None:
    """Runs a command of pinjax. Runs in the same directory share compiled programs."""
    line = [sys.executable, "-m", f"pinjax.{command}", f"--config={config}"]
    line += [f"--workdir={workdir}", *flags]
    environment = {"JAX_COMPILATION_CACHE_DIR": str(workdir.parent / "compiled")} | os.environ
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL, env=environment)


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
