"""A made-up log whose users want the items near them: who knows that ranks better."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from etils import epath
from ml_collections import ConfigDict

from pinjax.data import dataset as dataset_lib
from pinjax.data import timelines
from pinjax.errors import InputError
from pinjax.models import ranker
from pinjax.ranking import export, lift, metrics, training, vectors
from pinjax.ranking.lift import NOTHING
from pinjax.ranking.rows import Log, Rows
from pinjax.ranking.vectors import Vectors
from pinjax.timestamps import DAY
from tests.ranking.conftest import START

USERS, ITEMS, EACH, DIM = 60, 200, 100, 8


@pytest.fixture(scope="module")
def prepared():
    """Rows whose labels come from vectors, with these vectors and with noise."""
    rng = np.random.default_rng(0)
    users, items, noise, other = rng.normal(size=(4, 200, DIM)).astype(np.float32)
    user = np.repeat(np.arange(USERS), EACH)
    item = rng.integers(0, ITEMS, len(user))
    likely = 1 / (1 + np.exp(-(users[user] * items[item]).sum(axis=1)))
    wanted = rng.random(len(user)) < likely
    kind = rng.random(len(user)) < 0.5
    # Items that are far away are hidden: whoever mixes up types ranks worse than by chance.
    hidden = np.random.default_rng(1).random(len(user)) < 1 - likely
    labels = np.stack([wanted, wanted & kind, hidden], axis=1)
    time = START + np.tile(np.arange(EACH) * 3600, USERS)
    request = np.arange(len(user)) // 10
    rows = Rows(
        ("any", "save", "hide"),
        user,
        item,
        time,
        request,
        labels,
        time >= START + 66 * 3600,
        0,
    )
    log = Log([f"u{n}" for n in range(USERS)], 0, user, np.zeros(0, timelines.ACTION), wanted)
    counts = rng.normal(size=(len(user), 3)).astype(np.float32)
    rows_of = {"user_row": user.astype(np.int32), "item_row": item.astype(np.int32)}
    methods = {
        "signal": Vectors(users, items, **rows_of),
        "noise": Vectors(noise, other, **rows_of),
    }
    return lift.Prepared(log, rows, ["a", "b", "c"], counts, methods, "")


def test_signal_lifts_and_noise_does_not(prepared):
    results = prepared.measure(seeds=2)
    for metric, better in (("AUC", 1), ("log loss", -1), ("HIT@3", 1)):
        for type_ in results.types:
            gain = results.lifts(metric, "signal", NOTHING)[type_]
            assert min(better * gain.low, better * gain.high) > 0, (metric, type_)
            none = results.lifts(metric, "noise", NOTHING)[type_]
            assert better * none.value < 0.2 * better * gain.value, (metric, type_)
    none = results.lifts("AUC", "noise", NOTHING)["any"]
    assert none.low < 0
    # No feature but the vectors tells anything.
    assert abs(results.estimates("AUC", NOTHING)["any"].value - 0.5) < 0.05
    # The best that can be known.
    rows, known = prepared.rows, prepared.methods["signal"]
    best = (known.users[known.user_row] * known.items[known.item_row]).sum(axis=1)
    found = results.estimates("AUC", "signal")["any"].value
    most = metrics.auc_values(best[rows.test], rows.labels[rows.test, 0]).mean()
    assert most - 0.05 < found < most + 0.01

    content = json.loads(lift.to_json(results))
    assert content["AUC"]["signal"]["value"]["any"][0] == found
    assert len(content["HIT@3"]["noise"]["seeds"]) == 2
    lines = lift.text(results).splitlines()
    assert lines[0] == "AUC"
    assert sum(line.startswith("  over nothing") for line in lines) == 6


def test_the_exported_table_is_what_models_see(prepared, tmp_path):
    ids = np.arange(1_000, 1_000 + ITEMS)
    export.write(
        tmp_path / "features.parquet",
        prepared.log,
        prepared.rows,
        ids,
        prepared.names,
        prepared.counts,
        prepared.methods,
    )
    table = pq.read_table(tmp_path / "features.parquet").to_pydict()
    rows = prepared.rows
    assert table["user"] == [f"u{user}" for user in rows.user]
    assert table["item"] == list(ids[rows.item])
    assert [time.timestamp() for time in table["time"]] == list(rows.time)
    assert table["split"] == ["test" if test else "train" for test in rows.test]
    assert table["request"] == list(rows.request)
    for column, name in enumerate(rows.types):
        assert table[f"label_{name}"] == list(rows.labels[:, column])
    own = [name for name in table if name.startswith("signal_")]
    found = np.stack([table[name] for name in ("a", "b", "c", *own)], axis=1)
    known = prepared.methods["signal"]
    users, items = known.users[rows.user], known.items[rows.item]
    expected = ranker.features(*map(jnp.asarray, (prepared.counts, users, items)))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    dot = (users.astype(np.float64) * items).sum(axis=1)
    np.testing.assert_allclose(table["signal_dot"], dot, rtol=1e-5, atol=1e-5)
    assert table["signal_product_2"] == list(users[:, 2] * items[:, 2])


@pytest.fixture
def world(data_dir, make_embeddings):
    """pinworld/tiny, and (name, as_of) -> embeddings of it."""
    dataset = dataset_lib.load("pinworld/tiny", str(data_dir))
    ids = dataset.catalogue.ids
    tables = {"items": (ids, np.ones((len(ids), 2), np.float32))}

    def make(name, time):
        as_of = f"{np.datetime64(time, 's')}+00:00"
        return make_embeddings(name, dataset, tables, as_of=as_of)

    return dataset, make


def config_of(system="pinnerformer", **data):
    return ConfigDict({"system": system, "data": {"surfaces": "home", "vectors": ""} | data})


def test_rows_begin_where_no_embedding_has_seen(world):
    dataset, make = world
    train_end = dataset.spec.train_end
    config = config_of(positives="save, closeup>=10")
    for days, expected in ((-20, train_end), (5, train_end + 5 * DAY)):
        names = [
            make(f"one{days}", train_end + days * DAY),
            make(f"other{days}", train_end - 30 * DAY),
        ]
        runs = vectors.find(names, dataset, epath.Path("/nowhere"), verify=True)
        found = lift.prepare(config, dataset, runs, None)
        assert expected < found.rows.time.min() < expected + DAY
        assert list(found.methods) == [lift.AGGREGATE, *(run.name for run in runs)]
        assert found.counts.shape == (len(found.rows), len(found.names))
        assert "the data set's content vectors" in found.about
    other = lift.prepare(config_of(positives="save", vectors="of/pinsage"), dataset, runs, None)
    assert "of the vectors of of/pinsage" in other.about


def test_a_run_without_labels_is_refused(world):
    dataset, make = world
    name = make("run", dataset.spec.train_end)
    runs = vectors.find([name], dataset, epath.Path("/nowhere"), verify=True)
    with pytest.raises(InputError, match="system='itemsage' does not say which actions are labels"):
        lift.prepare(config_of("itemsage"), dataset, runs, None)


def test_the_parameters_are_those_that_are_best_on_the_latest_rows(prepared, monkeypatch):
    """Epochs are spoilt in turn; each has dropout of its own."""
    rows, states, keys = prepared.rows, [], []
    at = np.flatnonzero(~rows.test)
    at = at[np.argsort(rows.time[at], kind="stable")]
    latest = at[round(0.9 * len(at)) :]
    labels = rows.labels[latest].astype(np.float64)
    epoch = training._epoch

    def spoilt(model, state, arrays, scaling, labels, batches, key):
        assert not np.isin(batches, latest).any()
        params, optimizer = epoch(model, state, arrays, scaling, labels, batches, key)
        spoil = (0.0, -0.2, 0.2)[len(states) % 3]
        params = jax.tree.map(lambda x: x + spoil, params)
        states.append((params, scaling))
        keys.append(tuple(jax.random.key_data(key).tolist()))
        return params, optimizer

    def logits(params, scaling, of):
        return np.asarray(training._predict(ranker.Ranker(3), params, features.arrays, scaling, of))

    monkeypatch.setattr(training, "_epoch", spoilt)
    features = training.Features(prepared.counts, prepared.methods["signal"])
    found = training.train(features, rows, 0)
    losses = []
    for state in states:
        x = logits(*state, latest).astype(np.float64)
        losses.append((np.logaddexp(0, x) - labels * x).mean())
    best = int(np.argmin(losses))
    assert 0 < best == len(states) - 1 - training.PATIENCE
    np.testing.assert_allclose(found, logits(*states[best], np.flatnonzero(rows.test)), atol=1e-6)
    assert len(set(keys)) == len(keys)


def test_each_seed_trains_a_model_of_its_own(prepared, monkeypatch):
    monkeypatch.setattr(training, "EPOCHS", 1)
    features = training.Features(prepared.counts, None)
    one, other, again = (training.train(features, prepared.rows, seed) for seed in (0, 1, 0))
    assert (one != other).any()
    np.testing.assert_array_equal(one, again)
