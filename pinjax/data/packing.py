"""Windows packed several to a row, so that cost follows actions and not padding.

A batch has a group of rows for each device, of `length` cells each, and the windows of a group's
users lie in its rows. Each has neighbouring cells, its oldest action first. The field `end`
has for each cell the column of its window's last cell, -1 for padding. A user without actions has
one cell, whose item is -1.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pinjax.data import windows

_PADDING = {"item": -1}  # of the fields whose padding is not 0


class Layout(NamedTuple):
    """The sizes of a packed batch.

    Attributes:
      groups: one for each device.
      users: of all groups.
      rows: of all groups.
      length: cells of a row, M.
      fill: the expected share of cells with an action.
    """

    groups: int
    users: int
    rows: int
    length: int
    fill: float = 1.0

    @property
    def alone(self) -> bool:
        """Whether each row has one window, from its first cell."""
        return self.rows == self.users

    def share(self, count: int) -> "Layout":
        """The layout of one of `count` equal shares."""
        groups, users, rows = (x // count for x in self[:3])
        return self._replace(groups=groups, users=users, rows=rows)

    def describe(self) -> str:
        rows = f"{self.rows:,} rows of {self.length} actions"
        return f"{self.users:,} users in {rows}, about {self.fill:.0%} filled"


def layout_for(lengths: np.ndarray, groups: int, length: int) -> Layout:
    """A layout with enough rows for 99 of 100 groups.

    Args:
      lengths: int (batches, users), cells of each window in some batches, at most `length`.
      groups: that divide the users.
      length: M.
    """
    users = lengths.shape[1]
    of_groups = lengths.reshape(-1, users // groups)
    needed = [_rows_of(of_group, length) for of_group in of_groups]
    rows = groups * int(np.quantile(needed, 0.99, method="inverted_cdf"))
    return Layout(groups, users, rows, length, float(lengths.sum(axis=1).mean()) / (rows * length))


def _rows_of(lengths: np.ndarray, length: int) -> int:
    """The rows that a group takes."""
    rows = -(-int(lengths.sum()) // length)
    while not _fit(lengths, rows, length):
        rows = min(rows + max(1, rows // 100), len(lengths))  # there, each has a row
    return rows


def _fit(lengths: np.ndarray, rows: int, length: int) -> list[tuple[int, int]] | None:
    """The (row, first column) of each window, or None if they do not fit.

    The longest one first, each goes to the row with the least room left that has enough.
    """
    # Rows by the cells that are left, and a bit for each number that some row has left.
    left: list[list[int]] = [[] for _ in range(length + 1)]
    left[length] = list(range(rows))[::-1]
    some = 1 << length
    places = [(0, 0)] * len(lengths)
    for window in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[window])
        enough = some >> size
        if not enough:
            return None
        room = size + (enough & -enough).bit_length() - 1
        row = left[room].pop()
        if not left[room]:
            some ^= 1 << room
        places[window] = row, length - room
        left[room - size].append(row)
        some |= 1 << (room - size)
    return places


def pack(made: Mapping[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    """Packs training windows, those of a group's users after one another.

    Windows that do not fit lose their oldest actions, the longest windows first, and the labels of
    these.

    Args:
      made: the fields of `windows.Sampler`, and others with a row for each user.
      layout: of these users.

    Returns:
      The fields of `windows.history` and `end`, (rows, length) each, and the other fields; their
      `label_position` is a cell, row * length + column, of the group's rows.
    """
    users = np.arange(layout.users).reshape(layout.groups, -1)
    packed, present, start = _pack(made, list(users), layout)
    others = {name: made[name] for name in made if name not in windows.HISTORY}
    kept = others["label_item"] >= 0
    kept &= others["label_position"] >= (layout.length - present)[:, None]
    first = start - (layout.length - present)
    cell = first[:, None] + np.where(kept, others["label_position"], layout.length - 1)
    labels = np.where(kept, others["label_item"], -1)
    return packed | others | {"label_item": labels, "label_position": cell.astype(np.int32)}


def batches(
    parts: Iterable[Mapping[str, np.ndarray]], layout: Layout
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Packs the histories of any number of users, in their order.

    Args:
      parts: the fields of `windows.history` of some users each.
      layout: of every batch. A batch has fewer users where more would not fit.

    Yields:
      (the fields of `windows.history`, `end`, and `position` int32 (users, 1), the last cell of
      each window; the places in the batch of the users that it has, in order).
    """
    left: dict[str, np.ndarray] = {}
    for part in itertools.chain(parts, [None]):  # None: the last batch may have fewer users
        if part is not None:
            left = {
                name: np.concatenate([left[name], part[name]]) if left else part[name]
                for name in windows.HISTORY
            }
        while left and len(left["item"]) >= (1 if part is None else layout.users):
            batch, places = _next(left, layout)
            left = {name: values[len(places) :] for name, values in left.items()}
            yield batch, places


