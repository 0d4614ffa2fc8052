"""Recommendations against float64 and one query at a time, for systems of made-up vectors."""

import dataclasses
import datetime
import doctest
import pathlib
import shutil
import subprocess
import sys
import types

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import pinjax
from pinjax import checksums, config_json, timestamps
from pinjax.data import dataset as dataset_lib
from pinjax.errors import InputError
from pinjax.retrieval import exact
from pinjax.retrieval import index as index_lib
from pinjax.serving import requests
from pinjax.serving import run as run_lib
from pinjax.systems import system
from pinjax.training import checkpoint, workdirs

SYSTEM = "pinnersage"
DIM = 8
ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("text", "'text' is one text; expected a list of them"),
        (5, "expected a list of one kind"),
        ([1, "a"], "expected a list of one kind"),
        ([2**70], "expected a list of one kind"),
        ([object()], "expected a list of one kind"),
        (np.zeros((2, 2), int), "expected a list of one kind"),
        ([[1], [2]], r"ids such as \[1\] are list<item: int64>; expected int64"),
        ([1.5], "ids such as 1.5 are double; expected int64"),
    ],
)
def test_ids_that_are_none_are_refused(wanted, message):
    with pytest.raises(InputError, match=message):
        requests.places(requests.as_array(wanted), pa.array([1, 2]), "items")


@pytest.mark.parametrize(
    "columns", [5, "text", [1], np.zeros(3), {"user": [1], "item": [1, 2]}, {"item": [2**70]}]
)
def test_histories_that_are_no_table_are_refused(columns):
    with pytest.raises(InputError, match="histories: expected a table"):
        requests.as_table(columns)


@pytest.fixture
def dataset(data_dir):
    return dataset_lib.load("pinworld/tiny", str(data_dir))


@pytest.fixture
def items(dataset, rng):
    """Of all items but every third one."""
    vectors = rng.standard_normal((dataset.spec.num_items, DIM)).astype(np.float32)
    rows = np.flatnonzero(np.arange(len(vectors)) % 3)
    return vectors, system.EmbeddedRows(rows, vectors.__getitem__)


@pytest.fixture
def open_run(make_config, dataset, items):
    """(fields of Served) -> a run."""

    def make(as_of=None, users=None, items=items[1], **served):
        def embed(parts):
            return np.concatenate([users(histories) for histories in parts])

        made = system.System(
            **{name: None for name in system.System.__dataclass_fields__},
        )
        made.__dict__.update(
            dataset=dataset,
            identity={"dataset": "this"},
            serve=lambda params, as_of: system.Served(items, users and embed, **served),
        )
        state = types.SimpleNamespace(params=None, step=0)
        return run_lib.Run(make_config(), made, state, as_of)

    return make


def best(scores, k, allowed):
    """The rows with the largest scores."""
    rows = [row for row in np.argsort(-scores) if allowed[row]]
    return rows[:k]


def findable(dataset, items, as_of):
    allowed = dataset.catalogue.created <= as_of
    allowed[np.setdiff1d(np.arange(len(allowed)), items[1].rows)] = False
    return allowed


def lists(table, name):
    """The items of each id, best first."""
    frame = table.to_pandas()
    ranks = frame.groupby(name)["rank"].apply(list)
    assert (ranks.map(lambda x: x == [*range(1, len(x) + 1)])).all()
    assert frame.groupby(name)["score"].apply(lambda x: x.is_monotonic_decreasing).all()
    return frame.groupby(name)["item"].apply(list).to_dict()


def mean_of_items(vectors):
    """Users as the mean of their items, in order that weights depend on time, too."""

    def embed(history):
        known = (history["item"] >= 0)[..., None]
        age = history["request_time"][:, -1:] - history["time"].astype(np.int64)
        weight = np.exp(-age / 1e6)[..., None] * known
        return (vectors[history["item"]] * weight).sum(axis=1).astype(np.float32)

    return embed


def histories_of(dataset, as_of):
    """[user, items, seconds before as_of, records] of all users who had acted by then."""
    found = {}
    for split in ("train", "valid", "test"):
        for chunk in dataset.chunks(split):
            for i, user in enumerate(chunk.users):
                records = chunk.records[chunk.offsets[i] : chunk.offsets[i + 1]]
                records = records[records["time"] <= as_of]
                if len(records):
                    found[user] = records
    return found


