"""Complete data sets: what they depend on, bad input, and what failures leave behind."""

import contextlib
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinjax import checksums
from pinjax.data import catalogue, dataset
from pinjax.data.sources import column_map, events, reading
from pinjax.data.sources import prepare as prepare_lib
from pinjax.data.text import tokens
from pinjax.errors import InputError
from pinjax.timestamps import DAY

ROOT = pathlib.Path(__file__).parents[3]
START = 1_600_000_000
WORDS = [f"word{number}" for number in range(12)]


@pytest.fixture
def log(rng):
    """A log in which no two rows of a user or a board have the same time."""
    n = 500
    return {
        "user": rng.integers(0, 40, n),
        "item": rng.integers(100, 120, n),
        "time": START + rng.permutation(n) * 7200,
        "seconds": rng.integers(0, 50, n).astype(float),
        "what": rng.choice(["see", "buy"], n),
        "query": [" ".join(rng.choice(WORDS, 2)) if rng.random() < 0.5 else None for _ in range(n)],
        "board": [f"b{n}" for n in rng.integers(0, 9, n)],
    }


@pytest.fixture
def table(rng):
    return {
        "item": np.arange(121, 99, -1),
        "name": [" ".join(rng.choice(WORDS, 3)) for _ in range(22)],
        "v": np.round(rng.normal(size=(22, 4)), 3).tolist(),
        "created": [START] * 22,
    }


def make_config(**changes):
    """All parts; `changes` as section__field."""
    config = column_map.default()
    config.events.update(user="user", time="time", time_unit="s", duration="seconds", action="what")
    config.events.update(query="query", group="board")
    config.pairs.update(sequence="user", ahead=2)
    config.catalogue.update(content="v", created="created", created_unit="s")
    config.catalogue.texts = (("title", "name"),)
    config.vectors.update(texts=("title",), dim=5)
    config.split.update(test_days=10.0, valid=0.3, test=0.3)
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        (config[section] if section else config)[field] = value
    return config