def _next(
    histories: Mapping[str, np.ndarray], layout: Layout
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The batch of the first of the users that fit, and their places in it."""
    slots, rows = layout.users // layout.groups, layout.rows // layout.groups
    lengths = _present(histories["item"][: layout.users])
    groups, first = [], 0
    for _ in range(layout.groups):
        of_group = lengths[first : first + slots]
        number = int(np.searchsorted(np.cumsum(of_group), rows * layout.length, "right"))
        while number > rows and not _fit(of_group[:number], rows, layout.length):
            number -= max(1, number // 32)
        groups.append(np.arange(first, first + number))
        first += number
    packed, present, start = _pack(histories, groups, layout)
    position = np.maximum(start + present - 1, 0).astype(np.int32)
    return packed | {"position": position[:, None]}, np.flatnonzero(present)


def _pack(
    histories: Mapping[str, np.ndarray], groups: Sequence[np.ndarray], layout: Layout
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Packs the windows of each group's users, at most `users` of all groups.

    Returns:
      (the fields of a history; the cells of each window (users,), 0 where a group has no more
      users; and the first of them in the group's rows).
    """
    number, rows, length = layout.groups, layout.rows // layout.groups, layout.length
    slots = layout.users // number
    user, present, start = np.zeros((3, number, slots), np.int64)
    for group, own in enumerate(groups):
        user[group, : len(own)] = own
        lengths = _present(histories["item"][own])
        if layout.alone:
            places = np.arange(len(own)) * length
        else:
            lengths, places = _fit_shortened(lengths, rows, length)
        present[group, : len(own)], start[group, : len(own)] = lengths, places
    user, present, start = user.ravel(), present.ravel(), start.ravel()
    inside = np.arange(length) >= length - present[:, None]
    first = start + np.repeat(np.arange(number) * rows * length, slots)
    cell = ((first - (length - present))[:, None] + np.arange(length))[inside]

    def moved(values: np.ndarray, padding: int) -> np.ndarray:
        packed = np.full(layout.rows * length, padding, values.dtype)
        packed[cell] = values
        return packed.reshape(layout.rows, length)

    packed = {
        name: moved(histories[name][user][inside], _PADDING.get(name, 0))
        for name in windows.HISTORY
    }
    last = ((start + present - 1) % length).astype(np.int32)
    packed["end"] = moved(np.repeat(last, present), -1)
    return packed, present, start


def _present(items: np.ndarray) -> np.ndarray:
    """The cells that each window takes, int64 (users,)."""
    return np.maximum((items >= 0).sum(axis=1), 1)


def _fit_shortened(lengths: np.ndarray, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Lengths with which windows fit, and their first cells."""
    most = length
    while (places := _fit(np.minimum(lengths, most), rows, length)) is None:
        most -= 1
    row, column = np.array(places).reshape(-1, 2).T
    return np.minimum(lengths, most), row * length + column
