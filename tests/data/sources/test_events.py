"""Timelines of random logs against a plain pandas reading of the same rows."""

import collections
import datetime
import hashlib
import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pinjax.data import timelines
from pinjax.data.sources import column_map, events, histories
from pinjax.data.spec import SPLITS
from pinjax.errors import InputError
from pinjax.timestamps import DAY

START = 1_600_000_000
IDS = {
    "int": lambda codes: pa.array(codes, pa.int32()),
    "text": lambda codes: pa.array([f"0{code}" for code in codes]),
    "uint64": lambda codes: pa.array([2**63 + int(code) for code in codes], pa.uint64()),
    "decimal": lambda codes: pa.array([int(code) for code in codes], pa.decimal128(12, 0)),
    "dictionary": lambda codes: pa.array([f"u{code}" for code in codes]).dictionary_encode(),
}


def random_rows(rng, rows=300, users=25, items=12):
    """Unsorted, with ties in time, full duplicates and missing values; times in milliseconds."""
    made = {
        "user": np.minimum(rng.geometric(0.1, rows), users),
        "item": rng.integers(0, items, rows),
        "ms": START * 1000 + rng.integers(0, 40, rows) * DAY * 100 + rng.integers(0, 3, rows) * 300,
        "what": np.array(["see", "buy", None], object)[rng.choice(3, rows, p=[0.6, 0.3, 0.1])],
        "device": rng.integers(0, 3, rows),
        "os": np.array(["a", "b", None], object)[rng.integers(0, 3, rows)],
        "seconds": np.where(rng.random(rows) < 0.2, None, rng.integers(0, 100, rows) / 4),
    }
    again = rng.integers(0, rows, rows // 10)
    order = rng.permutation(np.append(np.arange(rows), again))
    return {name: values[order] for name, values in made.items()}


def columns_of(rows, user_ids="int", item_ids="text"):
    return {**rows, "user": IDS[user_ids](rows["user"]), "item": IDS[item_ids](rows["item"])}


def config_of(**changes):
    """`changes` as section__field."""
    config = column_map.default()
    config.events.update(user="user", time="ms", time_unit="ms", action="what")
    config.events.update(surface=("device", "os"), duration="seconds")
    config.split.update(test_days=1.0, valid=0.2, test=0.3)
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        (config[section] if section else config)[field] = value
    return config


def split_of(user, config):
    """The split of a user, written independently of `splits.split_of`."""
    drawn = hashlib.blake2b(f"{config.split.seed}:{user}".encode(), digest_size=8).digest()
    share = int.from_bytes(drawn, "little") / 2**64
    held_out = config.split.test + config.split.valid
    return "test" if share < config.split.test else "valid" if share < held_out else "train"


def plainly(frame, config):
    """{user: [(item, seconds, action, surface, duration)]} and how many rows repeat another."""
    frame = frame.reset_index(drop=True)
    first = ~frame.duplicated(["user", "item", "ms", "what"])
    kept = frame[first].sort_values("ms", kind="stable")
    timelines = {}
    for user, own in kept.groupby("user"):
        if len(own) >= config.timelines.min_actions:
            timelines[user] = [
                (
                    row.item,
                    math.floor(row.ms / 1000),
                    row.what or "unknown",
                    f"{row.device}|{row.os or 'unknown'}",
                    row.seconds or 0,
                )
                for row in own.itertuples()
            ]
    return timelines, int((~first).sum())


def read(made, splits=SPLITS):
    """{split: {user: what `plainly` has}} of a data set."""
    spec, ids = made.spec, made.catalogue.ids.tolist()
    found = {}
    for split in splits:
        found[split] = {}
        for chunk in made.chunks(split):
            for user, start, end in zip(
                chunk.users, chunk.offsets, chunk.offsets[1:], strict=False
            ):
                found[split][user] = [
                    (
                        ids[action["item"]],
                        int(action["time"]),
                        spec.actions[action["action"]],
                        spec.surfaces[action["surface"]],
                        float(action["duration"]),
                    )
                    for action in chunk.records[start:end]
                ]
    return found


def in_file(columns):
    """Rows as they are in a file: ids that int64 does not hold are text."""
    frame = pa.table(columns).to_pandas().astype(object)
    frame = frame.where(frame.notna(), None)
    for name in ("user", "item"):
        large = frame[name].map(lambda value: isinstance(value, int) and value >= 2**63).any()
        frame[name] = frame[name].map(
            lambda value, large=large: (
                value if isinstance(value, str) else str(value) if large else int(value)
            )
        )
    return frame


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "ids",
    [("int", "text"), ("text", "uint64"), ("uint64", "int"), ("decimal", "dictionary")],
)
def test_timelines_equal_a_pandas_reading(seed, ids, prepare, monkeypatch):
    if seed:  # in several shards and files
        # With a row for each shard, many have no user.
        monkeypatch.setattr(events, "_ROWS_A_SHARD", {1: 40, 2: 1}[seed])
        monkeypatch.setattr(timelines, "ROWS_A_FILE", 3)
    rng = np.random.default_rng(seed)
    columns = columns_of(random_rows(rng), *ids)
    config = config_of(timelines__min_actions=1 + 4 * (seed % 2))
    made, prepared = prepare(config, columns)
    frame = in_file(columns)
    expected, repeats = plainly(frame, config)
    found = read(made)
    for split in SPLITS:
        of_split = {user for user in expected if split_of(user, config) == split}
        assert found[split] == {user: expected[user] for user in of_split}
        assert made.spec.users[split] == len(of_split) > 0
        users = [user for chunk in made.chunks(split) for user in chunk.users]
        rows = range(len(users))[::-1]
        assert made.chunk_of(split, rows).users == [users[row] for row in rows]
    assert made.spec.integer_users == isinstance(next(iter(expected)), int)
    report = prepared.report
    assert report["rows read"] == report["events"] == len(frame)
    assert report["repeated rows dropped"] == repeats > 0
    assert report["users"] == len(expected)
    assert report["users with too few actions"] == frame["user"].nunique() - len(expected)
    assert report["actions"] == sum(map(len, expected.values()))

    train_end = max(frame["ms"]) // 1000 - DAY
    assert made.spec.train_end == train_end
    counts = collections.Counter(
        item for rows in found["train"].values() for item, time, *_ in rows if time <= train_end
    )
    ids = made.catalogue.ids.tolist()
    assert ids == sorted(set(frame["item"]))
    assert made.catalogue.counts.tolist() == [counts[item] for item in ids]
    assert 0 < sum(counts.values()) < sum(map(len, found["train"].values()))
    created = frame.groupby("item")["ms"].min() // 1000
    assert made.catalogue.created.tolist() == created[ids].tolist()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("times", [True, False])
