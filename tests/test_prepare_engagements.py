"""Engagements as `prepare` writes them, against a plain-Python reading, and what it refuses."""

import collections
import datetime
import functools
import gzip
import hashlib
import itertools
import os
import pathlib
import runpy
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinjax.data import column_map, engagements, pairs, schema, text
from pinjax.errors import InputError

ROOT = pathlib.Path(__file__).parents[1]
RAW = ROOT.parent / "shared/data"
START = 1_600_000_000
SINCE = 1_600_128_000  # 2020-09-15
WORDS = [f"word{number}" for number in range(20)]


@pytest.fixture
def events(rng):
    n = 400
    return {
        "item": rng.integers(100, 130, n).astype(object),
        "time": START + rng.permutation(n) * 3600,
        "query": [" ".join(rng.choice(WORDS, 2)) for _ in range(n)],
        "relevance": rng.integers(1, 4, n).astype(float),
        "bought": rng.integers(0, 2, n),
        "basket": rng.integers(0, 60, n).astype(object),
        "place": rng.permutation(n).astype(object),
    }


@pytest.fixture
def table(rng):
    return {
        "item": np.arange(131, 99, -1).astype(object),
        "name": [" ".join(rng.choice(WORDS, 4)) + f" own{i}" for i in range(131, 99, -1)],
        "note": [None if i % 3 else str(rng.choice(WORDS)) for i in range(32)],
        "v": rng.normal(size=(32, 4)).tolist(),
        "kind": [str(rng.choice(["x", "y"])) for _ in range(32)],
    }


def make_config(**changes):
    """Searches without times; `changes` as section__field."""
    config = column_map.engagements()
    config.events.update(query="query", action_rules=(("buy", "bought", 1), ("click", "bought", 0)))
    config.catalogue.update(texts=(("title", "name"), ("note", "note")), topic="kind")
    config.vectors.update(texts=("title",), dim=5)
    config.split.update(valid=0.2, test=0.2, cold=0.2, test_days=5.0)
    for name, value in changes.items():
        section, _, field = name.partition("__")
        config[section][field] = value
    return config


def grouped(**changes):
    return make_config(events__query="", events__group="basket", **changes)


def prepare_inputs(tmp_path, events, table):
    pq.write_table(pa.table(events), tmp_path / "e.parquet")
    pq.write_table(pa.table(table), tmp_path / "i.parquet")


def prepare(tmp_path, events, table, config, out="out"):
    prepare_inputs(tmp_path, events, table)
    engagements.prepare([tmp_path / "e.parquet"], [tmp_path / "i.parquet"], tmp_path / out, config)
    return pairs.read(tmp_path / out)


def share(key):
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") / 2**64


def expected_split(config, key, item, time, train_end):
    valid, test = config.split.valid, config.split.test
    if config.events.time:
        half = test / (valid + test)
        split = "train" if time <= train_end else "test" if share(f"0:{key}") < half else "valid"
    else:
        drawn = share(f"0:{key}")
        split = "test" if drawn < test else "valid" if drawn < test + valid else "train"
    if split == "train" and share(f"0:cold:{item}") < config.split.cold:
        half = test / (valid + test)
        split = "test" if share(f"0:held out:{item}") < half else "valid"
    return split


def read_plainly(events, config):
    """[(query, item, task, time, key of the split)] of a log."""
    rows = [dict(zip(events, row, strict=True)) for row in zip(*events.values(), strict=True)]
    if config.events.least:
        column, least = config.events.least
        rows = [row for row in rows if row[column] >= least]
    times = bool(config.events.time)
    if config.events.since:
        rows = [row for row in rows if row["time"] >= SINCE]
    found = []
    if config.events.query:
        for row in rows:
            name = "text/buy" if row["bought"] else "text/click"
            time = row["time"] if times else 0
            found.append((row["query"].strip(), row["item"], name, time, row["query"].strip()))
        return found
    baskets = collections.defaultdict(list)
    for row in rows:
        baskets[row["basket"]].append(row)
    for basket, members in baskets.items():
        if config.events.position:
            members.sort(key=lambda row: row["place"])
        elif times:
            members.sort(key=lambda row: row["time"])
        for first, before in enumerate(members):
            for row in members[first + 1 : first + 1 + config.events.ahead]:
                if row["item"] != before["item"]:
                    name = "image/buy" if row["bought"] else "image/click"
                    key = before["item"] if times else basket
                    time = row["time"] if times else 0
                    found.append((str(before["item"]), row["item"], name, time, key))
    return found


