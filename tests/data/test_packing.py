"""Packed windows against the windows themselves, cell by cell."""

import itertools

import numpy as np
import pytest

from pinjax.data import packing, timelines, windows

LABEL = "label_item", "label_position"


def draw(rng, lengths, length):
    """Histories of so many actions, with random fields."""
    inside = np.arange(length) >= length - lengths[:, None]
    history = {}
    for name in windows.HISTORY:
        dtype = timelines.ACTION[name] if name in timelines.ACTION.names else np.uint32
        values = rng.integers(1, 100, inside.shape)
        history[name] = np.where(inside, values, -1 if name == "item" else 0).astype(dtype)
    return history


def windows_of(batch, group, rows, last):
    """The fields of the window that ends at a cell of a group's rows."""
    row, column = divmod(int(last), batch["end"].shape[1])
    row += group * rows
    own = batch["end"][row] == column
    assert own.any()
    assert (np.diff(np.flatnonzero(own)) == 1).all()
    return {name: batch[name][row, own] for name in windows.HISTORY}


def assert_window(found, history, user, number):
    """A user without actions has one cell of padding."""
    for name in windows.HISTORY:
        np.testing.assert_array_equal(found[name], history[name][user, -max(number, 1) :])


def labels_of(batch, users):
    """The labels and their positions of each user, by `same_user`."""
    found, seen = [], set()
    for same in batch["same_user"]:
        rows = same[same >= 0].tolist()
        if rows and rows[0] not in seen:
            item, position = (batch[name][rows].ravel() for name in LABEL)
            exists = item >= 0
            found.append(list(zip(item[exists].tolist(), position[exists].tolist(), strict=True)))
            assert len(found) <= users
            for row in rows:
                np.testing.assert_array_equal(batch["same_user"][row], same)
            seen.update(rows)
    return found


