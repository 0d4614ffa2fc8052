"""Pairs of random logs against a plain Python reading, and the vectors of their queries."""

import collections
import functools
import hashlib

import numpy as np
import pyarrow as pa
import pytest

from pinjax.data.sources import column_map
from pinjax.data.spec import SPLITS
from pinjax.data.text import tokens

START = 1_600_000_000
SINCE = 1_600_128_000  # 2020-09-15
WORDS = [f"word{number}" for number in range(20)]


@pytest.fixture
def events(rng):
    n = 400
    return {
        "user": rng.integers(0, 30, n).astype(object),
        "item": rng.integers(100, 130, n).astype(object),
        "time": START + rng.permutation(n) * 3600,
        "query": [" ".join(rng.choice(WORDS, 2)) for _ in range(n)],
        "relevance": rng.integers(1, 4, n).astype(float),
        "bought": rng.integers(0, 2, n),
        "basket": rng.integers(0, 60, n).astype(object),
        "place": rng.permutation(n).astype(object),
        "tests": rng.random(n) < 0.2,
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
    config = column_map.default()
    config.events.update(query="query", action_rules=(("buy", "bought", 1), ("click", "bought", 0)))
    config.catalogue.update(texts=(("title", "name"), ("note", "note")), topic="kind")
    config.vectors.update(texts=("title",), dim=5)
    config.split.update(kind="random", valid=0.2, test=0.2, cold=0.2, test_days=5.0)
    for name, value in changes.items():
        section, _, field = name.partition("__")
        config[section][field] = value
    return config


def grouped(**changes):
    changes = {"events__query": "", "events__group": "basket", "pairs__sequence": "group"} | changes
    return make_config(**changes)


TIMES = {"events__time": "time", "events__time_unit": "s", "split__kind": "time"}


def share(key):
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") / 2**64


def drawn(key, valid, test):
    value = share(key)
    return "test" if value < test else "valid" if value < test + valid else "train"


def expected_split(config, found, train_end):
    valid, test = config.split.valid, config.split.test
    half = test / (valid + test)
    seed = config.split.seed
    key = f"{seed}:{found['key']}"
    match config.split.kind:
        case "time" if found["time"] <= train_end:
            split = "train"
        case "time":
            split = drawn(f"{seed}:{tokens.normalise(found['query'])}", 1 - half, half)
        case "leave_one_out":
            split = SPLITS[found["left_out"]]
        case "column":
            split = "test" if found["tests"] else drawn(key, valid, 0)
        case _:
            split = drawn(key, valid, test)
    items = [found["item"], *([found["query"]] if found["kind"] == "image" else [])]
    cold = [item for item in items if share(f"{seed}:cold:{item}") < config.split.cold]
    if split == "train" and cold:
        split = drawn(f"{seed}:held out:{cold[0]}", 1 - half, half)
    return split


def leave_out(rows):
    """The rows that repeat no other: a user's last one tests, and the one before validates."""
    users = collections.defaultdict(list)
    for row in sorted(rows, key=lambda row: row["time"]):
        users[row["user"]].append(row)
    for own in users.values():
        keys = [(row["item"], row["time"], row["bought"]) for row in own]
        own[:] = [row for n, row in enumerate(own) if keys[n] not in keys[:n]]
        for number, row in enumerate(own):
            row["left_out"] = max(0, number - len(own) + 3)
    return [row for own in users.values() for row in own]


def read_plainly(events, config):
    """The pairs of a log, each as a dict; `key` decides its split."""
    rows = [dict(zip(events, row, strict=True)) for row in zip(*events.values(), strict=True)]
    if config.split.kind == "leave_one_out":
        rows = leave_out(rows)
    for column, least in config.events.least:
        rows = [row for row in rows if row[column] >= least]
    times = bool(config.events.time)
    dated = times and config.split.kind != "leave_one_out"
    if config.events.since:
        rows = [row for row in rows if row["time"] >= SINCE]
    found = []

    def add(kind, query, row, key, *before):
        both = row, *before
        found.append(
            {
                "query": str(query),
                "kind": kind,
                "item": row["item"],
                "task": f"{kind}/{'buy' if row['bought'] else 'click'}",
                "time": max(one["time"] for one in both) if dated else 0,
                "key": key,
                "tests": any(one["tests"] for one in both),
                "left_out": max(one.get("left_out", 0) for one in both),
            }
        )

    if config.events.query:
        for row in rows:
            query = row["query"].strip()
            add("text", query, row, tokens.normalise(query))
    if config.pairs.sequence:
        column = config.events[config.pairs.sequence]
        sequences = collections.defaultdict(list)
        for row in rows:
            sequences[row[column]].append(row)
        for name, members in sequences.items():
            if config.events.position:
                members.sort(key=lambda row: row["place"])
            elif times:
                members.sort(key=lambda row: row["time"])
            for first, before in enumerate(members):
                for row in members[first + 1 : first + 1 + config.pairs.ahead]:
                    if row["item"] != before["item"]:
                        add("image", before["item"], row, name, before)
    return found


CASES = {
    "searches": make_config(),
    "searches, of another seed": make_config(split__seed=3),
    "searches that are relevant": make_config(events__least=(("relevance", 2.0),)),
    "searches in time": make_config(**TIMES),
    "searches, tested by a column": make_config(split__kind="column", split__column="tests"),
    "baskets": grouped(),
    "baskets, three ahead": grouped(events__position="place", pairs__ahead=3),
    "baskets in time": grouped(**TIMES, pairs__ahead=2),
    "baskets in time, in another order": grouped(**TIMES, events__position="place"),
    "baskets in time, later ones": grouped(**TIMES, events__since="2020-09-15"),
    "baskets, tested by a column": grouped(split__kind="column", split__column="tests"),
    "users in time": grouped(**TIMES, events__user="user", pairs__sequence="user"),
    "searches and users in time": make_config(
        **TIMES, events__user="user", pairs__sequence="user", pairs__ahead=2
    ),
    "searches and baskets": make_config(events__group="basket", pairs__sequence="group"),
    "users, leave one out": grouped(
        **TIMES | {"split__kind": "leave_one_out"},
        events__user="user",
        pairs__sequence="user",
        timelines__min_actions=3,
    ),
    "baskets, leave one out": grouped(
        **TIMES | {"split__kind": "leave_one_out"},
        events__user="user",
        pairs__ahead=2,
        timelines__min_actions=3,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_pairs_equal_a_plain_reading(events, table, prepare, case):
    config = CASES[case]
    events["query"][3] = f" {events['query'][3]} "
    events["query"][5] = events["query"][4].upper()  # the same to the split
    if config.split.kind == "leave_one_out":  # one of the last two rows repeats another
        events = {name: [*column, *column[-40:]] for name, column in events.items()}
        events["bought"][-20:] = [1 - bought for bought in events["bought"][-20:]]  # no repeats
    made, prepared = prepare(config, events, table)
    found = read_plainly(events, config)
    train_end = 0
    if config.split.kind == "time":
        train_end = max(events["time"]) - 5 * 86400
        assert made.spec.train_end == train_end
    expected = collections.Counter()
    for pair in found:
        split = expected_split(config, pair, train_end)
        expected[split, *(pair[name] for name in ("kind", "query", "item", "task", "time"))] += 1
    written, queries = collections.Counter(), made.queries
    for split in SPLITS:
        part = made.pairs(split)
        assert made.spec.pairs[split] == len(part)
        assert (np.diff(part["time"].astype(int)) >= 0).all()
        for pair in part:
            query, item = pair["query"], made.catalogue.ids[pair["item"]]
            task = made.spec.tasks[pair["task"]]
            key = split, queries.kinds[query], queries.ids[query], item, task, pair["time"]
            written[key] += 1
    assert written == expected
    by_task = collections.Counter(task for (*_, task, _), n in expected.items() for _ in range(n))
    ordered = sorted(by_task, key=lambda task: (-by_task[task], task))
    assert made.spec.tasks == tuple(ordered)
    trained_on = {item for split, _, _, item, *_ in expected if split == "train"}
    cold = {item for item in events["item"] if share(f"{config.split.seed}:cold:{item}") < 0.2}
    assert cold
    assert not cold & trained_on
    led_from = {query for split, _, query, *_ in expected if split == "train"}
    assert not {str(item) for item in cold} & led_from

    pairs_of_queries = set(zip(queries.kinds, queries.ids, strict=True))
    assert len(pairs_of_queries) == len(queries) == made.spec.num_queries
    assert pairs_of_queries == {(kind, query) for _, kind, query, *_ in expected}
    ids = made.catalogue.ids.tolist()
    assert ids == sorted(table["item"])
    order = np.argsort(table["item"].astype(int))
    names = sorted(set(table["kind"]))
    assert made.catalogue.topics.tolist() == [names.index(table["kind"][row]) for row in order]

    if config.events.time and config.split.kind == "time":  # its first row, pair or not
        since = SINCE if config.events.since else 0
        first = {}
        for item, time in zip(events["item"], events["time"], strict=True):
            if time >= since:
                first[item] = min(first.get(item, 2**32), time)
        assert made.catalogue.created.tolist() == [first.get(item, 0) for item in ids]
        early = sum(events["time"] < since)
        assert prepared.report.get("dropped as too early", 0) == early
    else:
        assert not made.catalogue.created.any()

    # The vocabulary is counted over the items and the searches in training pairs, each once.
    texts = [
        line
        for column in ("name", "note")
        for item, line in zip(table["item"], table[column], strict=True)
        if item in trained_on
    ]
    trained_by = made.pairs("train")["query"]
    searched = np.unique(trained_by[queries.kinds[trained_by] == "text"])
    texts += queries.ids[searched].tolist()
    vocabulary = tokens.Vocabulary.build(texts, unigrams=10**6, bigrams=10**6, trigrams=10**6)
    assert made.vocabulary.rows.equals(vocabulary.rows)
    for feature, column in (("title", "name"), ("note", "note")):
        lines = [table[column][row] for row in order]
        for one, other in zip(made.catalogue.text(feature), vocabulary.encode(lines), strict=True):
            np.testing.assert_array_equal(one, other)
    of_items = queries.kinds == "image"
    place = [ids.index(int(query)) for query in queries.ids[of_items]]
    np.testing.assert_array_equal(queries.vectors[of_items], made.catalogue.images[place])
    np.testing.assert_array_equal(queries.items[of_items], place)
    assert (queries.items[~of_items] == -1).all()


@pytest.mark.parametrize(
    "case", ["baskets", "baskets, tested by a column", "baskets, leave one out"]
)
def test_the_graph_lacks_an_edge_of_each_held_out_pair(events, table, prepare, rng, case):
    """Otherwise it would tell which items lie in one basket."""
    config, edge = CASES[case], rng.permutation(60 * 30)[:400]  # each item once a basket
    events |= {"basket": (edge // 30).astype(object), "item": (100 + edge % 30).astype(object)}
    made, _ = prepare(config, events, table)
    graph, ids = made.graph.groups, made.catalogue.ids
    trained = {(name, ids[i]) for g, name in enumerate(made.groups) for i in graph.of(g)}
    by_split = collections.defaultdict(list)
    for pair in read_plainly(events, config):
        both = {(pair["key"], int(pair["query"])), (pair["key"], pair["item"])}
        by_split[expected_split(config, pair, 0)].append(both <= trained)
    assert all(by_split["train"])
    assert by_split["valid"]
    assert by_split["test"]
    assert not any(by_split["valid"] + by_split["test"])


def dense_vectors(known, others, words, dim):
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
    return unit(matrix @ space), unit(weighted(others) @ space)


@pytest.mark.parametrize("dim", [5, 200])
def test_made_vectors_equal_a_dense_svd(events, table, prepare, dim):
    table["name"][4] = "" if dim == 5 else table["name"][4]
    table["name"][6] += " unheard"  # of in training
    events["item"][np.isin(events["item"], [table["item"][4], table["item"][6]])] = table["item"][5]
    made, _ = prepare(make_config(vectors__dim=dim), events, table)
    names = table["name"][::-1]  # in order of ids
    words = sorted({word for name in names for word in name.split()})
    items, queries = dense_vectors(names, made.queries.ids, words, dim)
    has_image = np.diff(made.catalogue.image_offsets) > 0
    assert has_image.tolist() == [bool(name) for name in names]
    images = made.catalogue.images.astype(float)
    assert images.shape[1] == min(dim, 32, len(words)) == made.spec.image_dim
    found = made.queries.vectors.astype(float)
    # The signs of a basis are arbitrary, so similarities are compared.
    np.testing.assert_allclose(
        images @ images.T, (items @ items.T)[has_image][:, has_image], atol=2e-3
    )
    np.testing.assert_allclose(found @ images.T, (queries @ items.T)[:, has_image], atol=2e-3)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=2e-3)


@pytest.mark.parametrize(("language", "equal"), [("", False), ("english", True)])
def test_words_of_one_stem_are_one_word(events, table, prepare, language, equal):
    table["name"][-3:] = ["lighting greenly", "green lights", "green light"]
    events["item"][:3] = table["item"][-3:]
    made, _ = prepare(make_config(vectors__language=language), events, table)
    first, second, third = made.catalogue.images[:3].astype(float)
    assert np.allclose(first, second, atol=1e-3) == equal
    assert np.allclose(first, third, atol=1e-3) == equal


def test_vectors_that_are_given(events, table, prepare):
    table["v"][7] = None
    table["v"][8] = [0.0] * 4
    has_image = ~np.isin(np.arange(32), (7, 8))[::-1]
    given = np.float16([v or np.zeros(4) for v in table["v"][::-1]])
    searches, _ = prepare(make_config(catalogue__images="v"), events, table, out="searches")
    np.testing.assert_array_equal(searches.catalogue.images, given[has_image])
    np.testing.assert_array_equal(np.diff(searches.catalogue.image_offsets), has_image)
    assert searches.queries.vectors.shape[1] == searches.spec.query_dim == 5

    config = grouped(catalogue__images="v", vectors__texts=())
    config.tolerance = 0.2
    made, prepared = prepare(config, events, table)
    np.testing.assert_array_equal(made.catalogue.images, given[has_image])
    place = [made.catalogue.ids.tolist().index(int(query)) for query in made.queries.ids]
    np.testing.assert_array_equal(made.queries.vectors, given[place])
    unseen = {str(table["item"][7]), str(table["item"][8])}
    found = [pair["query"] for pair in read_plainly(events, config)]
    dropped = sum(query in unseen for query in found)
    assert 0 < dropped == prepared.report["pairs dropped for a query without a vector"]
    assert not unseen & set(made.queries.ids)
    assert sum(made.spec.pairs.values()) == len(found) - dropped


def test_tolerated_rows_are_counted(events, table, prepare):
    events["item"][:3] = None
    events["query"][3] = ""
    config = make_config()
    config.tolerance = 0.01
    made, prepared = prepare(config, events, table)
    assert prepared.report["dropped for a bad item"] == 3
    assert prepared.report["dropped for a bad query"] == 1
    assert sum(made.spec.pairs.values()) == 396


def test_events_of_items_that_are_not_described_are_tolerated_and_counted(
    events, table, prepare, refuse
):
    events["item"][:3] = 7
    config = make_config()
    refuse("row 1: item is 7; .*3 of 400 rows are bad, tolerance is 0", config, events, table)
    config.tolerance = 0.01
    made, prepared = prepare(config, events, table)
    assert prepared.report["events in no pair: no text or image"] == 3
    assert sum(made.spec.pairs.values()) == 397


def test_the_order_of_pairs_without_times_does_not_depend_on_that_of_rows(
    events, table, prepare, rng
):
    first, _ = prepare(make_config(), events, table, out="first")
    order = rng.permutation(400)
    shuffled = {name: [column[row] for row in order] for name, column in events.items()}
    made, _ = prepare(make_config(), shuffled, table)
    assert made.spec.digest == first.spec.digest


def test_a_group_may_lie_in_several_files(events, table, write, prepare):
    single, _ = prepare(grouped(), events, table, out="single")
    items = [write("i.parquet", table)]
    paths = [write(f"{n}.parquet", pa.table(events)[150 * n :][: 250 - 100 * n]) for n in (0, 1)]
    paths = [
        write("a.parquet", pa.table(events)[:150]),
        write("b.parquet", pa.table(events)[150:]),
    ]
    made, _ = prepare(grouped(), paths, items)
    assert made.spec.digest == single.spec.digest


@pytest.fixture
def queries(events, rng):
    """A table of all searches and some more, in another order."""
    texts = [*rng.permutation(sorted(set(events["query"]))).tolist(), "never searched"]
    return {"query": texts, "vector": rng.normal(size=(len(texts), 3)).tolist()}


def test_queries_have_their_own_vectors(events, table, prepare, queries):
    events["query"][3] = f" {events['query'][3]}\u3000"
    queries["query"][2] += "  "
    config = make_config(catalogue__images="v", vectors__texts=())
    made, _ = prepare(config, events, table, queries)
    own = {
        query.strip(): np.float16(vector)
        for query, vector in zip(queries["query"], queries["vector"], strict=True)
    }
    assert len(made.queries) == len(own) - 1
    for query, vector in zip(made.queries.ids, made.queries.vectors, strict=True):
        np.testing.assert_array_equal(vector, own[query])


def test_pairs_need_no_table_of_items_where_queries_have_vectors(events, prepare, queries):
    config = make_config(catalogue__texts=(), catalogue__topic="", vectors__texts=())
    made, _ = prepare(config, events, queries=queries)
    assert made.spec.query_dim == 3
    assert sum(made.spec.pairs.values()) == 400


@pytest.mark.parametrize("kind", [int, str])
def test_items_as_queries_have_their_own_vectors(events, table, prepare, rng, kind):
    table["v"][7] = None  # which is no matter here
    ids = rng.permutation(table["item"])
    queries = {"query": [kind(item) for item in ids], "vector": rng.normal(size=(32, 3)).tolist()}
    config = grouped(catalogue__images="v", vectors__texts=())
    made, _ = prepare(config, events, table, queries)
    own = dict(zip(ids.astype(str), np.float16(queries["vector"]), strict=True))
    np.testing.assert_array_equal(made.queries.vectors, [own[query] for query in made.queries.ids])
    row = ids.tolist().index(110)
    without = {name: [*column[:row], *column[row + 1 :]] for name, column in queries.items()}
    config.tolerance = 0.1
    made, prepared = prepare(config, events, table, without, out="without")
    led = sum(pair["query"] == "110" for pair in read_plainly(events, config))
    assert prepared.report["pairs dropped for a query without a vector"] == led > 0
    assert "110" not in made.queries.ids


BAD_QUERIES = {
    "twice": (1, "query", lambda old, other: f" {other}", "row 2: query is .*expected each query"),
    "no text": (1, "query", lambda old, other: " ", "row 2: query is ' '; expected the text of a"),
    "short": (1, "vector", lambda old, other: old[:2], "row 2: vector is .*expected 3 finite numb"),
    "null": (1, "vector", lambda old, other: None, "row 2: vector is None; expected 3 finite numb"),
    "zeros": (1, "vector", lambda old, other: [0.0] * 3, "row 2: vector is .*not all of them 0"),
    "NaN": (1, "vector", lambda old, other: [0.0, 1.0, np.nan], "row 2: vector is .*3 finite numb"),
    "huge": (1, "vector", lambda old, other: [0.0, 1.0, 1e6], "row 2: vector is .*to 65,504"),
    "tiny": (1, "vector", lambda old, other: [0.0, 0.0, 1e-9], r"row 2: vector is .*from 6.1e-05"),
}


@pytest.mark.parametrize("lists", [2, 0])
def test_a_query_has_one_vector(events, table, queries, refuse, lists):
    queries["vector"] = [[vector] for vector in queries["vector"]]
    queries["vector"][1] *= lists
    message = r"q.parquet: row 2: vector is \[.*expected 3 finite numbers as in the first row"
    refuse(message, make_config(), events, table, queries)


@pytest.mark.parametrize("case", BAD_QUERIES)
def test_refuses_bad_queries(events, table, queries, refuse, case):
    row, column, change, message = BAD_QUERIES[case]
    queries[column][row] = change(queries[column][row], queries[column][0])
    refuse(f"q.parquet: {message}", make_config(), events, table, queries)


def test_refuses_a_query_without_a_vector(events, table, queries, refuse):
    lacking = [queries["query"].index(query) for query in {events["query"][4], events["query"][9]}]
    for column in queries.values():
        for row in sorted(lacking, reverse=True):
            del column[row]
    refused = functools.partial(refuse, events=events, items=table)
    message = f"e.parquet: row 5: query is '{events['query'][4]}'; expected a query with its vector"
    refused(message + " in .*q.parquet", config=make_config(), queries=queries)
    others = {**queries, "query": [f"other {query}" for query in queries["query"]]}
    message = f"row 1: query is '{events['query'][0]}'; expected .*400 of 400 pairs have none"
    refused(message, config=make_config(), queries=others)
    config = make_config(queries__vector="vectr")
    refused("q.parquet: no column 'vectr' .*did you mean 'vector'", config=config, queries=queries)
    by_item = {"query": table["item"][1:], "vector": [[1.0, 2.0]] * 31}
    message = "e.parquet: row 2: item 131 leads to .* has no vector in .*q.parquet; expected one"
    events["item"][:2] = 131, 130
    events["basket"][:2] = 1000
    refused(message, config=grouped(), queries=by_item)


def test_refuses_searches_without_a_word_of_the_items(events, table, refuse):
    events["query"] = [f"else{n}" for n in range(400)]
    refuse("no query has a vector: .*expected --queries", make_config(), events, table)


BAD = {
    "null item": ("e", "item", 4, None, "row 5: item is None; expected an item's id"),
    "unknown item": ("e", "item", 4, 7, "row 5: item is 7; expected an id of the table of items"),
    "no search": ("e", "query", 4, " ", "row 5: query is ' '; expected the text of a search"),
    "NaN": ("e", "relevance", 4, np.nan, "row 5: relevance is nan; expected a number"),
    "bad time": ("e", "time", 4, -1, "row 5: time is -1; expected a timestamp from 1970 to 2106"),
    "no group": ("e", "basket", 4, None, "row 5: basket is None; expected a group's id"),
    "no position": ("e", "place", 4, None, "row 5: place is None; expected a number"),
    "NaN position": ("e", "place", 4, np.nan, "row 5: place is nan; expected a number"),
    "item twice": ("i", "item", 1, 131, "row 2: item is 131; expected each item once"),
    "item without id": ("i", "item", 1, None, "row 2: item is None; expected an item's id"),
    "short image": ("i", "v", 1, [1.0], r"row 2: v is \[1.0\]; expected 4 finite numbers"),
    "bad date of an item": (
        "i",
        "since",
        1,
        -1,
        "row 2: since is -1; expected a timestamp from 1970",
    ),
    "no image of a query": ("i", "v", 3, None, "item 128 leads to its item and has no vector in"),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses_a_bad_row(events, table, refuse, case):
    file, column, row, value, message = BAD[case]
    columns = events if file == "e" else table
    table["since"] = [1_500_000_000] * 32
    columns[column] = list(columns[column])
    columns[column][row] = value
    config = make_config(**TIMES, catalogue__images="v")
    config.catalogue.update(created="since", created_unit="s")
    config.events.least = (("relevance", 1.0),)
    if column in ("basket", "place") or case == "no image of a query":
        config.events.update(query="", group="basket", position="place")
        config.pairs.sequence = "group"
        message = message if file == "e" else f".*{message}"
        file = "e"
    refuse(f"{file}.parquet: {message}", config, events, table)


BAD_CONFIGS = {
    "nothing to make vectors from": (
        {"vectors__texts": ()},
        "vectors.texts is .*expected features",
    ),
    "no such feature": ({"vectors__texts": ("name",)}, "vectors.texts is .*some of title, note"),
    "no such column": ({"events__query": "qery"}, "no column 'qery' .*did you mean 'query'"),
    "lists as text": (
        {"catalogue__texts": (("title", "v"),)},
        r"v is DOUBLE\[\]; expected text",
    ),
    "since without times": (
        {"events__since": "2020-01-01"},
        "events.since is .*without events.time",
    ),
    "no time": (
        {**TIMES, "events__since": "lately"},
        "events.since is 'lately'; expected ISO 8601",
    ),
    "shares over 1": ({"split__valid": 0.9}, "split.test is 0.2; expected"),
    "empty split": ({"split__valid": 1e-9}, "no pair falls into valid"),
    "all too little": ({"events__least": (("relevance", 9),)}, "no usable row is left"),
    "no words": ({"vocabulary__unigrams": 0}, "0 words on 32 items; expected 2 or more"),
    "end outside": (
        {**TIMES, "split__train_end": "2031-01-01"},
        "train_end is 2031.*expected a time between",
    ),
    "a sequence of nothing": ({"pairs__sequence": "group"}, "pairs.sequence is 'group'; expected"),
    "a position of nothing": ({"events__position": "place"}, "events.position is .*expected ''"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_refuses_a_bad_config(events, table, refuse, case):
    changes, message = BAD_CONFIGS[case]
    refuse(message, make_config(split__cold=0.0, **changes), events, table)


def test_refuses_pairs_without_a_table(events, refuse):
    config = column_map.default()
    config.events.query, config.split.kind = "query", "random"
    refuse("catalogue.id is 'item'; expected --items, or --queries, for pairs", config, events)
