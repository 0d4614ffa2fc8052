"""Tables of items, and the catalogue that they make with a log."""

import numpy as np
import pyarrow as pa
import pytest

from pinjax.data.sources import column_map
from pinjax.timestamps import DAY

START = 1_600_000_000
TAGS = {
    "a": ["sea", "war"],
    "b": ["sea"],
    "c": ["sea", "tea", "war"],
    "d": [],
    "e": ["tea"],
    "f": ["sea", "war"],
}


def make_log(items, times=None):
    """A log of ten users, who each act on all of some items, a day apart."""
    times = times or [START + n * DAY for n in range(len(items))]
    return {
        "user": np.repeat(np.arange(10), len(items)),
        "item": pa.array([*items] * 10),
        "time": [*times] * 10,
    }


def make_config(**catalogue):
    config = column_map.default()
    config.events.update(user="user", time="time", time_unit="s")
    config.split.update(test_days=1.0, valid=0.3, test=0.3)
    config.catalogue.update(catalogue)
    return config


def lsa(dim):
    """TF-IDF and a dense SVD, in the scikit-learn convention; similarities, not coordinates."""
    names = sorted({tag for tags in TAGS.values() for tag in tags})
    matrix = np.array([[tag in tags for tag in names] for tags in TAGS.values()], float)
    matrix *= np.log((1 + len(matrix)) / (1 + matrix.sum(0))) + 1
    matrix /= np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-9)
    left, scale, _ = np.linalg.svd(matrix, full_matrices=False)
    vectors = (left * scale)[:, :dim]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.where(lengths > 1e-9, vectors / np.maximum(lengths, 1e-9), 0)
    return vectors @ vectors.T


def tag_table(form):
    """One tag a row (an item without tags has a null, and one tag comes twice), or all in one."""
    if form == "rows":
        pairs = [(item, tag) for item, tags in TAGS.items() for tag in tags or [None]]
        pairs.append(("a", "sea"))
    elif form == "text":
        pairs = [(item, ", ".join(tags)) for item, tags in TAGS.items()]
    else:
        pairs = list(TAGS.items())
    ids, tags = zip(*pairs, strict=True)
    return {"item": ids, "tags": tags}


@pytest.mark.parametrize("form", ["rows", "text", "lists", "side"])
@pytest.mark.parametrize("dim", [2, 64])
def test_vectors_from_tags_equal_a_dense_svd(write, prepare, form, dim):
    separator = ", " if form == "text" else ""
    config = make_config(tags="tags", tag_separator=separator, tag_dim=dim)
    items = [write("i.parquet", tag_table(form))]
    if form == "side":  # lists in a second table
        items = [write("i.parquet", {"item": [*TAGS]}), write("t.parquet", tag_table("lists"))]
        config.catalogue.tags = "t.tags"
        config.sides.t = column_map.side(on="item", id="item")
    made, _ = prepare(config, make_log("abc"), items)
    table = made.catalogue
    assert table.ids.tolist() == list(TAGS)
    vectors = table.content.astype(np.float64)
    np.testing.assert_allclose(vectors @ vectors.T, lsa(dim), atol=5e-3)
    # The commonest tag is "sea": of a, b, c and f; "tea" is e's only one.
    assert len(set(table.topics[[0, 1, 2, 5]])) == 1
    assert table.topics[3] == -1
    assert table.topics[4] not in (-1, table.topics[0])
    # They are the groups of a graph, too.
    assert made.groups.tolist() == ["sea", "tea", "war"]
    found = {
        item: [made.groups[group] for group in made.graph.items.of(row)]
        for row, item in enumerate(TAGS)
    }
    assert found == TAGS


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_tags_may_be_integers(write, prepare, kind):
    table = {"item": ["a", "b", "c"], "tags": [[7, 10], [], [7]]}
    made, _ = prepare(make_config(tags="tags"), make_log("abc"), [write(f"i.{kind}", table)])
    assert made.groups.tolist() == ["10", "7"]
    assert [made.graph.items.of(row).tolist() for row in range(3)] == [[0, 1], [], [1]]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_refuses_tags_that_are_numbers(write, refuse, kind):
    path = write(f"i.{kind}", {"item": ["a", "b"], "tags": [[7.5, 1], [2]]})
    message = r"tags is DOUBLE\[\]; expected lists of text or integers"
    refuse(message, make_config(tags="tags"), make_log("ab"), [path])


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.float64()),
        pa.list_(pa.float32(), 3),
        pa.large_list(pa.int64()),
        pa.list_(pa.float16()),
    ],
)
def test_content_and_topics_are_read_as_they_stand(prepare, kind):
    content = pa.array(
        [
            np.array(v, kind.value_type.to_pandas_dtype()) if v else None
            for v in ([1, 2, 3], None, [4, 5, 6])
        ],
        kind,
    )
    table = {"item": [5, 3, 9], "v": content, "kind": ["x", None, "x"]}
    made, prepared = prepare(make_config(content="v", topic="kind"), make_log([3, 5, 9]), table)
    assert made.catalogue.ids.tolist() == [3, 5, 9]
    assert made.catalogue.content.tolist() == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
    assert made.catalogue.topics.tolist() == [-1, 0, 0]
    assert made.spec.content_dim == 3
    assert prepared.report["items without content"] == 1


