"""Questions and answers against loops over single actions."""

import numpy as np
import pytest

from pinjax.data import catalogue, dataset, spec, timelines, windows
from pinjax.evaluation import held_out

DAY = held_out.DAY
T = 40 * DAY
POSITIVES = windows.Positives(np.array([np.inf, 0, 5], np.float32), np.array([True, False]))
ITEMS = 30


class FakeDataset(dataset.Dataset):
    """Timelines from memory, in chunks of three users."""

    def __init__(self, rows, leave_one_out=False):
        items = catalogue.Items(
            ids=np.arange(ITEMS),
            topics=np.zeros(ITEMS, np.int32),
            counts=np.zeros(ITEMS, np.int64),
            created=(np.arange(ITEMS) * 2 * DAY).astype(np.uint32),
        )
        known = spec.Spec("log", ITEMS, train_end=T, leave_one_out=leave_one_out)
        object.__setattr__(self, "spec", known)
        self.__dict__["catalogue"] = items
        self.__dict__["rows"] = rows

    def chunks(self, split, users=3):
        for start in range(0, len(self.rows), users):
            part = self.rows[start : start + users]
            records, offsets = timelines.unpack([timelines.pack(row) for row in part])
            names = [f"{split}{i}" for i in range(start, start + len(part))]
            yield timelines.Chunk(names, records, offsets)


@pytest.fixture
def rows(rng):
    result = []
    for _ in range(10):
        row = np.zeros(rng.integers(1, 40), timelines.ACTION)
        row["item"] = rng.integers(0, ITEMS, len(row))
        row["time"] = np.sort(rng.integers(30, 60, len(row)) * DAY + rng.integers(0, 3, len(row)))
        row["action"] = rng.integers(0, 3, len(row))
        row["surface"] = rng.integers(0, 2, len(row))
        row["duration"] = rng.integers(0, 10, len(row))
        result.append(row)
    result[4]["time"] = T + 5  # acts after T alone: has no history
    return result


def make(rows, leave_one_out=False, **fields):
    defaults = dict(length=6, window=14 * DAY, max_users=99, index_size=99, filter_seen=True)
    return held_out.HeldOut(FakeDataset(rows, leave_one_out), POSITIVES, **(defaults | fields))


def is_positive(action):
    kind = action["action"]
    return action["surface"] == 0 and (kind == 1 or (kind == 2 and action["duration"] >= 5))


def expected(rows, cadence):
    """{(user, label item): actions that the query may know, when it is asked}."""
    answers = {}
    for u, row in enumerate(rows):
        if not (row["time"] <= T).any():
            continue
        for action in row:
            time = int(action["time"])
            if not (T < time <= T + 14 * DAY) or not is_positive(action):
                continue
            if (u, action["item"]) in answers:
                continue
            asked = {"window": T, "realtime": time - 1}.get(cadence)
            if cadence == "daily":
                asked = max(T + d * DAY for d in range(15) if T + d * DAY < time)
            known = row[row["time"] <= asked]
            if cadence == "realtime":
                asked = max(T, int(known["time"][-1]))
            answers[u, action["item"]] = known, asked
    return answers


@pytest.mark.parametrize("cadence", held_out.CADENCES)
def test_questions_are_the_enumerated_ones(rows, cadence):
    questions = make(rows).questions("test", T, cadence)
    answers = expected(rows, cadence)
    user = [int(questions.users[u].removeprefix("test")) for u in questions.label_user]
    assert list(zip(user, questions.label_item, strict=True)).__len__() == len(answers)
    assert questions.users == [f"test{u}" for u in sorted({u for u, _ in answers})]
    for u, item, query in zip(user, questions.label_item, questions.label_query, strict=True):
        known, asked = answers[u, item]
        assert questions.histories["request_time"][query, -1] == asked
        newest = known[-6:]
        for name in timelines.ACTION.names:
            history = questions.histories[name][query]
            np.testing.assert_array_equal(history[6 - len(newest) :], newest[name])
        assert (questions.histories["item"][query][: 6 - len(newest)] == -1).all()
        seen = questions.seen[questions.seen[:, 0] == query, 1]
        np.testing.assert_array_equal(seen, known["item"])
    # Items appear every other day, the last of them after T.
    np.testing.assert_array_equal(questions.label_exists, questions.label_item <= 20)
    assert not questions.label_exists.all()


@pytest.mark.parametrize("cadence", held_out.CADENCES)
def test_what_happens_later_reaches_no_history(rows, cadence):
    before = make(rows).questions("test", T, cadence)
    for row in rows:
        late = row["time"] > T + 14 * DAY
        row["item"][late], row["action"][late], row["surface"][late] = 0, 1, 0
    after = make(rows).questions("test", T, cadence)
    np.testing.assert_array_equal(after.label_item, before.label_item)
    for name, values in before.histories.items():
        np.testing.assert_array_equal(after.histories[name], values)
        newest = before.histories["time"].max(axis=1)
    assert (newest[before.label_query] <= T + 14 * DAY).all()


def test_most_users_are_the_first(rows):
    everyone = make(rows).questions("test", T)
    some = make(rows, max_users=5).questions("test", T)
    assert some.users == everyone.users[:5]
    keep = everyone.label_user < 5
    np.testing.assert_array_equal(some.label_item, everyone.label_item[keep])


@pytest.mark.parametrize(("split", "held"), [("valid", 2), ("test", 1)])
def test_leave_one_out(rows, split, held):
    questions = make(rows, leave_one_out=True).questions(split, 0)
    long_enough = [row for row in rows if len(row) > held]
    assert len(questions.users) == len(long_enough)
    np.testing.assert_array_equal(questions.label_item, [row["item"][-held] for row in long_enough])
    assert questions.label_exists.all()
    for query, row in enumerate(long_enough):
        np.testing.assert_array_equal(
            questions.seen[questions.seen[:, 0] == query, 1], row["item"][:-held]
        )
        assert questions.histories["item"][query, -1] == row["item"][-held - 1]
        assert questions.histories["request_time"][query, -1] == row["time"][-held - 1]


def test_index_holds_what_existed_and_a_sample_of_a_large_one(rows):
    np.testing.assert_array_equal(make(rows).index(T), np.arange(ITEMS) <= 20)
    sample = make(rows, index_size=7).index(T)
    assert sample.sum() == 7
    assert not sample[21:].any()
    np.testing.assert_array_equal(sample, make(rows, index_size=7).index(T))


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_counts_are_of_the_past(rows, leave_one_out):
    counts = make(rows, leave_one_out, window=5 * DAY).counts(T)
    ever, lately, known = np.zeros(ITEMS), np.zeros(ITEMS), np.zeros(ITEMS, bool)
    for row in rows:
        past = row[:-2] if leave_one_out else row[row["time"] <= T]
        for action in past:
            known[action["item"]] = True
            ever[action["item"]] += is_positive(action)
            recent = leave_one_out or action["time"] > T - 5 * DAY
            lately[action["item"]] += is_positive(action) and recent
    np.testing.assert_array_equal(counts.ever, ever)
    np.testing.assert_array_equal(counts.lately, lately)
    np.testing.assert_array_equal(counts.known, known)


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_a_moment_or_a_split_may_have_no_questions(rows, leave_one_out):
    nothing = [make([], leave_one_out).questions("test", T, "daily")]
    if not leave_one_out:
        nothing.append(make(rows).questions("test", 70 * DAY))
    for asked in nothing:
        assert asked.users == []
        assert len(asked.label_item) == len(asked.histories["item"]) == 0
