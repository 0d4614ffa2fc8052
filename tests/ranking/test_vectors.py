"""Vectors of rows are the latest before each row, by own ids."""

import dataclasses
import shutil

import numpy as np
import pytest
from etils import epath

from pinjax.data import dataset as dataset_lib
from pinjax.data import windows
from pinjax.errors import InputError
from pinjax.ranking import rows as rows_lib
from pinjax.ranking import vectors
from pinjax.timestamps import DAY
from tests.ranking.conftest import START


@pytest.fixture(scope="module")
def world(data_dir):
    """pinworld/tiny, its log, and rows of it."""
    dataset = dataset_lib.load("pinworld/tiny", str(data_dir))
    spec = dataset.spec
    positives = windows.Positives.create(spec, "save, closeup>=10", "home")
    log = rows_lib.Log.read(dataset, positives)
    created = dataset.catalogue.created
    return dataset, log, rows_lib.make(log, positives, spec, created, spec.train_end)


def test_the_log_is_that_of_all_users(world):
    dataset, log, rows = world
    assert log.users == [
        u for s in ("train", "valid", "test") for c in dataset.chunks(s) for u in c.users
    ]
    assert log.first_evaluated == 300
    assert rows.user.min() >= 300
    assert rows.time.min() > dataset.spec.train_end


def test_a_row_has_the_latest_vectors_before_it(world, make_embeddings, rng):
    dataset, log, rows = world
    ids, users = dataset.catalogue.ids, np.array(log.users[300:], object)
    given, names = {}, []
    for days in (7, 0):  # in any order
        of_items = rng.normal(size=(len(ids), 4)).astype(np.float32)
        # Some users have two vectors, some none.
        some = np.r_[users[10:], users[10:20]]
        of_users = rng.normal(size=(len(some), 4)).astype(np.float32)
        given[days] = dict(zip(ids, of_items, strict=True)), some, of_users
        as_of = np.datetime64(dataset.spec.train_end + days * DAY, "s")
        tables = {"items": (ids, of_items), "users": (some, of_users)}
        fields = {"as_of": f"{as_of}+00:00", "checkpoint": "run"}
        names.append(make_embeddings(f"e{days}", dataset, tables, **fields))
    (run,) = vectors.find(names, dataset, epath.Path("/nowhere"), verify=True)
    found = vectors.of_run(run, log, rows, dataset)
    for row in range(0, len(rows), 5):
        days = 7 if rows.time[row] > dataset.spec.train_end + 7 * DAY else 0
        of_items, some, of_users = given[days]
        own = of_items[ids[rows.item[row]]]
        np.testing.assert_array_equal(found.items[found.item_row[row]], own)
        mine = of_users[some == log.users[rows.user[row]]]
        expected = mine.mean(axis=0) if len(mine) else np.zeros(4)
        np.testing.assert_allclose(found.users[found.user_row[row]], expected, rtol=1e-5, atol=1e-6)
    assert 0.5 < found.known() < 1


def test_directories_of_two_runs_are_two_methods(world, make_embeddings):
    dataset, _, _ = world
    ids = dataset.catalogue.ids
    tables = {"items": (ids, np.ones((len(ids), 2), np.float32))}
    names = [make_embeddings(name, dataset, tables) for name in ("one", "other")]
    runs = vectors.find(names, dataset, epath.Path("/nowhere"), verify=True)
    assert [run.name.rpartition("/")[2] for run in runs] == ["one", "other"]
    parent = epath.Path(names[0]).parent
    namesake = parent / "else" / parent.name / "one"
    shutil.copytree(make_embeddings("two", dataset, tables), namesake)
    with pytest.raises(InputError, match=r"--embeddings: two runs are named .*/one$"):
        vectors.find([*names, namesake], dataset, epath.Path("/nowhere"), verify=True)
    name = make_embeddings("foreign", dataset, tables, dataset="01")
    with pytest.raises(InputError, match="holds embeddings of data set 01; expected those of"):
        vectors.find([name], dataset, epath.Path("/nowhere"), verify=True)


def test_users_without_vectors_get_the_average_of_their_items(world, make_embeddings, rng):
    dataset, log, rows = world
    ids = dataset.catalogue.ids
    of_items = rng.normal(size=(len(ids), 4)).astype(np.float32)
    name = make_embeddings("items", dataset, {"items": (ids, of_items)})
    (run,) = vectors.find([name], dataset, epath.Path("/nowhere"), verify=True)
    found = vectors.of_run(run, log, rows, dataset)
    expected = vectors.aggregate(of_items, run.as_of, log, rows)
    np.testing.assert_array_equal(found.users, expected.users)


def test_an_average_weighs_the_past(make_log, positives, spec, rng):
    log = make_log()
    rows = rows_lib.make(log, positives, spec, np.zeros(30, np.uint32), START)
    items = rng.normal(size=(30, 5))
    items[3] = 0
    as_of = np.array([START, START + 10 * DAY])
    unit = items / np.maximum(np.linalg.norm(items, axis=1, keepdims=True), 1e-9)
    found = vectors.aggregate(items, as_of, log, rows)
    for row in range(0, len(rows), 5):
        end = as_of[rows.time[row] > as_of][-1]
        total = np.zeros(5)
        for user, record in zip(log.user, log.records, strict=True):
            if user == rows.user[row] and record["time"] <= end and positives(record[None])[0]:
                days = (end - float(record["time"])) / DAY
                total += np.exp(-0.01 * days) * unit[record["item"]]
        np.testing.assert_allclose(
            found.users[found.user_row[row]], total / np.linalg.norm(total), atol=1e-5
        )
        np.testing.assert_allclose(
            found.items[found.item_row[row]], unit[rows.item[row]], atol=1e-6
        )
    # What happens after the latest of these times changes nothing.
    records = log.records.copy()
    records["item"][log.time > as_of[-1]] = 7
    other = vectors.aggregate(items, as_of, dataclasses.replace(log, records=records), rows)
    np.testing.assert_array_equal(other.users, found.users)
