"""What runs left in their work directories, read for a report."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from etils import epath

from pinjax import checksums
from pinjax.data.spec import SPLITS
from pinjax.errors import InputError
from pinjax.evaluation import records as records_lib
from pinjax.evaluation.records import Records
from pinjax.training import workdirs

T = TypeVar("T")


@dataclasses.dataclass(eq=False)
class Run:
    """A run, as its work directory tells of it.

    Attributes:
      name: of the directory, or its path if another one has the same name.
      workdir: the directory.
      config: of run.json; None without one.
      metrics: lines of metrics.jsonl.
      results: contents of results_SPLIT.json, by split.
      records: of records_SPLIT.parquet, by split.
      missing: what a report lacks, and the commands that make it.
    """

    name: str
    workdir: epath.Path
    config: dict[str, Any] | None
    metrics: list[dict[str, Any]]
    results: dict[str, dict[str, Any]]
    records: dict[str, Records]
    missing: list[str]

    @property
    def split(self) -> str | None:
        """The split whose records are looked into: test, or else valid."""
        return next((split for split in reversed(SPLITS) if split in self.records), None)

    @property
    def chosen(self) -> Records | None:
        """The records of `split`; None without records."""
        return self.records.get(self.split)

    @property
    def system(self) -> str:
        """The name of the system."""
        if self.chosen is not None:
            return self.chosen.about.system
        return self.config["config"]["system"] if self.config else "unknown system"

    def attempt(self, what: str, make: Callable[[], T]) -> T | None:
        """The result of `make`; None if its input is missing or wrong, which is noted."""
        try:
            return make()
        except InputError as error:
            self.missing.append(f"{what}: {error}")
            return None


def read(directories: Sequence[epath.Path]) -> list[Run]:
    """Reads the files of runs.

    Raises:
      InputError: if a directory holds no run, or a file is damaged.
    """
    names = [path.resolve().name for path in directories]
    return [
        _read(path, name if names.count(name) == 1 else str(path))
        for path, name in zip(directories, names, strict=True)
    ]


def _read(workdir: epath.Path, name: str) -> Run:
    if not workdir.is_dir():
        raise InputError(f"--workdir={workdir}: no such directory; expected that of a run")
    results, records, metrics = {}, {}, []
    for split in SPLITS[1:]:
        file = workdir / workdirs.results_file(split)
        if file.exists():
            results[split] = _json(file.read_text(), file)
        file = workdir / workdirs.records_file(split)
        if file.exists():
            records[split] = records_lib.read(file)
    file = workdir / workdirs.METRICS_FILE
    if file.exists():
        metrics = [_json(line, file) for line in file.read_text().splitlines()]
    file = workdir / workdirs.RUN_FILE
    config = checksums.read(file) if file.exists() else None
    if not (results or records or metrics or config):
        raise InputError(f"--workdir={workdir}: holds no run; expected run.json or results of one")
    missing = []
    evaluate = f"python -m pinjax.evaluate --workdir={workdir}"
    if not records:
        missing.append(f"tables, and what is made of single queries: {evaluate}")
    if not metrics:
        missing.append("curves: it has no metrics.jsonl, as a system without training")
    return Run(name, workdir, config, metrics, results, records, missing)


def _json(text: str, path: epath.Path) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise InputError(f"{path}: damaged: not the JSON that was written") from None
