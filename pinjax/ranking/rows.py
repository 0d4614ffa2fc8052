"""The rows that a ranking model is trained and tested on: a user, an item, a time and labels.

They are actions of the evaluation users after the training period, on which no embedding was
trained. A row without a label was shown but not wanted. A log that holds labels alone says nothing
about what was shown; there, items that existed are sampled beside each label.
"""

import dataclasses

import numpy as np

from pinjax.data import windows
from pinjax.data.dataset import Dataset
from pinjax.data.spec import SPLITS, Spec
from pinjax.errors import InputError
from pinjax.timestamps import DAY

ANY = "any"  # the label that is true if one of the types is
SAMPLED = 20  # items beside a label, by default
TEST_SHARE = 1 / 3  # of the rows, the latest
PAUSE = 30 * 60  # seconds between two requests of a user
SPANS = (1, 7, 28, 365, None)  # days before a row in which labels are counted; None: all


@dataclasses.dataclass(frozen=True, eq=False)
class Log:
    """All actions of a data set's timelines, user by user in order of time.

    Attributes:
      users: own ids; training users come first.
      first_evaluated: row of the first evaluation user in `users`.
      user: int64 (n,), row of each action's user.
      records: `timelines.ACTION` (n,).
      positive: bool (n,), the actions that are labels.
    """

    users: list[int | str]
    first_evaluated: int
    user: np.ndarray
    records: np.ndarray
    positive: np.ndarray

    @classmethod
    def read(cls, dataset: Dataset, positives: windows.Positives) -> "Log":
        """The log of a data set.

        Raises:
          InputError: if it has no timelines, or these have no times.
        """
        if dataset.spec.leave_one_out:
            raise InputError(f"data.name: {dataset.spec.name} has no times to split the rows by")
        chunks = [chunk for split in SPLITS for chunk in dataset.chunks(split)]
        lengths = np.concatenate([np.diff(chunk.offsets) for chunk in chunks])
        records = np.concatenate([chunk.records for chunk in chunks])
        return cls(
            users=[user for chunk in chunks for user in chunk.users],
            first_evaluated=dataset.spec.users.get("train", 0),
            user=np.repeat(np.arange(len(lengths)), lengths),
            records=records,
            positive=positives(records),
        )

    @property
    def time(self) -> np.ndarray:
        """Int64 (n,), unix seconds."""
        return self.records["time"].astype(np.int64)


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Rows in order of requests.

    Attributes:
      types: names of the labels, `ANY` first if there are several.
      user: int64 (n,), row of the log's users.
      item: int64 (n,), row of the catalogue.
      time: int64 (n,), unix seconds.
      request: int64 (n,), the list that a row is ranked in.
      labels: bool (n, types).
      test: bool (n,), whether the row tests; else it trains.
      sampled: how many items were sampled for each label; 0: the rows are the log's own.
    """

    types: tuple[str, ...]
    user: np.ndarray
    item: np.ndarray
    time: np.ndarray
    request: np.ndarray
    labels: np.ndarray
    test: np.ndarray
    sampled: int

    def __len__(self) -> int:
        return len(self.user)


def make(
    log: Log,
    positives: windows.Positives,
    spec: Spec,
    created: np.ndarray,
    start: int,
    sampled: int | None = None,
) -> Rows:
    """The rows after a time.

    Actions on one item in a request are one row, of the first one's time.

    Args:
      log: of the data set.
      positives: the actions that are labels; rows are on their surfaces.
      spec: of the data set.
      created: uint32 (items,), unix seconds from which items exist.
      start: unix seconds; rows are later.
      sampled: how many items are sampled for each label, of those in the log that existed before.
        0: none; items on which there are only other actions are the rows without a label. None: 0
        if there are other actions, else `SAMPLED`.

    Raises:
      InputError: if there are no labels, or nothing else.
    """
    time = log.time
    kept = (log.user >= log.first_evaluated) & (time > start)
    kept &= positives.surfaces[log.records["surface"]]
    about = f"{spec.name}: after the embeddings' time, evaluation users have"
    if not (kept & log.positive).any():
        raise InputError(f"{about} no action that is a label")
    if sampled is None:
        sampled = 0 if (kept & ~log.positive).any() else SAMPLED
    if sampled:
        # What a log first tells of an item is often that somebody wanted it: such an item would be
        # told from all that are sampled.
        kept &= log.positive & (created[log.records["item"]] < time)
    found = np.flatnonzero(kept)
    request = _requests(log.user[found], time[found])
    types = [row for row, least in enumerate(positives.min_seconds) if np.isfinite(least)]
    records = log.records[found]
    wanted = log.positive[found, None] & (records["action"][:, None] == types)
    # An item is one row of a request, as of the first action on it: what is wanted was shown
    # before, and a later row would count that.
    listed = request * len(created) + records["item"]
    _, first, row = np.unique(listed, return_index=True, return_inverse=True)
    labels = np.zeros((len(first), len(types)), bool)
    np.logical_or.at(labels, row, wanted)
    order = np.argsort(first)
    first, labels = first[order], labels[order]
    names = tuple(spec.actions[row] for row in types)
    if len(types) > 1:
        names, labels = (ANY, *names), np.c_[labels.any(axis=1), labels]
    found = found[first]
    request = np.arange(len(found)) if sampled else request[first]
    user, item, time = log.user[found], log.records["item"][found].astype(np.int64), time[found]
    test = time >= np.quantile(time, 1 - TEST_SHARE, method="higher") if len(found) else kept[found]
    rows = Rows(names, user, item, time, request, labels, test, sampled)
    if sampled:
        rows = _with_sampled(rows, created, np.unique(log.records["item"]))
    for kind, where in (("training", ~rows.test), ("test", rows.test)):
        wanted = rows.labels[where, 0]
        if wanted.all() or not wanted.any():
            raise InputError(
                f"{about} {wanted.sum():,} labels among {len(wanted):,} {kind} rows; expected some "
                "with and some without a label"
            )
    return rows


def _requests(user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """Numbers of requests: a user's rows without a pause."""
    begins = (np.diff(user, prepend=-1) != 0) | (np.diff(time, prepend=0) > PAUSE)
    return np.cumsum(begins) - 1