CASES = {
    "searches": make_config(),
    "searches that are relevant": make_config(events__least=("relevance", 2.0)),
    "searches in time": make_config(events__time="time", events__time_unit="s"),
    "baskets": grouped(),
    "baskets, three ahead": grouped(events__position="place", events__ahead=3),
    "baskets in time": grouped(events__time="time", events__time_unit="s", events__ahead=2),
    "baskets in time, later ones": grouped(
        events__time="time", events__time_unit="s", events__since="2020-09-15"
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_writes_what_the_log_holds(tmp_path, events, table, case):
    config = CASES[case]
    events["query"][3] = f" {events['query'][3]} "
    made = prepare(tmp_path, events, table, config)
    found = read_plainly(events, config)
    last = max(time for *_, time, _ in found)
    train_end = last - 5 * 86400 if config.events.time else 0
    assert made.metadata.train_end == train_end
    expected = collections.Counter(
        (expected_split(config, key, item, time, train_end), query, item, task, time)
        for query, item, task, time, key in found
    )
    written = collections.Counter()
    for split in schema.SPLITS:
        part = made.pairs(split)
        assert (np.diff(part["time"].astype(int)) >= 0).all()
        for pair in part:
            query, item = made.queries.ids[pair["query"]], made.products.ids[pair["product"]]
            written[split, query, item, made.metadata.tasks[pair["task"]], pair["time"]] += 1
    assert written == expected
    trained_on = {item for split, _, item, *_ in expected if split == "train"}
    cold = {item for item in events["item"] if share(f"0:cold:{item}") < 0.2}
    assert cold
    assert not cold & trained_on

    kind = "text" if config.events.query else "image"
    assert set(made.queries.kinds) == {kind}
    assert len(set(made.queries.ids)) == len(made.queries)
    assert made.products.ids.tolist() == list(table["item"])
    names = list(dict.fromkeys(table["kind"]))
    assert made.products.topics.tolist() == [names.index(name) for name in table["kind"]]

    if config.events.time:  # made of its first row, be it a pair or not
        since = SINCE if config.events.since else 0
        first = {}
        for item, time in zip(events["item"], events["time"], strict=True):
            if time >= since:
                first[item] = min(first.get(item, 2**32), time)
        assert made.products.created.tolist() == [first.get(item, 0) for item in table["item"]]
        early = sum(events["time"] < since)
        assert made.metadata.report.get("dropped as too early", 0) == early
    else:
        assert not made.products.created.any()

    # The vocabulary is that of the items in training pairs, each once.
    texts = [
        line
        for column in ("name", "note")
        for item, line in zip(table["item"], table[column], strict=True)
        if item in trained_on
    ]
    vocabulary = text.Vocabulary.build(texts, unigrams=10**6, bigrams=10**6, trigrams=10**6)
    assert made.vocabulary.rows.equals(vocabulary.rows)
    for feature, column in (("title", "name"), ("note", "note")):
        for one, other in zip(
            made.products.texts[feature], vocabulary.encode(table[column]), strict=True
        ):
            np.testing.assert_array_equal(one, other)
    if kind == "image":
        place = [list(table["item"]).index(int(query)) for query in made.queries.ids]
        np.testing.assert_array_equal(made.queries.vectors, made.products.images[place])
        np.testing.assert_array_equal(made.queries.products, place)
    else:
        assert (made.queries.products == -1).all()


def dense_vectors(known, asked, words, dim):
    """Weighted words and a dense SVD, float64: unit vectors of texts and of some others."""

    def counts(lines):
        return np.array([[line.split().count(word) for word in words] for line in lines], float)

    def unit(rows):
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)

    idf = np.log((1 + len(known)) / (1 + (counts(known) > 0).sum(axis=0))) + 1

    def weighted(lines):
        counted = counts(lines)
        return unit(counted * 2.5 / (counted + 1.5) * np.sqrt(idf))

    matrix = weighted(known)
    space = np.linalg.svd(matrix, full_matrices=False)[2][:dim].T
    return unit(matrix @ space), unit(weighted(asked) @ space)


@pytest.mark.parametrize("dim", [5, 200])
def test_made_vectors_equal_a_dense_svd(tmp_path, events, table, dim):
    table["name"][4] = "" if dim == 5 else table["name"][4]
    table["name"][6] += " unheard"  # of in training
    events["item"][np.isin(events["item"], [table["item"][4], table["item"][6]])] = table["item"][5]
    made = prepare(tmp_path, events, table, make_config(vectors__dim=dim))
    words = sorted({word for name in table["name"] for word in name.split()})
    items, queries = dense_vectors(table["name"], made.queries.ids, words, dim)
    has_image = np.diff(made.products.image_offsets) > 0
    assert has_image.tolist() == [bool(name) for name in table["name"]]
    images = made.products.images.astype(float)
    assert images.shape[1] == min(dim, 32, len(words))
    found = made.queries.vectors.astype(float)
    # A basis is given up to signs, so similarities are compared.
    np.testing.assert_allclose(
        images @ images.T, (items @ items.T)[has_image][:, has_image], atol=2e-3
    )
    np.testing.assert_allclose(found @ images.T, (queries @ items.T)[:, has_image], atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=2e-3)


@pytest.mark.parametrize(("language", "equal"), [("", False), ("english", True)])
def test_words_of_one_stem_are_one_word(tmp_path, events, table, language, equal):
    table["name"][:3] = ["green light", "green lights", "lighting greenly"]
    events["item"][:3] = table["item"][:3]
    made = prepare(tmp_path, events, table, make_config(vectors__language=language))
    first, second, third = made.products.images[:3].astype(float)
    assert np.allclose(first, second, atol=1e-3) == equal
    assert np.allclose(first, third, atol=1e-3) == equal


def test_vectors_that_are_given(tmp_path, events, table):
    table["v"][7] = None
    table["v"][8] = [0.0] * 4
    has_image = ~np.isin(np.arange(32), (7, 8))
    given = np.float16([v or np.zeros(4) for v in table["v"]])
    searches = prepare(tmp_path, events, table, make_config(catalogue__images="v"), "searches")
    np.testing.assert_array_equal(searches.products.images, given[has_image])
    np.testing.assert_array_equal(np.diff(searches.products.image_offsets), has_image)
    assert searches.queries.vectors.shape[1] == 5

    config = grouped(catalogue__images="v", vectors__texts=())
    config.tolerance = 0.2
    made = prepare(tmp_path, events, table, config)
    np.testing.assert_array_equal(made.products.images, given[has_image])
    place = [list(table["item"]).index(int(query)) for query in made.queries.ids]
    np.testing.assert_array_equal(made.queries.vectors, given[place])
    unseen = {str(table["item"][7]), str(table["item"][8])}
    found = [query for query, *_ in read_plainly(events, config)]
    dropped = sum(query in unseen for query in found)
    assert 0 < dropped == made.metadata.report["dropped for a bad query's vector"]
    assert not unseen & set(made.queries.ids)
    assert sum(len(made.pairs(split)) for split in schema.SPLITS) == len(found) - dropped


def test_an_item_may_have_several_images(tmp_path, events, table, rng):
    images = [rng.normal(size=(rng.integers(4), 3)).tolist() for _ in range(32)]
    images[3], images[4] = None, [[0.0] * 3, [1.0, 2.0, 3.0]]  # padded, as some tables are
    table["v"] = images
    config = grouped(catalogue__images="v", vectors__texts=())
    config.tolerance = 0.9
    made = prepare(tmp_path, events, table, config)
    images[4] = images[4][1:]
    counts = [len(own or ()) for own in images]
    assert np.diff(made.products.image_offsets).tolist() == counts
    expected = np.float16(np.concatenate([own for own in images if own]))
    np.testing.assert_array_equal(made.products.images, expected)
    for query, vector in zip(made.queries.ids, made.queries.vectors, strict=True):
        first = images[list(table["item"]).index(int(query))][0]
        np.testing.assert_array_equal(vector, np.float16(first))


def test_the_first_row_of_an_item_counts_where_it_may_repeat(tmp_path, events, table):
    twice = {name: [*values, *values[::-1]] for name, values in table.items()}
    twice["name"][32:] = ["other"] * 32
    once = prepare(tmp_path, events, table, make_config(), "once")
    made = prepare(tmp_path, events, twice, make_config(catalogue__repeats=True), "twice")
    assert made.products.ids.tolist() == once.products.ids.tolist()
    assert made.vocabulary.rows.equals(once.vocabulary.rows)
    np.testing.assert_array_equal(made.products.topics, once.products.topics)


def test_an_item_is_as_old_as_the_table_says_or_its_first_engagement(tmp_path, events, table):
    time = events["time"]
    table["since"] = [int(START - 10 + 40_000 * row) * 1000 for row in range(32)]
    table["since"][3] = None
    config = make_config(events__time="time", events__time_unit="s", catalogue__created="since")
    config.catalogue.created_unit = "ms"
    made = prepare(tmp_path, events, table, config)
    for item, since, created in zip(
        table["item"], table["since"], made.products.created, strict=True
    ):
        known = [*time[events["item"] == item], *([] if since is None else [since / 1000])]
        assert created == int(min(known, default=0))


BAD = {
    "null item": ("e", "item", 4, None, "row 5: item is None; expected an id of the table"),
    "unknown item": ("e", "item", 4, 7, "row 5: item is 7; expected an id of the table of items"),
    "no search": ("e", "query", 4, " ", "row 5: query is ' '; expected the text of a search"),
    "NaN": ("e", "relevance", 4, np.nan, "row 5: relevance is nan; expected a number"),
    "bad time": ("e", "time", 4, -1, "row 5: time is -1; expected a moment from 1970 to 2106"),
    "no group": ("e", "basket", 4, None, "row 5: basket is None; expected a group's id"),
    "no position": ("e", "place", 4, None, "row 5: place is None; expected a number"),
    "item twice": ("i", "item", 1, 131, "row 2: item is 131; expected each item once"),
    "item without id": ("i", "item", 1, None, "row 2: item is None; expected an item's id"),
    "short image": ("i", "v", 1, [1.0], r"row 2: v is \[1.0\]; expected 4 finite numbers"),
    "bad date of an item": ("i", "since", 1, -1, "row 2: since is -1; expected a moment from 1970"),
    "no image of a query": ("i", "v", 3, None, "item 128 leads to others and has no v; expected a"),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses_a_bad_row(tmp_path, events, table, case):
    file, column, row, value, message = BAD[case]
    columns = events if file == "e" else table
    table["since"] = [1_500_000_000] * 32
    columns[column] = list(columns[column])
    columns[column][row] = value
    config = make_config(events__time="time", events__time_unit="s", catalogue__images="v")
    config.catalogue.update(created="since", created_unit="s")
    config.events.least = ("relevance", 1.0)
    if column in ("basket", "place") or case == "no image of a query":
        config.events.update(query="", group="basket", position="place")
        file = "e"
    check_refused(tmp_path, f"{file}.parquet: {message}", events, table, config)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([[1.0, 2.0], None], "row 2: v is .*expected 2 finite numbers an image"),
        ([[1.0, 2.0], [1.0]], "row 2: v is .*expected 2 finite numbers an image"),
        ([[1.0, np.nan]], "row 2: v is .*expected 2 finite numbers an image"),
        (None, "v has no numbers; expected a vector"),
    ],
)
def test_refuses_bad_images(tmp_path, events, table, bad, message):
    some = [] if bad is None else [[3.0, 4.0]]
    table["v"] = pa.array([some, bad or [], *([some] * 30)], pa.list_(pa.list_(pa.float32())))
    check_refused(tmp_path, message, events, table, make_config(catalogue__images="v"))


