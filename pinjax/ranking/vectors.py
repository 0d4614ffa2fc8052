"""The vectors of rows: of directories by `pinjax.embed`, or the average of a user's items.

Every vector was computed before the rows that it is a feature of: of several directories of one
run, a row takes the latest that is earlier than the row.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.sparse
from etils import epath

from pinjax import timestamps
from pinjax.data import catalogue, embeddings, item_features
from pinjax.data.dataset import Dataset
from pinjax.data.embeddings import Embeddings
from pinjax.errors import InputError
from pinjax.ids import ids_of, rows_of
from pinjax.ranking.rows import Log, Rows
from pinjax.timestamps import DAY

USERS = "users"
DECAY = 0.01  # λ of an action's weight a day, PinnerSage's balanced choice (KDD 2020, §4)


@dataclasses.dataclass(frozen=True, eq=False)
class Vectors:
    """The vectors of users and items, and which of them each row has.

    Attributes:
      users: float32 (vectors, dim), zeros for a user without one.
      items: float32 (vectors, dim), zeros for an item without one.
      user_row: int32 (rows,), row of `users`.
      item_row: int32 (rows,), row of `items`.
    """

    users: np.ndarray
    items: np.ndarray
    user_row: np.ndarray
    item_row: np.ndarray

    def known(self) -> float:
        """The share of rows with both vectors."""
        users, items = self.users.any(axis=1), self.items.any(axis=1)
        return float((users[self.user_row] & items[self.item_row]).mean())


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """The embeddings of a run as of several times.

    Attributes:
      name: of the last two parts of the first directory's path.
      as_of: int64 (directories,), unix seconds, ascending.
      directories: in this order.
    """

    name: str
    as_of: np.ndarray
    directories: tuple[Embeddings, ...]


def find(names: Sequence[str], dataset: Dataset, copies: epath.Path, verify: bool) -> list[Run]:
    """The runs whose embeddings are in directories, in the order of the first of each.

    Args:
      names: of directories by `pinjax.embed`.
      dataset: that the embeddings have to be of.
      copies: directory of copies of those on gs://.
      verify: whether checksums are compared.

    Raises:
      InputError: for a directory that is no embeddings, or of another data set, and for two runs of
        one name.
    """
    runs: dict[tuple, list[tuple[str, Embeddings]]] = {}
    for name in names:
        found = embeddings.open_directory(epath.Path(name), copies, verify)
        embeddings.check_dataset(found, dataset.spec)
        if found.ids(embeddings.ITEMS) is None:
            raise InputError(f"{name} has no vectors of items")
        made_by = tuple(found.manifest.get(x) for x in ("checkpoint", "config", "vectors"))
        runs.setdefault(made_by, []).append((name, found))
    made = [_run(*zip(*of_run, strict=True)) for of_run in runs.values()]
    called = [run.name for run in made]
    if repeated := [name for name in called if called.count(name) > 1]:
        raise InputError(f"--embeddings: two runs are named {repeated[0]}")
    return made


def _run(names: Sequence[str], directories: Sequence[Embeddings]) -> Run:
    name = "/".join(epath.Path(names[0]).parts[-2:]).removesuffix("/embeddings")
    as_of = [timestamps.parse("as_of", found.manifest["as_of"]) for found in directories]
    order = np.argsort(as_of)
    return Run(name, np.array(as_of)[order], tuple(directories[i] for i in order))


def of_run(run: Run, log: Log, rows: Rows, dataset: Dataset) -> Vectors:
    """The embeddings of rows.

    A user of several vectors has their mean; where a run has none of users, theirs is the average
    of their items, see `aggregate`.

    Raises:
      InputError: if the ids are of another type than the data set's.
    """
    if run.directories[0].ids(USERS) is None:
        return aggregate(item_vectors(run, dataset), run.as_of, log, rows)
    which = np.searchsorted(run.as_of, rows.time) - 1  # as_of < time
    items, item_row = np.unique(rows.item, return_inverse=True)
    users, user_row = np.unique(rows.user, return_inverse=True)
    ids = ids_of([log.users[user] for user in users])
    of_users = [_table(x, USERS, ids) for x in run.directories]
    of_items = [_table(x, embeddings.ITEMS, dataset.catalogue.ids[items]) for x in run.directories]
    return Vectors(
        users=np.concatenate(of_users),
        items=np.concatenate(of_items),
        user_row=(which * len(users) + user_row).astype(np.int32),
        item_row=(which * len(items) + item_row).astype(np.int32),
    )


def item_vectors(run: Run, dataset: Dataset) -> np.ndarray:
    """Float32 (items, dim): the vectors of all items, of a run's first directory."""
    return _table(run.directories[0], embeddings.ITEMS, dataset.catalogue.ids)


def _table(found: Embeddings, table: str, ids: np.ndarray) -> np.ndarray:
    """Float32 (ids, dim): the mean of an id's vectors, zeros for an id without one."""
    wanted, given = catalogue.id_array(ids), found.ids(table)
    if given.type != wanted.type:
        raise InputError(
            f"{found.directory}: {table} have ids of type {given.type}; expected {wanted.type}"
        )
    row = rows_of(given, wanted)
    vectors = np.concatenate(list(found.vectors(table)))[row >= 0]
    row = row[row >= 0]
    total = np.zeros((len(ids), vectors.shape[1]), np.float32)
    np.add.at(total, row, vectors)
    return total / np.maximum(np.bincount(row, minlength=len(ids)), 1)[:, None]


def aggregate(items: np.ndarray, as_of: np.ndarray, log: Log, rows: Rows) -> Vectors:
    """A user is the average of the items of the user's labels, which weigh e^{-λ days}.

    So PinnerSage's clusters were made one vector, for ranking. It is of unit length.

    Args:
      items: float (items, dim), a vector of each item of the catalogue; zeros where there is none.
      as_of: int64 (times,), ascending, unix seconds at which averages are computed; the first is
        before all rows.
      log: of all users.
      rows: that need the vectors.
    """
    items = item_features.unit_length(items)
    users, user_row = np.unique(rows.user, return_inverse=True)
    place = np.searchsorted(users, log.user)
    counts = log.positive & (users[np.minimum(place, len(users) - 1)] == log.user)
    place, item, time = place[counts], log.records["item"][counts], log.time[counts]
    averages = []
    for end in as_of:
        weight = np.where(time <= end, np.exp(-DECAY * np.maximum(end - time, 0) / DAY), 0)
        shape = len(users), len(items)
        averages.append(scipy.sparse.csr_array((weight, (place, item)), shape) @ items)
    which = np.searchsorted(as_of, rows.time) - 1
    row, item_row = np.unique(rows.item, return_inverse=True)
    return Vectors(
        users=item_features.unit_length(np.concatenate(averages)),
        items=items[row],
        user_row=(which * len(users) + user_row).astype(np.int32),
        item_row=item_row.astype(np.int32),
    )