def test_names_and_urls_are_kept_as_they_stand(prepare):
    names = ["</script>", None, "Ünï  Code"]
    table = {"item": [5, 3, 9], "is": names, "at": ["https://x/5.png", "", None]}
    made, _ = prepare(make_config(name="is", image_url="at"), make_log([3, 5, 9, 11]), table)
    assert made.catalogue.shown == {
        "name": [None, "</script>", "Ünï  Code", None],
        "image_url": ["", "https://x/5.png", None, None],
    }
    made, _ = prepare(make_config(), make_log([3, 5, 9]), table, out="other")
    assert made.catalogue.shown == {}


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "npz"])
def test_vectors_of_every_kind_of_file(rng, write, prepare, kind):
    content = np.round(rng.normal(size=(4, 3)), 3)
    path = write(
        f"i.{kind}", {"item": np.arange(4), "v": content if kind == "npz" else content.tolist()}
    )
    made, _ = prepare(make_config(content="v"), make_log(range(4)), [path])
    np.testing.assert_array_equal(made.catalogue.content, content.astype(np.float16))


@pytest.mark.parametrize("keep_unseen", [True, False])
def test_the_join_dates_the_items_and_says_what_did_not_match(prepare, keep_unseen):
    table = {
        "item": ["10", "11", "12"],
        "since": [START - 100, START + 10 * DAY, None],
        "v": [[1.0, 1.0]] * 3,
        "kind": ["x", "y", "z"],
    }
    log = make_log(["11", "77", "10"])
    config = make_config(
        content="v", created="since", created_unit="s", topic="kind", keep_unseen=keep_unseen
    )
    made, prepared = prepare(config, log, table)
    kept = ["10", "11", "12", "77"] if keep_unseen else ["10", "11", "77"]
    table = made.catalogue
    assert table.ids.tolist() == kept
    # The table's date, unless an action is earlier; without a date and an action: from the start.
    created = dict(zip(table.ids, table.created.tolist(), strict=True))
    assert {**created, "12": 0} == {
        "10": START - 100,
        "11": START,
        "12": 0,
        "77": START + DAY,
    }
    assert table.topics[-1] == -1
    assert not table.content[-1].any()
    report = prepared.report
    assert report["events whose item is in the table"] == "66.7%"
    assert report["items that the table lacks, as"] == "'77'"
    assert report["items without content"] == 1
    assert report.get("items without an event") == (1 if keep_unseen else None)
    assert report.get("of them") == ("'12'" if keep_unseen else None)
    rows = next(iter(made.chunks("train")))
    names = [table.ids[row] for row in rows.records["item"][:3]]
    assert names == ["11", "77", "10"]


def test_a_catalogue_without_a_table_is_the_log_alone(prepare):
    made, _ = prepare(make_config(), make_log([7, 5]))
    assert made.catalogue.ids.tolist() == [5, 7]
    assert made.catalogue.ids.dtype == np.int64
    assert made.catalogue.created.tolist() == [START + DAY, START]
    assert made.catalogue.content is None
    assert made.spec.content_dim == 0