@pytest.mark.parametrize("filter_seen", [True, False])
def test_users_are_recommended_what_they_have_not_seen(
    dataset, items, open_run, filter_seen, monkeypatch
):
    """Users in several parts, also those that are asked for by their ids."""
    monkeypatch.setattr(requests, "_SOME", 37)
    monkeypatch.setattr(exact, "QUERIES", 16)
    vectors, _ = items
    as_of = dataset.spec.train_end - 5 * 86_400
    run = open_run(as_of, users=mean_of_items(vectors))
    found = lists(run.recommend(k=7, filter_seen=filter_seen), "user")
    histories = histories_of(dataset, as_of)
    assert found.keys() == histories.keys()
    for user, records in histories.items():
        records_read = records[-run.config.data.length :]
        weight = np.exp(-(as_of - records_read["time"].astype(np.int64)) / 1e6)
        query = weight @ vectors[records_read["item"]].astype(np.float64)
        allowed = findable(dataset, items, as_of)
        if filter_seen:
            allowed[records["item"]] = False
        expected = best(vectors @ query, 7, allowed)
        assert found[user] == dataset.catalogue.ids[expected].tolist()
    some = list(histories)[3::4][::-1]
    wanted = run.recommend([*some, some[0]], k=7, filter_seen=filter_seen)  # each once
    assert list(dict.fromkeys(wanted["user"].to_pylist())) == some
    assert lists(wanted, "user") == {user: found[user] for user in some}


def test_users_come_once_where_all_splits_have_all_of_them(dataset, make_config):
    spec = dataclasses.replace(dataset.spec, leave_one_out=True)
    users = requests.Users(make_config(), dataclasses.replace(dataset, spec=spec))

    def embed(parts):
        return np.zeros((len(parts[0]["item"]), DIM), np.float32)

    found = [own for batch in users.known(embed, 2**31, None) for own in batch.ids.to_pylist()]
    everybody = [user for chunk in dataset.chunks("train") for user in chunk.users]
    assert found == everybody
    some = pa.array(everybody[:3])
    (batch,) = users.known(embed, 2**31, some)
    assert batch.ids.equals(some)


def test_histories_are_those_of_the_log(dataset, items, open_run, tmp_path):
    as_of = dataset.spec.train_end
    run = open_run(as_of, users=mean_of_items(items[0]))
    histories = histories_of(dataset, as_of)
    some = list(histories)[::50]
    rows = [(user, record) for user in some for record in histories[user]]
    frame = pd.DataFrame(
        {
            "user": [f"new {user}" for user, _ in rows],
            "item": [dataset.catalogue.ids[record["item"]] for _, record in rows],
            "time": [int(record["time"]) for _, record in rows],
            "action": [dataset.spec.actions[record["action"]] for _, record in rows],
            "surface": [dataset.spec.surfaces[record["surface"]] for _, record in rows],
            "duration": [float(record["duration"]) for _, record in rows],
        }
    )
    unknown = pd.DataFrame([{**frame.iloc[0], "item": 10**15, "time": as_of - 1}])
    frame = pd.concat([frame.sample(frac=1, random_state=0), unknown])
    known = lists(run.recommend(pl.Series(some)), "user")
    expected = {f"new {user}": known[user] for user in some}
    paths = [tmp_path / name for name in ("h.parquet", "h.csv", "h.jsonl")]
    frame.to_parquet(paths[0])
    frame.to_csv(paths[1], index=False)
    frame.to_json(paths[2], orient="records", lines=True)
    tables = frame, pl.from_pandas(frame), pa.Table.from_pandas(frame), frame.to_dict("list")
    for source in (*tables, frame.to_records(index=False), *map(str, paths)):
        assert lists(run.recommend(histories=source), "user") == expected
    embedded = run.embed_users(frame)
    assert embedded["user"].to_pylist() == sorted(expected)
    later = pd.DataFrame([{**frame.iloc[0], "time": as_of + 1}])
    np.testing.assert_array_equal(
        np.stack(run.embed_users(pd.concat([frame, later]))["vector"].to_numpy()),
        np.stack(embedded["vector"].to_numpy()),
    )
    assert len(run.embed_users(unknown)) == len(run.recommend(histories=unknown)) == 0
    with pytest.raises(InputError, match=r"histories: no column 'item'"):
        run.embed_users(frame.drop(columns="item"))


