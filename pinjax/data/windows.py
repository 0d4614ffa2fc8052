"""Windows of history and the labels that follow them, cut from complete timelines.

Everything is vectorised over a batch of timelines in the flat form of `timelines.unpack`: records
of all users, concatenated, and the offset at which each user begins. Actions are identified by
their flat index, and `time_keys` orders the actions of all users by (user, time).
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

import numpy as np

from pinjax.data import last_action, timelines
from pinjax.data.spec import Spec
from pinjax.errors import InputError

OBJECTIVES = ("next_action", "sasrec", "all_action", "dense_all_action")
HISTORY = (*timelines.ACTION.names, "request_time")  # the fields of `history`

_PLAIN = r'[^\s,">](?:[^,">]*[^\s,">])?'
_ENTRY = re.compile(rf'\s*(?:"((?:[^"]|"")*)"|({_PLAIN})?)\s*(?:>=\s*([^,]*?))?\s*(?:,|$)')
_PADDING = np.array((-1, 0, 0.0, 0, 0), timelines.ACTION)
_NEVER = np.iinfo(np.int64).max
_USER_STRIDE = 2**34  # more than any time plus any horizon: keys of two users never mix


@dataclasses.dataclass(frozen=True)
class Positives:
    """Which actions are labels: type, minimum duration and surface.

    Attributes:
      min_seconds: float32 (actions,), by row of the action vocabulary: the shortest duration that
        is positive; inf for types that are never positive.
      surfaces: bool (surfaces,), by row of the surface vocabulary: whether it counts.
    """

    min_seconds: np.ndarray
    surfaces: np.ndarray

    @classmethod
    def create(cls, spec: Spec, positives: str, surfaces: str) -> "Positives":
        """From comma-separated names, quoted if they contain commas or outer spaces.

        Args:
          spec: of the data set, for its vocabularies.
          positives: action types, each optionally with a minimum duration in seconds:
            "save, click>=10".
          surfaces: "home, search"; "" for all of them.

        Raises:
          InputError: for a name that is not in the data set's vocabulary.
        """
        min_seconds = np.full(len(spec.actions), np.inf, np.float32)
        for name, seconds in _entries(positives):
            row = _row(spec.name, "action", spec.actions, name)
            try:
                least = 0.0 if seconds is None else float(seconds)
            except ValueError:
                least = math.nan
            if not 0 <= least <= 1e9:  # the longest duration of a log
                raise InputError(
                    f"data.positives: '{name}>={seconds}' is neither a type nor type>=seconds"
                )
            min_seconds[row] = least
        counts = np.full(len(spec.surfaces), not surfaces)
        for name, seconds in _entries(surfaces):
            if seconds is not None:
                raise InputError(f"data.surfaces: '{name}>={seconds}': a surface has no seconds")
            counts[_row(spec.name, "surface", spec.surfaces, name)] = True
        return cls(min_seconds, counts)

    def __call__(self, records: np.ndarray) -> np.ndarray:
        """Bool (n,): which of the records are positive."""
        long_enough = records["duration"] >= self.min_seconds[records["action"]]
        return long_enough & self.surfaces[records["surface"]]


def _entries(text: str) -> Iterator[tuple[str, str | None]]:
    """(name, text after ">=" or None) of each entry."""
    end = 0
    while end < len(text):
        match = _ENTRY.match(text, end)
        quoted, plain, seconds = match.groups() if match else (None, None, "")
        name = plain if quoted is None else quoted.replace('""', '"')
        if name is None and seconds is not None:
            raise InputError(f"{text!r}: expected names with commas between, in quotes if need be")
        end = match.end()
        if name is not None:
            yield name, seconds


def join(names: Sequence[str]) -> str:
    """Joins names into the format of `Positives.create`."""
    return ", ".join(
        name if re.fullmatch(_PLAIN, name) else '"' + name.replace('"', '""') + '"'
        for name in names
    )


def _row(dataset: str, kind: str, vocabulary: Sequence[str], name: str) -> int:
    if name not in vocabulary:
        raise InputError(f"{dataset} has no {kind} {name!r}; it has {', '.join(vocabulary)}")
    return vocabulary.index(name)


def labels_per_user(objective: str, length: int, labels: int) -> int:
    """The labels per user in a batch, including padding; see `Sampler`."""
    if objective not in OBJECTIVES:
        raise InputError(f"objective {objective!r} is none of {', '.join(OBJECTIVES)}")
    return {
        "next_action": 1,
        "sasrec": length,
        "all_action": labels,
        "dense_all_action": min(labels, length),
    }[objective]


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Draws one training window a user, and its labels (PinnerFormer, §3.4 and §3.5).

    The window ends at an action that is drawn uniformly from the actions with a label and a long
    history: a full window, or half of the user's actions. Served users have long histories, too.
    The objective determines the positions that predict, and the labels of an action at time t:

      next_action       at the last action, the next positive action;
      sasrec            at every action, the action right after it if that is positive;
      all_action        at the last action, up to `labels` positive actions in (t, t + horizon];
      dense_all_action  at `labels` random positions, one positive action in (t, t + horizon].

    The request time of an embedding is drawn uniformly between its action and its first label.

    Attributes:
      length: actions in a window, M.
      objective: one of `OBJECTIVES`.
      labels: pairs drawn per user, L, for the two all-action objectives.
      horizon: K, in seconds.
      positives: which actions are labels.
      train_end: later actions are neither inputs nor labels.
      last_action_share: the share of windows that end at the last trainable action, see
        `last_action`.
      leave_one_out: the last two actions of a user are left out, and times are ranks.
    """

    length: int
    objective: str
    labels: int
    horizon: int
    positives: Positives
    train_end: int
    last_action_share: float = 0.0
    leave_one_out: bool = False

    def __post_init__(self):
        labels_per_user(self.objective, self.length, self.labels)  # refuses an unknown one

    @property
    def pairs(self) -> int:
        """The labels per user in a batch, including padding."""
        return labels_per_user(self.objective, self.length, self.labels)

    def uniforms(self, rng: np.random.Generator, users: int) -> np.ndarray:
        """The random numbers in [0, 1) for a batch, a row for each of `users`."""
        return rng.random((users, 1 + 2 * self.length + max(self.labels, self.pairs)))

    def lengths(self, actions: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """About how many actions the windows of users have, at least 1: int64, as `actions`.

        Args:
          actions: of each user until the end of training.
          uniforms: random numbers in [0, 1).
        """
        if self.last_action_share:
            uniforms = last_action.favour(uniforms, self.last_action_share)
        end = np.ceil(actions * (1 + uniforms) / 2).astype(np.int64)
        return np.clip(end, 1, self.length)

    def most_labels(self, lengths: np.ndarray) -> np.ndarray:
        """The labels that windows of such lengths have at most: int64, as `lengths`."""
        if self.objective in ("sasrec", "dense_all_action"):  # at most one an action
            return np.minimum(lengths, self.pairs)
        return np.full_like(lengths, self.pairs)

    def __call__(
        self, records: np.ndarray, offsets: np.ndarray, uniforms: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Draws from B timelines.

        Args:
          records: `timelines.ACTION` (n,), the concatenated timelines.
          offsets: int64 (B + 1,), where each timeline begins.
          uniforms: (B, ...), from `self.uniforms`. Each user has a row, so a user's draw does not
            depend on the other users of the batch.

        Returns:
          the fields of `history`; `label_position` int32 (B, pairs), the index in the window of the
          action that predicts; and `label_item` int32 (B, pairs), -1 for padding.
        """
        usable = self._usable(records, offsets)
        first, count, positive = self._labels(records, offsets, usable)
        may_end = self._may_end(usable & (count > 0), offsets)
        uniform = uniforms[:, 0]
        if self.last_action_share:
            uniform = last_action.favour(uniform, self.last_action_share)
        ends = _choose(may_end, offsets, uniform)
        window, inside = last_of(offsets[:-1], ends, self.length)
        by_position, by_wait, by_label = np.split(
            uniforms[:, 1:], [self.length, 2 * self.length], axis=1
        )

        if self.objective == "dense_all_action":
            # The smallest random keys are a uniform draw; positions without a label come last.
            keys = np.where(inside & (count[window] > 0), by_position, 2.0)
            position = np.argpartition(keys, self.pairs - 1, axis=1)[:, : self.pairs]
        elif self.objective == "sasrec":
            position = np.broadcast_to(np.arange(self.length), window.shape)
        else:
            position = np.full((len(ends), self.pairs), self.length - 1)
        action = np.take_along_axis(window, position, axis=1)
        available = np.where(np.take_along_axis(inside, position, axis=1), count[action], 0)

        if self.objective == "all_action":
            # Systematic sampling: labels are equally likely and distinct, by one number per user.
            slot = np.arange(self.pairs)
            spread = ((slot + by_label[:, :1]) * available / self.pairs).astype(np.int64)
            pick = np.where(available > self.pairs, spread, slot)
        else:
            pick = (by_label[:, : self.pairs] * available).astype(np.int64)
        exists = pick < available
        label = positive[np.where(exists, first[action] + pick, 0)] if len(positive) else action
        time = records["time"].astype(np.int64)
        first_label = np.full(window.shape, _NEVER)
        row = np.arange(len(ends))[:, None]
        np.minimum.at(first_label, (row, position), np.where(exists, time[label], _NEVER))
        wait = np.where(first_label < _NEVER, first_label - time[window], 0)
        request_times = time[window] + (by_wait * wait).astype(np.int64)
        return {
            **history(records, offsets[:-1], ends, self.length, request_times),
            "label_position": position.astype(np.int32),
            "label_item": np.where(exists, records["item"][label], -1).astype(np.int32),
        }

    def _usable(self, records: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        if self.leave_one_out:
            left = np.repeat(offsets[1:], np.diff(offsets)) - np.arange(len(records))
            return left > 2
        return records["time"] <= self.train_end

    def _may_end(self, trainable: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """Bool (n,): the trainable actions with a long history, see `Sampler`."""
        lengths = np.diff(offsets)
        place = np.arange(len(trainable)) - np.repeat(offsets[:-1], lengths)
        last = np.maximum.reduceat(np.where(trainable, place, 0), offsets[:-1])
        least = np.minimum(self.length - 1, last // 2)
        return trainable & (place >= np.repeat(least, lengths))

    def _labels(
        self, records: np.ndarray, offsets: np.ndarray, usable: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(first, count, positive): an action may predict positive[first : first + count]."""
        is_positive = self.positives(records) & usable
        positive = np.flatnonzero(is_positive)
        if self.objective in ("all_action", "dense_all_action"):
            key = time_keys(records, offsets)
            first = np.searchsorted(key[positive], key, "right")
            last = np.searchsorted(key[positive], key + self.horizon, "right")
            return first, last - first, positive
        first = np.cumsum(is_positive)
        if self.objective == "sasrec":
            count = np.append(is_positive[1:], False).astype(np.int64)
            count[offsets[1:] - 1] = 0
            return first, count, positive
        total = np.repeat(first[offsets[1:] - 1], np.diff(offsets))
        return first, np.minimum(total - first, 1), positive


def time_keys(records: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """int64 (n,), ascending keys of (user, time); within a user they differ by seconds."""
    users = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return users * _USER_STRIDE + records["time"]


def last_action_before(keys: np.ndarray, users: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Flat index of each user's last action up to a time; the user's first - 1 if there is none.

    Args:
      keys: `time_keys` of the timelines.
      users: int (n,), rows of the timelines.
      times: int (n,), unix seconds.
    """
    return np.searchsorted(keys, users.astype(np.int64) * _USER_STRIDE + times, "right") - 1


def history(
    records: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    length: int,
    request_times: np.ndarray,
) -> dict[str, np.ndarray]:
    """The last `length` actions of each window, oldest first, after padding.

    Args:
      records: `timelines.ACTION` (n,).
      starts: int64 (B,), the first action of each timeline.
      ends: int64 (B,), the last action of each window; start - 1 for an empty window.
      length: M.
      request_times: int (B, 1) or (B, M), of the embedding of a window or of each action.

    Returns:
      the fields of `timelines.ACTION`, each (B, M), with item -1 for padding; and
      `request_time` uint32 (B, M), unix seconds, when the embedding at an action is requested.
    """
    index, inside = last_of(starts, ends, length)
    window = records[index]
    window[~inside] = _PADDING
    fields = {name: np.ascontiguousarray(window[name]) for name in timelines.ACTION.names}
    return {**fields, "request_time": np.maximum(fields["time"], request_times).astype(np.uint32)}


def last_of(starts: np.ndarray, ends: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """The last places of each range from a start to an end, (B, length), and which are in it."""
    index = ends[:, None] + np.arange(1 - length, 1)
    inside = index >= starts[:, None]
    return np.where(inside, index, 0), inside


def _choose(eligible: np.ndarray, offsets: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """An eligible action of each user: the first for a uniform number of 0, the last for 1.

    A user without one gets the first action - 1.
    """
    before = np.concatenate([[0], np.cumsum(eligible)])[offsets]
    choices = np.diff(before)
    rank = before[:-1] + np.minimum((uniform * choices).astype(np.int64), choices - 1)
    candidates = np.append(np.flatnonzero(eligible), 0)
    return np.where(choices > 0, candidates[rank], offsets[:-1] - 1)
