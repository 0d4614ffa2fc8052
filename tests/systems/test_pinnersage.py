"""Interests against their definition, and the page on a small world."""

import functools
import itertools
import pathlib

import numpy as np
import pyarrow.parquet as pq
import pytest

from pinjax.data import catalogue, timelines, windows
from pinjax.data import dataset as dataset_lib
from pinjax.errors import InputError
from pinjax.evaluation import records, tables
from pinjax.systems import embedded, pinnersage, registry, ward
from tests import commands

SYSTEM = "pinnersage"
DAY = 24 * 60 * 60
CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "pinnersage.py"


def unit(rng, *shape):
    vectors = rng.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def by_definition(vectors, days, threshold, decay):
    """[(importance, medoid)], the most important first; of equals the latest action."""
    cluster, found = ward.clusters(vectors, threshold), []
    exact = vectors.astype(np.float64)
    for c in range(max(cluster, default=-1) + 1):
        members = np.flatnonzero(cluster == c)
        sums = [sum(np.sum((exact[m] - exact[i]) ** 2) for i in members) for m in members]
        nearest = members[np.isclose(sums, min(sums), atol=1e-9, rtol=0)]
        found.append((sum(np.exp(-decay * days[i]) for i in members), nearest.max()))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("actions", [0, 1, 2, 3, 100])
@pytest.mark.parametrize("threshold", [0.0, 1.0, 3.0, 100.0])
def test_interests_are_medoids_and_their_importance(rng, actions, threshold):
    vectors = unit(rng, 40, 8)[rng.integers(0, 40, actions)]  # with items that come again
    days = np.sort(rng.uniform(0, 90, actions))[::-1]
    medoids, importances = pinnersage.interests(vectors, days, threshold, 0.05)
    expected = by_definition(vectors, days, threshold, 0.05)
    np.testing.assert_allclose(importances, [importance for importance, _ in expected])
    assert medoids.tolist() == [medoid for _, medoid in expected]


def test_interests_are_drawn_by_importance(rng):
    """With the chances of drawing one after the other, each by its share of what is left."""
    weights = np.array([4.0, 2.0, 1.0, 0.5])
    expected = np.zeros((4, 4))
    for first, second in itertools.permutations(range(4), 2):
        chance = weights[first] / weights.sum() * weights[second] / (weights.sum() - weights[first])
        expected[min(first, second), max(first, second)] += chance
    draws, found = 4_000, np.zeros((4, 4))
    for _ in range(draws):
        found[tuple(pinnersage.draw(weights, 2, rng))] += 1
    wanted = draws * expected[expected > 0]
    assert found[expected == 0].sum() == 0
    # Five degrees of freedom: more than this by chance once in 100,000 seeds.
    assert np.sum((found[expected > 0] - wanted) ** 2 / wanted) < 30.9
    assert pinnersage.draw(weights, 9, rng).tolist() == [0, 1, 2, 3]
    assert pinnersage.draw(np.array([1.0, 0.0]), 1, rng).tolist() == [0]


@pytest.fixture
def users(make_config, rng):
    """Of 20 items, of which the last one has no content."""
    config = make_config(model={"threshold": 0.0}, data={"recent": 10 * DAY})
    items = unit(rng, 20, 8)
    items[-1] = 0
    positives = windows.Positives(np.array([np.inf, 5.0], np.float32), np.array([True, False]))
    return pinnersage.Users(items, positives, config)


def history_of(*actions, now=100 * DAY):
    """A user's history of (item, days ago, duration, surface, action)."""
    records = np.array(
        [(item, now - ago * DAY, *rest) for item, ago, *rest in actions], timelines.ACTION
    )
    start, end = np.zeros(1, np.int64), np.full(1, len(records) - 1)
    return windows.history(records, start, end, len(records) + 2, np.full((1, 1), now))


def test_only_recent_positive_actions_on_items_with_content_count(users):
    history = history_of(
        (1, 10, 9, 0, 1),  # too long ago, by a second
        (2, 9.99, 9, 0, 1),
        (3, 5, 4, 0, 1),  # too short
        (4, 5, 9, 1, 1),  # elsewhere
        (5, 5, 9, 0, 0),  # of another type
        (19, 5, 9, 0, 1),  # without content
        (6, 1, 9, 0, 1),
    )
    found = users.most_important(4, history)
    np.testing.assert_array_equal(found[0], users.items[[6, 2, 19, 19]])
    nobody = users.most_important(4, history_of((3, 5, 4, 0, 1)))
    assert not nobody.any()


def test_a_draw_depends_on_the_seed_and_the_user_alone(users):
    histories = [history_of(*((item + u, 1, 9, 0, 1) for item in range(9))) for u in range(9)]
    together = {n: np.concatenate([h[n] for h in histories]) for n in histories[0]}
    found = users.drawn(together)
    assert found.shape == (9, 3, 8)
    for history, vectors in zip(histories, found, strict=True):
        np.testing.assert_array_equal(users.drawn(history)[0], vectors)
    users.config.model.seed = 1
    assert np.any(users.drawn(together) != found)
    users.config.model.vectors = 99  # more than there are
    everything = users.drawn(together)
    np.testing.assert_array_equal(everything, users.most_important(99, together))
    assert (everything.any(axis=2).sum(axis=1) == 9).all()


