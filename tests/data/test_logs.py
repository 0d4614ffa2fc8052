"""Logs against a plain-Python reading of the same rows."""

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from pinjax.data import column_map, logs
from pinjax.errors import InputError

IDS = {
    "int": lambda codes: pa.array(codes, pa.int32()),
    "text": lambda codes: pa.array([f"0{code}" for code in codes]),
    "uint64": lambda codes: pa.array([2**63 + code for code in codes.tolist()], pa.uint64()),
}


def random_rows(rng, rows, users=6, items=5):
    """Unsorted, with ties in time and whole duplicates."""
    time = 1_600_000_000_000 + rng.integers(0, 10, rows) * 300
    return {
        "user": np.minimum(rng.geometric(0.4, rows), users),
        "item": rng.integers(0, items, rows),
        "ms": time,
        "what": np.array(["see", "buy"])[rng.integers(0, 2, rows)],
        "device": rng.integers(0, 3, rows),
        "os": np.array(["a", "b"])[rng.integers(0, 2, rows)],
        "seconds": rng.integers(0, 100, rows) / 4,
    }


def config_of(**events):
    config = column_map.default()
    config.events.update(
        time="ms", time_unit="ms", action="what", surface=("device", "os"), duration="seconds"
    )
    config.events.update(events)
    return config


def write(path, rows, user_ids="int", item_ids="text"):
    table = pa.table(
        {**rows, "user": IDS[user_ids](rows["user"]), "item": IDS[item_ids](rows["item"])}
    )
    if path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return table.to_pylist()


def timelines_of(log):
    """{user: [(item, time, action, surface, duration), ...]}, in the log's own terms."""
    users, items = log.users.to_pylist(), log.items.to_pylist()
    return {
        user: [
            (
                items[action["item"]],
                int(action["time"]),
                log.actions[action["action"]],
                log.surfaces[action["surface"]],
                float(action["duration"]),
            )
            for action in log.records[start:end]
        ]
        for user, start, end in zip(users, log.offsets, log.offsets[1:], strict=False)
    }


def oracle(rows, min_actions=1):
    """The same by a loop; also how many rows repeat another and how many go back in time."""
    seen, timelines, newest = set(), {}, {}
    duplicates = backwards = 0
    for row in rows:
        backwards += row["ms"] < newest.get(row["user"], 0)
        newest[row["user"]] = row["ms"]
        key = (row["user"], row["item"], row["ms"], row["what"])
        duplicates += key in seen
        if key not in seen:
            seen.add(key)
            timelines.setdefault(row["user"], []).append(row)
    result = {
        user: [
            (
                row["item"],
                row["ms"] // 1000,
                row["what"],
                f"{row['device']}|{row['os']}",
                row["seconds"],
            )
            for row in sorted(timeline, key=lambda row: row["ms"])
        ]
        for user, timeline in timelines.items()
        if len(timeline) >= min_actions
    }
    return result, duplicates, backwards


@pytest.mark.parametrize("ids", [("int", "text"), ("text", "uint64"), ("uint64", "int")])
@pytest.mark.parametrize("min_actions", [1, 8])
def test_read_equals_a_loop(rng, tmp_path, ids, min_actions):
    rows = write(tmp_path / "e.parquet", random_rows(rng, 100), *ids)
    config = config_of()
    config.min_actions = min_actions
    log = logs.read([tmp_path / "e.parquet"], config)
    expected, duplicates, backwards = oracle(rows, min_actions)
    if "uint64" in ids:  # too large for int64: text

        def named(value):
            return str(value) if isinstance(value, int) and value >= 2**63 else value

        expected = {
            named(user): [(named(item), *rest) for item, *rest in timeline]
            for user, timeline in expected.items()
        }
    assert timelines_of(log) == expected
    assert list(timelines_of(log)) == list(expected)
    assert log.report["duplicates dropped"] == duplicates > 0
    assert log.report["out of order"] == backwards > 0


def test_csv_keeps_ids_as_they_are_written(rng, tmp_path):
    rows = write(tmp_path / "e.csv", random_rows(rng, 40), "text", "int")
    log = logs.read([tmp_path / "e.csv"], config_of())
    expected = {
        user: [(str(item), *rest) for item, *rest in timeline]
        for user, timeline in oracle(rows)[0].items()
    }
    assert timelines_of(log) == expected


def test_several_files_are_one_log(rng, tmp_path):
    parts = [random_rows(rng, 30), random_rows(rng, 30)]
    first = write(tmp_path / "seen.parquet", parts[0], "int", "text")
    second = write(tmp_path / "bought.csv", parts[1], "int", "text")
    for rows, name in ((first, "see"), (second, "buy")):
        for row in rows:
            row.update(what=name, user=str(row["user"]))
    config = config_of(action="", action_by_file=(("seen", "see"), ("bought", "buy")))
    log = logs.read([tmp_path / "seen.parquet", tmp_path / "bought.csv"], config)
    assert timelines_of(log) == oracle(first + second)[0]