def test_leave_one_out_holds_all_users_in_one_split(seed, times, prepare):
    rng = np.random.default_rng(seed)
    columns = columns_of(random_rows(rng))
    config = config_of(split__kind="leave_one_out", timelines__min_actions=3)
    if not times:
        config.events.update(time="", time_unit="")
    made, prepared = prepare(config, columns)
    frame = in_file(columns)
    if times:
        rows, _ = plainly(frame, config)
    else:  # all rows stay, in their order
        config.timelines.min_actions = 3
        rows = {
            user: [
                (
                    row.item,
                    0,
                    row.what or "unknown",
                    f"{row.device}|{row.os or 'unknown'}",
                    row.seconds or 0,
                )
                for row in own.itertuples()
            ]
            for user, own in frame.groupby("user")
            if len(own) >= 3
        }
    expected = {
        user: [(item, rank, *rest) for rank, (item, _, *rest) in enumerate(own)]
        for user, own in rows.items()
    }
    for split in SPLITS:
        assert read(made, [split])[split] == expected
    assert made.spec.leave_one_out
    assert made.spec.users == {"train": len(expected), "valid": 0, "test": 0}
    assert made.spec.train_end == max(map(len, expected.values())) - 1
    counts = collections.Counter(item for own in expected.values() for item, *_ in own[:-2])
    assert made.catalogue.counts.tolist() == [counts[item] for item in made.catalogue.ids]
    assert not made.catalogue.created.any()
    assert prepared.report.get("repeated rows dropped", 0) == (
        plainly(frame, config)[1] if times else 0
    )


def test_a_user_keeps_its_split_when_the_log_grows(rng, prepare):
    rows = random_rows(rng)
    before, _ = prepare(config_of(), columns_of(rows), out="before")
    grown = {name: np.concatenate([values, values[:50]]) for name, values in rows.items()}
    grown["user"][-50:] += 1000
    after, _ = prepare(config_of(), columns_of(grown), out="after")
    before, after = read(before), read(after)
    for split in SPLITS:
        assert before[split].keys() <= after[split].keys()


