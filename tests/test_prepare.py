"""The command: what it writes against a plain-Python reading, and what it refuses."""

import collections
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

from pinjax.data import column_map, datasets, prepared, schema
from pinjax.errors import InputError

ROOT = pathlib.Path(__file__).parent.parent
START = 1_600_000_000


@pytest.fixture
def log():
    rng = np.random.default_rng(0)
    return {
        "user": rng.integers(0, 40, 400),
        "item": rng.integers(100, 120, 400),
        "time": START + rng.permutation(400) * 3600,
        "seconds": rng.integers(0, 50, 400).astype(float),
    }


@pytest.fixture
def table():
    content = np.random.default_rng(1).normal(size=(15, 4)).tolist()
    return {"item": np.arange(114, 99, -1), "v": content, "created": [START] * 15}


def make_config(**split):
    config = column_map.default()
    config.events.time_unit = "s"
    config.events.duration = "seconds"
    config.catalogue.update(content="v", created="created", created_unit="s")
    config.split.update(test_days=5.0, valid=0.2, test=0.3)
    config.split.update(split)
    return config


def prepare(tmp_path, log, table, config, out="out"):
    pq.write_table(pa.table(log), tmp_path / "e.parquet")
    if table is not None:
        pq.write_table(pa.table(table), tmp_path / "i.parquet")
    items = None if table is None else tmp_path / "i.parquet"
    return prepared.prepare([tmp_path / "e.parquet"], items, tmp_path / out, config)


def read(directory):
    """{split: {user: ACTION records}}"""
    builder = tfds.builder_from_directory(directory)
    return {
        split: {
            row["user"].decode(): schema.unpack([row["actions"]])[0]
            for row in builder.as_data_source(split)
        }
        for split in schema.SPLITS
    }


def by_user(log):
    """{user: [(item, time, seconds), ...]} in order of time."""
    timelines = collections.defaultdict(list)
    for row in np.argsort(log["time"], kind="stable"):
        user, item, time, seconds = (log[name][row] for name in ("user", "item", "time", "seconds"))
        timelines[str(user)].append((item, time, seconds))
    return dict(timelines)


def test_writes_what_the_log_holds(tmp_path, log, table):
    config = make_config()
    metadata, is_new = prepare(tmp_path, log, table, config)
    assert is_new
    catalogue = schema.Catalogue.read(tmp_path / "out" / schema.CATALOGUE_FILE)
    splits = read(tmp_path / "out")
    written = {
        user: [(catalogue.ids[a["item"]], a["time"], a["duration"]) for a in records]
        for users in splits.values()
        for user, records in users.items()
    }
    assert written == by_user(log)
    assert sum(map(len, splits.values())) == len(written)  # no user in two splits
    for split, users in splits.items():
        assert {prepared.split_of(user, config.split) for user in users} == {split}

    last = max(log["time"])
    assert metadata.train_end == last - 5 * 86400
    counts = collections.Counter(
        action["item"]
        for records in splits["train"].values()
        for action in records[records["time"] <= metadata.train_end]
    )
    assert catalogue.counts.tolist() == [counts[row] for row in range(len(catalogue))]
    assert 0 < catalogue.counts.sum() < sum(map(len, splits["train"].values()))

    assert catalogue.ids[:15].tolist() == table["item"].tolist()
    np.testing.assert_array_equal(catalogue.content[:15], np.float16(table["v"]))
    for row in range(15, len(catalogue)):
        assert catalogue.created[row] == min(log["time"][log["item"] == catalogue.ids[row]])
    assert metadata.num_items == len(catalogue) == 20
    assert metadata.report["rows read"] == 400
    stored = tfds.builder_from_directory(tmp_path / "out").info.metadata
    assert schema.Metadata.from_tfds(stored) == metadata


