"""Metrics of a run: JSON lines for programs, TensorBoard events for people."""

import json
import math
import time
from collections.abc import Mapping

import tensorboardX
from etils import epath


class MetricsWriter:
    """Writes to `metrics.jsonl` and to TensorBoard's event files in one directory.

    A run that goes on from a checkpoint passes the step that it starts at: what was written of
    later steps by the process that died is dropped.
    """

    def __init__(self, directory: epath.PathLike, first_step: int):
        directory = epath.Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "metrics.jsonl"
        self._lines = self._path.read_text().splitlines() if self._path.exists() else []
        self._lines = [line for line in self._lines if json.loads(line)["step"] <= first_step]
        self._events = tensorboardX.SummaryWriter(str(directory), purge_step=first_step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds the metrics of a step (steps done, so the first is 1); NaN is written as null."""
        line = {"step": step, "time": round(time.time(), 3)}
        line |= {n: value if math.isfinite(value) else None for n, value in metrics.items()}
        self._lines.append(json.dumps(line))
        # Whole and by another name, since an object store cannot append.
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("\n".join(self._lines) + "\n")
        temporary.replace(self._path)
        for name, value in metrics.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()

    def close(self) -> None:
        self._events.close()
