"""Rows are of evaluation users after a time, and their features know nothing later."""

import dataclasses
import itertools

import numpy as np
import pytest

from pinjax.errors import InputError
from pinjax.ranking import rows as rows_lib
from pinjax.timestamps import DAY
from tests.ranking.conftest import ACTIONS, START


@pytest.fixture
def created(rng):
    return rng.integers(0, START + 40 * DAY, 30).astype(np.uint32)


def test_rows_of_a_log_are_its_actions(make_log, positives, spec, created):
    """One of each item that a user acts on without a pause, of the first action's time."""
    log = make_log(actions=4_000)
    rows = rows_lib.make(log, positives, spec, created, START)
    expected, before = {}, (-1, 0)
    for user, record in zip(log.user.tolist(), log.records, strict=True):
        time = int(record["time"])
        if user < 8 or time <= START or record["surface"] != 1:
            continue
        if user != before[0] or time - before[1] > 30 * 60:
            listed = {}
        before = user, time
        key = user, int(record["item"])
        if key not in listed:
            listed[key] = len(expected)
            expected[len(expected)] = (*key, time, set())
        action = ACTIONS[record["action"]]
        if action == "save" or (action == "click" and record["duration"] >= 10):
            expected[listed[key]][3].add(action)
    assert rows.sampled == 0
    assert len(rows) == len(expected)
    assert rows.types == ("any", "save", "click")
    for row, (user, item, time, labels) in expected.items():
        assert (rows.user[row], rows.item[row], rows.time[row]) == (user, item, time)
        wanted = [bool(labels), "save" in labels, "click" in labels]
        assert rows.labels[row].tolist() == wanted
    several = [len(labels) for *_, labels in expected.values()]
    assert set(several) == {0, 1, 2}
    assert rows.time[rows.test].min() > rows.time[~rows.test].max()
    assert abs(rows.test.mean() - 1 / 3) < 0.05


def test_a_request_ends_with_a_pause(make_log, positives, spec, created):
    rows = rows_lib.make(make_log(actions=400), positives, spec, created, START)
    for before, after in zip(range(len(rows) - 1), range(1, len(rows)), strict=True):
        same = rows.user[before] == rows.user[after]
        same &= rows.time[after] - rows.time[before] <= 30 * 60
        assert (rows.request[before] == rows.request[after]) == same


def test_a_row_is_as_of_when_its_item_was_shown(make_log, positives, spec, created):
    """Looking at each item 5 seconds before it is wanted adds no row, and is not counted in it."""
    log = make_log()
    seen = log.records[log.positive]
    seen["time"] -= 5
    seen["action"] = ACTIONS.index("hide")
    records, user = np.r_[log.records, seen], np.r_[log.user, log.user[log.positive]]
    order = np.lexsort((records["time"], user))
    records, user = records[order], user[order]
    longer = dataclasses.replace(log, user=user, records=records, positive=positives(records))
    found, expected = (rows_lib.make(x, positives, spec, created, START) for x in (longer, log))
    assert len(longer.user) > len(log.user)
    for name in ("user", "item", "request", "labels", "test"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)
    np.testing.assert_array_equal(found.time, expected.time - 5 * expected.labels[:, 0])


def test_sampled_items_existed_and_are_not_wanted(make_log, positives, spec, created):
    log = make_log(types=("save",))
    rows = rows_lib.make(log, positives, spec, created, START)
    assert rows.sampled == rows_lib.SAMPLED
    assert (created[rows.item] < rows.time).all()
    wanted = set(zip(rows.user[rows.labels[:, 0]], rows.item[rows.labels[:, 0]], strict=True))
    for user, item, label in zip(rows.user, rows.item, rows.labels[:, 0], strict=True):
        assert label == ((user, item) in wanted)
    # One label a request, at its begin.
    assert (np.bincount(rows.request, rows.labels[:, 0]) == 1).all()
    assert rows.labels[np.flatnonzero(np.diff(rows.request, prepend=-1)), 0].all()


def test_sampled_items_are_drawn_uniformly(make_log, positives, spec):
    """Of the items of the log that existed before, all but what the user wants."""
    created = np.repeat([0, START + 20 * DAY], [20, 10]).astype(np.uint32)
    log = make_log(types=("save",))
    log.records["item"][log.records["item"] == 5] = 6  # nobody ever acts on item 5
    rows = rows_lib.make(log, positives, spec, created, START, 200)
    late = rows.time > START + 20 * DAY
    for user, existing in itertools.product(range(8, 12), (20, 30)):
        mine = (rows.user == user) & (late == (existing == 30))
        wanted = set(rows.item[(rows.user == user) & rows.labels[:, 0]])
        counts = np.bincount(rows.item[mine & ~rows.labels[:, 0]], minlength=30)
        possible = np.array(sorted(set(range(existing)) - {5} - wanted))
        assert counts.sum() == counts[possible].sum() > 0
        expected = counts[possible].mean()
        assert abs(counts[possible] - expected).max() < 5 * np.sqrt(expected)


def features(log, rows, spec, created):
    return rows_lib.count_features(log, rows, spec, created)


def test_counts_are_of_the_past(make_log, positives, spec, created):
    log = make_log()
    rows = rows_lib.make(log, positives, spec, created, START)
    names, found = features(log, rows, spec, created)
    time, records = log.time, log.records
    for row in range(0, len(rows), 7):
        earlier = time < rows.time[row]
        for actor, mine in (
            ("user", log.user == rows.user[row]),
            ("item", records["item"] == rows.item[row]),
        ):
            for action, name in enumerate(ACTIONS[1:], start=1):
                count = (earlier & mine & (records["action"] == action)).sum()
                assert found[row, names.index(f"{actor}_{name}")] == np.float32(np.log1p(count))
            for days in (1, 7, 28, 365):
                recent = earlier & (time >= rows.time[row] - days * DAY)
                count = (recent & mine & log.positive).sum()
                column = names.index(f"{actor}_labels_{days}_days")
                assert found[row, column] == np.float32(np.log1p(count))
            count = (earlier & mine & log.positive).sum()
            assert found[row, names.index(f"{actor}_labels")] == np.float32(np.log1p(count))
        age = max(0, rows.time[row] - int(created[rows.item[row]])) / DAY
        np.testing.assert_allclose(found[row, names.index("item_days")], np.log1p(age), rtol=1e-6)


def test_nothing_later_reaches_a_feature(make_log, positives, spec, created, rng):
    """Whatever happens at a row's time or later, the row's features stay."""
    log = make_log()
    rows = rows_lib.make(log, positives, spec, created, START)
    names, before = features(log, rows, spec, created)
    middle = np.sort(rows.time)[len(rows) // 2]
    records = log.records.copy()
    later = log.time >= middle
    records["item"][later] = rng.integers(0, 30, later.sum())
    records["action"][later] = rng.integers(0, 4, later.sum())
    leaking = dataclasses.replace(log, records=records, positive=positives(records))
    changed, after = features(leaking, rows, spec, created)
    early = rows.time <= middle
    kept = [changed.index(name) for name in names]
    np.testing.assert_array_equal(after[early][:, kept], before[early])
    assert (after[~early][:, kept] != before[~early]).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": START + 60 * DAY}, "have no action that is a label"),
        ({"sampled": 0, "types": ("save",)}, "expected some with and some without a label"),
    ],
)
def test_rows_that_teach_nothing_are_refused(make_log, positives, spec, created, change, message):
    log = make_log(types=change.pop("types", ACTIONS[1:]))
    with pytest.raises(InputError, match=message):
        rows_lib.make(log, positives, spec, created, **{"start": START, **change})
