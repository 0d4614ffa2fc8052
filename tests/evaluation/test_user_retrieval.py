"""The table's baselines against loops over users."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from pinjax.data import dataset as dataset_lib
from pinjax.data import windows
from pinjax.errors import InputError
from pinjax.evaluation import held_out, user_retrieval

SYSTEM = "pinnerformer"


@pytest.fixture
def asked():
    """Two users with one query each, three labels, of which item 7 is in no index."""
    return held_out.Questions(
        users=["a", "b"],
        histories={},
        query_user=np.array([0, 1]),
        label_query=np.array([0, 0, 1]),
        label_item=np.array([2, 7, 3], np.int32),
        label_exists=np.ones(3, bool),
        seen=np.zeros((0, 2), np.int64),
    )


def test_what_an_approximate_search_loses_is_missed(asked, rng, monkeypatch):
    """A searcher that never finds an item whose exact score is the best."""
    vectors = rng.standard_normal((8, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    users = vectors[[2, 3]]
    index = np.arange(8) != 7
    items = user_retrieval.Items(np.arange(8), jnp.asarray(vectors))

    def search(searcher, queries, depth):
        del searcher
        scores = queries @ vectors[index].T
        scores[:, 2] = -np.inf
        return user_retrieval.exact.best(scores, np.ones(7, bool), depth)

    class Comparison:
        recall = queries_per_second = exact_queries_per_second = 1.0

    monkeypatch.setattr(user_retrieval.scann_index, "build", lambda *_: None)
    monkeypatch.setattr(user_retrieval.scann_index, "search", search)
    monkeypatch.setattr(user_retrieval.scann_index, "recall_against_exact", lambda *_: Comparison)
    exactly = user_retrieval._search(users, items, index, asked)
    found, _ = user_retrieval._search_scann(users, items, index, asked, exactly)

    def ranks(found):
        return user_retrieval.metrics.label_ranks(
            *(found.rows, found.scores, asked.label_query, asked.label_item, found.label_scores)
        )

    own = vectors[7] @ users[0]
    among = int((vectors[index] @ users[0] >= own).sum())
    assert ranks(exactly).tolist() == [0, among, 0]
    assert ranks(found).tolist() == [user_retrieval._LISTED, among - 1, 0]


def test_an_item_that_did_not_exist_is_missed_however_high_its_score(asked):
    """By every method alike, while a label outside a sampled index has its rank."""
    index = np.arange(8) < 6
    asked = dataclasses.replace(asked, label_item=np.array([6, 7, 3], np.int32))
    rows, scores = np.full((2, 51), -1), np.full((2, 51), -np.inf)
    rows[:, :6], scores[:, :6] = np.arange(6), -np.arange(6.0)
    found = user_retrieval.Found(rows, scores, np.array([9.0, 9.0, -3.0]))
    for exists, recall in (([True, True, True], 1.0), ([True, False, True], 0.75)):
        table = user_retrieval._Table(None)
        table.add(
            "any", dataclasses.replace(asked, label_exists=np.array(exists)), index, found, None
        )
        (row,) = table.rows()
        assert row.metrics["R@10"].value == recall
        assert "entropy@50" not in row.metrics


@pytest.mark.parametrize("levels", [1, 5, 25])
def test_the_order_of_items_changes_nothing(rng, levels):
    """For exact and approximate search and popularity, with and without what users had seen."""
    users, items = 30, 80
    vectors = rng.standard_normal((levels, 4)).astype(np.float32)
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True))[
        rng.integers(0, levels, items)
    ]
    queries = rng.standard_normal((users, 4)).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    popularity, topics = rng.integers(0, levels, items).astype(float), rng.integers(0, 6, items)
    exists = rng.random(items) < 0.8
    label_query, label_item = np.nonzero(rng.random((users, items)) < 0.1)
    seen = np.argwhere(rng.random((users, items)) < 0.1)

    def rows(order):
        row, index = np.argsort(order), exists[order]
        table = user_retrieval._Table(topics[order])
        for name, pairs in (("all", seen[:0]), ("unseen", seen)):
            asked = held_out.Questions(
                users=[str(user) for user in range(users)],
                histories={},
                query_user=np.arange(users),
                label_query=label_query,
                label_item=row[label_item].astype(np.int32),
                label_exists=exists[label_item],
                seen=np.stack([pairs[:, 0], row[pairs[:, 1]]], axis=1),
            )
            embedded = user_retrieval.Items(np.arange(items), jnp.asarray(vectors[order]))
            found = user_retrieval._search(queries, embedded, index, asked)
            table.add(f"exact, {name}", asked, index, found, None)
            popular = user_retrieval._popular(popularity[order], index, asked)
            table.add(f"popularity, {name}", asked, index, popular, None)
            if name == "all" and user_retrieval._HAS_SCANN:
                found, _ = user_retrieval._search_scann(queries, embedded, index, asked, found)
                table.add("scann", asked, index, found, None)
        return table.rows()

    first = rows(np.arange(items))
    for _ in range(3):
        for found, expected in zip(rows(rng.permutation(items)), first, strict=True):
            np.testing.assert_allclose([*found.metrics.values()], [*expected.metrics.values()])
    if levels == 1:
        assert {row.metrics["R@10"].value for row in first} == {0.0}


def test_cadences_may_have_one_query_a_user_at_some_moments_alone(asked):
    table = user_retrieval._Table(np.zeros(8, np.int32))
    index = np.ones(8, bool)
    rows, scores = np.full((2, 51), -1), np.full((2, 51), -np.inf)
    rows[:, :2], scores[:, :2] = [[2, 1], [3, 0]], [[2.0, 1.0], [2.0, 1.0]]
    found = user_retrieval.Found(rows, scores, np.zeros(3))
    by_query = {"query_user": np.array([0, 0, 1]), "label_query": np.array([0, 1, 2])}
    again = dataclasses.replace(asked, **by_query)
    more = user_retrieval.Found(rows[[0, 0, 1]], scores[[0, 0, 1]], np.zeros(3))
    table.add("daily", asked, index, found, None, one_list=False)
    table.add("daily", again, index, more, None, one_list=False)
    table.add("window", asked, index, found, None)
    daily, window = table.rows()
    assert "entropy@50" not in daily.metrics
    assert "entropy@50" in window.metrics


def make_judge(config):
    dataset = dataset_lib.load(config.data.name, config.data.dir)
    positives = windows.Positives.create(dataset.spec, config.data.positives, "home")
    judge = user_retrieval.UserRetrieval("model", dataset, positives, 4, config.evaluate)
    source = held_out.HeldOut(
        dataset,
        *(positives, 4),
        window=config.evaluate.window,
        max_users=config.evaluate.users,
        index_size=config.evaluate.index_size,
        filter_seen=config.evaluate.filter_seen,
    )
    return judge, source


def fixed_towers(items):
    """All users have one vector."""
    return user_retrieval.Towers(
        lambda histories: jnp.ones((len(histories["item"]), items.shape[1])) / items.shape[1],
        jnp.asarray(items).__getitem__,
    )


@pytest.mark.parametrize("filter_seen", [False, True])
def test_popularity_is_the_same_list_for_everybody(make_config, rng, filter_seen):
    evaluate = {"cadences": ("window",), "filter_seen": filter_seen, "users": 30}
    judge, source = make_judge(make_config(evaluate=evaluate))
    items = rng.standard_normal((len(source.dataset.catalogue), 2)).astype(np.float32)
    rows = judge(lambda moment: fixed_towers(items), "test", full=True).rows
    found = {row.method: row.metrics["R@10"].value for row in rows}

    moment = source.dataset.spec.train_end
    asked, counts = source.questions("test", moment), source.counts(moment)
    ever = counts.ever.astype(np.float64)
    for name, score in (("ever", ever), ("lately", counts.lately + ever / (1 + ever.max()))):
        score = np.where(source.index(moment), score, -1)
        hits = []
        for user in range(len(asked.users)):
            allowed = score.copy()
            allowed[asked.seen[asked.seen[:, 0] == user, 1]] = -2
            labels = allowed[asked.label_item[asked.label_query == user]]
            # Equals count against a label, but for itself.
            hits.append(np.mean([label > max(np.sort(allowed)[-11], -1) for label in labels]))
        assert found[f"popularity, {name}"] == pytest.approx(np.mean(hits))
        assert 0 < np.mean(hits) < 0.2


@pytest.mark.parametrize("filter_seen", [False, True])
def test_the_oracle_is_asked_as_others_are(make_config, rng, filter_seen):
    """Of the same users, as often, and without what they had seen where others go without it."""
    config = make_config(evaluate={"filter_seen": filter_seen, "users": 30})
    judge, source = make_judge(config)
    items = rng.standard_normal((len(source.dataset.catalogue), 2)).astype(np.float32)
    table = judge(lambda moment: fixed_towers(items), "test", full=True)
    found = {row.method: row.metrics for row in table.rows}
    moment, oracle = source.dataset.spec.train_end, source.dataset.oracle
    index = source.index(moment)
    for cadence, part in (("window", ""), ("daily", ", daily")):
        asked = source.questions("test", moment, cadence)
        recalls = [[] for _ in asked.users]
        for query, user in enumerate(asked.query_user):
            then = int(asked.histories["request_time"][query, -1])
            horizon = config.evaluate.window if cadence == "window" else held_out.DAY
            scores = np.where(index, oracle.scores([asked.users[user]], then, horizon)[0], -1)
            scores[asked.seen[asked.seen[:, 0] == query, 1]] = -1
            top = np.argsort(-scores)[:10]
            recalls[user] += np.isin(asked.label_item[asked.label_query == query], top).tolist()
        expected = np.mean([np.mean(hits) for hits in recalls])
        assert found["oracle" + part]["R@10"].value == pytest.approx(expected)
        share = found["model" + part]["R@10"].value / expected
        assert found["model" + part]["of oracle"].value == pytest.approx(share)
    now = found["oracle, real time"]["R@10"].value
    assert now > found["oracle"]["R@10"].value
    methods = [row.method for row in table.rows]
    oracles = ["oracle", "oracle, daily", "oracle, real time"]
    assert methods[-5:] == [*oracles, "popularity, ever", "popularity, lately"]


@pytest.mark.parametrize("full", [False, True])
def test_a_model_that_shows_all_users_the_same_is_said_to(make_config, rng, full):
    judge, source = make_judge(make_config(evaluate={"cadences": ("window",)}))
    items = rng.standard_normal((len(source.dataset.catalogue), 2)).astype(np.float32)
    table = judge(lambda moment: fixed_towers(items), "test", full)
    (note,) = [note for note in table.notes if note.startswith("model has collapsed")]
    assert note.endswith("two of its lists have 100% in common")
    assert ("its P90 cov@10 is below twice popularity's and" in note) == full

    constant = judge(lambda moment: fixed_towers(np.ones_like(items)), "test", full).rows[0].metrics
    assert constant["R@10"].value == constant["P90 cov@10"].value == 0
    assert np.isnan(constant["entropy@50"].value)

    def users(histories):  # each likes what is like the newest action
        return jnp.asarray(vectors[histories["item"][:, -1]])

    vectors = rng.standard_normal((len(items), 16)).astype(np.float32)
    towers = user_retrieval.Towers(users, jnp.asarray(vectors).__getitem__)
    assert not any("collapsed" in note for note in judge(lambda moment: towers, "test", full).notes)


def test_a_table_says_what_it_rests_on(make_config):
    config = make_config(
        evaluate={"cadences": ("window",), "users": 30, "window_starts": (0, 7 * held_out.DAY)}
    )
    judge, source = make_judge(config)
    parts = [source.questions("test", moment) for moment in source.moments((0, 7 * held_out.DAY))]
    users = {user for part in parts for user in part.users}
    labels = sum(len(part.label_item) for part in parts)
    missing = sum((~part.label_exists).sum() for part in parts)
    assert missing > 0
    items = np.ones((len(source.dataset.catalogue), 2), np.float32)
    table = judge(lambda moment: fixed_towers(items), "test", full=False)
    rests_on = f"{len(users)} users, {labels} labels"
    assert table.notes[:2] == [
        f"{rests_on}, {missing} of which every method misses: the item did not exist yet",
        f"{len(users)} users are too few to tell methods apart; for more, raise evaluate.users",
    ]
    assert judge.asked("test") == rests_on
    assert table.rows[0].metrics.keys() == judge.metrics.keys()
    config.evaluate.users = 1_000
    judge, _ = make_judge(config)
    assert judge._rests_on("test")[1].endswith("split.test of pinjax.prepare")


def test_nobody_to_ask_is_refused(make_config):
    judge, _ = make_judge(make_config(evaluate={"window_starts": (900 * held_out.DAY,)}))
    with pytest.raises(InputError, match="split valid: at no moment has a user a history and a"):
        judge.asked("valid")


def test_each_moment_has_its_own_towers(make_config):
    """Towers that know what is popular at each moment find that; stale ones do not."""
    moments = (-80 * held_out.DAY, 20 * held_out.DAY)
    judge, source = make_judge(
        make_config(evaluate={"window_starts": moments, "cadences": ("window",)})
    )

    def popular(moment):
        vectors = jnp.asarray(source.counts(moment).ever[:, None], jnp.float32)
        users = lambda histories: jnp.ones((len(histories["item"]), 1))  # noqa: E731
        return user_retrieval.Towers(users, vectors.__getitem__)

    stale = source.moments(moments)[0]
    rows = judge(popular, "test", full=True).rows
    found = {row.method: row.metrics["R@10"].value for row in rows}
    assert found["model"] == found["popularity, ever"]
    (row,) = judge(lambda moment: popular(stale), "test", full=False).rows
    assert row.metrics["R@10"].value != found["model"]