def test_a_user_keeps_its_split_when_the_log_grows(tmp_path, log, table):
    prepare(tmp_path, log, table, make_config(), "before")
    grown = {name: np.concatenate([values, values[:50]]) for name, values in log.items()}
    grown["user"][400:] += 1000
    prepare(tmp_path, grown, table, make_config(), "after")
    before, after = read(tmp_path / "before"), read(tmp_path / "after")
    for split in schema.SPLITS:
        assert before[split].keys() <= after[split].keys()


def test_split_shares_and_seeds():
    config = make_config(valid=0.1, test=0.3)
    first = [prepared.split_of(user, config.split) for user in range(4000)]
    shares = {split: first.count(split) / 4000 for split in schema.SPLITS}
    assert shares == pytest.approx({"train": 0.6, "valid": 0.1, "test": 0.3}, abs=0.03)
    config.split.seed = 1
    second = [prepared.split_of(user, config.split) for user in range(4000)]
    same = np.mean([a == b for a, b in zip(first, second, strict=True)])
    assert same == pytest.approx(0.36 + 0.01 + 0.09, abs=0.03)  # independent


def test_leave_one_out_holds_everybody_in_every_split(tmp_path, log):
    config = make_config(kind="leave_one_out")
    config.min_actions = 3
    metadata, _ = prepare(tmp_path, log, None, config)
    assert metadata.leave_one_out
    catalogue = schema.Catalogue.read(tmp_path / "out" / schema.CATALOGUE_FILE)
    splits = read(tmp_path / "out")
    expected = {
        user: [item for item, *_ in rows] for user, rows in by_user(log).items() if len(rows) > 2
    }
    counts = collections.Counter(item for items in expected.values() for item in items[:-2])
    for users in splits.values():
        items = {user: catalogue.ids[records["item"]].tolist() for user, records in users.items()}
        assert items == expected
        assert all(r["time"].tolist() == list(range(len(r))) for r in users.values())
    assert catalogue.counts.tolist() == [counts[item] for item in catalogue.ids]
    assert not catalogue.created.any()


def test_the_same_input_is_prepared_once(tmp_path, log, table):
    first, _ = prepare(tmp_path, log, table, make_config())
    again, is_new = prepare(tmp_path, log, table, make_config())
    assert not is_new
    assert again == first
    elsewhere, _ = prepare(tmp_path, log, table, make_config(), "elsewhere")
    assert elsewhere.digest == first.digest
    other, _ = prepare(tmp_path, log, table, make_config(seed=1), "other")
    assert other.digest != first.digest
    log["seconds"][0] += 1
    with pytest.raises(InputError, match="holds something else"):
        prepare(tmp_path, log, table, make_config())