def test_times_finer_than_a_second_decide_the_order_and_then_the_rows(prepare):
    us = [3, 1, 2, 2, 1_000_000, 2, 999_999]
    columns = {
        "user": [f"u{n}" for n in range(20) for _ in us],
        "item": list(range(len(us))) * 20,
        "ms": [(START + 5 * DAY * (n == 0)) * 1_000_000 + t for n in range(20) for t in us],
    }
    config = config_of(events__time_unit="us")
    config.events.update(action="", surface=(), duration="")
    made, _ = prepare(config, columns)
    for users in read(made).values():
        for rows in users.values():
            assert [item for item, *_ in rows] == [1, 2, 3, 5, 0, 6, 4]
            assert {time - rows[0][1] for _, time, *_ in rows} == {0, 1}


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_every_unit_in_every_kind_of_file_is_one_order(write, prepare, kind, unit):
    """Fractions are cut off, not rounded, and integers of 19 digits keep them all."""
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    times = [START * per_second + (per_second - 1), (START + 5 * DAY) * per_second]
    columns = {
        "user": [*"abcdefghij"] * 2,
        "item": [1] * 20,
        "ms": [m for m in times for _ in range(10)],
    }
    config = config_of(events__time_unit=unit)
    config.events.update(action="", surface=(), duration="")
    made, _ = prepare(config, [write(f"e.{kind}", columns)])
    for users in read(made).values():
        for rows in users.values():
            assert [time for _, time, *_ in rows] == [START, START + 5 * DAY]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_durations_are_in_seconds_whatever_their_unit(rng, prepare, unit):
    rows = random_rows(rng)
    config = config_of(events__duration_unit=unit)
    expected, _ = plainly(in_file(columns_of(rows)), config)
    scale = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    rows["seconds"] = [None if x is None else x * scale for x in rows["seconds"]]
    made, _ = prepare(config, columns_of(rows))
    assert {user: own for users in read(made).values() for user, own in users.items()} == expected


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_an_empty_name_is_unknown(write, prepare, kind):
    columns = {
        "user": [*"abcdefghij"] * 2,
        "item": [1] * 20,
        "ms": [START * 1000] * 10 + [(START + 5 * DAY) * 1000] * 10,
        "what": ["", "save"] * 10,
        "where": ["home", ""] * 10,
    }
    config = config_of()
    config.events.update(action="what", surface=("where",), duration="")
    made, _ = prepare(config, [write(f"e.{kind}", columns)])
    assert made.spec.actions == ("unknown", "save")
    assert made.spec.surfaces == ("unknown", "home")


@pytest.mark.parametrize(
    ("column", "unit"),
    [
        (["2020-01-02T03:04:05Z", "2020-01-02 03:04:06"], ""),
        (["2020-01-02T04:04:05+01:00", "2020-01-02T03:04:06.999"], ""),
        ([1577934245, 1577934246], "s"),
        ([1577934245.0, 1577934246.5], "s"),
        ([1577934245_000_000, 1577934246_000_000], "us"),
        (["1577934245000", "1577934246999"], "ms"),
        (pa.array([1577934245, 1577934246], pa.decimal128(20, 3)), "s"),
        (pa.array([1577934245_000_000_001, 1577934246_000_000_001], pa.timestamp("ns")), ""),
        (pa.array([1577934245, 1577934246], pa.timestamp("s", "America/New_York")), ""),
        (pa.array([1577934245, 1577934246], pa.timestamp("s")).dictionary_encode(), ""),
        (pa.array(["2020-01-02 03:04:05", "2020-01-02 03:04:06"], pa.string_view()), ""),
    ],
)
def test_time_in_every_form(prepare, column, unit):
    column = column if isinstance(column, pa.Array) else pa.array(column)
    users, column = [*"abcdefghij"] * 2, pa.concat_arrays([column[:1]] * 10 + [column[1:]] * 10)
    config = config_of(events__time_unit=unit, split__train_end="2020-01-02T03:04:05")
    config.events.update(action="", surface=(), duration="")
    made, _ = prepare(config, {"user": users, "item": [1] * 20, "ms": column})
    times = [[time for _, time, *_ in rows] for own in read(made).values() for rows in own.values()]
    assert times == [[1577934245, 1577934246]] * 10


def test_date_columns_are_midnights(prepare):
    dates = [datetime.date(2020, 1, 2), datetime.date(2020, 1, 3)]
    columns = {"user": [*"abcdefghij"] * 2, "item": [1] * 20}
    columns["ms"] = [date for date in dates for _ in range(10)]
    config = config_of(events__time_unit="", split__train_end="2020-01-02")
    config.events.update(action="", surface=(), duration="")
    made, _ = prepare(config, columns)
    rows = next(iter(read(made)["train"].values()))
    assert [time for _, time, *_ in rows] == [1577923200, 1577923200 + DAY]