def test_histories_alone_are_as_of_their_latest_action(dataset, items, open_run):
    run = open_run(users=mean_of_items(items[0]))
    at = dataset.spec.train_end + 10 * 86_400
    rows = {"user": [1, 2], "item": [int(dataset.catalogue.ids[1])] * 2, "time": [at - 10**6, at]}
    rows |= {"action": ["x", "x"], "surface": ["", ""], "duration": [0, 0]}
    first, second = np.stack(run.embed_users(rows)["vector"].to_numpy())
    np.testing.assert_allclose(first, np.exp(-1) * items[0][1], rtol=1e-5)
    np.testing.assert_allclose(second, items[0][1], rtol=1e-5)
    rows["duration"] = np.zeros(2, np.float16)
    with pytest.raises(InputError, match=r"histories: Not implemented.*duration: halffloat"):
        run.embed_users(rows)


def test_of_several_vectors_the_best_counts(dataset, items, open_run, rng):
    vectors, _ = items
    users = rng.standard_normal((3, DIM)).astype(np.float32)

    def embed(history):  # the first user has one vector, others three
        found = np.tile(users, (len(history["item"]), 1, 1))
        found[0, 1:] = 0
        return found

    run = open_run(users=embed)
    some = list(histories_of(dataset, run.as_of))[:2]
    found = run.recommend(some, k=5, filter_seen=False).to_pandas()
    allowed = findable(dataset, items, run.as_of)
    for user, own in zip(some, (users[:1], users), strict=True):
        scores = (own @ vectors.T).max(axis=0)
        rows = found[found["user"] == user]
        expected = best(scores, 5, allowed)
        assert rows["item"].tolist() == dataset.catalogue.ids[expected].tolist()
        np.testing.assert_allclose(rows["score"], scores[expected], rtol=1e-5)
    table = {"user": [7], "item": dataset.catalogue.ids[:1], "time": [run.as_of]}
    table |= {"action": ["x"], "surface": [""], "duration": [0.0]}
    assert run.embed_users(table)["user"].to_pylist() == [7]


def test_what_contradicts_itself_is_refused(items, open_run):
    run = open_run(users=mean_of_items(items[0]))
    with pytest.raises(InputError, match="ids and histories are given; expected one of them"):
        run.recommend(["u00000001"], histories={"user": []})
    with pytest.raises(InputError, match="split is 'train'; expected valid or test"):
        run.evaluate("train")


def test_each_of_two_runs_embeds_its_items_once(dataset, items, open_run):
    vectors, table = items
    embedded = []

    def embed(rows):
        embedded.append(len(rows))
        return vectors[rows]

    runs = [open_run(items=table._replace(embed=embed)) for _ in range(2)]
    for run in runs * 2:
        run.similar([dataset.catalogue.ids[table.rows[0]]], 2)
    assert embedded == [len(table.rows)] * 2


def test_items_are_not_similar_to_themselves(dataset, items, open_run, monkeypatch):
    monkeypatch.setattr(requests, "_SOME", 3)
    vectors, rows = items
    run = open_run()
    ids = dataset.catalogue.ids[rows.rows[5:9]]
    found = run.similar(ids, 4).to_pandas()
    allowed = findable(dataset, items, run.as_of)
    for number, row in enumerate(rows.rows[5:9]):
        others = allowed.copy()
        others[row] = False
        expected = dataset.catalogue.ids[best(vectors @ vectors[row], 4, others)]
        of_item = found.iloc[4 * number : 4 * number + 4]
        assert of_item["item"].tolist() == expected.tolist()
    with pytest.raises(InputError, match=r"items: 1 of 2 ids are unknown"):
        run.similar([*ids[:1], dataset.catalogue.ids[0]])


