"""One table of several evaluations, made from their records."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from pinjax.evaluation import baselines, tables
from pinjax.evaluation.metrics import Estimate
from pinjax.evaluation.records import Records

_SHOWN = ("R@10", tables.DIFFERENCE, tables.SHARE)
_POPULARITY = baselines.ALL_TIME, "window"


def rows(runs: Mapping[str, Records]) -> list[tuple[str, dict[str, Estimate]]]:
    """(method, metrics by name) for `formatting.format_table`.

    Runs in succession that are comparable share the rows of the oracle and the baselines, and each
    of them has the paired difference to the first if that has embeddings of the same cadence.

    Args:
      runs: records by name of the run.
    """
    found, groups = [], []
    for name, records in runs.items():
        if groups and comparable(next(iter(groups[-1].values())), records):
            groups[-1][name] = records
        else:
            groups.append({name: records})
    for group in groups:
        first = next(iter(group))
        others = []
        for name, records in group.items():
            # The first rows are of all tasks, one for each method.
            for key, row in zip(records.methods, tables.table_of(records).rows, strict=False):
                if key != records.key(key[0]):
                    continue
                cells = {name: row.metrics[name] for name in _SHOWN if name in row.metrics}
                if not tables.is_of(row.method, records.about.system):
                    others += [(f"  {row.method}", cells)] if name == first else []
                    continue
                if name != first and (group[first].about.system, key[1]) in group[first].methods:
                    cells[f"over {first}"] = _difference(records, key, group[first])
                found.append((name + row.method.removeprefix(records.about.system), cells))
        found += others
    return found


def comparable(one: Records, other: Records) -> bool:
    """Whether two evaluations have the same queries and labels, and ranked the same items."""
    columns = ("user", "window", "label", "label_time", "task")
    if not all(np.array_equal(one.labels[name], other.labels[name]) for name in columns):
        return False
    # Ranks by popularity differ where other items were ranked, or others left out as seen.
    known = [x.methods[_POPULARITY].rank for x in (one, other) if _POPULARITY in x.methods]
    return len(known) < 2 or np.array_equal(*known)


def _difference(records: Records, key: tuple[str, str], first: Records) -> Estimate:
    """R@10 of a method less that of the system of comparable records, at the same cadence."""
    ranks = {
        ("method", "window"): records.methods[key],
        ("first", "window"): first.methods[first.about.system, key[1]],
    }
    both = dataclasses.replace(records, methods=ranks)
    return tables.difference(both, "method", "first")