def test_several_files_are_one_log(rng, write, prepare):
    rows = [columns_of(random_rows(rng, 100), "int", "int") for _ in range(2)]
    paths = [write("seen.parquet", rows[0]), write("bought.csv", rows[1])]
    config = config_of(events__action="")
    config.events.action_by_file = (("seen", "see"), ("bought", "buy"))
    made, _ = prepare(config, paths)
    frames = [
        in_file(one).assign(what=name) for one, name in zip(rows, ("see", "buy"), strict=True)
    ]
    expected, _ = plainly(pd.concat(frames), config)
    assert {user: own for users in read(made).values() for user, own in users.items()} == expected


@pytest.mark.parametrize("types", [("see", "see"), ("see", "buy")])
def test_histories_need_not_have_the_names_of_the_logs_files(rng, write, prepare, types):
    rows = [columns_of(random_rows(rng, 100), "int", "int") for _ in range(2)]
    config = config_of(events__action="")
    config.events.action_by_file = (("seen", types[0]), ("bought", types[1]))
    paths = [write(f"{name}.csv", of) for name, of in zip(("seen", "bought"), rows, strict=True)]
    made, _ = prepare(config, paths)
    names = np.array(made.spec.actions)
    (by_name,) = {*names[histories.read(made, paths[1]).records["action"]].tolist()}
    assert by_name == types[1]
    new = rows[0] | {"action": ["buy"] * len(rows[0]["user"])}
    for source in (write("new.csv", new), pa.table(new)):
        (found,) = {*names[histories.read(made, source).records["action"]].tolist()}
        assert found == types[1]
    if len(set(types)) > 1:
        with pytest.raises(InputError, match="no column 'action'"):
            histories.read(made, pa.table(rows[0]))