def content_of(directory):
    """All bytes of a data set, except the record of its source."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(pathlib.Path(directory).rglob("*"))
        if path.is_file() and path.name not in ("source.json", checksums.FILE)
    }


def test_a_map_with_everything_gives_all_parts(log, table, prepare):
    made, prepared = prepare(make_config(), log, table)
    assert prepared.is_new
    assert made.spec == prepared.spec
    assert made.spec.parts == ("timelines", "pairs", "graph")
    assert set(os.listdir(made.directory)) == {
        "metadata.json",
        "source.json",
        "checksums.json",
        "items.parquet",
        "vocabulary.parquet",
        "queries.parquet",
        "groups.parquet",
        "timelines",
        "pairs",
        "graph",
    }
    checksums.verify(made.directory)
    assert made.spec.actions == ("unknown", "see", "buy") or made.spec.actions[1:] == ("buy", "see")
    assert json.loads((made.directory / "source.json").read_text())["report"] == prepared.report


@pytest.mark.parametrize("kind", ["random", "column"])
def test_items_exist_at_the_end_of_training_where_the_split_is_not_by_time(
    log, table, prepare, kind
):
    log["tests"] = np.arange(500) % 5 == 0
    # Items without an event: one is made as training ends, the other in the future.
    table["created"][:2] = [START + 10**8, max(log["time"])]
    config = make_config(events__user="", pairs__sequence="group", split__kind=kind)
    config.split.column = "tests" if kind == "column" else ""
    made, _ = prepare(config, log, table)
    assert made.spec.train_end == max(log["time"])
    assert made.catalogue.created.tolist() == [START] * 20 + [max(log["time"]), START + 10**8]
    assert made.spec.num_existing == 21


@pytest.mark.parametrize("kind", ["time", "leave_one_out"])
def test_without_pairs_the_vocabulary_is_of_items_with_events_in_training(
    log, table, prepare, kind
):
    config = make_config(events__query="", pairs__sequence="", split__kind=kind)
    late = log["time"] > max(log["time"]) - 10 * DAY
    log["item"][~late & (log["item"] >= 118)] = 117
    log["item"][log["time"] == max(log["time"]) - 10 * DAY] = 118  # the last row of training
    known = range(100, 119)
    assert 118 in log["item"][~late]
    if kind == "leave_one_out":  # without times, and as of all events
        config.events.time, config.timelines.min_actions = "", 3
        known = range(100, 120)
    made, _ = prepare(config, log, table)
    named = zip(table["item"], table["name"], strict=True)
    names = [name for item, name in named if item in known]
    vocabulary = tokens.Vocabulary.build(names, **config.vocabulary)
    assert made.vocabulary.rows.equals(vocabulary.rows)


def split_over_files(log, kind, write, rng):
    order = rng.permutation(len(log["user"]))
    paths = []
    for number, rows in enumerate(np.array_split(order, 3)):
        columns = {name: pa.array([values[row] for row in rows]) for name, values in log.items()}
        paths.append(write(f"part{number}.{kind}", columns))
    return paths


@pytest.mark.parametrize(
    "kind", ["parquet", "csv", "jsonl", "csv.gz", "jsonl.gz", "csv.bz2", "tsv.xz"]
)
def test_the_same_log_in_other_files_is_the_same_data_set(log, table, rng, write, prepare, kind):
    """Shuffled, split over several files, and written in each format."""
    config = make_config()
    first, _ = prepare(config, log, table, out="first")
    if kind.startswith("tsv"):
        config.events.delimiter = "\t"
    paths = split_over_files(log, kind, write, rng)
    order = rng.permutation(len(table["item"]))
    shuffled = {name: pa.array([values[row] for row in order]) for name, values in table.items()}
    format_ = "jsonl" if kind.startswith("jsonl") else "parquet"
    made, _ = prepare(config, paths, [write(f"items.{format_}", shuffled)])
    assert made.spec.digest == first.spec.digest
    assert content_of(made.directory) == content_of(first.directory)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_where_files_lie_changes_nothing(log, table, write, prepare, kind):
    """Neither a directory named like a column nor one like a glob is read as such."""
    table = [write("i.parquet", table)]
    prepare(make_config(), [write(f"e.{kind}", log)], table, out="plain")
    odd = "item=5/shard=1/[a]*"
    prepare(make_config(), [write(f"what=see/e.{kind}", log)], table, out=f"{odd}/out")
    directory = write("x", b"")[:-1]
    assert content_of(directory + f"{odd}/out") == content_of(directory + "plain")


def test_one_file_may_be_events_and_items(log, write, prepare, refuse):
    del log["query"]
    table = {"item": np.unique(log["item"]), "name": [f"an item {n}" for n in range(20)]}
    both = {name: np.asarray(values) for name, values in log.items()}
    both["name"] = np.array([f"an item {n - 100}" for n in log["item"]])
    config = make_config(catalogue__content="", catalogue__created="", events__query="")
    apart, _ = prepare(config, [write("e.npz", both)], table, out="apart")
    config.catalogue.repeats = True
    path = write("both.npz", both)
    one, _ = prepare(config, [path], [path])
    assert content_of(one.directory).keys() == content_of(apart.directory).keys()
    assert one.catalogue.ids.tolist() == apart.catalogue.ids.tolist()
    refuse("--events names .*both.npz twice; expected each", config, [path, path], out="twice")


def test_files_without_rows_among_others_are_left_out(log, table, write, prepare):
    path = write("e.parquet", log)
    one, _ = prepare(make_config(), [path], table, out="one")
    none = pq.read_table(path).slice(0, 0)
    several, _ = prepare(make_config(), [write("part-0.parquet", none), path], table)
    assert content_of(one.directory) == content_of(several.directory)


@pytest.mark.parametrize(("threads", "memory"), [(1, None), (7, None), (4, 2**29), (1, 2**27)])
def test_neither_threads_nor_memory_nor_the_order_of_files_matter(
    log, table, rng, write, prepare, monkeypatch, threads, memory
):
    first, _ = prepare(make_config(), log, table, out="first")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(threads)))
    paths = split_over_files(log, "parquet", write, rng)
    made, _ = prepare(make_config(), paths[::-1], table, memory=memory)
    assert content_of(made.directory) == content_of(first.directory)


@pytest.mark.parametrize("given", ["vectors and pictures", "tags"])
def test_a_catalogue_is_the_same_in_pieces(log, table, rng, prepare, monkeypatch, given):
    """Of vectors that are given, or made of tags and words; some items have none."""
    config = make_config()
    table["v"][3] = None
    if given == "tags":
        table["tags"] = [list(rng.choice(["red", "blue", "old", "new"], 2)) for _ in range(22)]
        config.catalogue.update(content="", tags="tags", tag_dim=2)
    else:
        table["pictures"] = [np.ones((n % 3, 3)).tolist() for n in range(22)]
        table["topic"] = rng.choice(["shoes", "hats"], 22)
        config.catalogue.update(images="pictures", topic="topic", name="name")
        config.pairs.sequence = ""  # of items with pictures alone
    at_once, _ = prepare(config, log, table, out="at once")
    monkeypatch.setattr(catalogue, "ROWS_A_GROUP", 8)
    made, _ = prepare(config, log, table)
    assert pq.read_metadata(made.directory / catalogue.FILE).num_row_groups == 3
    assert made.spec == dataclasses.replace(at_once.spec, digest=made.spec.digest)
    found, expected = made.catalogue, at_once.catalogue
    assert found.has_images
    for name in (*(field.name for field in dataclasses.fields(catalogue.Items)), "text_features"):
        if name != "texts":
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), name)
    for a, b in zip(found.text("title"), expected.text("title"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_log_in_several_shards_is_the_same_data_set(log, table, prepare, monkeypatch):
    at_once, _ = prepare(make_config(), log, table, out="at once")
    monkeypatch.setattr(events, "_ROWS_A_SHARD", 40)
    made, _ = prepare(make_config(), log, table)
    assert content_of(made.directory) == content_of(at_once.directory)


def test_the_same_input_is_prepared_once(log, table, write, prepare):
    first, prepared = prepare(make_config(), log, table)
    _, again = prepare(make_config(), log, table)
    assert not again.is_new
    assert (again.spec, again.report, again.remarks) == (
        prepared.spec,
        prepared.report,
        prepared.remarks,
    )
    elsewhere, _ = prepare(make_config(), log, table, out="elsewhere")
    assert elsewhere.spec.digest == first.spec.digest
    other, _ = prepare(make_config(split__seed=1), log, table, out="other")
    assert other.spec.digest != first.spec.digest
    with pytest.raises(InputError, match="holds something else"):
        prepare(make_config(split__seed=1), log, table)
    log["seconds"][0] += 1
    with pytest.raises(InputError, match="holds something else"):
        prepare(make_config(), log, table)


def test_the_order_of_files_counts_only_without_times(log, table, write, prepare):
    paths = [
        write(f"{n}.parquet", {name: values[n::2] for name, values in log.items()})
        for n in range(2)
    ]
    table = [write("i.parquet", table)]
    prepare(make_config(), paths, table)
    assert not prepare(make_config(), paths[::-1], table)[1].is_new
    config = make_config(split__kind="leave_one_out", timelines__min_actions=3)
    config.events.update(time="", time_unit="")
    prepare(config, paths, table, out="without")
    with pytest.raises(InputError, match="holds something else"):
        prepare(config, paths[::-1], table, out="without")


@pytest.mark.parametrize("changed", ["e", "i", "side", "q"])
def test_a_data_set_is_of_the_contents_of_every_file(write, changed):
    paths = {name: write(f"{name}.csv", b"a,b\n1,2\n") for name in ("e", "i", "side", "q")}
    inputs = prepare_lib.Inputs.find([paths["e"]], [paths["i"], paths["side"]], [paths["q"]])
    before = inputs.identity(make_config())
    assert inputs.identity(make_config()) == before
    write(f"{changed}.csv", b"a,b\n1,3\n")
    assert inputs.identity(make_config()) != before


def test_columns_may_be_called_as_ours_are(log, table, prepare):
    """Also crosswise."""
    first, _ = prepare(make_config(), log, table, out="first")
    names = {
        "user": "item",
        "item": "user",
        "time": "row",
        "seconds": "state",
        "what": "shard",
        "query": "place",
        "board": "grp",
    }
    renamed = {names[name]: column for name, column in log.items()}
    config = make_config()
    config.events.update(user="item", item="user", time="row", duration="state", action="shard")
    config.events.update(query="place", group="grp")
    table = {
        {"item": "row", "name": "file", "v": "id", "created": "images"}[name]: column
        for name, column in table.items()
    }
    config.catalogue.update(id="row", content="id", created="images", texts=(("title", "file"),))
    made, _ = prepare(config, renamed, table)
    assert made.spec.digest == first.spec.digest


def test_names_and_ids_may_hold_anything(rng, prepare):
    """Quotes, spaces, commas and scripts go in and come out as they are."""
    odd = [
        "it's",
        'a "b"',
        "a,b",
        " x",
        "x ",
        "ünï",
        "日本",
        "tab\there",
        "null",
        "NaN",
        "%s",
        "{}",
    ]
    n = 400
    log = {
        "user": rng.choice(odd, n),
        "item": rng.choice(odd, n),
        "time": START + rng.permutation(n) * 7200,
        "what": rng.choice(odd, n),
    }
    config = column_map.default()
    config.events.update(user="user", time="time", time_unit="s", action="what", surface=("what",))
    config.split.update(test_days=3.0, valid=0.3, test=0.3)
    made, _ = prepare(config, log)
    assert made.catalogue.ids.tolist() == sorted(odd)
    assert set(made.spec.actions[1:]) == set(made.spec.surfaces[1:]) == set(odd)
    users = [
        user for split in made.spec.users for chunk in made.chunks(split) for user in chunk.users
    ]
    assert sorted(users) == sorted(odd)


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
    "null time": (put("time", 4, None), "row 5: time is None; expected a timestamp"),
    "NaN time": (put("time", 4, float("nan")), "row 5: time is nan; expected a timestamp"),
    "infinite time": (put("time", 4, float("inf")), "row 5: time is inf; expected a timestamp"),
    "before 1970": (
        put("time", 4, -1),
        "row 5: time is -1; expected a timestamp from 1970 to 2106",
    ),
    "after 2106": (put("time", 4, 2**33), "row 5: time is 8589934592; expected a timestamp"),
    "the end of 2106": (put("time", 4, 2**32), "row 5: time is 4294967296; expected a timestamp"),
    "units mixed": (put("time", 4, START // 1000), "row 5: time is 1600000; .*mixed units"),
    "milliseconds": (
        column("time", lambda x: x * 1000),
        r"row 1: time is 16.*2106 in s \(500 of 500",
    ),
    "text for a time": (column("time", lambda x: ["noon"] * len(x)), "row 1: time is 'noon'"),
    "list for a time": (
        column("time", lambda x: [[v] for v in x]),
        r"time is BIGINT\[\]; expected numbers",
    ),
    "float32 for a time": (
        column("time", lambda x: x.astype(np.float32)),
        "time is FLOAT; expected integers or doubles: 32 bits cannot tell seconds apart",
    ),
    "float ids": (column("user", lambda x: x / 2), "user is DOUBLE; expected integer or text ids"),
    "nested ids": (
        column("user", lambda x: [{"id": int(v)} for v in x]),
        r"user is STRUCT\(.*\); expected integer or text ids",
    ),
    "binary ids": (
        column("user", lambda x: [b"\x00"] * len(x)),
        "user is BLOB; expected integer or text ids",
    ),
    "dates for ids": (
        column("user", lambda x: np.array(x, "datetime64[s]")),
        "user is TIMESTAMP.*; expected integer or text ids",
    ),
    "empty id": (column("user", lambda x: [""] + ["u"] * 499), "row 1: user is ''"),
    "negative duration": (put("seconds", 4, -0.5), "row 5: seconds is -0.5; expected a number"),
    "NaN duration": (put("seconds", 4, float("nan")), "row 5: seconds is nan; expected a number"),
    "endless duration": (put("seconds", 4, float("inf")), "row 5: seconds is inf; expected a num"),
    "huge duration": (put("seconds", 4, 1e300), r"row 5: seconds is 1e\+300; expected a number"),
    "duration in text": (
        column("seconds", lambda x: ["1.5"] * 4 + ["long"] * 496),
        "row 5: seconds is 'long'; expected a number from 0 to 1e9 s",
    ),
    "duration without a unit": (
        column("seconds", lambda x: pa.array(x.astype(int), pa.duration("us"))),
        "seconds is INTERVAL; expected numbers",
    ),
    "list of times": (
        column("time", lambda x: [[v] for v in np.array(x, "datetime64[s]")]),
        r"time is TIMESTAMP.*\[\]; expected numbers",
    ),
    "nested action": (column("what", lambda x: [[v] for v in x]), r"what is VARCHAR\[\]; expected"),
    "missing column": (rename("time", "tiem"), "no column 'time' among .*did you mean 'tiem'"),
    "no rows": (
        lambda columns: columns.update({k: v[:0] for k, v in columns.items()}),
        "has no rows",
    ),
}
BAD_CONFIGS = {
    "nothing to make": (
        {"events.user": "", "events.query": "", "events.group": "", "pairs.sequence": ""},
        "events.user is ''; expected a column, or events.query, events.group or catalogue.tags",
    ),
    "sequences of nobody": ({"events.user": ""}, "pairs.sequence is 'user'; expected '' without"),
    "split kind": ({"split.kind": "random"}, "split.kind is 'random'; expected 'time' or"),
    "no such split": ({"split.kind": "hash"}, "split.kind='hash': expected .*leave_one_out"),
    "split by no column": ({"split.column": "user"}, "split.column is 'user'; expected as split"),
    "shares over 1": ({"split.valid": 0.8}, "split.test is 0.3; expected"),
    "no share": ({"split.valid": 0.0}, "split.valid is 0.0; expected above 0"),
    "no days": ({"split.test_days": float("nan")}, "split.test_days=nan: expected"),
    "days below 0": ({"split.test_days": -1.0}, "split.test_days=-1.0: expected"),
    "days beyond all": ({"split.test_days": 3e38}, "train_end is .*expected a time between"),
    "train_end too late": ({"split.train_end": "2031-01-01"}, "train_end is 2031.*2020-09-13"),
    "train_end at the end of the log": ({"split.test_days": 1e-9}, "expected a time between"),
    "train_end too early": (
        {"split.test_days": 400.0},
        "expected a time between the first and the last event",
    ),
    "no date": ({"split.train_end": "soon"}, "split.train_end is 'soon'; expected ISO 8601"),
    "no time": ({"events.time": ""}, "events.time is ''; expected a column"),
    "unit": ({"events.time_unit": "min"}, "events.time_unit='min': expected .*ms"),
    "no unit": ({"events.time_unit": ""}, "time is BIGINT; expected timestamps.*or a unit"),
    "two actions": ({"events.action_by_file": (("e", "x"),)}, "expected only one of"),
    "file without action": (
        {"events.action": "", "events.action_by_file": (("a", "x"),)},
        "action_by_file has only a",
    ),
    "a value beyond any column's": (
        {"events.action_rules": (("buy", "what", 10**400),)},
        r"events.action_rules=.*expected .*value: a number or text",
    ),
    "rules of two": (
        {"events.action_rules": (("buy", "what"),)},
        r"events.action_rules=.*expected .*type.*column.*value",
    ),
    "negative size": ({"catalogue.tag_dim": -3}, "catalogue.tag_dim=-3: expected"),
    "too few actions": ({"timelines.min_actions": 400}, "min_actions is 400; the most of any user"),
    "leave one out of two": ({"split.kind": "leave_one_out"}, "min_actions is 1; expected 3"),
    "all rows dropped": ({"events.since": "2031-01-01"}, "no usable row is left"),
    "empty split": ({"split.valid": 1e-9}, "no user of 40 falls into valid"),
    "texts of one name": (
        {"catalogue.texts": (("title", "name"), ("Title", "name"))},
        "catalogue.texts is .*; expected features that differ in more than case",
    ),
    "tags beside content": ({"catalogue.tags": "name"}, "catalogue.tags is 'name'; expected ''"),
}


@pytest.mark.parametrize("case", BAD_LOGS)
def test_refuses_a_bad_log(log, table, refuse, case):
    change, message = BAD_LOGS[case]
    change(log)
    config = make_config(events__query="", pairs__sequence="", events__group="")
    refuse(f"e.parquet: {message}", config, log, table)


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_refuses_a_bad_config(tmp_path, log, table, prepare, case):
    """Some are refused already when the field is set."""
    changes, message = BAD_CONFIGS[case]
    config = make_config()
    with pytest.raises(InputError, match=message) as error:  # noqa: PT012
        config.update_from_flattened_dict(changes)
        prepare(config, log, table)
    assert "\n" not in str(error.value)
    assert set(os.listdir(tmp_path)) <= {"e.parquet", "i.parquet"}


def test_units_that_differ_between_files_are_refused(log, write, refuse):
    """Each file is fine by itself."""
    half = {name: values[:250] for name, values in log.items()}
    other = {name: values[250:] for name, values in log.items()}
    other["time"] = other["time"] * 1000
    config = make_config(events__query="", pairs__sequence="", events__group="")
    config.catalogue.update(content="", created="", texts=())
    config.vectors.texts = ()
    paths = [write("1.parquet", half), write("2.parquet", other)]
    refuse(
        "2.parquet: row 1: time is 16.*expected a timestamp from 1970 to 2106 in s", config, paths
    )
    config.events.time_unit = "ms"
    refuse("1.parquet: row 1: time is 16.*not before 1973 as others.*mixed units", config, paths)


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
def test_refuses_a_bad_file(tmp_path, write, refuse, name, content, message):
    if content is not None:
        write(name, content)
    config = column_map.default()
    config.events.update(user="user", time="time", time_unit="s", duration="seconds")
    refuse(f"{name}: {message}", config, [str(tmp_path / name)])


def test_a_part_that_no_column_can_give_is_refused_before_anything_is_read(
    log, table, prepare, monkeypatch
):
    monkeypatch.setattr(reading, "open_files", lambda *_: pytest.fail("read"))
    monkeypatch.setattr(prepare_lib.Inputs, "identity", lambda *_: pytest.fail("read"))
    for changes in ({"events__user": ""}, {"vectors__texts": ()}, {"events__time": ""}):
        with pytest.raises(InputError, match=r"config\."):
            prepare(make_config(**changes), log, table)


def test_refuses_a_directory_in_use_and_one_that_cannot_be_made(tmp_path, log, table, prepare):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="out: holds something else; expected a new or an empty"):
        prepare(make_config(), log, table)
    assert os.listdir(tmp_path / "out") == ["thesis.tex"]
    with pytest.raises(InputError, match="cannot be written: Not a directory"):
        prepare(make_config(), log, table, out="e.parquet/out")
    (tmp_path / "empty").mkdir()
    assert prepare(make_config(), log, table, out="empty")[1].is_new


def test_a_failure_while_writing_leaves_nothing(tmp_path, log, table, prepare, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(catalogue.Items, "to_arrow", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(make_config(), log, table, out="dir/out")
    assert os.listdir(tmp_path / "dir") == []


@pytest.mark.parametrize("seed", [0, 1])
def test_of_two_that_prepare_at_once_the_first_stays(
    tmp_path, log, table, prepare, monkeypatch, seed
):
    to_arrow, made = catalogue.Items.to_arrow, []

    def to_arrow_after_another(items):
        if not made:
            made.append(None)
            made.append(prepare(make_config(split__seed=seed), log, table)[1])
        return to_arrow(items)

    monkeypatch.setattr(catalogue.Items, "to_arrow", to_arrow_after_another)
    if seed:
        with pytest.raises(InputError, match="holds something else"):
            prepare(make_config(), log, table)
    else:
        assert prepare(make_config(), log, table)[1] == made[1]
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    _, again = prepare(make_config(split__seed=seed), log, table)
    assert not again.is_new
    assert again.spec == made[1].spec


def run(tmp_path, body, *arguments):
    """Runs a script in a process of its own."""
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(body))
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


SCRIPT = """
import os, resource, signal, sys
from pinjax.data.sources import column_map, graph_part, prepare

