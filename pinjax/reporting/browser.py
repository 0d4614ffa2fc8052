"""What the browsers of a page show of single users, or queries or groups."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pinjax.data.dataset import Dataset
from pinjax.evaluation.records import Records
from pinjax.reporting.shown import Shown, clipped

HISTORY = 40  # actions that are shown, the latest
LABELS = 30

_KEY = ("user", "window", "label", "task")  # of a label

Action = tuple[int, int, int]  # row of the item, kind, unix seconds


class Did(NamedTuple):
    """What somebody did in the first of their evaluation windows.

    Attributes:
      window: its start, unix seconds; 0 without times, as with leave-one-out.
      first: time of the first label.
      rows: of the records, of the first `LABELS` labels in order of time.
    """

    window: int
    first: int
    rows: np.ndarray


def sample(records: Records, most: int, first_window: bool = False) -> list[Any]:
    """Own ids of some who have labels, in their order; if asked for, in the first window alone."""
    users, window = records.labels["user"], records.labels["window"]
    if first_window:
        users = users[window == window.min()]
    ids = np.array(list(dict.fromkeys(users.tolist())), object)
    rows = np.sort(np.random.default_rng(0).permutation(len(ids))[:most])
    return ids[rows].tolist()


def did(records: Records, id_: Any) -> Did:
    """What one with labels did."""
    labels = records.labels
    rows = np.flatnonzero(labels["user"] == id_)
    window = labels["window"][rows].min()
    rows = rows[labels["window"][rows] == window]
    rows = rows[np.argsort(labels["label_time"][rows], kind="stable")]
    return Did(int(window), int(labels["label_time"][rows[0]]), rows[:LABELS])


def ranks(records: Records) -> dict[tuple, int | None]:
    """The rank, from 1, of each label by the system of an evaluation; None if it was not listed."""
    about = records.about
    listed, rank = about.listed, records.methods[records.key(about.system)].rank
    columns = (records.labels[name].tolist() for name in _KEY)
    return {
        key: place + 1 if place < listed else None
        for key, place in zip(zip(*columns, strict=True), rank.tolist(), strict=True)
    }


def keys(records: Records, rows: np.ndarray) -> list[tuple]:
    """The keys, in `ranks`, of labels."""
    return list(zip(*(records.labels[name][rows].tolist() for name in _KEY), strict=True))


class Histories:
    """What is known of some users, queries or groups.

    Attributes:
      kinds: names of the kinds of actions.
    """

    def __init__(self, dataset: Dataset, records: Records, noun: str, split: str, ids: Sequence):
        """Reads the histories.

        Args:
          dataset: of the run.
          records: of its evaluation.
          noun: "user", "query", "group" or "item", as the run calls them.
          split: of the records.
          ids: own ids of those that are read.
        """
        self._of: dict[str, list[Action]] = {str(id_): [] for id_ in ids}
        if records.about.averaged_over == "labels":
            self.kinds = dataset.spec.tasks
            self._read_pairs(dataset)
        elif noun == "group":
            self.kinds = ("",)
            self._read_groups(dataset)
        else:
            self.kinds = dataset.spec.actions
            self._read_timelines(dataset, split)

    def of(self, id_: Any, then: Did) -> list[Action]:
        """The actions of one up to the start of a window, oldest first."""
        actions = self._of[str(id_)]
        if then.window:
            return [action for action in actions if action[2] <= then.window]
        return [action for action in actions if action[2] < max(then.first, 1)]

    def _read_timelines(self, dataset: Dataset, split: str) -> None:
        left = len(self._of)
        for chunk in dataset.chunks(split):
            for user, start, stop in zip(
                chunk.users, chunk.offsets[:-1], chunk.offsets[1:], strict=True
            ):
                if str(user) in self._of:
                    actions = chunk.records[start:stop]
                    self._of[str(user)] = actions[["item", "action", "time"]].tolist()
                    left -= 1
            if not left:
                break

    def _read_pairs(self, dataset: Dataset) -> None:
        ids, train = dataset.queries.ids, dataset.pairs("train")
        for query in np.flatnonzero(np.isin(ids, np.array(list(self._of), object))):
            pairs = train[train["query"] == query]
            self._of[ids[query]] = pairs[["item", "task", "time"]].tolist()

    def _read_groups(self, dataset: Dataset) -> None:
        for row, id_ in enumerate(dataset.groups.tolist()):
            if str(id_) in self._of:
                items = dataset.graph.groups.of(row).tolist()
                self._of[str(id_)] = [(item, 0, 0) for item in items]


def entry(
    id_: Any, records: Records, then: Did, histories: Histories, shown: Shown
) -> dict[str, Any]:
    """One for the page; what runs recommend is added later."""
    history, labels = histories.of(id_, then), records.labels
    latest = history[-HISTORY:]
    places = shown.places([row for row, _, _ in latest])
    done = shown.places_of_ids(labels["label"][then.rows].tolist())
    times = labels["label_time"][then.rows].tolist()
    return {
        "id": clipped(str(id_)),
        "known": len(history),
        "history": [[p, kind, time] for p, (_, kind, time) in zip(places, latest, strict=True)],
        "did": [list(pair) for pair in zip(done, times, strict=True)],
        "ranks": [],
        "recommended": [],
    }


def answers(table: pa.Table, ids: Sequence[Any], shown: Shown) -> list[list[list]]:
    """Items (place, score) of each of some ids, best first, from a table of recommendations."""
    own = np.array([str(id_) for id_ in table.column(0).to_pylist()], object)
    table = table.filter(pa.array(np.isin(own, np.array([str(id_) for id_ in ids], object))))
    found: dict[str, list[list]] = {str(id_): [] for id_ in ids}
    own, items, scores = (table.column(i).to_pylist() for i in range(3))
    for id_, place, score in zip(own, shown.places_of_ids(items), scores, strict=True):
        found[str(id_)].append([place, round(score, 4)])
    return [found[str(id_)] for id_ in ids]
