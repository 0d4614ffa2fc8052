"""The draw of windows and labels, against a brute-force enumeration over Python loops."""

import collections

import numpy as np
import pytest

from pinjax.data import windows
from pinjax.data.spec import Spec
from pinjax.data.timelines import ACTION, pack, unpack
from pinjax.errors import InputError

SPEC = Spec(
    name="log",
    actions=("unknown", "save", "click", "hide"),
    surfaces=("unknown", "home", "search"),
    num_items=50,
    train_end=600,
)
POSITIVES = windows.Positives.create(SPEC, "save, click>=10", "home")


def timelines(rng, users=12, longest=25):
    """Random logs with ties in time, empty histories before train_end, and short users."""
    rows = []
    for _ in range(users):
        actions = np.zeros(rng.integers(1, longest), ACTION)
        actions["item"] = rng.integers(0, 50, len(actions))
        actions["time"] = np.sort(rng.integers(0, 900, len(actions)) // 7 * 7)
        actions["action"] = rng.integers(0, 4, len(actions))
        actions["surface"] = rng.integers(0, 3, len(actions))
        actions["duration"] = rng.integers(0, 20, len(actions))
        rows.append(actions)
    return rows, *unpack([pack(row) for row in rows])


def is_positive(action):
    if action["surface"] != 1:
        return False
    return action["action"] == 1 or (action["action"] == 2 and action["duration"] >= 10)


def allowed_labels(row, i, sampler):
    """Indices of the actions that action `i` may have to predict."""
    seen = len(row) - 2 if sampler.leave_one_out else np.sum(row["time"] <= sampler.train_end)
    later = [j for j in range(i + 1, seen) if is_positive(row[j])]
    if i >= seen:
        return []
    if sampler.objective == "next_action":
        return later[:1]
    if sampler.objective == "sasrec":
        return [j for j in later if j == i + 1]
    gap = row["time"].astype(int) - int(row["time"][i])
    return [j for j in later if 0 < gap[j] <= sampler.horizon]


def allowed_ends(row, sampler):
    """Indices of the actions that a window may end at."""
    trainable = {i for i in range(len(row)) if allowed_labels(row, i, sampler)}
    if sampler.last_action_share == 1:
        return {max(trainable)} if trainable else set()
    return {i for i in trainable if i >= sampler.length - 1 or i >= max(trainable) // 2}


def sampler(objective, **fields):
    defaults = dict(length=6, labels=3, horizon=150, positives=POSITIVES, train_end=600)
    return windows.Sampler(objective=objective, **(defaults | fields))


def test_positives_are_long_enough_and_on_a_named_surface(rng):
    _, records, _ = timelines(rng)
    np.testing.assert_array_equal(POSITIVES(records), [is_positive(r) for r in records])


@pytest.mark.parametrize(
    ("positives", "surfaces", "message"),
    [
        ("sav", "", "log has no action 'sav'; it has unknown, save, click, hide"),
        ("save", "hom", "log has no surface 'hom'; it has unknown, home, search"),
        *(
            (f"save>={x}", "", f"'save>={x}' is neither a type nor type>=seconds")
            for x in ("long", "", "nan", "inf", "-1", "1e39")
        ),
        ("save, >=10", "", "expected names with commas between"),
        ('"", save', "", "log has no action ''"),
        ("save", "home>=10", "'home>=10': a surface has no seconds"),
    ],
)
def test_positives_refuse_what_they_do_not_know(positives, surfaces, message):
    with pytest.raises(InputError, match=message):
        windows.Positives.create(SPEC, positives, surfaces)


@pytest.mark.parametrize(
    ("leave_one_out", "last_action_share"), [(False, 0.0), (True, 0.0), (True, 1.0)]
)
@pytest.mark.parametrize("objective", windows.OBJECTIVES)
def test_every_draw_is_one_of_the_enumerated(rng, objective, leave_one_out, last_action_share):
    rows, records, offsets = timelines(rng)
    draw = sampler(objective, leave_one_out=leave_one_out, last_action_share=last_action_share)
    ends_seen = collections.defaultdict(set)
    labels_seen = collections.defaultdict(set)
    possible_ends = [allowed_ends(row, draw) for row in rows]
    for _ in range(200):
        batch = draw(records, offsets, draw.uniforms(rng, len(rows)))
        for u, row in enumerate(rows):
            history = batch["item"][u] >= 0
            if not possible_ends[u]:
                assert not history.any()
                assert (batch["label_item"][u] == -1).all()
                continue
            end = _find_end(row, batch, u, possible_ends[u], draw.length)
            ends_seen[u].add(end)
            _check_labels(row, batch, u, end, draw, labels_seen)
    for u, ends in enumerate(possible_ends):
        assert ends_seen[u] == ends
    # Everything that may be drawn is drawn.
    for (u, i), drawn in labels_seen.items():
        assert drawn == {rows[u]["item"][j] for j in allowed_labels(rows[u], i, draw)}


def _find_end(row, batch, u, candidates, length):
    """The window's end in the timeline, by comparing the entire window, field by field."""
    for end in candidates:
        expected = row[max(0, end - length + 1) : end + 1]
        found = batch["item"][u] >= 0
        if found.sum() == len(expected) and all(
            (batch[name][u][found] == expected[name]).all() for name in ACTION.names
        ):
            assert found[-len(expected) :].all()  # padding stands before the actions
            return end
    raise AssertionError(f"no window of user {u} is {batch['item'][u]}")


def _check_labels(row, batch, u, end, draw, labels_seen):
    first = end - draw.length + 1
    pairs = list(zip(batch["label_position"][u], batch["label_item"][u], strict=True))
    expected = {
        first + p: allowed_labels(row, first + p, draw)
        for p in range(draw.length)
        if first + p >= 0
    }
    drawn = [(first + p, item) for p, item in pairs if item >= 0]
    time = row["time"].astype(int)
    for i in {i for i, _ in drawn}:
        latest = [  # an item that may be drawn twice has an ambiguous time
            max(time[j] for j in expected[i] if row["item"][j] == item)
            for position, item in drawn
            if position == i
        ]
        assert time[i] <= batch["request_time"][u, i - first] <= max(time[i], min(latest) - 1)
    for i, item in drawn:
        assert item in {row["item"][j] for j in expected[i]}
        if draw.objective != "sasrec" or end == i:
            labels_seen[u, i].add(item)
    if draw.objective == "next_action":
        assert [i for i, _ in drawn] == [end]
    elif draw.objective == "all_action":
        assert {i for i, _ in drawn} == {end}
        assert len(drawn) == min(draw.labels, len(expected[end]))
        counts = collections.Counter(row["item"][j] for j in expected[end])
        assert not collections.Counter(item for _, item in drawn) - counts  # none twice
    elif draw.objective == "sasrec":
        assert {i for i, _ in drawn} == {i for i, labels in expected.items() if labels}
    else:
        positions = [i for i, _ in drawn]
        trainable = [i for i, labels in expected.items() if labels]
        assert len(set(positions)) == len(positions) == min(draw.labels, len(trainable))


def test_a_share_of_windows_ends_at_the_last_action_and_the_others_uniformly(rng):
    row = np.zeros(10, ACTION)
    row["item"], row["time"] = np.arange(10), 10 * np.arange(10)
    row["action"], row["surface"] = 1, 1
    records, offsets = unpack([pack(row)] * 4000)
    draw = sampler("sasrec", length=5, last_action_share=0.6)
    end = draw(records, offsets, draw.uniforms(rng, 4000))["item"][:, -1]
    # The last of ten has no label; those from the fifth on have a full window.
    expected = 4000 * np.array([0, 0, 0, 0, 0.08, 0.08, 0.08, 0.08, 0.68])
    assert (abs(np.bincount(end) - expected) <= 5 * np.sqrt(expected)).all()


def test_dense_positions_labels_and_ends_are_uniform(rng):
    row = np.zeros(20, ACTION)
    row["item"], row["time"] = np.arange(20), 10 * np.arange(20)
    row["action"], row["surface"] = 1, 1
    draw = sampler("dense_all_action", length=5, labels=2, horizon=40)
    records, offsets = unpack([pack(row)] * 4000)
    batch = draw(records, offsets, draw.uniforms(rng, 4000))
    end = batch["item"][:, -1]
    # Of 19 actions with a label those from the fifth on have a full window.
    assert end.min() == 4
    assert abs(np.bincount(end)[4:] - 4000 / 15).max() < 5 * np.sqrt(4000 / 15)
    inner = end < 15
    position = batch["label_position"][inner]
    expected = position.size / 5
    assert abs(np.bincount(position.ravel()) - expected).max() < 5 * np.sqrt(expected)
    ahead = batch["label_item"][inner] - np.take_along_axis(batch["item"][inner], position, axis=1)
    counts = np.bincount(ahead.ravel())[1:]
    assert len(counts) == 4
    assert abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean())


def test_request_times_are_uniform_between_an_action_and_its_first_label(rng):
    row = np.zeros(3, ACTION)
    row["time"], row["action"], row["surface"] = (100, 500, 540), 1, 1
    draw = sampler("all_action", length=1, horizon=450)
    records, offsets = unpack([pack(row)] * 4000)
    batch = draw(records, offsets, draw.uniforms(rng, 4000))
    requested = batch["request_time"][batch["time"] == 100]
    assert ((requested >= 100) & (requested < 500)).all()
    counts = np.bincount((requested - 100) // 50, minlength=8)
    assert len(counts) == 8
    assert abs(counts - counts.mean()).max() < 5 * np.sqrt(counts.mean())


def test_a_users_draw_does_not_depend_on_the_rest_of_the_batch(rng):
    rows, records, offsets = timelines(rng)
    draw = sampler("dense_all_action")
    uniforms = draw.uniforms(rng, len(rows))
    full = draw(records, offsets, uniforms)
    part = draw(*unpack([pack(row) for row in rows[3:7]]), uniforms[3:7])
    for name, values in part.items():
        np.testing.assert_array_equal(values, full[name][3:7])


@pytest.mark.parametrize("objective", windows.OBJECTIVES)
def test_nothing_after_train_end_leaks(rng, objective):
    _, records, offsets = timelines(rng)
    draw = sampler(objective)
    uniforms = draw.uniforms(rng, len(offsets) - 1)
    before = draw(records, offsets, uniforms)
    poisoned = records.copy()
    late = poisoned["time"] > draw.train_end
    assert late.any()
    poisoned["item"][late], poisoned["action"][late], poisoned["surface"][late] = 49, 1, 1
    after = draw(poisoned, offsets, uniforms)
    for name, values in before.items():
        np.testing.assert_array_equal(after[name], values)


def test_unknown_objective_is_refused():
    with pytest.raises(InputError, match="'dense' is none of next_action"):
        sampler("dense")


def test_a_history_ends_at_its_request_time(rng):
    rows, records, offsets = timelines(rng)
    keys = windows.time_keys(records, offsets)
    for time in (0, 300, 301, 2**32 - 1):
        users = np.arange(len(rows))
        ends = windows.last_action_before(keys, users, np.full(len(rows), time))
        got = windows.history(records, offsets[:-1], ends, 6, np.full((len(rows), 1), time))
        assert (got["request_time"] == time).all()
        for u, row in enumerate(rows):
            past = row[row["time"] <= time][-6:]
            np.testing.assert_array_equal(
                got["item"][u], [-1] * (6 - len(past)) + list(past["item"])
            )


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_lengths_are_about_those_of_windows(rng, share):
    row = np.zeros(20, ACTION)
    row["item"], row["time"] = np.arange(20), 10 * np.arange(20)
    row["action"], row["surface"] = 1, 1
    records, offsets = unpack([pack(row)] * 4000)
    draw = sampler("sasrec", length=20, last_action_share=share)
    uniforms = draw.uniforms(rng, 4000)
    found = (draw(records, offsets, uniforms)["item"] >= 0).sum(axis=1)
    lengths = draw.lengths(np.full(4000, 20), uniforms[:, 0])
    assert lengths.mean() == pytest.approx(found.mean(), rel=0.08)
