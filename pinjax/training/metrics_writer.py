"""Metrics of a run: JSON lines for programs, TensorBoard events for people."""

import json
import math
import time
from collections.abc import Mapping
from typing import Any

import tensorboardX
from etils import epath

from pinjax import files
from pinjax.training import workdirs


class MetricsWriter:
    """Writes to `metrics.jsonl` and to TensorBoard's event files in one directory.

    A run that resumes from a checkpoint passes its first step: metrics of later steps that the
    earlier process wrote are dropped, and so is an incomplete line.
    """

    def __init__(self, directory: epath.PathLike, first_step: int):
        directory = epath.Path(directory)
        files.make_directory(directory)
        self._path = directory / workdirs.METRICS_FILE
        lines = self._path.read_bytes().splitlines() if self._path.exists() else []
        self._lines = [line for line in lines if _step(line) <= first_step]
        self._events = tensorboardX.SummaryWriter(str(directory), purge_step=first_step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of a step (steps done, so the first is 1)."""
        known = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        line = {"step": step, "time": round(time.time(), 3), **known}
        self._lines.append(json.dumps(line, allow_nan=False).encode())
        # The full file is rewritten under another name, since an object store cannot append.
        with files.replacing(self._path) as file:
            file.write(b"\n".join(self._lines) + b"\n")
        for name, value in known.items():
            if value is not None:
                self._events.add_scalar(name, value, step)
        self._events.flush()

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._events.close()


def _step(line: bytes) -> float:
    """The step of a line, infinity if the line is incomplete."""
    try:
        content: Any = json.loads(line)
        return float(content["step"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return math.inf
