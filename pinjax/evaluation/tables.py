"""Tables of results, made from records."""

import dataclasses
import functools
import itertools
import math

import numpy as np
import pyarrow as pa

from pinjax.evaluation import metrics
from pinjax.evaluation.metrics import Estimate
from pinjax.evaluation.records import Records

ENOUGH = 100  # users or queries; a table of fewer has a warning
COVERAGE = "P90 cov@10"
OVERLAP = "overlap@10"  # a figure that becomes a warning
WARNING = "warning: "  # such a note begins with it
ENTROPY = "entropy@50"
SCALED_MRR = "scaled MRR"
DIFFERENCE = "over baseline"
SHARE = "of oracle"
ORACLE = "oracle"
SUFFIXES = {"window": "", "daily": ", daily", "realtime": ", real time"}  # of a row, by cadence

_LISTS = 10  # of a window on average, before a small coverage is suspicious
_ALIKE = 0.9  # overlap of lists that are nearly the same
_METRICS = {
    "R": metrics.recall,
    "HR": metrics.hit_rate,
    "NDCG": metrics.ndcg,
    SCALED_MRR: metrics.scaled_mrr,
}


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a results table.

    Attributes:
      method: name of the method.
      metrics: by name.
      task: the only task that counts; None: all tasks.
    """

    method: str
    metrics: dict[str, Estimate]
    task: str | None = None

    @property
    def name(self) -> str:
        """The method, and the task if there is one."""
        return self.method if self.task is None else f"{self.method}, {self.task}"


@dataclasses.dataclass(frozen=True)
class Table:
    """A results table.

    Attributes:
      rows: of the system first.
      notes: lines to print below: the number of queries and labels, and caveats.
      records: that the table was made from; None if they are not needed.
    """

    rows: list[Row]
    notes: list[str]
    records: Records | None = None


def table_of(records: Records) -> Table:
    """The table of records: a row for each method and cadence, then one for each task of each."""
    about, measured = records.about, _Measured(records)
    best = measured.best_baseline
    tasks = [None, *(task for task in about.tasks if task)]
    figures = {(method, cadence): cells for method, cadence, cells in about.figures}
    rows = []
    for task, (method, cadence) in itertools.product(tasks, records.methods):
        cells = measured.main(method, cadence, task)
        if best and method not in (ORACLE, *about.baselines):
            against = (best, cadence) if (best, cadence) in records.methods else (best, "window")
            cells[DIFFERENCE] = measured.difference((method, cadence), against, task)
        oracle = (ORACLE, cadence) if (ORACLE, cadence) in records.methods else (ORACLE, "window")
        if oracle in records.methods:
            most = measured.main(*oracle, task)["R@10"].value
            cells[SHARE] = Estimate(cells["R@10"].value / most if most else math.nan)
        if task is None:
            cells |= measured.tiers(method, cadence)
            cells |= measured.entropy(method, cadence)
            known = figures.get((method, cadence), {})
            cells |= {name: Estimate(x) for name, x in known.items() if name != OVERLAP}
        rows.append(Row(method + SUFFIXES[cadence], cells, task))
    notes = list(about.notes)
    if best:
        notes.append(f"{DIFFERENCE}: R@10 less that of {best}, the best baseline of this table")
    return Table(rows, notes + _collapsed(records, figures, measured.of_window), records)


def difference(records: Records, method: str, other: str) -> Estimate:
    """R@10 of a method less that of another one, by embeddings for the whole window."""
    keys = (method, "window"), (other, "window")
    return _Measured(records).difference(*keys, None)


def best_baseline(records: Records) -> str | None:
    """The baseline with the best R@10; None without baselines."""
    return _Measured(records).best_baseline


def recall_by(
    records: Records, parts: np.ndarray, number: int
) -> dict[tuple[str, str], list[Estimate]]:
    """R@10 of each method and cadence over the labels of each part.

    Args:
      records: of an evaluation.
      parts: int (labels,), the part of each label; -1: of none.
      number: of parts.
    """
    measured = _Measured(records)
    return {
        key: [measured.recall_where(key, parts == part) for part in range(number)]
        for key in records.methods
    }


def is_of(method: str, system: str) -> bool:
    """Whether a method is the system, or a variant of it."""
    return method == system or method.startswith(f"{system}, ")


class _Measured:
    """Metrics of records, by method and cadence, and optionally by task."""

    def __init__(self, records: Records):
        self._records, labels = records, records.labels
        self._user = pa.array(labels["user"]).dictionary_encode().indices.to_numpy()
        self._group = np.arange(len(self._user))
        if records.about.averaged_over == "users":
            _, self._group = self._pairs
        self._groups = int(self._group.max(initial=-1)) + 1
        self._cluster = np.zeros(self._groups, np.int64)
        self._cluster[self._group] = self._user

    @functools.cached_property
    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Windows and their users, or queries, (2, pairs); and the pair of each label."""
        pairs = np.stack([self._records.labels["window"], self._user.astype(np.int64)])
        return np.unique(pairs, axis=1, return_inverse=True)

    @property
    def of_window(self) -> float:
        """Users, or queries, of a window on average."""
        pairs, _ = self._pairs
        return pairs.shape[1] / max(1, len(np.unique(pairs[0])))

    def _values(self, key: tuple[str, str], name: str, where: np.ndarray | None) -> np.ndarray:
        metric, _, k = name.partition("@")
        rank = self._records.methods[key].rank
        cutoff = [int(k)] if k else []
        return _METRICS[metric](rank, self._group, self._groups, *cutoff, where)

    def _where(self, task: str | None) -> np.ndarray | None:
        return None if task is None else self._records.labels["task"] == task

    @property
    def best_baseline(self) -> str | None:
        def mean(method: str) -> float:
            return float(np.nanmean(self._values((method, "window"), "R@10", None)))

        return max(self._records.about.baselines, key=mean, default=None)

    def recall_where(self, key: tuple[str, str], where: np.ndarray) -> Estimate:
        return metrics.estimate(self._values(key, "R@10", where), self._cluster)

    def main(self, method: str, cadence: str, task: str | None) -> dict[str, Estimate]:
        return {
            name: metrics.estimate(
                self._values((method, cadence), name, self._where(task)), self._cluster
            )
            for name in self._records.about.metrics
        }

    def difference(self, ours: tuple[str, str], theirs: tuple[str, str], task: str | None):
        a, b = (self._values(key, "R@10", self._where(task)) for key in (ours, theirs))
        return metrics.paired_difference(a, b, self._cluster)

    def tiers(self, method: str, cadence: str) -> dict[str, Estimate]:
        cells = {}
        for tier in self._records.about.tiers:
            where = self._records.labels["tier"] == tier
            values = self._values((method, cadence), "R@10", where)
            cells[f"R@10 {tier}"] = metrics.estimate(values, self._cluster)
        return cells

    def entropy(self, method: str, cadence: str) -> dict[str, Estimate]:
        if cadence != "window" or not self._records.about.has_topics:
            return {}  # a user with several queries has several lists
        entropy = self._records.methods[method, cadence].entropy
        # An oracle has a list for each label; all others have one.
        listed = ~np.isnan(entropy)
        group = self._group[listed]
        number = np.bincount(group, minlength=self._groups)
        values = np.full(self._groups, np.nan)
        np.divide(
            np.bincount(group, entropy[listed], self._groups), number, out=values, where=number > 0
        )
        return {ENTROPY: metrics.estimate(values, self._cluster, share=False)}