def test_allowed_and_denied_items(dataset, items, open_run):
    run = open_run(users=mean_of_items(items[0]))
    user = list(histories_of(dataset, run.as_of))[:1]
    everything = run.recommend(user, 10**6)["item"].to_pylist()
    assert len(everything) > 50
    allow, deny = everything[5:50:3], everything[8:20]
    found = run.recommend(user, 10**6, allow=allow, deny=np.array(deny))["item"].to_pylist()
    assert found == [item for item in everything if item in allow and item not in deny]
    assert run.recommend(user, 3, allow=[]).num_rows == 0
    with pytest.raises(InputError, match=r"deny: 1 of 1 ids are unknown"):
        run.recommend(user, deny=[-5])
    with pytest.raises(InputError, match=r"k is 0"):
        run.recommend(user, 0)
    with pytest.raises(InputError, match=r"k is 2.0"):
        run.recommend(user, 2.0)
    with pytest.raises(InputError, match=r"users: 1 of 1 ids are unknown.*'nobody'"):
        run.recommend(["nobody"])
    with pytest.raises(InputError, match=r"'nobody' is one text"):
        run.recommend("nobody")


@pytest.mark.parametrize("several", [False, True])
def test_an_index_finds_what_exact_search_finds(dataset, items, open_run, rng, tmp_path, several):
    users = rng.standard_normal((2, DIM)).astype(np.float32)
    mean = mean_of_items(items[0])

    def embed(history):
        return mean(history)[:, None] + users if several else mean(history)

    run = open_run(users=embed)
    held = items[1].rows[::-2]  # an index of some items, in another order
    ids, vectors = pa.array(dataset.catalogue.ids[held]), items[0][held]
    made_from = checkpoint.identity(run.config, run.system, None, 0)
    made_from["as_of"] = timestamps.iso(run.as_of)
    index = index_lib.create(ids, vectors, "exact")
    index.save(tmp_path / "index", {"table": "items", "embeddings": made_from})
    some = list(histories_of(dataset, run.as_of))[::60]
    filters = {"deny": dataset.catalogue.ids[held[:9]]}
    found = run.recommend(some, 6, index=tmp_path / "index", **filters)
    expected = run.recommend(some, 6, allow=ids, **filters)
    assert found.drop(["score"]).equals(expected.drop(["score"]))
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-5)
    index.save(tmp_path / "bare", {})
    with pytest.raises(InputError, match=r"bare is an index of embeddings of system None"):
        run.recommend(some, index=tmp_path / "bare")


def test_the_checksums_of_an_index_are_compared_if_wanted(dataset, items, open_run, tmp_path):
    run = open_run(users=mean_of_items(items[0]))
    rows = items[1].rows
    made_from = checkpoint.identity(run.config, run.system, None, 0)
    manifest = {"table": "items", "embeddings": made_from | {"as_of": timestamps.iso(run.as_of)}}
    for name, vectors in (("index", items[0]), ("other", -items[0])):
        index = index_lib.create(pa.array(dataset.catalogue.ids[rows]), vectors[rows], "exact")
        index.save(tmp_path / name, manifest)
    (tmp_path / "other" / checksums.FILE).unlink()
    shutil.copytree(tmp_path / "other", tmp_path / "index", dirs_exist_ok=True)
    with pytest.raises(InputError, match="damaged: its checksum is not that of what was written"):
        run.recommend(index=tmp_path / "index")
    state = types.SimpleNamespace(params=None, step=0)
    unchecked = run_lib.Run(run.config, run.system, state, verify=False)
    assert len(unchecked.recommend(index=tmp_path / "index"))


@pytest.mark.parametrize(
    ("manifest", "embeddings", "message"),
    [
        ({}, {"checkpoint": "x"}, r"index of embeddings of checkpoint x; expected this run's, "),
        ({}, {"config": "x"}, r"of config x; expected this run's, "),
        # PinnerSage has no parameters that would tell the space of another data set.
        ({}, {"dataset": "x"}, r"of dataset x; expected this run's, this"),
        ({"table": "users"}, {}, r"is an index of users; expected one of items"),
        ({}, {"as_of": "2105-01-01"}, r"as of 2105-01-01; expected none later than 20"),
    ],
)
def test_an_index_of_others_is_refused(
    dataset, items, open_run, tmp_path, manifest, embeddings, message
):
    run = open_run(users=mean_of_items(items[0]))
    rows = items[1].rows
    made_from = checkpoint.identity(run.config, run.system, None, 0)
    made_from |= {"as_of": timestamps.iso(run.as_of)} | embeddings
    index = index_lib.create(pa.array(dataset.catalogue.ids[rows]), items[0][rows], "exact")
    index.save(tmp_path / "index", {"table": "items", "embeddings": made_from} | manifest)
    some = list(histories_of(dataset, run.as_of))[:1]
    with pytest.raises(InputError, match=message):
        run.recommend(some, index=tmp_path / "index")


