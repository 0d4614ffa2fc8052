"""Metrics of a ranking model, as values whose mean is the metric.

So each has the interval of `evaluation.metrics.estimate`, over draws of users, and a difference of
two methods has that of their values' differences; HIT@3 has those of shares. Everything here sums
in float64.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from pinjax.evaluation import metrics
from pinjax.evaluation.metrics import Estimate
from pinjax.ranking.rows import Rows

TOP = 3


def auc_values(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Values (rows,) whose mean is the area under the ROC curve; NaN if labels are all the same.

    The area is the share of pairs, of a row with the label and one without, in which the former has
    the higher logit; equal ones count half. A row's value is the area and what the row changes in
    it: DeLong's components (Biometrics 1988), whose variance is that of the area.

    Args:
      logits: float (rows,).
      labels: bool (rows,).
    """
    positive, negative = np.sort(logits[labels]), np.sort(logits[~labels])
    if not len(positive) or not len(negative):
        return np.full(len(labels), np.nan)
    share = np.empty(len(labels))  # of the rows of the other kind that a row is right about
    share[labels] = _below(negative, logits[labels])
    share[~labels] = 1 - _below(positive, logits[~labels])
    area = share[labels].mean()
    weight = np.where(labels, len(labels) / len(positive), len(labels) / len(negative))
    return area + weight * (share - area)


def _below(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The share of numbers below each value; equal ones count half."""
    sides = (np.searchsorted(ascending, values, side) for side in ("left", "right"))
    return sum(sides) / (2 * len(ascending))


def log_losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-log p of what happened, float64 (rows,), in nats."""
    return np.logaddexp(0, np.where(labels, -1.0, 1.0) * logits)


def hits(logits: np.ndarray, labels: np.ndarray, request: np.ndarray) -> np.ndarray:
    """HIT@3 of requests: the share of their rows with the label that are among the top 3.

    Equal logits count against a row.

    Args:
      logits: float (rows,).
      labels: bool (rows,).
      request: int (rows,), from 0.

    Returns:
      float64 (requests,), NaN for a request without the label or of no more than 3 rows.
    """
    order = np.lexsort((-logits, request))
    first = np.searchsorted(request[order], request[order], "left")
    by_request, falling = request[order], -logits[order]
    last_equal = np.append((np.diff(by_request) != 0) | (np.diff(falling) != 0), True)
    ends = np.flatnonzero(last_equal)
    rank = np.empty(len(order), np.int64)
    rank[order] = ends[np.searchsorted(ends, np.arange(len(order)))] - first
    sizes = np.bincount(request)
    counts = labels & (sizes[request] > TOP)
    return metrics.recall(rank, request, len(sizes), TOP, where=counts)


def _of_rows(values: Callable) -> Callable:
    return lambda logits, labels, request: values(logits, labels)


METRICS = {"AUC": _of_rows(auc_values), "log loss": _of_rows(log_losses), f"HIT@{TOP}": hits}


@dataclasses.dataclass(frozen=True)
class Results:
    """Each method's values of a metric, by type, averaged over seeds.

    Attributes:
      types: of labels.
      values: by metric, then by method, float64 (types, rows or requests).
      users: by metric, the user of each row or request.
      seeds: by metric, then by method, float64 (seeds, types), the means by seed.
    """

    types: tuple[str, ...]
    values: dict[str, dict[str, np.ndarray]]
    users: dict[str, np.ndarray]
    seeds: dict[str, dict[str, np.ndarray]]

    def estimates(self, metric: str, method: str) -> dict[str, Estimate]:
        """The metric by type, with its 95 % interval over draws of users."""
        users, share = self.users[metric], METRICS[metric] is hits
        found = (metrics.estimate(x, users, share=share) for x in self.values[metric][method])
        return dict(zip(self.types, found, strict=True))

    def lifts(self, metric: str, method: str, over: str) -> dict[str, Estimate]:
        """The metric of a method less that of another one, with its paired interval."""
        users, of_metric = self.users[metric], self.values[metric]
        pairs = zip(of_metric[method], of_metric[over], strict=True)
        if METRICS[metric] is hits:
            found = (metrics.paired_difference(x, y, users) for x, y in pairs)
        else:
            found = (metrics.estimate(x - y, users, share=False) for x, y in pairs)
        return dict(zip(self.types, found, strict=True))


def measure(logits: dict[str, list[np.ndarray]], rows: Rows) -> Results:
    """Measures methods on the test rows.

    Args:
      logits: by method, of each seed: float32 (test rows, types).
      rows: all rows.
    """
    labels, user = rows.labels[rows.test], rows.user[rows.test]
    _, first, request = np.unique(rows.request[rows.test], return_index=True, return_inverse=True)
    values, users, seeds = {}, {}, {}
    for metric, function in METRICS.items():
        users[metric] = user[first] if function is hits else user
        values[metric], seeds[metric] = {}, {}
        for method, of_method in logits.items():
            found = np.array(
                [
                    [function(*columns, request) for columns in zip(x.T, labels.T, strict=True)]
                    for x in of_method
                ]
            )
            values[metric][method] = found.mean(axis=0)
            seeds[metric][method] = _means(found)
    return Results(rows.types, values, users, seeds)


def _means(values: np.ndarray) -> np.ndarray:
    """Means along the last axis, without NaN; NaN if there is nothing else."""
    known = ~np.isnan(values)
    total, number = np.where(known, values, 0).sum(axis=-1), known.sum(axis=-1)
    return np.where(number > 0, total / np.maximum(number, 1), np.nan)