def test_action_rules_take_the_first_that_holds(tmp_path):
    table = {
        "user": [1] * 4,
        "item": range(4),
        "ms": range(4),
        "like": [1, 0, 1, 0],
        "see": [1, 1, 0, 0],
    }
    pq.write_table(pa.table(table), tmp_path / "e.parquet")
    config = config_of(action="", surface=(), duration="")
    config.events.action_rules = (("liked", "like", 1), ("seen", "see", 1))
    log = logs.read([tmp_path / "e.parquet"], config)
    assert [log.actions[row] for row in log.records["action"]] == [
        "liked",
        "seen",
        "liked",
        "unknown",
    ]
    assert log.surfaces == ("unknown",)


@pytest.mark.parametrize(
    ("column", "unit"),
    [
        (pa.array(["2020-01-02T03:04:05Z", "2020-01-02 03:04:06"]), ""),
        (pa.array([1577934245, 1577934246]), "s"),
        (pa.array([1577934245.0, 1577934246.0]), "s"),
        (pa.array([1577934245_000_000, 1577934246_000_000]), "us"),
        (pa.array(["1577934245000", "1577934246999"]), "ms"),
        (pa.array([1577934245_000_000_001, 1577934246_000_000_001], pa.timestamp("ns")), ""),
        (pa.array([1577934245, 1577934246], pa.timestamp("s", "America/New_York")), ""),
    ],
)
def test_time_in_every_form(tmp_path, column, unit):
    table = pa.table({"user": [7, 7], "item": [1, 2], "ms": column})
    pq.write_table(table, tmp_path / "e.parquet")
    config = config_of(time_unit=unit, action="", surface=(), duration="")
    log = logs.read([tmp_path / "e.parquet"], config)
    assert log.records["time"].tolist() == [1577934245, 1577934246]


def test_date_columns_are_midnights(tmp_path):
    dates = pa.array([datetime.date(2020, 1, 2), datetime.date(2020, 1, 3)])
    pq.write_table(pa.table({"user": [7, 7], "item": [1, 2], "ms": dates}), tmp_path / "e.parquet")
    log = logs.read(
        [tmp_path / "e.parquet"], config_of(time_unit="", action="", surface=(), duration="")
    )
    assert log.records["time"].tolist() == [1577923200, 1577923200 + 86400]


def test_since_drops_and_tolerance_bounds_what_is_bad(rng, tmp_path):
    rows = random_rows(rng, 50)
    rows["ms"][3] = 5  # a placeholder
    rows["seconds"][7] = np.nan
    rows["seconds"][9] = -1
    write(tmp_path / "e.parquet", rows)
    config = config_of(since="2000-01-01")
    with pytest.raises(InputError, match=r"row 8: seconds is nan.*2 of 50 rows"):
        logs.read([tmp_path / "e.parquet"], config)
    config.tolerance = 0.039
    with pytest.raises(InputError, match="row 8"):
        logs.read([tmp_path / "e.parquet"], config)
    config.tolerance = 0.04
    report = logs.read([tmp_path / "e.parquet"], config).report
    assert report["dropped as too early"] == 1
    assert report["dropped for a bad duration"] == 2
    config.events.since = ""
    config.tolerance = 0.06
    assert logs.read([tmp_path / "e.parquet"], config).report["dropped for a bad time"] == 1


def test_rare_surfaces_become_unknown(tmp_path):
    table = {
        "user": [1] * 6,
        "item": range(6),
        "ms": range(6),
        "where": ["a", "b", "b", None, "c", "b"],
    }
    pq.write_table(pa.table(table), tmp_path / "e.parquet")
    config = config_of(action="", surface=("where",), duration="")
    config.max_surfaces = 2
    log = logs.read([tmp_path / "e.parquet"], config)
    assert log.surfaces == ("unknown", "b", "a")
    assert log.records["surface"].tolist() == [2, 1, 1, 0, 0, 1]
    assert log.report["surfaces outside the vocabulary"] == 1


def test_a_log_without_times_keeps_its_order(tmp_path):
    (tmp_path / "e.txt").write_text("b 1\na 3\nb 1\nb 2\na 1\na 9\n")
    config = column_map.default()
    config.delimiter = " "
    config.events.update(header=("user", "item"), time="")
    config.split.kind = "leave_one_out"
    log = logs.read([tmp_path / "e.txt"], config)
    assert {user: [item for item, *_ in rows] for user, rows in timelines_of(log).items()} == {
        "b": ["1", "1", "2"],
        "a": ["3", "1", "9"],
    }
    assert log.records["time"].tolist() == [0, 1, 2, 0, 1, 2]
