"""Windows packed several to a row, so that cost follows actions and labels and not padding.

A batch has a group of rows for each device, of `length` cells each, and the windows of a group's
users lie in its rows. Each has neighbouring cells, its oldest action first. The field `end`
has for each cell the column of its window's last cell, -1 for padding. A user without actions has
one cell, whose item is -1.

Labels lie in shorter rows; those of a user fill one row or several consecutive ones.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from pinjax.data import windows

_PADDING = {"item": -1}  # of the fields whose padding is not 0
_LEAST_WIDTH = 3  # 2**3 labels, the rows of a TPU's tiles
_COMPARED = 4  # comparisons of a negative with labels that cost as much as one logit


class Layout(NamedTuple):
    """The sizes of a packed batch.

    Attributes:
      groups: one for each device.
      users: of all groups.
      rows: of all groups.
      length: cells of a row, M.
      fill: the expected share of cells with an action.
      label_rows: of all groups; 0 without labels.
      label_width: labels of a row, of one user.
    """

    groups: int
    users: int
    rows: int
    length: int
    fill: float = 1.0
    label_rows: int = 0
    label_width: int = 0

    @property
    def alone(self) -> bool:
        """Whether each row has one window, from its first cell."""
        return self.rows == self.users

    @property
    def labels(self) -> int:
        """Of a batch, with padding."""
        return self.label_rows * self.label_width

    def share(self, count: int) -> "Layout":
        """The layout of one of `count` equal shares."""
        names = "groups", "users", "rows", "label_rows"
        return self._replace(**{name: getattr(self, name) // count for name in names})

    def describe(self) -> str:
        rows = f"{self.rows:,} rows of {self.length} actions"
        packed = f"{self.users:,} users in {rows}, about {self.fill:.0%} filled"
        if self.label_rows:
            packed += f"; {self.label_rows:,} rows of {self.label_width} labels"
        return packed

    def with_labels(self, most: np.ndarray, labels: int) -> "Layout":
        """This layout with enough rows of labels for 99 of 100 groups.

        Args:
          most: int (batches, users), labels that each user has at most.
          labels: the most of any user.
        """
        of_groups = most.reshape(-1, self.users // self.groups)
        widths = [2**i for i in range(_LEAST_WIDTH, 31) if 2**i < labels]
        found = {
            width: _most(_rows_of_labels(of_groups, width).sum(axis=1))
            for width in (labels, *widths)
        }
        # The loss compares each negative with a user's labels once a row.
        cost = {width: rows * (width + labels / _COMPARED) for width, rows in found.items()}
        width = min(cost, key=cost.__getitem__)
        return self._replace(label_rows=self.groups * found[width], label_width=width)


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
    rows = groups * _most(needed)
    return Layout(groups, users, rows, length, float(lengths.sum(axis=1).mean()) / (rows * length))


def _most(needed: Sequence[int]) -> int:
    """Enough for 99 of 100 groups."""
    return int(np.quantile(needed, 0.99, method="inverted_cdf"))


def _rows_of(lengths: np.ndarray, length: int) -> int:
    """The rows that a group takes."""
    rows = -(-int(lengths.sum()) // length)
    while _fit(lengths, rows, length) is None:
        rows = min(rows + max(1, rows // 100), len(lengths))  # there, each has a row
    return rows


def _fit(lengths: np.ndarray, rows: int, length: int) -> np.ndarray | None:
    """The first cell of each window, int64 (windows,), or None if they do not fit.

    The longest one first, each goes to the row with the least room left that has enough.
    """
    if len(lengths) <= rows:
        return np.arange(len(lengths)) * length
    # Rows by the cells that are left, and a bit for each number that some row has left.
    left: list[list[int]] = [[] for _ in range(length + 1)]
    left[length] = list(range(rows))[::-1]
    some = 1 << length
    places = [0] * len(lengths)
    for window in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[window])
        enough = some >> size
        if not enough:
            return None
        room = size + (enough & -enough).bit_length() - 1
        row = left[room].pop()
        if not left[room]:
            some ^= 1 << room
        places[window] = row * length + length - room
        left[room - size].append(row)
        some |= 1 << (room - size)
    return np.array(places)


def pack(made: Mapping[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
    """Packs training windows, those of a group's users after one another.

    Windows that do not fit lose their oldest actions, the longest windows first, and the labels of
    these. Users whose labels do not fit lose some, those with the most of them first.

    Args:
      made: the fields of `windows.Sampler`.
      layout: of these users.

    Returns:
      The fields of `windows.history` and `end`, (rows, length) each; `label_item`, -1 for padding,
      and `label_position`, a cell, row * length + column, of the group's rows, int32
      (label_rows, label_width) each; and `same_user` int32 (label_rows, rows of a user), the rows
      of labels that the row's user has in this batch, padded with -1.
    """
    groups = [
        _fit_shortened(lengths, layout.rows // layout.groups, layout.length)
        for lengths in _present(made["item"]).reshape(layout.groups, -1)
    ]
    packed, present, start = _pack(made, groups, layout)
    return packed | _pack_labels(made, present, start, layout)


def _pack_labels(
    made: Mapping[str, np.ndarray], present: np.ndarray, start: np.ndarray, layout: Layout
) -> dict[str, np.ndarray]:
    """The fields of labels, see `pack`; `present` and `start` are `_pack`'s."""
    item, position = made["label_item"], made["label_position"]
    kept = (item >= 0) & (position >= (layout.length - present)[:, None])
    rows, width = layout.label_rows // layout.groups, layout.label_width

    # The rows of each user: `number` of them, from `first` on.
    number = _rows_of_labels(kept.sum(axis=1), width).reshape(layout.groups, -1)
    for of_group in number:
        while of_group.sum() > rows:
            of_group[of_group.argmax()] -= 1
    first = np.cumsum(number, axis=1) - number + np.arange(layout.groups)[:, None] * rows
    number, first = number.ravel(), first.ravel()
    of_user = np.arange(_rows_of_labels(item.shape[1], width))
    of_user = np.where(of_user < number[:, None], first[:, None] + of_user, -1)
    owner, taken = np.nonzero(of_user >= 0)
    taken = of_user[owner, taken]

    items = np.full((layout.label_rows, width), -1, np.int32)
    cells = np.zeros_like(items)
    cells[taken] = (start + present - 1)[owner, None]  # padding, too, is in the user's window
    same = np.full((layout.label_rows, of_user.shape[1]), -1, np.int32)
    same[taken] = of_user[owner]

    # Each label goes to the next place of its user.
    user, label = np.nonzero(kept)
    place = np.arange(len(user)) - np.searchsorted(user, user)
    fits = place < number[user] * width
    user, label, place = user[fits], label[fits], place[fits]
    to = first[user] + place // width, place % width
    items[to] = item[user, label]
    cells[to] = (start - layout.length + present)[user] + position[user, label]
    return {"label_item": items, "label_position": cells, "same_user": same}


