"""One table of several evaluations, made from their records."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from pinjax.evaluation import tables
from pinjax.evaluation.metrics import Estimate
from pinjax.evaluation.records import Records

_SHOWN = ("R@10", tables.DIFFERENCE, tables.SHARE)


def rows(runs: Mapping[str, Records]) -> list[tuple[str, dict[str, Estimate]]]:
    """(method, metrics by name) for `formatting.format_table`.

    Runs in succession that have the same labels share the rows of the oracle and the baselines, and
    each of them has the paired difference to the first.

    Args:
      runs: records by name of the run.
    """
    found, groups = [], []
    for name, records in runs.items():
        if groups and same_labels(next(iter(groups[-1].values())), records):
            groups[-1][name] = records
        else:
            groups.append({name: records})
    for group in groups:
        first = next(iter(group))
        others = []
        for name, records in group.items():
            for row in tables.table_of(records).rows:
                key = row.method, "window"
                if row.task is not None or key not in records.methods:
                    continue
                cells = {name: row.metrics[name] for name in _SHOWN if name in row.metrics}
                if not tables.is_of(row.method, records.about.system):
                    others += [(f"  {row.method}", cells)] if name == first else []
                    continue
                if name != first:
                    cells[f"over {first}"] = _difference(records, row.method, group[first])
                found.append((name + row.method.removeprefix(records.about.system), cells))
        found += others
    return found


def same_labels(one: Records, other: Records) -> bool:
    """Whether two evaluations have the same queries and labels."""
    columns = ("user", "window", "label", "label_time", "task")
    return all(np.array_equal(one.labels[name], other.labels[name]) for name in columns)


def _difference(records: Records, method: str, first: Records) -> Estimate:
    """R@10 of a method less that of the system of other records with the same labels."""
    ranks = {
        ("method", "window"): records.methods[method, "window"],
        ("first", "window"): first.methods[first.about.system, "window"],
    }
    both = dataclasses.replace(records, methods=ranks)
    return tables.difference(both, "method", "first")