def too_few(number: int, what: str, more: str) -> list[str]:
    """A warning if there are fewer than `ENOUGH` users or queries, or none.

    Args:
      number: of users or queries.
      what: "users" or "queries".
      more: the settings that give more of them.
    """
    if number >= ENOUGH:
        return []
    if not number:
        return [
            f"{WARNING}without {what} there is nothing to measure, which is an error; raise {more}"
        ]
    return [f"{WARNING}{number} {what} are too few to tell methods apart; for more, raise {more}"]


def _collapsed(
    records: Records, figures: dict[tuple[str, str], dict[str, float]], of_window: float
) -> list[str]:
    """A warning for each row of the system whose results are nearly the same for all queries.

    Coverage tells that only where there are several times as many lists as twice popularity's one,
    and an index of several times as many items.
    """
    coverages = [
        figures.get((name, "window"), {}).get(COVERAGE)
        for name in records.about.baselines
        if name.startswith("popularity")
    ]
    usual = max((coverage for coverage in coverages if coverage is not None), default=0.0)
    tells = of_window >= _LISTS and usual <= 1 / _LISTS
    notes = []
    for (method, cadence), cells in figures.items():
        if not is_of(method, records.about.system):
            continue
        why = []
        if tells and cells[COVERAGE] < 2 * usual:
            why.append(f"its {COVERAGE} is below twice popularity's")
        if cells.get(OVERLAP, 0) > _ALIKE:
            why.append(f"two of its lists have {cells[OVERLAP]:.0%} in common")
        if why:
            row = f"{method}{SUFFIXES[cadence]}"
            notes.append(f"{WARNING}{row} has collapsed: {' and '.join(why)}")
    return notes
