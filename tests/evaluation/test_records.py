"""Records against the table that they were made for, and against a loop over their rows."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinjax import results
from pinjax.errors import InputError
from pinjax.evaluation import records, tables

USERS, LABELS = 12, 60


@pytest.fixture(params=["users", "labels"])
def made(request, rng):
    """Records of four methods."""
    pairs = request.param == "labels"
    user = np.sort(rng.integers(0, USERS, LABELS))
    names = np.array([f"user {i}" for i in range(USERS)], object)
    labels = {
        "user": names[user] if pairs else 7 * user.astype(np.int64),
        "window": np.zeros(LABELS, np.int64) if pairs else rng.integers(0, 2, LABELS) * 100,
        "label": rng.integers(0, 99, LABELS),
        "label_time": rng.integers(100, 200, LABELS),
        "label_age": rng.integers(-5, 100, LABELS),
        "label_popularity": rng.integers(0, 9, LABELS).astype(np.int32),
        "task": np.array(["a", "b"], object)[rng.integers(0, 2, LABELS) * pairs],
        "tier": np.array(["head", "cold"], object)[rng.integers(0, 2, LABELS)],
    }
    if not pairs:
        labels["task"][:] = ""
    keys = [("ours", "window"), ("ours, ScaNN", "window"), ("ours", "daily")]
    keys += [("oracle", "window"), ("oracle", "daily")]
    keys += [("popularity, all time", "window"), ("co-occurrence", "window")]
    entropy = rng.random(USERS).astype(np.float32)
    methods = {
        key: records.Ranks(
            rank=rng.integers(0, 30, LABELS).astype(np.int32),
            request_time=labels["window"] + 1,
            entropy=entropy[user] if key[1] == "window" else np.full(LABELS, np.nan, np.float32),
        )
        for key in keys
    }
    figures = tuple(
        (*key, {tables.COVERAGE: 0.1 * i, tables.OVERLAP: 0.95}) for i, key in enumerate(keys)
    )
    about = records.About(
        system="ours",
        averaged_over=request.param,
        metrics=("R@1", "R@10") if pairs else ("R@10", "HR@10", "NDCG@10"),
        tiers=("head", "cold"),
        tasks=("a", "b") if pairs else (),
        has_topics=not pairs,
        listed=51,
        baselines=("popularity, all time", "co-occurrence"),
        figures=figures,
        notes=("12 users",),
    )
    return records.Records(about, labels, methods)


def test_a_table_is_made_again_from_the_file(made, tmp_path):
    table = tables.table_of(made)
    results.write(tmp_path, "test", 7, table)
    again = tables.table_of(records.read(tmp_path / "records_test.parquet"))
    assert again.notes == table.notes
    assert [row.name for row in again.rows] == [row.name for row in table.rows]
    for row, other in zip(table.rows, again.rows, strict=True):
        assert row.metrics.keys() == other.metrics.keys()
        np.testing.assert_array_equal([*row.metrics.values()], [*other.metrics.values()])
    assert results.table(again) == results.table(table)


def test_the_file_is_a_plain_table(made, tmp_path):
    """A row for each method and label, users' and items' own ids, and few bytes a row."""
    path = tmp_path / "records.parquet"
    records.write(path, made)
    table = pq.read_table(path)
    assert len(table) == LABELS * len(made.methods)
    columns = pq.ParquetFile(path).metadata.row_group(0).to_dict()["columns"]
    encodings = {column["path_in_schema"]: column["encodings"] for column in columns}
    assert all("RLE_DICTIONARY" in encodings[name] for name in ("method", "user", "label", "rank"))
    rows = table.to_pylist()
    assert [row["user"] for row in rows] == made.labels["user"].tolist() * len(made.methods)
    of_ours = [row for row in rows if (row["method"], row["cadence"]) == ("ours", "daily")]
    assert [row["rank"] for row in of_ours] == made.methods["ours", "daily"].rank.tolist()

    table = tables.table_of(made)
    found = {(row.method, row.task): row.metrics for row in table.rows}
    users = made.about.averaged_over == "users"
    for method, cadence in made.methods:
        own = [row for row in rows if (row["method"], row["cadence"]) == (method, cadence)]
        for task in (None, "a", "b"):
            some = [row for row in own if task in (None, row["task"])]
            if not some or (users and task):
                continue
            group = [(row["user"], row["window"]) if users else i for i, row in enumerate(some)]
            hits = {}
            for key, row in zip(group, some, strict=True):
                hits.setdefault(key, []).append(row["rank"] < 10)
            expected = np.mean([np.mean(x) for x in hits.values()])
            cells = found[method + tables.SUFFIXES[cadence], task]
            assert cells["R@10"].value == pytest.approx(expected)


def test_a_method_is_held_against_others_at_its_cadence(made):
    found = {row.name: row.metrics for row in tables.table_of(made).rows}
    baselines = made.about.baselines
    best = max(baselines, key=lambda name: found[name]["R@10"].value)
    for name, oracle in (("ours", "oracle"), ("ours, daily", "oracle, daily")):
        recall = found[name]["R@10"].value
        assert found[name]["of oracle"].value == pytest.approx(recall / found[oracle]["R@10"].value)
        above = recall - found[best]["R@10"].value
        assert found[name]["over baseline"].value == pytest.approx(above)
    assert "over baseline" not in found["oracle"]


def test_collapsed_methods_of_the_system_are_said_to_be(made):
    notes = [note for note in tables.table_of(made).notes if "collapsed" in note]
    why = "two of its lists have 95% in common"
    below = "its P90 cov@10 is below twice popularity's and "
    names = ("ours", "ours, ScaNN", "ours, daily")
    assert notes == [f"warning: {name} has collapsed: {why}" for name in names]

    def collapsed(popularity, users):
        figures = [(*key, dict(cells)) for *key, cells in made.about.figures]
        for method, _, cells in figures:
            if method == "popularity, all time":
                cells[tables.COVERAGE] = popularity
            elif method.startswith("ours"):
                cells[tables.COVERAGE] = 0.01
        about = dataclasses.replace(made.about, figures=tuple(figures))
        some = np.isin(made.labels["user"], np.unique(made.labels["user"])[:users])
        labels = {name: values[some] for name, values in made.labels.items()}
        methods = {
            key: records.Ranks(**{name: values[some] for name, values in vars(ranks).items()})
            for key, ranks in made.methods.items()
        }
        found = tables.table_of(records.Records(about, labels, methods))
        return [note for note in found.notes if "collapsed" in note]

    assert collapsed(0.1, USERS) == [
        f"warning: {name} has collapsed: {below}{why}" for name in names
    ]
    assert collapsed(0.1, 5) == notes  # of a few lists none is large
    assert collapsed(0.2, USERS) == notes  # and of few items none is small


def test_what_is_no_record_is_refused(tmp_path):
    with pytest.raises(InputError, match="not readable as Parquet"):
        records.read(tmp_path / "absent.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match="no records of an evaluation"):
        records.read(tmp_path / "other.parquet")
    for about in (b"{", b"[]", b'{"system": "of an older version"}'):
        damaged = pa.table({"a": [1]}).replace_schema_metadata({b"pinjax": about})
        pq.write_table(damaged, tmp_path / "other.parquet")
        with pytest.raises(InputError, match=r"other\.parquet: damaged, or of another version"):
            records.read(tmp_path / "other.parquet")