# One action, all of them, none, ends of windows at ends of rows, halves that do not fit.
MIXES = {
    "any": lambda rng, users, length: rng.integers(0, length + 1, users),
    "empty": lambda rng, users, length: np.zeros(users, int),
    "one": lambda rng, users, length: np.ones(users, int),
    "full": lambda rng, users, length: np.full(users, length),
    "one or full": lambda rng, users, length: np.where(rng.random(users) < 0.5, 1, length),
    "halves": lambda rng, users, length: np.full(users, length // 2),
    "more than halves": lambda rng, users, length: np.full(users, length // 2 + 1),
}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize(("groups", "users", "length"), [(1, 1, 1), (1, 7, 8), (3, 24, 5)])
def test_training_windows_are_all_there(rng, mix, groups, users, length):
    for _ in range(10):
        lengths = MIXES[mix](rng, users, length)
        history = draw(rng, lengths, length)
        position = rng.integers(0, length, (users, 3))
        exists = position >= length - lengths[:, None]
        labels = np.where(exists, rng.integers(0, 50, position.shape), -1)
        made = history | {"label_position": position, "label_item": labels}
        layout = packing.layout_for(np.maximum(lengths, 1)[None], groups, length)
        layout = layout.with_labels(exists.sum(axis=1)[None], 3)
        batch = packing.pack(made, layout)
        rows = layout.rows // groups
        assert batch["item"].shape == batch["end"].shape == (layout.rows, length)
        assert (batch["end"] >= 0).sum() == np.maximum(lengths, 1).sum()
        own = labels_of(batch, users)
        for user in range(users):
            expected = zip(labels[user, exists[user]], position[user, exists[user]], strict=True)
            for (label, cell), (item, place) in zip(own[user], expected, strict=True):
                row, column = divmod(cell, length)
                group = user * groups // users
                last = row * length + batch["end"][group * rows + row, column]
                assert_window(windows_of(batch, group, rows, last), history, user, lengths[user])
                assert label == item
                assert last - cell == length - 1 - place


def test_few_rows_are_enough(rng):
    """Best fit takes at most 11 / 9 of the fewest rows, and one more."""
    lengths = np.minimum(rng.lognormal(4, 1, 500), 256).astype(int)
    rows = packing.layout_for(lengths[None], 1, 256).rows
    assert rows <= 11 / 9 * -(-lengths.sum() // 256) + 1
    assert packing.layout_for(np.full((1, 9), 5), 1, 8).alone  # no two fit in a row
    # Each group has the rows of the one that needs most, or of nearly all.
    assert packing.layout_for(np.array([[1, 1, 8, 8]]), 2, 8).rows == 4
    assert packing.layout_for(np.array([[8, 8]] + [[1, 1]] * 200), 1, 8).rows == 1


def test_windows_that_do_not_fit_lose_their_oldest_actions(rng):
    lengths = np.array([8, 3, 7, 2])
    history = draw(rng, lengths, 8)
    made = history | {
        "label_position": np.array([[0, 7], [5, 7], [1, 7], [6, 7]]),
        "label_item": np.full((4, 2), 9),
    }
    batch = packing.pack(made, packing.Layout(1, 4, 2, 8, 1.0, 4, 2))
    kept = [5, 3, 5, 2]
    assert (batch["end"] >= 0).sum() == sum(kept)
    assert batch["label_item"].tolist() == [[9, -1], [9, 9], [9, -1], [9, 9]]
    cells = [batch["label_position"][user, int(user % 2)] for user in range(4)]
    for user, (cell, number) in enumerate(zip(cells, kept, strict=True)):
        assert_window(windows_of(batch, 0, 2, cell), history, user, number)


def test_labels_lie_in_rows_of_one_user(rng):
    """Those of a user in several rows; where they are too many, the longest lists lose the last."""
    lengths = np.array([9, 4, 1, 0, 9, 0])
    item = np.arange(6 * 9).reshape(6, 9)
    made = draw(rng, lengths, 9) | {
        "label_position": np.tile(np.arange(9), (6, 1)),
        "label_item": np.where(np.arange(9) >= 9 - lengths[:, None], item, -1),
    }
    layout = packing.layout_for(np.maximum(lengths, 1)[None], 2, 9)
    batch = packing.pack(made, layout._replace(label_rows=14, label_width=2))
    assert batch["label_item"][:7].tolist() == [
        *([0, 1], [2, 3], [4, 5], [6, 7]),  # 8 did not fit
        *([14, 15], [16, 17], [26, -1]),
    ]
    # The second group has room.
    expected = [[-1, -1], [36, 37], [38, 39], [40, 41], [42, 43], [44, -1], [-1, -1]]
    assert batch["label_item"][7:].tolist() == expected
    rows = [row[row >= 0].tolist() for row in batch["same_user"]]
    assert rows == [
        *([list(range(4))] * 4 + [[4, 5]] * 2 + [[6]]),
        *([[7]] + [list(range(8, 13))] * 5 + [[13]]),
    ]


def test_rows_of_labels_are_as_wide_as_is_cheapest():
    def of(most, labels, groups=1):
        most = np.asarray(most)
        layout = packing.Layout(groups, most.shape[1], 1, 9).with_labels(most, labels)
        return layout.label_rows, layout.label_width

    assert of([[32] * 4], 32) == (4, 32)
    assert of([[1] * 15 + [32]], 32) == (19, 8)
    assert of([[16] * 15 + [32]], 32) == (17, 16)
    assert of([[1] * 4], 1) == (4, 1)
    assert of([[3] * 4], 5) == (4, 5)
    # As many for each group as nearly all of them need.
    assert of([[1, 1, 9, 16]] * 99 + [[32] * 4], 32, groups=2) == (4, 16)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("groups", [1, 3])
def test_histories_are_embedded_in_order(rng, mix, groups):
    length, users = 6, 50
    lengths = MIXES[mix](rng, users, length)
    history = draw(rng, lengths, length)
    bounds = [0, 0, 3, 20, 21, users]
    parts = [
        {name: values[start:end] for name, values in history.items()}
        for start, end in itertools.pairwise(bounds)
    ]
    layout = packing.Layout(groups, 4 * groups, 2 * groups, length)
    user = 0
    for batch, places in packing.batches(parts, layout):
        assert batch["item"].shape == (2 * groups, length)
        assert batch["position"].shape == (4 * groups, 1)
        for place in places:
            found = windows_of(batch, place // 4, 2, batch["position"][place, 0])
            assert_window(found, history, user, lengths[user])
            user += 1
    assert user == users
    assert list(packing.batches([], layout)) == []


def test_windows_that_fill_their_rows_are_embedded(rng):
    history = draw(rng, np.full(2, 6), 6)
    found = itertools.islice(packing.batches([history], packing.Layout(1, 1, 1, 6)), 2)
    assert [places.tolist() for _, places in found] == [[0], [0]]
