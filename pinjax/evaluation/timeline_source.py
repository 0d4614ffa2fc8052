"""Evaluation queries from timelines: what users do after a time.

An evaluation window begins at a time T. Each user has a history up to T and, in (T, T + window],
labels: the distinct items that the user engages with positively. With leave-one-out
there is one window, and the label is the last action (test) or the one before it (valid).
"""

import collections
import dataclasses
import functools

import numpy as np
from ml_collections import ConfigDict

from pinjax import ragged
from pinjax.data import timelines, windows
from pinjax.data.dataset import Dataset
from pinjax.errors import InputError
from pinjax.evaluation import baselines, oracles, tables
from pinjax.evaluation.engagements import Engagements
from pinjax.evaluation.queries import Candidates, EvalQueries, concatenate, missed_labels
from pinjax.timestamps import DAY

# The latest time before a label at which an embedding of the cadence is computed, from the time of
# the label and T.
_LATEST_EMBEDDING = {
    "window": lambda time, start: np.full_like(time, start),
    "daily": lambda time, start: time - 1 - (time - 1 - start) % DAY,
    "realtime": lambda time, start: time - 1,
}
CADENCES = tuple(_LATEST_EMBEDDING)


class _Actions:
    """A chunk of timelines, with the arrays that all windows need."""

    def __init__(self, chunk: timelines.Chunk, positives: windows.Positives):
        self.users, self.records, self.offsets = chunk.users, chunk.records, chunk.offsets
        self.time = chunk.records["time"].astype(np.int64)
        self.keys = windows.time_keys(chunk.records, chunk.offsets)
        self.positive = np.flatnonzero(positives(chunk.records))

    def owner(self, action: np.ndarray) -> np.ndarray:
        """Row of the user of each action."""
        return np.searchsorted(self.offsets, action, "right") - 1

    def engaged(self, starts: np.ndarray, ends: np.ndarray, length: int) -> np.ndarray:
        """Items of the last positive actions from a start to an end, int32 (n, length), or -1."""
        first = np.searchsorted(self.positive, starts)
        last = np.searchsorted(self.positive, ends, "right") - 1
        place, inside = windows.last_of(first, last, length)
        action = np.append(self.positive, 0)[place]  # there may be none
        return np.where(inside, self.records["item"][action], -1)