def _with_sampled(rows: Rows, created: np.ndarray, acted_on: np.ndarray) -> Rows:
    """Each row followed by items that existed before its time, without what the user wants.

    They are of `acted_on`: an item that the log lacks would be told from labels by that alone.
    """
    rng = np.random.default_rng(0)
    by_age = acted_on[np.argsort(created[acted_on], kind="stable")]
    existing = np.searchsorted(created[by_age], rows.time, "left")
    drawn = by_age[(rng.random((len(rows), rows.sampled)) * existing[:, None]).astype(np.int64)]
    item = np.c_[rows.item, drawn].ravel()
    row = np.repeat(np.arange(len(rows)), 1 + rows.sampled)
    own = np.arange(len(item)) % (1 + rows.sampled) == 0
    wanted = np.isin(rows.user[row] * len(created) + item, rows.user * len(created) + rows.item)
    row, item, own = (x[own | ~wanted] for x in (row, item, own))
    return dataclasses.replace(
        rows,
        item=item,
        labels=rows.labels[row] & own[:, None],
        **{name: getattr(rows, name)[row] for name in ("user", "time", "request", "test")},
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Counts:
    """How often users or items had acted before a time.

    Attributes:
      keys: int64 (n,) of `_keys`, ascending.
    """

    keys: np.ndarray

    @classmethod
    def of(cls, actor: np.ndarray, time: np.ndarray) -> "Counts":
        """Counts of actions: rows of users or items, int64 (n,), and unix seconds."""
        return cls(np.sort(_keys(actor, time)))

    def before(self, actor: np.ndarray, time: np.ndarray, seconds: int | None = None) -> np.ndarray:
        """Int64 (rows,): actions earlier than a time, and at most so many seconds earlier."""
        since = np.zeros_like(time) if seconds is None else np.maximum(time - seconds, 0)
        return np.searchsorted(self.keys, _keys(actor, time)) - np.searchsorted(
            self.keys, _keys(actor, since)
        )


def _keys(actor: np.ndarray, time: np.ndarray) -> np.ndarray:
    return actor.astype(np.int64) * 2**33 + time


def count_features(
    log: Log, rows: Rows, spec: Spec, created: np.ndarray
) -> tuple[list[str], np.ndarray]:
    """What is known of a row without embeddings, as of its time: names, float32 (rows, features).

    They are log(1 + n): of actions of each type of the user and of the item, of their labels in
    spans before the row, and of the item's age in days. Nothing that happens at the row's time or
    later counts.
    """
    names, columns = [], []

    def add(name: str, values: np.ndarray) -> None:
        names.append(name)
        columns.append(np.log1p(values).astype(np.float32))

    for actor in ("user", "item"):
        of_log = log.user if actor == "user" else log.records["item"]
        of_rows = getattr(rows, actor)
        for row, name in enumerate(spec.actions):
            of_type = log.records["action"] == row
            if of_type.any():
                counts = Counts.of(of_log[of_type], log.time[of_type])
                add(f"{actor}_{name}", counts.before(of_rows, rows.time))
        counts = Counts.of(of_log[log.positive], log.time[log.positive])
        for days in SPANS:
            within = None if days is None else days * DAY
            name = "labels" if days is None else f"labels_{days}_days"
            add(f"{actor}_{name}", counts.before(of_rows, rows.time, within))
    add("item_days", np.maximum(rows.time - created[rows.item].astype(np.int64), 0) / DAY)
    return names, np.stack(columns, axis=1)