@pytest.mark.parametrize(
    ("kind", "like", "value"),
    [
        ("parquet", [1, 0], 1),
        ("parquet", [1, 0], "1"),
        ("parquet", [1.0, 0.0], 1),
        ("parquet", [True, False], 1),
        ("parquet", ["1", "0"], 1),
        ("parquet", ["yes", "no"], "yes"),
        ("csv", [2.5, 0], 2.5),
        ("csv", [True, False], True),
        ("jsonl", [1.0, 0], 1),
        ("jsonl", [True, False], True),
    ],
)
def test_action_rules_take_the_first_that_holds(write, prepare, kind, like, value):
    columns = {
        "user": [*"abcdefghij"] * 4,
        "item": [item for item in range(4) for _ in range(10)],
        "ms": [START * 1000 + n * DAY * 1000 for n in range(4) for _ in range(10)],
        "like": [like[n % 2] for n in range(4) for _ in range(10)],
        "see": [n // 2 for n in (3, 2, 1, 0) for _ in range(10)],
    }
    config = config_of(events__action="")
    config.events.update(surface=(), duration="")
    config.events.action_rules = (("liked", "like", value), ("seen", "see", 1))
    made, _ = prepare(config, [write(f"e.{kind}", columns)])
    for users in read(made).values():
        for rows in users.values():
            assert [row[2] for row in rows] == ["liked", "seen", "liked", "unknown"]
    assert made.spec.surfaces == ("unknown",)


def test_rows_with_too_little_are_dropped(rng, prepare):
    rows = random_rows(rng)
    rows["seconds"] = np.where(rows["seconds"] == None, 1.0, rows["seconds"])  # noqa: E711
    config = config_of()
    config.events.least = (("seconds", 5.0), ("device", 1.0))
    made, prepared = prepare(config, columns_of(rows))
    frame = in_file(columns_of(rows))
    kept = frame[(frame["seconds"] >= 5) & (frame["device"] >= 1)]
    expected, _ = plainly(kept, config)
    assert {user: own for users in read(made).values() for user, own in users.items()} == expected
    assert prepared.report["dropped as too little"] == len(frame) - len(kept)


def test_a_row_with_just_enough_is_kept_in_every_type(prepare):
    """A float32 has no 2.3 but 2.2999999523162842."""
    columns = {
        "user": [user for user in "abcdefghij" for _ in range(4)],
        "item": [*range(4)] * 10,
        "ms": [(START + n * DAY) * 1000 for n in range(4)] * 10,
        "rating": pa.array([2.2, 2.3, 2.3, 2.4] * 10, pa.float32()),
    }
    config = config_of(events__action="", events__least=(("rating", 2.3),))
    config.events.update(surface=(), duration="")
    assert prepare(config, columns)[1].report["dropped as too little"] == 10


def test_since_drops_and_tolerance_bounds_what_is_bad(rng, prepare, refuse):
    rows = random_rows(rng, 450)
    total = len(rows["ms"])
    rows["ms"][3] = 5  # a placeholder
    rows["seconds"][7] = np.nan
    rows["seconds"][9] = -1
    rows["seconds"] = pa.array([None if x is None else float(x) for x in rows["seconds"]])
    columns = columns_of(rows)
    config = config_of(events__since="2000-01-01")
    refuse(rf"row 8: seconds is nan.*2 of {total} rows", config, columns)
    config.tolerance = 1.9 / total
    refuse("row 8", config, columns)
    config.tolerance = 2 / total
    report = prepare(config, columns)[1].report
    assert report["dropped as too early"] == 1
    assert report["dropped for a bad duration"] == 2
    assert report["events"] == total - 3
    config.events.since = ""
    config.tolerance = 3 / total
    assert prepare(config, columns, out="b")[1].report["dropped for a bad time"] == 1


def test_since_keeps_the_rows_of_that_moment(prepare):
    times = [START * 1000 + n for n in (-1, 0, 1, 5 * DAY * 1000)]
    columns = {
        "user": [*"abcdefghij"] * 4,
        "item": [1] * 40,
        "ms": [time for time in times for _ in range(10)],
    }
    config = config_of(events__action="", events__since="2020-09-13T12:26:40")
    config.events.update(surface=(), duration="")
    report = prepare(config, columns)[1].report
    assert report["dropped as too early"] == 10
    assert report["events"] == 30


def test_rare_actions_and_surfaces_become_unknown(prepare):
    where, what = ["a", "b", "b", None, "c", "b"], ["x", "y", None, "y", "x", "z"]
    columns = {
        "user": [user for user in "abcdefghij" for _ in range(6)],
        "item": [*range(6)] * 10,
        "ms": [(START + n * DAY) * 1000 for n in range(6)] * 10,
        "where": where * 10,
        "what": what * 10,
    }
    config = config_of(events__max_surfaces=2, events__max_actions=2)
    config.events.update(surface=("where",), duration="")
    made, prepared = prepare(config, columns)
    assert made.spec.surfaces == ("unknown", "b", "a")
    assert made.spec.actions == ("unknown", "x", "y")
    for users in read(made).values():
        for rows in users.values():
            assert [row[3] for row in rows] == ["a", "b", "b", "unknown", "unknown", "b"]
            assert [row[2] for row in rows] == ["x", "y", "unknown", "y", "x", "unknown"]
    assert prepared.report["surfaces outside the vocabulary"] == 10
    assert prepared.report["actions outside the vocabulary"] == 10


def test_a_log_without_times_keeps_its_order(write, prepare):
    path = write("e.txt", b"b 1\na 3\nb 1\nb 2\na 1\na 9\n")
    config = column_map.default()
    config.events.update(user="user", header=("user", "item"), delimiter=" ")
    config.split.kind = "leave_one_out"
    config.timelines.min_actions = 3
    made, _ = prepare(config, [path])
    assert {
        user: [item for item, *_ in rows] for user, rows in read(made, ["train"])["train"].items()
    } == {"b": [1, 1, 2], "a": [3, 1, 9]}
    assert sorted(made.chunk("train", 0, 9).records["time"]) == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    ("times", "remark"),
    [
        ([10_000_000, 11_000_000], "ends before 1973"),
        ([START, START + 30], "less than a minute"),
        ([START, START + 90], None),
    ],
)
def test_times_that_look_wrong_are_remarked_upon(prepare, times, remark):
    columns = {"user": [*"abcdefghij"] * 2, "item": [1] * 20}
    columns["ms"] = [time for time in times for _ in range(10)]
    config = config_of(events__time_unit="s", split__test_days=10 / DAY)
    config.events.update(action="", surface=(), duration="")
    _, prepared = prepare(config, columns)
    assert len(prepared.remarks) == (remark is not None)
    assert remark is None or remark in prepared.remarks[0]


def test_numbers_in_text_without_a_unit_are_told(write, prepare):
    columns = {"user": [*"abcdefghij"], "item": [1] * 10, "ms": [START] * 10}
    config = config_of(events__time_unit="")
    config.events.update(action="", surface=(), duration="")
    told = f"ms is '{START}'; expected a timestamp .*, as ISO 8601 text or with events.time_unit"
    with pytest.raises(InputError, match=told):
        prepare(config, [write("e.csv", columns)])