IDS = {
    # (events, table): the ids of the catalogue; None where nothing joins
    "integers and text": ([7, 8], ["7", "9"], ["7", "8", "9"]),
    "text and integers": (["7", "8"], [7, 9], ["7", "8", "9"]),
    "integers": ([7, 8], [7, 9], [7, 8, 9]),
    "leading zeros": ([7, 8], ["007", "009"], None),
    "a fraction as text": ([7, 8], ["7.0", "9.0"], None),
    "a space": ([7, 8], [" 7", " 9"], None),
    "another case": (["ab", "cd"], ["AB", "CD"], None),
}


@pytest.mark.parametrize("case", IDS)
def test_ids_that_are_written_alike_are_one(prepare, refuse, case):
    events, table, expected = IDS[case]
    if expected is None:
        message = refuse(
            "no item of the events is in it", make_config(), make_log(events), {"item": table}
        )
        kind = str if isinstance(table[0], str) else int
        for value in (str(events[0]), kind(table[0])):
            assert repr(value) in message
        return
    made, _ = prepare(make_config(), make_log(events), {"item": table})
    assert made.catalogue.ids.tolist() == expected


@pytest.mark.parametrize("kinds", [("parquet", "csv"), ("csv", "parquet"), ("jsonl", "csv")])
def test_ids_of_several_files_are_one_kind(write, prepare, kinds):
    """7 and "7" are one id, "007" is another; ids are integers if all of them are."""
    first, second = make_log([7, 8]), make_log([7, 9])
    paths = [
        write(f"{n}.{kind}", log)
        for n, (kind, log) in enumerate(zip(kinds, (first, second), strict=True))
    ]
    made, _ = prepare(make_config(), paths, out="integers")
    assert made.catalogue.ids.tolist() == [7, 8, 9]
    assert made.spec.integer_users
    third = make_log(["7", "007", "7.0"])
    third["user"] = pa.array(third["user"]).cast(pa.string())
    paths.append(write("third.csv", third))
    made, _ = prepare(make_config(), paths)
    assert made.catalogue.ids.tolist() == ["007", "7", "7.0", "8", "9"]
    assert made.catalogue.counts.sum() > 0
    assert made.spec.integer_users


def test_refuses_a_column_of_floats_for_ids(write, refuse):
    log = make_log([7, 8])
    floats = {**log, "item": [float(item) for item in log["item"].to_pylist()]}
    message = "item is DOUBLE; expected integer or text ids"
    refuse(message, make_config(), floats)
    refuse(message, make_config(), [write("1.parquet", log), write("2.jsonl", floats)])
    refuse(message, make_config(), log, {"item": [7.0, 8.0]})
    floats = {**log, "user": log["user"].astype(float)}
    refuse("user is DOUBLE; expected integer or text ids", make_config(), floats)


def put(name, row, value):
    def change(columns):
        columns[name] = list(columns[name])
        columns[name][row] = value

    return change


def column(name, value):
    def change(columns):
        columns[name] = value(columns[name]) if callable(value) else value

    return change


BAD = {
    "duplicate item": (put("item", 1, 114), "row 2: item is 114; expected each item once"),
    "null item": (put("item", 1, None), "row 2: item is None; expected an item's id"),
    "short vector": (put("v", 1, [1.0]), r"row 2: v is \[1.0\]; expected 4 finite numbers"),
    "null in a vector": (put("v", 1, [1.0, None, 0.0, 0.0]), "row 2: v is .*expected 4 finite"),
    "NaN in a vector": (
        put("v", 1, [1.0, float("nan"), 0, 0]),
        r"row 2: v is \[1.0, nan.*4 finite",
    ),
    "infinite": (put("v", 1, [1.0, float("inf"), 0, 0]), r"row 2: v is \[1.0, inf.*4 finite"),
    "too large": (put("v", 1, [1e6, 0, 0, 0]), r"row 2: v is \[1000000.*expected 4.*to 65,504"),
    "too small": (put("v", 1, [1e-9, 0, 0, 0]), r"row 2: v is \[.*1e-0?9.*largest.*from 6.1e-05"),
    "beyond float32": (put("v", 1, [1e300, 0, 0, 0]), r"row 2: v is \[.*1e\+?300.*to 65,504"),
    "empty vector": (put("v", 1, []), r"row 2: v is \[\]; expected 4 finite numbers"),
    "no vectors": (column("v", [1.0] * 15), "v is DOUBLE; expected lists of numbers"),
    "vectors as text": (column("v", ["[1, 2]"] * 15), "v is VARCHAR; expected lists of numbers"),
    "lists of text": (column("v", [["a"]] * 15), r"v is VARCHAR\[\]; expected lists of numbers"),
    "all zeros": (column("v", [[0.0] * 4] * 15), "v is 0 or null in all rows; expected vectors"),
    "all null": (
        column("v", pa.nulls(15, pa.list_(pa.float32()))),
        "v has no numbers; expected a v",
    ),
    "several vectors": (
        column("v", [[[1.0] * 4], [[1.0] * 4, [9.0] * 4], [], *[[[1.0] * 4]] * 12]),
        r"row 2: v is \[\[1.0.*9.0.*expected 4 finite numbers as in the first row",
    ),
    "bad date": (put("created", 1, -5), "row 2: created is -5; expected a timestamp"),
    "date in text": (column("created", ["soon"] * 15), "row 1: created is 'soon'; expected a tim"),
    "late date": (put("created", 1, 2**33), "row 2: created is 8589934592; expected a timestamp"),
    "nested topic": (column("kind", [["x"]] * 15), r"kind is VARCHAR\[\]; expected text"),
    "no rows": (lambda columns: columns.update({k: v[:0] for k, v in columns.items()}), "has no r"),
    "no column": (lambda columns: columns.pop("v"), "no column 'v' among item, created, kind"),
}