config = column_map.default()
config.events.update(user="user", time="time", time_unit="s", group="board")
config.split.update(test_days=10.0, valid=0.3, test=0.3)
inputs = prepare.Inputs.find(sys.argv[1:2])
out, memory, die = sys.argv[2], int(sys.argv[3]), sys.argv[4:]
if die:
    graph_part.write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prepare.prepare(inputs, out, config, memory)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_a_killed_prepare_made_again_gives_the_same(tmp_path, log, write):
    path = write("e.parquet", log)
    (tmp_path / "dir").mkdir()
    killed = run(tmp_path, SCRIPT, path, tmp_path / "dir/out", 2**28, "die")
    assert killed.returncode == -signal.SIGKILL
    (left,) = os.listdir(tmp_path / "dir")
    assert left.endswith(".unfinished")
    again = run(tmp_path, SCRIPT, path, tmp_path / "dir/out", 2**28)
    assert (again.returncode, again.stderr) == (0, "")
    assert os.listdir(tmp_path / "dir") == ["out"]
    through = run(tmp_path, SCRIPT, path, tmp_path / "through", 2**28)
    assert through.returncode == 0
    assert content_of(tmp_path / "dir/out") == content_of(tmp_path / "through")


def peak(tmp_path, log, name):
    """MiB that preparing a log took, beyond what imports take."""
    pq.write_table(pa.table(log), tmp_path / f"{name}.parquet")
    done = run(tmp_path, SCRIPT, tmp_path / f"{name}.parquet", tmp_path / name, 2**29)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    return (after - before) / 1024