def test_histories_alone_take_an_index_of_later(dataset, items, open_run, tmp_path):
    run = open_run(users=mean_of_items(items[0]))
    rows = items[1].rows
    made_from = checkpoint.identity(run.config, run.system, None, 0) | {"as_of": "2105-01-01"}
    index = index_lib.create(pa.array(dataset.catalogue.ids[rows]), items[0][rows], "exact")
    index.save(tmp_path / "index", {"table": "items", "embeddings": made_from})
    table = {"user": [7], "item": dataset.catalogue.ids[rows[:1]], "time": [run.as_of - 9]}
    table |= {"action": ["x"], "surface": [""], "duration": [0.0]}
    found = run.recommend(histories=table, k=3, index=tmp_path / "index")
    expected = run.recommend(histories=table, k=3, allow=index.ids)
    assert found["item"] == expected["item"]


def test_groups_are_recommended_what_is_not_in_them(dataset, items, open_run, rng, monkeypatch):
    vectors, _ = items
    groups = rng.standard_normal((dataset.spec.num_groups, DIM)).astype(np.float32)
    monkeypatch.setattr(
        type(dataset), "held_out_edges", lambda *_: rng.integers(0, (len(groups), 50), (2_000, 2))
    )
    run = open_run(groups=system.EmbeddedRows(np.arange(len(groups)), groups.__getitem__))
    some = np.arange(0, len(groups), 7)
    found = lists(run.recommend(dataset.groups[some], 6), "group")
    for group in some:
        allowed = findable(dataset, items, run.as_of)
        allowed[dataset.graph.groups.of(group)] = False
        expected = dataset.catalogue.ids[best(vectors @ groups[group], 6, allowed)]
        assert found[dataset.groups[group]] == expected.tolist()
    sizes = len(groups), dataset.spec.num_items
    held_out = {split: rng.integers(0, sizes, (2_000, 2)) for split in ("valid", "test")}
    monkeypatch.setattr(type(dataset), "held_out_edges", lambda self, split: held_out[split])
    later = open_run(run.as_of + 1, groups=run.system.serve(None, 0).groups)
    found = lists(later.recommend(dataset.groups[some], 6), "group")
    added = np.concatenate([*held_out.values()])
    for group in some:
        allowed = findable(dataset, items, later.as_of)
        allowed[dataset.graph.groups.of(group)] = False
        allowed[added[added[:, 0] == group, 1]] = False
        expected = dataset.catalogue.ids[best(vectors @ groups[group], 6, allowed)]
        assert found[dataset.groups[group]] == expected.tolist()
    with pytest.raises(InputError, match=r"pinnersage embeds no texts"):
        run.search(["a"])
    with pytest.raises(InputError, match=r"embeds no users"):
        run.embed_users({"user": [], "item": []})


def test_queries_and_texts(dataset, items, open_run, rng, monkeypatch):
    monkeypatch.setattr(requests, "_SOME", 1)
    vectors, _ = items
    queries = rng.standard_normal((dataset.spec.num_queries, DIM)).astype(np.float32)
    of_rows = system.EmbeddedRows(np.arange(len(queries)), queries.__getitem__)
    run = open_run(queries=of_rows)
    kinds, of_item = dataset.queries.kinds, dataset.queries.items
    some = [np.flatnonzero(kinds == "image")[3], np.flatnonzero(kinds == "text")[2]]
    found = lists(run.recommend(dataset.queries.ids[some], 6), "query")
    for row in some:
        allowed = findable(dataset, items, run.as_of)
        if of_item[row] >= 0:
            allowed[of_item[row]] = False
        expected = dataset.catalogue.ids[best(vectors @ queries[row], 6, allowed)]
        assert found[dataset.queries.ids[row]] == expected.tolist()
    text = dataset.queries.ids[some[1]]
    assert lists(run.search([text], 6), "query")[text] == found[text]
    with pytest.raises(InputError, match=r"texts: 1 of 1 ids are unknown"):
        run.search(["never searched for"])
    run = open_run(queries=of_rows, texts=lambda texts: queries[[len(text) for text in texts]])
    found = run.search(["abc", "ab"], 2)
    assert found["query"].to_pylist() == ["abc", "abc", "ab", "ab"]
    assert run.search(["ab ", "\tab"], 2)["query"].to_pylist() == ["ab"] * 4
    for wrong in ([1], ["ab", None], ["ab", " "]):
        with pytest.raises(InputError, match="expected some that are not empty"):
            run.search(wrong)