@pytest.mark.parametrize("case", BAD)
def test_refuses_a_bad_table(refuse, case):
    change, message = BAD[case]
    content = np.random.default_rng(1).normal(size=(15, 4)).tolist()
    table = {"item": np.arange(114, 99, -1), "v": content}
    table |= {"created": [START] * 15, "kind": ["x"] * 15}
    change(table)
    config = make_config(content="v", created="created", created_unit="s", topic="kind")
    refuse(f"i.parquet: {message}", config, make_log(range(100, 110)), table)


@pytest.mark.parametrize("tags", [[None] * 2, ["x", "x"], [" ", "x"]])
def test_refuses_tags_that_tell_nothing_apart(refuse, tags):
    table = {"item": [1, 2], "tag": pa.array(tags, pa.string())}
    message = "i.parquet: [01] tags on 2 items; expected 2 or more of each"
    refuse(message, make_config(tags="tag"), make_log([1, 2]), table)


def test_the_first_row_of_an_item_counts_where_it_may_repeat(prepare, refuse):
    table = {"item": [1, 2, 3], "v": [[1.0], [2.0], [3.0]], "kind": ["x", "y", "z"]}
    twice = {name: [*values, *values[::-1]] for name, values in table.items()}
    twice["kind"][3:] = ["other"] * 3
    config = make_config(content="v", topic="kind")
    once, _ = prepare(config, make_log([1, 2]), table, out="once")
    config.catalogue.repeats = True
    made, _ = prepare(config, make_log([1, 2]), twice)
    assert made.spec.digest == once.spec.digest
    twice["v"][:3] = [None] * 3
    message = "i.parquet: v is 0 or null in the first row of each item; expected vectors"
    refuse(message, config, make_log([1, 2]), twice, out="other")


@pytest.mark.parametrize("several", [False, True])
def test_items_may_have_several_images(rng, prepare, several):
    images = [rng.normal(size=(rng.integers(4), 3)).tolist() for _ in range(12)]
    images[3], images[4] = None, [[0.0] * 3, [1.0, 2.0, 3.0]]  # padded, as some tables are
    if not several:
        images = [own[0] if own else None for own in images]
    made, _ = prepare(
        make_config(images="v"), make_log(range(12)), {"item": range(12), "v": images}
    )
    if several:
        images[4] = images[4][1:]
    else:
        images = [[own] if own and any(own) else [] for own in images]
    counts = [len(own or ()) for own in images]
    assert np.diff(made.catalogue.image_offsets).tolist() == counts
    expected = np.float16([image for own in images for image in own or ()])
    np.testing.assert_array_equal(made.catalogue.images, expected)
    assert made.spec.image_dim == 3


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([[1.0, 2.0], None], "row 2: v is .*expected 2 finite numbers an image"),
        ([[1.0, 2.0], [1.0]], "row 2: v is .*expected 2 finite numbers an image"),
        ([[1.0, np.nan]], "row 2: v is .*expected 2 finite numbers an image"),
        (None, "v has no numbers; expected a vector"),
    ],
)
def test_refuses_bad_images(refuse, bad, message):
    some = [] if bad is None else [[3.0, 4.0]]
    images = pa.array([some, bad or [], *([some] * 10)], pa.list_(pa.list_(pa.float32())))
    table = {"item": range(12), "v": images}
    refuse(message, make_config(images="v"), make_log(range(12)), table)


