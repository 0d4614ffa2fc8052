"""What users did after a moment: the questions that an index is asked, and their answers.

At a moment T each user has a history and, in (T, T + window], labels: the distinct items that the
user engages with positively. Where a data set is split by leave-one-out there is one moment, and
the label is the last action (test) or the one before it (valid).
"""

import dataclasses
import itertools

import numpy as np

from pinjax.data import dataset as dataset_lib
from pinjax.data import timelines, windows

DAY = 24 * 60 * 60

# When a user's embedding is computed: from the label's time and T, the latest time of the newest
# one that does not know of the label.
_LATEST_EMBEDDING = {
    "window": lambda time, moment: np.full_like(time, moment),
    "daily": lambda time, moment: time - 1 - (time - 1 - moment) % DAY,
    "realtime": lambda time, moment: time - 1,
}
CADENCES = tuple(_LATEST_EMBEDDING)

_NOBODY = timelines.Chunk([], np.zeros(0, timelines.ACTION), np.zeros(1, np.int64))


@dataclasses.dataclass(frozen=True)
class Questions:
    """What is asked of the index at one moment, and the right answers.

    A query is a history. Where embeddings are computed anew during the window a user has several,
    and each label is asked of the newest one before it.

    Attributes:
      users: own ids of the users.
      histories: fields of `windows.history`, each (queries, length).
      query_user: int64 (queries,), row in `users`.
      label_query: int64 (labels,), row of the query.
      label_item: int32 (labels,).
      label_exists: bool (labels,), whether the item existed at the moment T. One that did not is
        missed by every method.
      seen: int64 (pairs, 2), query and item of what the user has acted on before; none of them
        unless they are to be filtered.
    """

    users: list[int | str]
    histories: dict[str, np.ndarray]
    query_user: np.ndarray
    label_query: np.ndarray
    label_item: np.ndarray
    label_exists: np.ndarray
    seen: np.ndarray

    @property
    def label_user(self) -> np.ndarray:
        return self.query_user[self.label_query]