def test_a_table_without_rows_has_the_types_of_others(dataset, items, open_run):
    run = open_run(users=mean_of_items(items[0]))
    unknown = {"user": ["me"], "item": [0], "time": [1], "action": ["save"]}
    unknown |= {"surface": ["home"], "duration": [0.0]}
    for nobody in (run.recommend(ids=[]), run.recommend(histories=unknown)):
        assert len(nobody) == 0
        assert nobody.schema == run.recommend(k=1).schema
    assert len(run.similar([])) == 0
    assert run.similar([]).schema == run.similar([dataset.catalogue.ids[items[1].rows[0]]]).schema


def test_a_user_is_embedded_without_the_catalogue(dataset, open_run, rng):
    def embed(rows):
        raise AssertionError

    everything = system.EmbeddedRows(np.arange(dataset.spec.num_items), embed)
    vectors = rng.standard_normal((dataset.spec.num_items, DIM)).astype(np.float32)
    run = open_run(users=mean_of_items(vectors), items=everything)
    one = {"user": ["me"], "item": [int(dataset.catalogue.ids[0])], "time": [1_743_000_000]}
    one |= {"action": ["save"], "surface": ["home"], "duration": [0.0]}
    assert run.embed_users(one)["user"].to_pylist() == ["me"]


def test_embeddings_of_items(dataset, items, open_run):
    run = open_run()
    rows = items[1].rows[[4, 2]]
    table = run.embed_items(dataset.catalogue.ids[rows])
    np.testing.assert_array_equal(np.stack(table["vector"].to_numpy()), items[0][rows])
    assert run.embed_items()["item"].to_pylist() == dataset.catalogue.ids[items[1].rows].tolist()


def test_importing_costs_nothing():
    code = "import sys, pinjax; assert not {'jax', 'numpy', 'pyarrow'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_doctest(make_config, dataset, tmp_path, monkeypatch):
    config = make_config()
    workdirs.write(tmp_path / "work/pinnersage", config, {"dataset": dataset.spec.digest})
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(run_lib).failed == 0
    workdirs.write(tmp_path / "work/pinnersage", config, {"dataset": "another"})
    with pytest.raises(InputError, match="holds a run with dataset=another, this one has dataset="):
        run_lib.open_run("work/pinnersage")


def test_a_config_comes_back_from_a_work_directory(make_config, tmp_path):
    config = make_config()
    workdirs.write(tmp_path, config, {})
    found = workdirs.config_of(tmp_path)
    assert found == config_json.from_json(config_json.to_json(config))
    assert found.to_dict() == config.to_dict()  # also with its tuples
    workdirs.check(tmp_path, found, {})
    with pytest.raises(InputError, match="holds no run"):
        run_lib.open_run(tmp_path / "x")


def test_a_time_may_be_text_or_a_datetime(monkeypatch):
    monkeypatch.setattr(run_lib, "open_run", lambda workdir, as_of: as_of)
    zone = datetime.timezone(datetime.timedelta(hours=-2))
    for as_of in (
        *("2025-05-01T02:00", "2025-05-01T00:00-02:00"),
        datetime.datetime(2025, 5, 1, 2),
        datetime.datetime(2025, 5, 1, tzinfo=zone),
    ):
        assert pinjax.open("work", as_of) == 1_746_064_800
    assert pinjax.open("work", datetime.date(2025, 5, 1)) == 1_746_057_600
    with pytest.raises(InputError, match="as_of is 20250501; expected ISO 8601"):
        pinjax.open("work", 20250501)
