"""Evaluation queries and labels against loops over single actions."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from pinjax.data import catalogue, dataset, spec, timelines, windows
from pinjax.evaluation import timeline_source
from pinjax.timestamps import DAY

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
    result[4]["time"] = T + 5  # acts only after T: no history
    return result


def make(rows, leave_one_out=False, **fields):
    defaults = {"window": 14 * DAY, "window_starts": (0,), "users": 99, "index_size": 99}
    config = ConfigDict(defaults | {"filter_seen": True, "cadences": ("window",)} | fields)
    data = FakeDataset(rows, leave_one_out)
    return timeline_source.TimelineSource(data, POSITIVES, 6, config)


def queries_of(source, split="test", cadence="window"):
    (queries,) = source.queries(split, cadence).values()
    return queries


def is_positive(action):
    kind = action["action"]
    return action["surface"] == 0 and (kind == 1 or (kind == 2 and action["duration"] >= 5))


def expected(rows, cadence):
    """{(user, label item): (actions that the query may know, request time, label's time)}."""
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
            latest = {"window": T, "realtime": time - 1}.get(cadence)
            if cadence == "daily":
                latest = max(T + d * DAY for d in range(15) if T + d * DAY < time)
            known = row[row["time"] <= latest]
            if cadence == "realtime":
                latest = max(T, int(known["time"][-1]))
            answers[u, action["item"]] = known, latest, time
    return answers


@pytest.mark.parametrize("cadence", timeline_source.CADENCES)
def test_queries_are_the_enumerated_ones(rows, cadence):
    queries = queries_of(make(rows), cadence=cadence)
    answers = expected(rows, cadence)
    user = [int(queries.users[u].removeprefix("test")) for u in queries.label_user]
    assert set(zip(user, queries.label_item, strict=True)) == answers.keys()
    assert len(user) == len(answers)
    assert queries.users == [f"test{u}" for u in sorted({u for u, _ in answers})]
    of_labels = queries.label_item, queries.label_query, queries.label_time
    labels = zip(user, *of_labels, queries.label_excluded, strict=True)
    for u, item, query, label_time, excluded in labels:
        known, request_time, time = answers[u, item]
        before = rows[u]["item"][rows[u]["time"] <= T]
        assert excluded == (item in before)
        assert label_time == time
        assert queries.query_time[query] == request_time
        assert queries.features["request_time"][query, -1] == request_time
        last = known[-6:]
        for name in timelines.ACTION.names:
            history = queries.features[name][query]
            np.testing.assert_array_equal(history[6 - len(last) :], last[name])
        assert (queries.features["item"][query][: 6 - len(last)] == -1).all()
        engaged = [int(action["item"]) for action in known if is_positive(action)][-320:]
        np.testing.assert_array_equal(queries.context[query], [-1] * (320 - len(engaged)) + engaged)
        assert queries.history[query] == len(known)
        seen = queries.excluded[queries.excluded[:, 0] == query, 1]
        np.testing.assert_array_equal(seen, np.unique(before))
    # Items appear every other day, the last of them after T.
    np.testing.assert_array_equal(queries.label_exists, queries.label_item <= 20)
    assert not queries.label_exists.all()


@pytest.mark.parametrize("cadence", timeline_source.CADENCES)
def test_what_happens_later_reaches_no_history(rows, cadence):
    before = queries_of(make(rows), cadence=cadence)
    for row in rows:
        late = row["time"] > (T if cadence == "window" else T + 14 * DAY)
        late &= (row["time"] > T + 14 * DAY) | ~np.array([is_positive(action) for action in row])
        row["item"][late], row["surface"][late], row["duration"][late] = 0, 1, 99
    after = queries_of(make(rows), cadence=cadence)
    np.testing.assert_array_equal(after.label_item, before.label_item)
    for name, values in before.features.items():
        np.testing.assert_array_equal(after.features[name], values)
    last_time = before.features["time"].max(axis=1)
    assert (last_time <= before.query_time).all()
    assert (before.query_time[before.label_query] < before.label_time).all()
    if cadence == "window":
        assert (before.query_time == T).all()


def test_windows_have_the_same_queries_together_as_alone(rows):
    """Timelines are read once for all windows, each with its own limit of users."""
    starts = (-4 * DAY, 0, 3 * DAY, 30 * DAY)
    together = make(rows, window_starts=starts, users=4).queries("test")
    assert list(together) == [T + start for start in starts[:3]]  # the last has no labels
    for start in starts[:3]:
        (alone,) = make(rows, window_starts=(start,), users=4).queries("test").values()
        found = together[T + start]
        assert found.users == alone.users
        assert len(found.users) <= 4
        for name in ("label_item", "label_query", "query_time", "excluded", "label_exists"):
            np.testing.assert_array_equal(getattr(found, name), getattr(alone, name))


def test_most_users_are_the_first(rows):
    everyone, some = queries_of(make(rows)), queries_of(make(rows, users=5))
    assert some.users == everyone.users[:5]
    keep = everyone.label_user < 5
    np.testing.assert_array_equal(some.label_item, everyone.label_item[keep])


@pytest.mark.parametrize("cadence", timeline_source.CADENCES)
def test_labels_have_one_order_at_every_cadence(rows, cadence):
    source = make(rows)
    once, queries = queries_of(source), queries_of(source, cadence=cadence)
    assert queries.users == once.users
    for name in ("label_item", "label_user", "label_time"):
        np.testing.assert_array_equal(getattr(queries, name), getattr(once, name))


@pytest.mark.parametrize(("split", "held"), [("valid", 2), ("test", 1)])
def test_leave_one_out(rows, split, held):
    source = make(rows, leave_one_out=True, cadences=("window", "realtime"))
    assert source.cadences == ("window",)  # of ranks none is fresher
    queries = queries_of(source, split)
    long_enough = [row for row in rows if len(row) > held]
    assert len(queries.users) == len(long_enough)
    np.testing.assert_array_equal(queries.label_item, [row["item"][-held] for row in long_enough])
    assert queries.label_exists.all()
    for query, row in enumerate(long_enough):
        seen = queries.excluded[queries.excluded[:, 0] == query, 1]
        np.testing.assert_array_equal(seen, np.unique(row["item"][:-held]))
        assert queries.features["item"][query, -1] == row["item"][-held - 1]
        assert queries.query_time[query] == row["time"][-held - 1]


def test_index_holds_what_existed_and_a_sample_of_a_large_one(rows):
    index = make(rows).candidates(T)
    np.testing.assert_array_equal(index.included, np.arange(ITEMS) <= 20)
    np.testing.assert_array_equal(index.eligible, index.included)
    sample = make(rows, index_size=7).candidates(T)
    assert sample.included.sum() == 7
    assert not sample.included[21:].any()
    np.testing.assert_array_equal(sample.eligible, index.eligible)
    np.testing.assert_array_equal(sample.included, make(rows, index_size=7).candidates(T).included)


@pytest.mark.parametrize("leave_one_out", [False, True])
@pytest.mark.parametrize("until", [T, T - 4 * DAY])
def test_engagements_are_of_the_past(rows, leave_one_out, until):
    source = make(rows, leave_one_out)
    engagements = source.engagements
    assert (engagements.seconds == 0) == leave_one_out
    if leave_one_out:
        until = 0
    ever, lately, known = np.zeros(ITEMS), np.zeros(ITEMS), np.zeros(ITEMS)
    for row in rows:
        past = row[:-2] if leave_one_out else row[row["time"] <= until]
        for action in past:
            known[action["item"]] += 1
            ever[action["item"]] += is_positive(action)
            recent = leave_one_out or action["time"] > until - 5 * DAY
            lately[action["item"]] += is_positive(action) and recent
    np.testing.assert_array_equal(engagements.counts(until), ever)
    np.testing.assert_array_equal(engagements.counts(until, 5 * DAY), lately)
    np.testing.assert_array_equal(engagements.all_counts(until), known)
    np.testing.assert_array_equal(source.item_tiers(until), known > 0)


@pytest.mark.parametrize(
    ("leave_one_out", "starts", "early"),
    [(True, (0,), 0), (False, (0, DAY), 0), (False, (-DAY, -1, 0), 2)],
)
def test_windows_that_begin_in_training_have_a_note(rows, leave_one_out, starts, early):
    about, *notes = make(rows, leave_one_out, window_starts=starts).notes("test")
    why = "the user had acted on it" if leave_one_out else "the item did not exist yet, or the user"
    assert f" of which every method misses: {why}" in about
    told = f"warning: windows that begin before training ends: {early} of {len(starts)}; a trained"
    assert [note.startswith(told) for note in notes] == [True] * bool(early) + [False]


@pytest.mark.parametrize("leave_one_out", [False, True])
def test_a_window_or_a_split_may_have_no_queries(rows, leave_one_out):
    assert make([], leave_one_out).queries("test", "daily") == {}
    assert make([], leave_one_out).engagements.counts(T).sum() == 0
    if not leave_one_out:
        assert make(rows, window_starts=(30 * DAY,)).queries("test") == {}