def check_refused(tmp_path, message, *args):
    with pytest.raises(InputError, match=message) as error:
        prepare(tmp_path, *args)
    assert "\n" not in str(error.value)
    assert set(os.listdir(tmp_path)) <= {"e.parquet", "i.parquet"}


BAD_CONFIGS = {
    "a search and a group": ({"events__group": "basket"}, "events.query is 'query'; expected eit"),
    "nothing to make vectors from": (
        {"vectors__texts": ()},
        "vectors.texts is .*expected features",
    ),
    "no such language": (
        {"vectors__language": "klingon"},
        "vectors.language is 'klingon'; expected one of .*english",
    ),
    "no such feature": ({"vectors__texts": ("name",)}, "vectors.texts is .*some of title, note"),
    "no such column": ({"events__query": "qery"}, "no column 'qery' .*did you mean 'query'"),
    "lists as text": ({"catalogue__texts": (("title", "v"),)}, "v is list.*expected text"),
    "since without times": (
        {"events__since": "2020-01-01"},
        "events.since is .*without events.time",
    ),
    "no moment": (
        {"events__time": "time", "events__time_unit": "s", "events__since": "lately"},
        "events.since is 'lately'; expected a moment",
    ),
    "dates without times": ({"catalogue__created": "kind"}, "created is .*without events.time"),
    "unit of dates": (
        {"catalogue__created_unit": "h"},
        "catalogue.created_unit is 'h'; expected s",
    ),
    "shares over 1": ({"split__valid": 0.9}, "split.test is 0.2; expected"),
    "empty split": ({"split__valid": 1e-9}, "no engagement of 400 falls into valid"),
    "all too little": ({"events__least": ("relevance", 9)}, "no usable row is left"),
    "no words": ({"vocabulary__unigrams": 0}, "0 words on 32 items; expected 2 or more"),
    "end outside": (
        {"events__time": "time", "events__time_unit": "s", "split__train_end": "2031-01-01"},
        "train_end is 2031.*expected a moment between",
    ),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_refuses_a_bad_config(tmp_path, events, table, case):
    changes, message = BAD_CONFIGS[case]
    config = make_config(split__cold=0.0)
    for name, value in changes.items():
        section, _, field = name.partition("__")
        config[section][field] = value
    check_refused(tmp_path, message, events, table, config)


def test_tolerated_rows_are_counted(tmp_path, events, table):
    events["item"][:3] = None
    events["query"][3] = ""
    config = make_config()
    config.tolerance = 0.01
    made = prepare(tmp_path, events, table, config)
    report = made.metadata.report
    assert report["dropped for a bad item"] == 3
    assert report["dropped for a bad query or group"] == 1
    assert sum(len(made.pairs(split)) for split in schema.SPLITS) == 396


def test_a_group_may_lie_in_several_files(tmp_path, events, table):
    whole = prepare(tmp_path, events, table, grouped(), "whole")
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    pq.write_table(pa.table(events)[:150], paths[0])
    pq.write_table(pa.table(events)[150:], paths[1])
    engagements.prepare(paths, [tmp_path / "i.parquet"], tmp_path / "parts", grouped())
    for split in schema.SPLITS:
        np.testing.assert_array_equal(
            pairs.read(tmp_path / "parts").pairs(split), whole.pairs(split)
        )


def test_the_same_input_is_prepared_once(tmp_path, events, table):
    first = prepare(tmp_path, events, table, make_config())
    files = [tmp_path / "e.parquet"], [tmp_path / "i.parquet"], tmp_path / "out"
    assert engagements.prepare(*files, make_config()) == (first.metadata, False)
    with pytest.raises(InputError, match="holds something else"):
        engagements.prepare(*files, make_config(split__seed=1))
    with pytest.raises(InputError, match="--items is missing"):
        engagements.prepare(files[0], [], tmp_path / "other", make_config())


def prepare_asked(tmp_path, events, table, config, queries, out="out"):
    prepare_inputs(tmp_path, events, table)
    pq.write_table(pa.table(queries), tmp_path / "q.parquet")
    files = [tmp_path / "e.parquet"], [tmp_path / "i.parquet"]
    engagements.prepare(*files, tmp_path / out, config, tmp_path / "q.parquet")
    return pairs.read(tmp_path / out)


@pytest.fixture
def queries(events, rng):
    """A table of all searches, in another order, and of others."""
    texts = [*rng.permutation(sorted(set(events["query"]))).tolist(), "never asked"]
    return {"query": texts, "vector": rng.normal(size=(len(texts), 3)).tolist()}


def test_queries_have_their_own_vectors(tmp_path, events, table, queries):
    events["query"][3] = f" {events['query'][3]} "
    queries["query"][2] += "  "
    config = make_config(catalogue__images="v", vectors__texts=())
    made = prepare_asked(tmp_path, events, table, config, queries)
    own = {
        query.strip(): np.float16(vector)
        for query, vector in zip(queries["query"], queries["vector"], strict=True)
    }
    assert len(made.queries) == len(own) - 1
    for query, vector in zip(made.queries.ids, made.queries.vectors, strict=True):
        np.testing.assert_array_equal(vector, own[query])

    other = {**queries, "vector": [[1.0, 2.0]] * len(own)}
    with pytest.raises(InputError, match="holds something else"):
        prepare_asked(tmp_path, events, table, config, other)


@pytest.mark.parametrize("kind", [int, str])
def test_items_as_queries_have_their_own_vectors(tmp_path, events, table, rng, kind):
    table["v"][7] = None  # which is no matter here
    ids = rng.permutation(table["item"])
    queries = {"query": [kind(item) for item in ids], "vector": rng.normal(size=(32, 3)).tolist()}
    config = grouped(catalogue__images="v", vectors__texts=())
    made = prepare_asked(tmp_path, events, table, config, queries)
    own = dict(zip(ids.astype(str), np.float16(queries["vector"]), strict=True))
    np.testing.assert_array_equal(made.queries.vectors, [own[query] for query in made.queries.ids])
    row = ids.tolist().index(110)
    without = {name: [*column[:row], *column[row + 1 :]] for name, column in queries.items()}
    config.tolerance = 0.1
    made = prepare_asked(tmp_path, events, table, config, without, "without")
    led = sum(query == "110" for query, *_ in read_plainly(events, config))
    assert made.metadata.report["dropped for a bad query's vector"] == led > 0
    assert "110" not in made.queries.ids


BAD_QUERIES = {
    "twice": (1, "query", lambda old, other: f" {other}", "row 2: query is .*expected each query"),
    "no text": (1, "query", lambda old, other: " ", "row 2: query is ' '; expected the text of a"),
    "short": (1, "vector", lambda old, other: old[:2], "row 2: vector is .*expected 3 finite numb"),
    "null": (1, "vector", lambda old, other: None, "row 2: vector is None; expected 3 finite numb"),
    "zeros": (1, "vector", lambda old, other: [0.0] * 3, "row 2: vector is .*not all of them 0"),
    "NaN": (1, "vector", lambda old, other: [0.0, 1.0, np.nan], "row 2: vector is .*3 finite numb"),
}


@pytest.mark.parametrize("case", BAD_QUERIES)
def test_refuses_bad_queries(tmp_path, events, table, queries, case):
    row, column, change, message = BAD_QUERIES[case]
    queries[column][row] = change(queries[column][row], queries[column][0])
    refused_queries(tmp_path, f"q.parquet: {message}", events, table, make_config(), queries)


def refused_queries(tmp_path, message, *args):
    with pytest.raises(InputError, match=message) as error:
        prepare_asked(tmp_path, *args)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_refuses_a_query_without_a_vector(tmp_path, events, table, queries):
    lacking = [queries["query"].index(query) for query in {events["query"][4], events["query"][9]}]
    for column in queries.values():
        for row in sorted(lacking, reverse=True):
            del column[row]
    refused = functools.partial(refused_queries, tmp_path)
    message = f"e.parquet: row 5: query is '{events['query'][4]}'; expected a search that has its"
    refused(message, events, table, make_config(), queries)
    config = make_config(queries__vector="vectr")
    refused("q.parquet: no column 'vectr' .*did you mean 'vector'", events, table, config, queries)
    by_item = {"query": table["item"][1:], "vector": [[1.0, 2.0]] * 31}
    message = "item 131 leads to others and is not in .*q.parquet; expected a vector"
    events["item"][:2] = 131, 130
    events["basket"][:2] = 1000
    refused(message, events, table, grouped(), by_item)


@pytest.fixture
def sides(tmp_path, events, table, rng):
    """(numbers of the items, posters by number, column map) of a table with two files beside it."""
    numbers = rng.permutation(32)
    table["key"] = numbers.astype(object)
    table["key"][5] = None
    posters = rng.normal(size=(20, 2, 3)).astype(np.float16)  # two each of twenty items
    np.savez(tmp_path / "posters.npz", number=np.arange(20), vectors=posters)
    lines = [f"{number}::place{number}, caf\xe9::x" for number in range(32)]
    (tmp_path / "lines.dat").write_text("\n".join(lines), encoding="utf-8")
    prepare_inputs(tmp_path, events, table)
    config = make_config(catalogue__images="posters.vectors")
    config.catalogue.texts = (("title", "name"), ("place", "lines.where"))
    header = ("id", "where", "sort")
    config.sides.lines = column_map.side(on="key", id="id", delimiter="::", header=header)
    config.sides.posters = column_map.side(on="key", id="number", partial=True)
    return numbers, posters, config


SIDES = ("posters.npz", "lines.dat")


def prepare_sides(tmp_path, config, files=SIDES):
    files = [tmp_path / name for name in ("i.parquet", *files)]
    engagements.prepare([tmp_path / "e.parquet"], files, tmp_path / "out", config)
    return pairs.read(tmp_path / "out")


def test_columns_are_looked_up_in_other_files(tmp_path, sides):
    numbers, posters, config = sides
    made = prepare_sides(tmp_path, config)
    known = [None if row == 5 else number for row, number in enumerate(numbers)]
    shown = [number is not None and number < 20 for number in known]
    assert np.diff(made.products.image_offsets).tolist() == [2 * some for some in shown]
    expected = np.concatenate([posters[number] for number in numbers[shown]])
    np.testing.assert_array_equal(made.products.images, expected)
    texts = [None if number is None else f"place{number}, caf\xe9" for number in known]
    for one, other in zip(made.products.texts["place"], made.vocabulary.encode(texts), strict=True):
        np.testing.assert_array_equal(one, other)
    assert "caf\xe9" in made.vocabulary.rows["token"].to_pylist()


def test_refuses_bad_sides(tmp_path, sides):
    *_, config = sides

    def refused(message, files=SIDES):
        with pytest.raises(InputError, match=message) as error:
            prepare_sides(tmp_path, config, files)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "out").exists()

    def lines(*more):
        whole = [*(f"{number}::a::b" for number in range(31)), *more]
        (tmp_path / "lines.dat").write_text("\n".join(whole))

    refused("--items has lines.dat after i.parquet; expected lines, posters", SIDES[1:])
    refused("--items has lines.dat, lines.dat, posters.npz after", (SIDES[1], *SIDES[::-1]))
    row = 1 + list(sides[0]).index(31)
    lines()
    refused(rf"i.parquet: row {row}: key is 31; expected an id of lines.dat \(1 of 32")
    lines("31::a::b", "7::a::b")
    refused("lines.dat: row 33: id is '7'; expected each id once")
    lines("::a::b")
    refused("lines.dat: row 32: id is None; expected an id")
    lines("31::a::b")
    config.catalogue.texts = (("title", "name"), ("place", "lines.wher"))
    refused("lines.dat: no column 'wher' among id, where, sort; did you mean 'where'")
    config.catalogue.texts = (("title", "name"), ("place", "lime.where"))
    refused("i.parquet: no column 'lime.where' among")
    config.catalogue.texts = (("title", "name"),)
    config.sides.posters.on = "kee"
    refused("i.parquet: no column 'kee' among .*did you mean 'key'")
    config.sides.posters.on = "key"
    posters = sides[1]
    row = 1 + list(sides[0]).index(4)
    np.savez(
        tmp_path / "posters.npz",
        number=np.arange(20),
        vectors=np.where(posters == posters[4, 1, 0], np.nan, posters),
    )
    refused(f"i.parquet: row {row}: posters.vectors is .*expected 3 finite numbers an image")