@dataclasses.dataclass(frozen=True, eq=False)
class TimelineSource:
    """The evaluation queries of a data set's timelines (PinnerFormer, §4.1).

    Attributes:
      dataset: of users and actions.
      positives: the actions that are labels.
      length: actions in a history.
      config: the `evaluate` section of a run's config.
    """

    dataset: Dataset
    positives: windows.Positives
    length: int
    config: ConfigDict

    averaged_over = "users"
    depth = 50  # for Interest Entropy@50; the other metrics count 10
    main_metrics = ("R@10", "HR@10", "NDCG@10")
    tiers = ("new", "known")
    always_tiers = False  # they read all training timelines, too slow during training
    tasks = ()
    validates = True
    may_repeat = False  # the next item is rarely one that the user just saw
    context_lengths = baselines.LENGTHS

    @property
    def cadences(self) -> tuple[str, ...]:
        if self.dataset.spec.leave_one_out:  # without times nothing is fresher
            return ("window",)
        return tuple(self.config.cadences)

    @property
    def few_excluded(self) -> bool:
        return not self.config.filter_seen

    @functools.cached_property
    def topics(self) -> np.ndarray | None:
        """The topics of items, or None if all are unknown."""
        topics = self.dataset.catalogue.topics
        return topics if (topics >= 0).any() else None

    @property
    def window_starts(self) -> tuple[int, ...]:
        """Unix seconds at which the evaluation windows begin."""
        if self.dataset.spec.leave_one_out:
            return (0,)
        return tuple(self.dataset.spec.train_end + start for start in self.config.window_starts)

    @functools.lru_cache(maxsize=64)  # noqa: B019, it lives as long as its command
    def candidates(self, start: int) -> Candidates:
        created = self.dataset.catalogue.created
        everything = np.ones(len(created), bool)
        exists = everything if self.dataset.spec.leave_one_out else created <= start
        return Candidates.create(start, exists, self.config.index_size)

    @functools.cached_property
    def engagements(self) -> Engagements:
        """The engagements of the training users; with leave-one-out without the last two."""
        parts, users, spec = [], 0, self.dataset.spec
        for chunk in self.dataset.chunks("train"):
            lengths = np.diff(chunk.offsets)
            records, time = chunk.records, chunk.records["time"]
            left = np.repeat(chunk.offsets[1:], lengths) - np.arange(len(records))
            keep = left > 2 if spec.leave_one_out else np.ones(len(records), bool)
            user = np.repeat(users + np.arange(len(lengths)), lengths)
            time = np.zeros_like(time) if spec.leave_one_out else time
            columns = user.astype(np.int32), records["item"], time, self.positives(records)
            parts.append([column[keep] for column in columns])
            users += len(lengths)
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        if not parts:
            columns = [np.zeros(0, kind) for kind in (np.int32, np.int32, np.uint32, bool)]
        parts.clear()  # of a large log these are gigabytes
        return Engagements(*columns, spec.num_items)

    def item_tiers(self, start: int) -> np.ndarray:
        """Int (items,), row of `tiers`: whether a training user acted on it by `start`."""
        return (self.engagements.all_counts(start) > 0).astype(np.int64)

    def oracle(self, cadence: str) -> oracles.UserOracle | None:
        """The best possible answers to queries of a cadence; None unless the world is simulated."""
        if self.dataset.oracle is None:
            return None
        horizon = self.config.window if cadence == "window" else DAY
        return oracles.UserOracle(self.dataset.oracle, horizon, in_session=cadence == "realtime")

    def describe(self, split: str) -> str:
        """A description of a split's labels.

        Raises:
          InputError: if no user has a label in any window.
        """
        users, labels = self._count(split)
        if not users:
            raise InputError(
                f"{self.dataset.spec.name}, split {split}: in no evaluation window has a user a "
                f"history and a label in the {self.config.window} s after its start"
            )
        return f"{users:,} users, {labels:,} labels"

    def notes(self, split: str) -> list[str]:
        """The description, and warnings if a window begins in training, or there are few users."""
        description, parts = self.describe(split), self.queries(split).values()
        description += missed_labels(
            parts, "the item did not exist yet", "the user had acted on it"
        )
        notes = [description]
        spec, starts = self.dataset.spec, self.window_starts
        early = 0 if spec.leave_one_out else sum(start < spec.train_end for start in starts)
        if early:
            notes.append(
                f"{tables.WARNING}windows that begin before training ends: {early} of "
                f"{len(starts)}; a trained model knows what other users did in them, a baseline "
                "does not"
            )
        return [*notes, *self.too_few(split)]

    def too_few(self, split: str) -> list[str]:
        """A warning if there are few users, or none."""
        users, _ = self._count(split)
        parts = self.queries(split).values()
        if any(len(part.users) == self.config.users for part in parts):
            more = "evaluate.users"
        elif self.dataset.spec.leave_one_out:
            more = "the number of users"
        else:
            more = (
                "evaluate.window, the number of evaluate.window_starts, "
                f"or split.{split} of pinjax.prepare"
            )
        return tables.too_few(users, "users", more)

    def _count(self, split: str) -> tuple[int, int]:
        """The numbers of users with a label in any window, and of their labels."""
        parts = self.queries(split).values()
        users = set().union(*(part.users for part in parts))
        return len(users), sum(len(part.label_item) for part in parts)

    def queries(self, split: str, cadence: str = "window") -> dict[int, EvalQueries]:
        """The queries of a split, by the start of the window; only windows with labels.

        At any cadence, the users are those with a label and a history at the start of the window.
        """
        return self._at_starts(split) if cadence == "window" else self._read(split, cadence)

    @functools.cache  # noqa: B019, it lives as long as its command
    def _at_starts(self, split: str) -> dict[int, EvalQueries]:
        return self._read(split, "window")

    def _read(self, split: str, cadence: str) -> dict[int, EvalQueries]:
        parts = collections.defaultdict(list)
        left = dict.fromkeys(self.window_starts, self.config.users)
        for chunk in self.dataset.chunks(split):
            actions = _Actions(chunk, self.positives)
            for start in self.window_starts:
                if left[start] > 0:
                    part = self._of_chunk(actions, split, start, cadence, left[start])
                    left[start] -= len(part.users)
                    if len(part):
                        parts[start].append(part)
            if not any(number > 0 for number in left.values()):
                break
        return {start: concatenate(parts[start]) for start in self.window_starts if parts[start]}

    def _of_chunk(
        self, actions: _Actions, split: str, start: int, cadence: str, max_users: int
    ) -> EvalQueries:
        records, offsets = actions.records, actions.offsets
        if self.dataset.spec.leave_one_out:
            held_out = 2 if split == "valid" else 1
            label = (offsets[1:] - held_out)[np.diff(offsets) > held_out]
            query = np.stack([label - 1, actions.time[label - 1]])
        else:
            label, query = self._in_window(actions, start, cadence)
        owner = actions.owner(label)
        keep = np.isin(owner, np.unique(owner)[:max_users])
        label, query = label[keep], query[:, keep]
        # Labels after the same history and the same request time share a query.
        (ends, times), label_query = np.unique(query, axis=1, return_inverse=True)
        user, query_user = np.unique(actions.owner(ends), return_inverse=True)
        starts = offsets[user][query_user]
        histories = windows.history(records, starts, ends, self.length, times[:, None])
        excluded = np.zeros((0, 2), np.int64)
        if self.config.filter_seen:
            before = ends
            if not self.dataset.spec.leave_one_out:
                # The same at any cadence: an item that is first seen in the window may be found.
                owner, time = user[query_user], np.full_like(ends, start)
                before = windows.last_action_before(actions.keys, owner, time)
            excluded = seen(records, starts, before)
        return EvalQueries(
            users=[actions.users[u] for u in user],
            query_user=query_user,
            query_time=histories["request_time"][:, -1].astype(np.int64),
            features=histories,
            context=actions.engaged(starts, ends, max(self.context_lengths)),
            history=ends + 1 - starts,
            label_query=label_query,
            label_item=records["item"][label],
            label_exists=self.candidates(start).eligible[records["item"][label]],
            label_task=np.zeros(len(label), np.uint8),
            label_time=actions.time[label],
            excluded=excluded,
            depth=self.depth,
        )

    def _in_window(
        self, actions: _Actions, start: int, cadence: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Labels (labels,), and their queries (2, labels): the last action and the request time.

        Actions are flat indices. With cadence "realtime" embeddings are computed at the action.
        """
        time = actions.time
        inside = (time > start) & (time <= start + self.config.window)
        label = actions.positive[inside[actions.positive]]
        owner = actions.owner(label)
        # The first of several engagements with an item is the label.
        engaged = owner * np.int64(self.dataset.spec.num_items) + actions.records["item"][label]
        first = np.unique(engaged, return_index=True)[1]
        label, owner = label[first], owner[first]
        last = windows.last_action_before(actions.keys, owner, np.full_like(owner, start))
        known = last >= actions.offsets[owner]
        label, owner = label[known], owner[known]
        request = _LATEST_EMBEDDING[cadence](time[label], start)
        last = windows.last_action_before(actions.keys, owner, request)
        if cadence == "realtime":
            request = np.maximum(time[last], start)
        return label, np.stack([last, request])


def seen(records: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Int64 (n, 2): pairs, each once, of a query and an item that its user had acted on."""
    lengths = ends + 1 - starts
    query = np.repeat(np.arange(len(ends)), lengths)
    item = records["item"][ragged.positions(starts, lengths)].astype(np.int64)
    width = 1 + int(item.max(initial=0))
    return np.stack(np.divmod(np.unique(query * width + item), width), axis=1)