def test_a_failure_while_writing_leaves_nothing(tmp_path, log, table, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(schema.Catalogue, "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(tmp_path, log, table, make_config(), "dir/out")
    assert os.listdir(tmp_path / "dir") == []


@pytest.mark.parametrize("seed", [0, 1])
def test_of_two_that_prepare_at_once_the_first_stays(tmp_path, log, table, monkeypatch, seed):
    write, made = schema.Catalogue.write, []

    def write_after_another(catalogue, path):
        if not made:
            made.append(path)
            made.append(prepare(tmp_path, log, table, make_config(seed=seed)))
        write(catalogue, path)

    monkeypatch.setattr(schema.Catalogue, "write", write_after_another)
    if seed:
        with pytest.raises(InputError, match="holds something else"):
            prepare(tmp_path, log, table, make_config())
    else:
        assert prepare(tmp_path, log, table, make_config()) == made[1]
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    again, is_new = prepare(tmp_path, log, table, make_config(seed=seed))
    assert not is_new
    assert again == made[1][0]


def put(name, row, value):
    """Changes one value of a column, which may need another type for it."""

    def change(columns):
        values = list(columns[name])
        values[row] = value
        columns[name] = values

    return change


def rename(old, new):
    def change(columns):
        columns[new] = columns.pop(old)

    return change


def column(name, function):
    def change(columns):
        columns[name] = function(columns[name])

    return change


BAD_LOGS = {
    "null user": (put("user", 4, None), "row 5: user is None; expected a user's id"),
    "null item": (put("item", 4, None), "row 5: item is None; expected an item's id"),
    "null time": (put("time", 4, None), "row 5: time is None; expected a moment"),
    "NaN time": (put("time", 4, float("nan")), "row 5: time is nan; expected a moment"),
    "before 1970": (put("time", 4, -1), "row 5: time is -1; expected a moment from 1970 to 2106"),
    "after 2106": (put("time", 4, 2**33), "row 5: time is 8589934592; expected a moment"),
    "units mixed": (put("time", 4, START // 1000), "row 5: time is 1600000; .*mixed units"),
    "milliseconds": (
        column("time", lambda x: x * 1000),
        r"row 1: time is 16.*2106 in s \(400 of 400",
    ),
    "text for a time": (column("time", lambda x: ["noon"] * len(x)), "row 1: time is 'noon'"),
    "list for a time": (
        column("time", lambda x: [[v] for v in x]),
        "time is list.*expected numbers",
    ),
    "float ids": (column("user", lambda x: x / 2), "user is double; expected integer or text ids"),
    "empty id": (column("user", lambda x: [""] + ["u"] * 399), "row 1: user is ''"),
    "negative duration": (put("seconds", 4, -0.5), "row 5: seconds is -0.5; expected a number"),
    "NaN duration": (put("seconds", 4, float("nan")), "row 5: seconds is nan; expected a number"),
    "missing column": (rename("time", "tiem"), "no column 'time' among .*did you mean 'tiem'"),
    "no rows": (
        lambda columns: columns.update({k: v[:0] for k, v in columns.items()}),
        "has no rows",
    ),
}
BAD_TABLES = {
    "duplicate item": (put("item", 1, 114), "row 2: item is 114; expected each item once"),
    "null item": (put("item", 1, None), "row 2: item is None; expected an item's id"),
    "short vector": (put("v", 1, [1.0]), r"row 2: v is \[1.0\]; expected 4 finite numbers"),
    "NaN in a vector": (
        put("v", 1, [1.0, float("nan"), 0, 0]),
        r"row 2: v is \[1.0, nan.*4 finite",
    ),
    "too large": (put("v", 1, [1e6, 0, 0, 0]), "row 2: v is .*expected 4 finite numbers"),
    "no vectors": (column("v", lambda x: [1.0] * len(x)), "v is double; expected lists of numbers"),
    "bad date": (put("created", 1, -5), "row 2: created is -5; expected a moment"),
}
BAD_CONFIGS = {
    "split kind": ({"split.kind": "random"}, "split.kind is 'random'; expected 'time' or"),
    "shares over 1": ({"split.valid": 0.8}, "split.test is 0.3; expected"),
    "train_end too late": ({"split.train_end": "2031-01-01"}, "train_end is 2031.*2020-09-13"),
    "train_end too early": (
        {"split.test_days": 400.0},
        "expected a moment between the log's first",
    ),
    "no date": ({"split.train_end": "soon"}, "split.train_end is 'soon'; expected a moment"),
    "no time": ({"events.time": ""}, "events.time is ''; expected a column"),
    "unit": ({"events.time_unit": "min"}, "events.time_unit is 'min'; expected s, ms"),
    "no unit": ({"events.time_unit": ""}, "time is int64; expected timestamps.*or a unit"),
    "two actions": (
        {"events.action": "user", "events.action_by_file": (("e", "x"),)},
        "expected only one of",
    ),
    "file without action": ({"events.action_by_file": (("a", "x"),)}, "action_by_file has only a"),
    "too few actions": ({"min_actions": 400}, "min_actions is 400; the most of any user is"),
    "leave one out of two": ({"split.kind": "leave_one_out"}, "min_actions is 1; expected 3"),
    "all rows dropped": ({"events.since": "2031-01-01"}, "no usable row is left"),
    "empty split": ({"split.valid": 1e-9}, "no user of 40 falls into valid"),
}


def check_refused(tmp_path, message, *args):
    with pytest.raises(InputError, match=message) as error:
        prepare(tmp_path, *args)
    assert "\n" not in str(error.value)
    assert set(os.listdir(tmp_path)) <= {"e.parquet", "i.parquet"}


@pytest.mark.parametrize("case", BAD_LOGS)
def test_refuses_a_bad_log(tmp_path, log, table, case):
    change, message = BAD_LOGS[case]
    change(log)
    check_refused(tmp_path, message, log, table, make_config())


@pytest.mark.parametrize("case", BAD_TABLES)
def test_refuses_a_bad_table(tmp_path, log, table, case):
    change, message = BAD_TABLES[case]
    change(table)
    check_refused(tmp_path, message, log, table, make_config())


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_refuses_a_bad_config(tmp_path, log, table, case):
    changes, message = BAD_CONFIGS[case]
    config = make_config()
    config.update_from_flattened_dict(changes)
    check_refused(tmp_path, message, log, table, config)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("e.parquet", b"user,item\n", "not readable as Parquet"),
        ("e.csv", b"", "not readable as CSV"),
        ("e.csv", b"user,item,time,seconds\n1,2\n", "not readable as CSV"),
        ("e.csv", b"user,item,time,seconds\n1,2,3,x\n", "row 1: seconds is 'x'; expected a number"),
        ("missing.parquet", None, "no such file"),
    ],
)
def test_refuses_a_bad_file(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: .*{message}|{name}: {message}"):
        prepared.prepare([tmp_path / name], None, tmp_path / "out", make_config())
    assert not (tmp_path / "out").exists()


def test_refuses_a_directory_in_use_and_one_that_cannot_be_made(tmp_path, log, table):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="out: holds something else; expected a new or an empty"):
        prepare(tmp_path, log, table, make_config())
    assert os.listdir(tmp_path / "out") == ["thesis.tex"]
    with pytest.raises(InputError, match="cannot be written: Not a directory"):
        prepare(tmp_path, log, table, make_config(), "e.parquet/out")


CONFIG = """
from pinjax.data import column_map

def get_config():
    config = column_map.default()
    config.events.time_unit = "s"
    config.split.test_days = 5.0
    return config
"""


def command(tmp_path, *flags):
    (tmp_path / "map.py").write_text(CONFIG)
    arguments = [f"--config={tmp_path}/map.py", f"--events={tmp_path}/e.parquet", *flags]
    return subprocess.run(
        [sys.executable, "-m", "pinjax.prepare", *arguments, f"--out={tmp_path}/out"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_prints_a_report_and_the_next_command(tmp_path, log):
    pq.write_table(pa.table(log), tmp_path / "e.parquet")
    done = command(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "rows read" in done.stdout
    evaluated_on, following = done.stdout.splitlines()[-2:]
    assert f"--config.data.name={tmp_path}/out" in following
    dataset = datasets.load(f"{tmp_path}/out", "")
    end, users = dataset.metadata.train_end, {"valid": 0, "test": 0}
    for split in users:
        for chunk in dataset.chunks(split):
            for times in np.split(chunk.records["time"], chunk.offsets[1:-1]):
                users[split] += times[0] <= end < times[-1]  # the log ends within two weeks
    assert min(users.values()) > 0
    assert evaluated_on == (
        f"evaluated on: {users['valid']} users of valid, {users['test']} users of test, in the 14 "
        "days after training"
    )
    report = json.loads((tmp_path / "out" / "metadata.json").read_text())["report"]
    assert report["users"] == 40


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.split.test_dais=3", "did you mean split.test_days"),
        ("--config.split.kind=random", "split.kind is 'random'"),
        ("--queries=q.parquet", "--queries is q.parquet; expected only with engagements"),
    ],
)
def test_command_refuses_in_one_line(tmp_path, log, flag, message):
    pq.write_table(pa.table(log), tmp_path / "e.parquet")
    done = command(tmp_path, flag)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert re.search(message, done.stderr)
    assert not (tmp_path / "out").exists()