@dataclasses.dataclass(frozen=True)
class Counts:
    """What the training users had done by a moment.

    Attributes:
      ever: int64 (items,), positive actions.
      lately: int64 (items,), those of the last window.
      known: bool (items,), whether anybody had acted on the item.
    """

    ever: np.ndarray
    lately: np.ndarray
    known: np.ndarray


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """The questions of a data set.

    Attributes:
      dataset: where users and actions come from.
      positives: which actions are labels.
      length: actions in a history.
      window: seconds after a moment in which labels count.
      max_users: users asked at a moment.
      index_size: items in the index; a seeded sample where more existed.
      filter_seen: whether questions tell what is to be left out of the results.
    """

    dataset: dataset_lib.Dataset
    positives: windows.Positives
    length: int
    window: int
    max_users: int
    index_size: int
    filter_seen: bool

    @property
    def _leave_one_out(self) -> bool:
        return self.dataset.spec.leave_one_out

    def moments(self, starts: tuple[int, ...]) -> tuple[int, ...]:
        """Unix seconds of the moments that lie so many seconds after the training period."""
        if self._leave_one_out:
            return (0,)
        return tuple(self.dataset.spec.train_end + start for start in starts)

    def exists(self, moment: int) -> np.ndarray:
        """Bool (items,): which items exist at a moment."""
        created = self.dataset.catalogue.created
        return np.ones(len(created), bool) if self._leave_one_out else created <= moment

    def index(self, moment: int) -> np.ndarray:
        """Bool (items,): which items the index holds."""
        held = self.exists(moment)
        surplus = int(held.sum()) - self.index_size
        if surplus > 0:
            out = np.random.default_rng(0).choice(np.flatnonzero(held), surplus, replace=False)
            held[out] = False
        return held

    def counts(self, moment: int) -> Counts:
        """What the split train had done by the moment."""
        items = len(self.dataset.catalogue)
        ever, lately, known = np.zeros((3, items), np.int64)
        for chunk in self.dataset.chunks("train"):
            records = chunk.records
            if self._leave_one_out:
                left = np.repeat(chunk.offsets[1:], np.diff(chunk.offsets))
                past = left - np.arange(len(records)) > 2
                recent = past
            else:
                past = records["time"] <= moment
                recent = past & (records["time"] > moment - self.window)
            positive = self.positives(records)
            for total, where in (
                (ever, past & positive),
                (lately, recent & positive),
                (known, past),
            ):
                total += np.bincount(records["item"][where], minlength=items)
        return Counts(ever, lately, known > 0)

    def questions(self, split: str, moment: int, cadence: str = "window") -> Questions:
        """The questions of a split at a moment.

        The users are those with a history at the moment itself and a label, at any cadence. There
        may be none.
        """
        parts: list[Questions] = []
        left = self.max_users
        for chunk in self.dataset.chunks(split):
            parts.append(self._of_chunk(chunk, split, moment, cadence, left))
            left -= len(parts[-1].users)
            if left <= 0:
                break
        return _concatenate(parts or [self._of_chunk(_NOBODY, split, moment, cadence, 0)])

    def _of_chunk(
        self, chunk: timelines.Chunk, split: str, moment: int, cadence: str, most_users: int
    ) -> Questions:
        records, offsets = chunk.records, chunk.offsets
        if self._leave_one_out:
            held_out = 2 if split == "valid" else 1
            label = (offsets[1:] - held_out)[np.diff(offsets) > held_out]
            query = np.stack([label - 1, records["time"][label - 1]])
        else:
            label, query = self._in_window(records, offsets, moment, cadence)
        owner = _owner(offsets, label)
        keep = np.isin(owner, np.unique(owner)[:most_users])
        label, query = label[keep], query[:, keep]
        # Labels that are asked of the same history at the same moment share a query.
        (ends, asked), label_query = np.unique(query, axis=1, return_inverse=True)
        user, query_user = np.unique(_owner(offsets, ends), return_inverse=True)
        starts = offsets[user][query_user]
        return Questions(
            users=[chunk.users[u] for u in user],
            histories=windows.history(records, starts, ends, self.length, asked[:, None]),
            query_user=query_user,
            label_query=label_query,
            label_item=records["item"][label],
            label_exists=self.exists(moment)[records["item"][label]],
            seen=_seen(records, starts, ends) if self.filter_seen else np.zeros((0, 2), np.int64),
        )

    def _in_window(
        self, records: np.ndarray, offsets: np.ndarray, moment: int, cadence: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels, and for each its query (2, labels): the newest action it knows, and when it is.

        Actions are flat indices. Embeddings in real time are computed at the action itself.
        """
        keys = windows.time_keys(records, offsets)
        time = records["time"].astype(np.int64)
        inside = (time > moment) & (time <= moment + self.window)
        label = np.flatnonzero(inside & self.positives(records))
        owner = _owner(offsets, label)
        # Of several engagements with an item the first is the label.
        engaged = owner * np.int64(len(self.dataset.catalogue)) + records["item"][label]
        first = np.unique(engaged, return_index=True)[1]
        label, owner = label[first], owner[first]
        known = (
            windows.last_action_before(keys, owner, np.full_like(owner, moment)) >= offsets[owner]
        )
        label, owner = label[known], owner[known]
        asked = _LATEST_EMBEDDING[cadence](time[label], moment)
        newest = windows.last_action_before(keys, owner, asked)
        if cadence == "realtime":
            asked = np.maximum(time[newest], moment)
        return label, np.stack([newest, asked])


def _owner(offsets: np.ndarray, action: np.ndarray) -> np.ndarray:
    return np.searchsorted(offsets, action, "right") - 1


def _seen(records: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    lengths = ends + 1 - starts
    query = np.repeat(np.arange(len(ends)), lengths)
    action = np.arange(len(query)) - np.repeat(np.cumsum(lengths) - lengths - starts, lengths)
    return np.stack([query, records["item"][action]], axis=1)


def _concatenate(parts: list[Questions]) -> Questions:
    users = np.cumsum([0] + [len(part.users) for part in parts])
    queries = np.cumsum([0] + [len(part.query_user) for part in parts])
    return Questions(
        users=list(itertools.chain.from_iterable(part.users for part in parts)),
        histories={
            name: np.concatenate([part.histories[name] for part in parts])
            for name in parts[0].histories
        },
        query_user=np.concatenate([p.query_user + n for p, n in zip(parts, users, strict=False)]),
        label_query=np.concatenate(
            [p.label_query + n for p, n in zip(parts, queries, strict=False)]
        ),
        label_item=np.concatenate([part.label_item for part in parts]),
        label_exists=np.concatenate([part.label_exists for part in parts]),
        seen=np.concatenate(
            [p.seen + np.array([n, 0]) for p, n in zip(parts, queries, strict=False)]
        ),
    )