class Changed(dataset_lib.Dataset):
    """Where everything after a time is done with another item."""

    @functools.cached_property
    def after(self):
        return self.spec.train_end - 20 * DAY

    def chunk(self, split, start, stop):
        chunk = super().chunk(split, start, stop)
        records = chunk.records.copy()
        records["item"][records["time"] > self.after] = 7
        return timelines.Chunk(chunk.users, records, chunk.offsets)


def test_nobody_knows_what_is_done_later(make_config, mesh):
    config = make_config()
    dataset = dataset_lib.load(config.data.name, config.data.dir)
    changed = Changed(dataset.directory, dataset.spec)
    systems = [pinnersage.bind(None, config, mesh, data) for data in (dataset, changed)]
    alike = []
    for as_of in (changed.after, changed.after + 10 * DAY):
        parts = [
            [shard() for shard in embedded.tables(config, s, None, as_of)["users"]] for s in systems
        ]
        alike.append(
            all(
                np.array_equal(a, b)
                for part, other in zip(*parts, strict=True)
                for a, b in zip(part, other, strict=True)
            )
        )
    assert alike == [True, False]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"users": {}}, "data.name: other has no timelines"),
        (
            {"content_dim": 0},
            "data.name: other has no content vectors, of which interests are made",
        ),
        ({"leave_one_out": True}, "data.name: other has no times, which tell how old an interest"),
    ],
)
def test_what_it_cannot_do_without_is_named(make_config, other_data, mesh, fields, message):
    config = make_config(data={"name": other_data(**fields)})
    with pytest.raises(InputError, match=message):
        registry.build(config, mesh)


@pytest.fixture(scope="module")
def command(data_dir):
    """(name, flags) -> exit code, output and errors of a command on the `:test` variant."""
    with commands.Commands(
        *("pinjax.systems.registry", "pinjax.training.loop", "pinjax.compiler.report"),
        JAX_DISABLE_MOST_OPTIMIZATIONS="1",
    ) as run:
        yield lambda name, *flags: run(
            name, f"--config={CONFIG}:test", f"--config.data.dir={data_dir}", *flags
        )


def test_it_is_evaluated_without_training(command, tmp_path):
    workdir = tmp_path / "run"
    code, out, err = command("evaluate", f"--workdir={workdir}")
    assert (code, err) == (0, "")
    for method in ("PinnerSage, real time ", "PinnerSage, 20 clusters, oracle ", "co-occurrence "):
        assert f"\n{method}" in out
    table = tables.table_of(records.read(workdir / "records_test.parquet"))
    rows = {row.method: row.metrics for row in table.rows}
    once, few, many = (
        rows[f"PinnerSage{more}"] for more in ("", ", 5 clusters, oracle", ", 20 clusters, oracle")
    )
    assert 0 < once["R@10"].value < few["R@10"].value < many["R@10"].value
    assert {tables.ENTROPY, tables.COVERAGE} <= few.keys()
    # Else the tables of two splits in one directory would be of two configs.
    code, _, err = command("evaluate", f"--workdir={workdir}", "--config.model.vectors=1")
    assert code == 2
    assert f"{workdir} holds a run with model.vectors=3, this one has model.vectors=1; " in err


def test_a_user_is_embedded_by_several_rows(command, data_dir, tmp_path):
    flags = f"--workdir={tmp_path}/run", f"--out={tmp_path}/out", "--precision=float32"
    code, _, err = command("embed", *flags)
    assert code == 0, err
    parts = [pq.read_table(path) for path in sorted((tmp_path / "out").glob("users-*"))]
    ids = np.concatenate([part["id"].to_numpy() for part in parts])
    vectors = np.concatenate([catalogue.vectors(part["vector"]) for part in parts])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    _, counts = np.unique(ids, return_counts=True)
    assert set(counts) == {1, 2, 3}
    assert (ids[1:] != ids[:-1]).sum() == len(counts) - 1  # a user's rows lie together
    items = catalogue.vectors(
        pq.read_table(tmp_path / "out/items-00000-of-00001.parquet")["vector"]
    )
    assert {row.tobytes() for row in vectors} <= {row.tobytes() for row in items}


@pytest.mark.parametrize("name", ["train", "compile"])
def test_there_is_nothing_to_train_or_to_compile(command, tmp_path, name):
    code, out, err = command(name, *[f"--workdir={tmp_path}/run"] * (name == "train"))
    assert (code, out) == (2, "")
    assert err == (
        "error: system='pinnersage' is not trained, so there is nothing to compile either; "
        "evaluate it, or embed by it\n"
    )