@pytest.mark.slow
def test_one_long_timeline_and_one_long_id_cost_little(tmp_path, rng):
    """A million rows take no more than twice the memory."""
    n = 1_000_000
    log = {
        "user": rng.integers(0, 50_000, n),
        "item": rng.integers(0, 100_000, n),
        "time": START + rng.permutation(n) * 10,
        "board": rng.integers(0, 20_000, n),
    }
    plain = {**log, "item": pa.array(log["item"]).cast(pa.string())}
    users = log["user"].copy()
    users[: n // 2] = 7
    names = plain["item"].to_pylist()
    names[5] = "x" * 10_000
    odd = {**log, "user": users, "item": names}
    assert peak(tmp_path, odd, "odd") < 2 * max(peak(tmp_path, plain, "plain"), 100)


@pytest.mark.slow
def test_a_log_of_a_gib_within_a_quarter_of_it(tmp_path, rng):
    """With a budget of 256 MiB for DuckDB, the process takes less than 768 MiB beyond imports.

    The rest is outside of the budget: a shard of users, and what libraries allocate.
    """
    path, rows, n = tmp_path / "big.parquet", 0, 2**20
    unused = {name: rng.integers(0, 2**60, n) for name in ("session", "page", "agent", "latency")}
    with contextlib.ExitStack() as stack:
        writer = None
        while rows * 64 < 2**30:
            columns = {
                "user": rng.integers(0, 1_000_000, n),
                "item": rng.integers(0, 500_000, n),
                "time": START + rng.integers(0, 100 * DAY, n),
                "board": rng.integers(0, 300_000, n),
            }
            table = pa.table(columns | unused)
            if writer is None:
                writer = pq.ParquetWriter(
                    path, table.schema, compression="none", use_dictionary=False
                )
                stack.enter_context(writer)
            writer.write_table(table)
            rows += n
    assert path.stat().st_size > 2**30
    done = run(tmp_path, SCRIPT, path, tmp_path / "out", 2**28)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split())
    assert (after - before) / 1024 < 768
    spec = dataset.open_directory(tmp_path / "out").spec
    assert sum(spec.users.values()) > 999_000