CONFIG = """
from pinjax.data import column_map

def get_config():
    config = column_map.engagements()
    config.events.query = "query"
    config.catalogue.texts = (("title", "name"),)
    config.catalogue.topic = "names.kind"
    config.sides.names = column_map.side(on="item", id="item")
    config.vectors.update(texts=("title",), dim=5)
    return config
"""


def test_command_prints_a_report_and_the_next_commands(tmp_path, events, table, queries):
    (tmp_path / "map.py").write_text(CONFIG)
    prepare_inputs(tmp_path, events, table)
    pq.write_table(pa.table(table), tmp_path / "names.parquet")
    pq.write_table(pa.table(queries), tmp_path / "q.parquet")
    flags = {"config": "map.py", "events": "e.parquet", "queries": "q.parquet", "out": "out"}
    arguments = [f"--{name}={tmp_path}/{value}" for name, value in flags.items()]
    arguments.append(f"--items={tmp_path}/i.parquet,{tmp_path}/names.parquet")
    done = subprocess.run(
        [sys.executable, "-m", "pinjax.prepare", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "train, text/action" in done.stdout
    evaluated_on, itemsage, searchsage = done.stdout.splitlines()[-3:]
    made = pairs.read(tmp_path / "out")
    valid, test = (len(np.unique(made.pairs(split)["query"])) for split in ("valid", "test"))
    assert evaluated_on == f"evaluated on: {valid} queries of valid, {test} queries of test"
    start = "python -m pinjax.train --config=configs/"
    data = f" --config.data.name={tmp_path}/out "
    assert itemsage == (
        f"next: {start}itemsage.py{data}'--config.tasks=((\"text/action\", 1.0, 0),)' "
        '\'--config.model.texts=(("title", "title"),)\' --config.model.dim=3'
    )
    assert searchsage == (
        f"  or: {start}searchsage.py{data}'--config.tasks=((\"text/action\", 1.0, 50),)'"
    )


def prepare_real(tmp_path, name, events, items):
    """`name` of a config and of a folder, or both."""
    config, folder = name if isinstance(name, tuple) else (name, name)
    config = runpy.run_path(str(ROOT / f"configs/prepare/{config}.py"))["get_config"]()
    config.vectors.dim = 8
    events, items = ([RAW / folder / file for file in files] for files in (events, items))
    engagements.prepare(events, items, tmp_path / folder, config)
    return pairs.read(tmp_path / folder)


needs_logs = pytest.mark.skipif(not RAW.exists(), reason="needs the public logs in shared/data")


@needs_logs
def test_homedepot_is_the_relevant_rows(tmp_path):
    made = prepare_real(tmp_path, "homedepot", ["train.parquet"], ["train.parquet"])
    rows = pq.read_table(RAW / "homedepot/train.parquet")
    counts = [len(made.pairs(split)) for split in schema.SPLITS]
    assert sum(counts) == (rows["relevance"].to_numpy() >= 2.33).sum()
    assert 0.7 < counts[0] / sum(counts) < 0.8  # 0.8 of the searches, less the cold items
    assert made.products.ids.tolist() == list(dict.fromkeys(rows["product_uid"].to_pylist()))
    assert made.metadata.tasks == ("text/relevant",)


def tokens(made, feature, item):
    """The tokens of an item's text."""
    rows = made.vocabulary.rows["token"].to_pylist()
    found, offsets = made.products.texts[feature]
    row = made.products.ids.tolist().index(item)
    return {rows[token] for token in found[offsets[row] : offsets[row + 1]]}


@needs_logs
def test_instacart_is_neighbours_in_baskets(tmp_path):
    items = ["products.parquet", "aisles.parquet", "departments.parquet"]
    made = prepare_real(tmp_path, "instacart", ["order_products__train.parquet"], items)
    rows = pq.read_table(RAW / "instacart/order_products__train.parquet")
    counts = [len(made.pairs(split)) for split in schema.SPLITS]
    assert sum(counts) == len(rows) - len(rows["order_id"].unique())
    assert made.metadata.tasks == ("image/reorder", "image/add")
    reorders = sum((made.pairs(split)["task"] == 0).sum() for split in schema.SPLITS)
    later = rows["add_to_cart_order"].to_numpy() > 1
    assert reorders == rows["reordered"].to_numpy()[later].sum()
    assert {"organic", "bananas"} <= tokens(made, "name", 13176)
    assert {"fresh", "fruits"} <= tokens(made, "aisle", 13176)
    assert "produce" in tokens(made, "department", 13176)


@needs_logs
def test_movielens_is_neighbours_of_users_with_posters(tmp_path):
    items = ["sas_to_original_items.txt", "movies_extrainfos.dat", "poster_features.npz"]
    made = prepare_real(tmp_path, ("movielens", "movielens_1m"), ["ml-1m.txt.gz"], items)
    folder = RAW / "movielens_1m"
    original = dict(line.split() for line in (folder / items[0]).read_text().splitlines())
    with np.load(folder / items[-1]) as posters:
        vectors = dict(zip(posters["movie_id"].astype(str), posters["features"], strict=True))
    expected = [vectors[film] for film in original.values() if film in vectors]
    np.testing.assert_array_equal(made.products.images, expected)
    queries = [vectors[original[item]] for item in made.queries.ids]
    np.testing.assert_array_equal(made.queries.vectors, queries)

    lines = gzip.decompress((folder / "ml-1m.txt.gz").read_bytes()).decode().splitlines()
    rows = [line.split() for line in lines]
    found = [
        (before, item)
        for (user, before), (other, item) in itertools.pairwise(rows)
        if user == other and original[before] in vectors
    ]
    assert made.metadata.tasks == ("image/rated",)
    assert sum(len(made.pairs(split)) for split in schema.SPLITS) == len(found)
    assert len(found) > 0.99 * 999_611
    # A user's pairs are in one split, so each split's share is about that of its users.
    assert 0.7 < len(made.pairs("train")) / len(found) < 0.8
    item = next(item for item, film in original.items() if film == "1")
    assert {"toy", "story", "toy story"} <= tokens(made, "title", item)
    assert {"tom", "hanks"} <= tokens(made, "cast", item)
    assert {"woody", "buzz"} <= tokens(made, "plot", item)
    assert "animation" in tokens(made, "genres", item)


@needs_logs
def test_ifdb_pairs_are_neighbours_in_time(tmp_path):
    files = ["playedgames.parquet", "wishlists.parquet"]
    made = prepare_real(tmp_path, ("ifdb_pairs", "ifdb"), files, ["game_docs_retrieval.parquet"])
    games = pq.read_table(RAW / "ifdb/game_docs_retrieval.parquet", columns=["gameid", "title"])
    titles = dict(zip(*(games[name].to_pylist() for name in ("gameid", "title")), strict=True))
    sequences, first = collections.defaultdict(list), {}
    for name in files:
        for row in pq.read_table(RAW / "ifdb" / name).to_pylist():
            game, time = row["gameid"], row["date_added"].replace(tzinfo=datetime.UTC)
            if time.year >= 2007 and game in titles:
                sequences[row["userid"]].append((time, game, name))
                first[game] = min(first.get(game, time), time)
    expected = collections.Counter()
    for rows in sequences.values():
        rows.sort(key=lambda row: row[0])
        for (_, before, _), (time, game, name) in itertools.pairwise(rows):
            if game != before:
                task = "image/played" if name == files[0] else "image/wish-listed"
                expected[before, game, task, int(time.timestamp())] += 1
    written = collections.Counter()
    ids, tasks = made.products.ids, made.metadata.tasks
    assert set(tasks) == {"image/played", "image/wish-listed"}
    train_end = datetime.datetime(2023, 1, 1, tzinfo=datetime.UTC).timestamp()
    for split in schema.SPLITS:
        part = made.pairs(split)
        assert len(part) > 5_000
        assert ((part["time"] <= train_end) == (split == "train")).all()
        assert (made.products.created[part["product"]] <= part["time"]).all()
        query, product = made.queries.ids[part["query"]], ids[part["product"]]
        task = np.array(tasks)[part["task"]].tolist()
        written.update(zip(query, product, task, part["time"].tolist(), strict=True))
    assert written == expected
    since = [int(first[game].timestamp()) if game in first else 0 for game in ids]
    assert made.products.created.tolist() == since
    game = next(game for game, title in titles.items() if title == "Square Circle")
    assert tokens(made, "title", game) >= {"square", "circle"}
    assert tokens(made, "tags", game) >= {"dystopia", "prison"}