def _rows_of_labels(labels: np.ndarray, width: int) -> np.ndarray:
    """The rows that users with so many labels have, at least one."""
    return np.maximum(-(-labels // width), 1)


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
    groups = []
    for _ in range(layout.groups):
        of_group = lengths[:slots]
        number = int(np.searchsorted(np.cumsum(of_group), rows * layout.length, "right"))
        while (places := _fit(of_group[:number], rows, layout.length)) is None:
            number -= max(1, number // 32)
        groups.append((of_group[:number], places))
        lengths = lengths[number:]
    packed, present, start = _pack(histories, groups, layout)
    position = np.maximum(start + present - 1, 0).astype(np.int32)
    return packed | {"position": position[:, None]}, np.flatnonzero(present)


def _pack(
    histories: Mapping[str, np.ndarray],
    groups: Sequence[tuple[np.ndarray, np.ndarray]],
    layout: Layout,
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Packs the windows of each group's users.

    Args:
      histories: of the users.
      groups: of each, the cells of its windows and the first of them; users in order.
      layout: of the batch.

    Returns:
      (the fields of a history; the cells of each window (users,), 0 where a group has no more
      users; and the first of them in the group's rows).
    """
    number, rows, length = layout.groups, layout.rows // layout.groups, layout.length
    slots = layout.users // number
    user, present, start = np.zeros((3, number, slots), np.int64)
    first = 0
    for group, (lengths, places) in enumerate(groups):
        own = len(lengths)
        user[group, :own] = np.arange(first, first + own)
        present[group, :own], start[group, :own] = lengths, places
        first += own
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
    """The lengths to which windows are cut so that they fit, and the first cell of each."""
    most = length
    while (places := _fit(np.minimum(lengths, most), rows, length)) is None:
        most -= 1
    return np.minimum(lengths, most), places