@pytest.fixture
def sides(rng, write):
    """(numbers of the items, posters by number, column map, table) with two files beside it."""
    numbers = rng.permutation(32)
    table = {"item": np.arange(32), "key": numbers.astype(object), "name": ["x"] * 32}
    table["key"][5] = None
    posters = rng.normal(size=(20, 2, 3)).astype(np.float16)  # two each of twenty items
    write("posters.npz", {"number": np.arange(20), "vectors": posters})
    lines = [f"{number}::place{number}, caf\xe9::x" for number in range(32)]
    write("lines.dat", "\n".join(lines).encode())
    write("i.parquet", table)
    config = make_config(images="posters.vectors")
    config.catalogue.texts = (("title", "name"), ("place", "lines.where"))
    header = ("id", "where", "sort")
    config.sides.lines = column_map.side(on="key", id="id", delimiter="::", header=header)
    config.sides.posters = column_map.side(on="key", id="number", partial=True)
    return numbers, posters, config, table


SIDES = ("posters.npz", "lines.dat")


def test_columns_are_looked_up_in_other_files(tmp_path, sides, prepare):
    numbers, posters, config, _ = sides
    files = [str(tmp_path / name) for name in ("i.parquet", *SIDES)]
    made, prepared = prepare(config, make_log(range(32)), files)
    known = [None if row == 5 else number for row, number in enumerate(numbers)]
    shown = [number is not None and number < 20 for number in known]
    assert np.diff(made.catalogue.image_offsets).tolist() == [2 * some for some in shown]
    expected = np.concatenate([posters[number] for number in numbers[shown]])
    np.testing.assert_array_equal(made.catalogue.images, expected)
    texts = [None if number is None else f"place{number}, caf\xe9" for number in known]
    for one, other in zip(made.catalogue.text("place"), made.vocabulary.encode(texts), strict=True):
        np.testing.assert_array_equal(one, other)
    report = prepared.report
    assert report["items whose key is in lines"] == "100.0%"
    assert report["items whose key is in posters"] == f"{sum(shown) / 31:.1%}"
    assert "caf\xe9" in made.vocabulary.rows["token"].to_pylist()


def test_refuses_bad_sides(tmp_path, sides, write, refuse):
    numbers, posters, config, _ = sides

    def refused(message, files=SIDES):
        files = [str(tmp_path / name) for name in ("i.parquet", *files)]
        refuse(message, config, make_log(range(32)), files)

    def lines(*more):
        written = [*(f"{number}::a::b" for number in range(31)), *more]
        write("lines.dat", "\n".join(written).encode())

    refused("--items has lines after .*i.parquet; expected lines, posters", SIDES[1:])
    write("other/lines.dat", b"31::a::b")
    named = "other/lines.dat", *SIDES[::-1]
    refused("--items has .*lines.dat and .*lines.dat; expected one of a name", named)
    row = 1 + list(numbers).index(31)
    lines()
    refused(rf"i.parquet: row {row}: key is 31; expected an id of .*lines.dat \(1 of 32")
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
    bad = np.where(posters == posters[4, 1, 0], np.nan, posters)
    write("posters.npz", {"number": np.arange(20), "vectors": bad})
    refused("posters.npz: row 5: vectors is .*expected 3 finite numbers an image")
    write("posters.npz", {"number": np.arange(20) + 1000, "vectors": posters})
    refused("posters.npz: no key of the items is in it; they have 0, the file 1000: expected ids")


def test_a_date_that_is_looked_up_is_told_as_it_is(tmp_path, write, refuse):
    items = [
        write("i.parquet", {"item": [1, 2]}),
        write("dates.parquet", {"item": [1, 2], "since": [START, -5]}),
    ]
    config = make_config(created="dates.since", created_unit="s")
    config.sides.dates = column_map.side(on="item", id="item")
    refuse(
        "dates.parquet: row 2: since is -5; expected a timestamp", config, make_log([1, 2]), items
    )
