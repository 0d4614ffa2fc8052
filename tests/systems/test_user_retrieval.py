"""The table's baselines against loops over users."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from pinjax.data import datasets, held_out, windows
from pinjax.systems import user_retrieval

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
        rows = np.argsort(-scores, axis=1)[:, : min(depth, 7)]
        return np.take_along_axis(scores, rows, axis=1), np.where(rows == 2, -1, rows)

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
    assert ranks(found).tolist() == [7, among - 1, 0]


def test_cadences_may_have_one_query_a_user_at_some_moments_alone(asked):
    table = user_retrieval._Table(np.zeros(8, np.int32))
    index = np.ones(8, bool)
    rows, scores = np.array([[2, 1], [3, 0]]), np.array([[2.0, 1.0], [2.0, 1.0]])
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


@pytest.mark.parametrize("filter_seen", [False, True])
def test_popularity_is_the_same_list_for_everybody(make_config, rng, filter_seen):
    evaluate = {"cadences": ("window",), "filter_seen": filter_seen, "users": 30}
    config = make_config(evaluate=evaluate)
    dataset = datasets.load(config.data.name, config.data.dir)
    positives = windows.Positives.create(dataset.metadata, config.data.positives, "home")
    judge = user_retrieval.UserRetrieval("model", dataset, positives, 4, config.evaluate)
    items = jnp.asarray(rng.standard_normal((len(dataset.catalogue), 2)), jnp.float32)
    towers = user_retrieval.Towers(
        lambda histories: jnp.ones((len(histories["item"]), 2)), items.__getitem__
    )
    rows = judge(lambda moment: towers, "test", full=True)
    found = {row.method: row.metrics["R@10"][0] for row in rows}

    source = held_out.HeldOut(
        dataset,
        *(positives, 4),
        window=config.evaluate.window,
        max_users=30,
        index_size=10**6,
        filter_seen=filter_seen,
    )
    moment = dataset.metadata.train_end
    asked, counts = source.questions("test", moment), source.counts(moment)
    for name, score in (("ever", counts.ever), ("lately", counts.lately)):
        score = np.where(source.index(moment), score, -1)
        fewest, most = [], []  # hits, as ties at the tenth place are broken
        for user in range(len(asked.users)):
            allowed = score.copy()
            allowed[asked.seen[asked.seen[:, 0] == user, 1]] = -2
            tenth = np.sort(allowed)[-10]
            labels = allowed[asked.label_item[asked.label_query == user]]
            fewest.append(np.mean(labels > tenth))
            most.append(np.mean(labels >= tenth))
        assert np.mean(fewest) <= found[f"popularity, {name}"] <= np.mean(most)
        assert 0 < np.mean(most) < 0.2


def test_each_moment_has_its_own_towers(make_config):
    """Towers that know what is popular at each moment find that; stale ones do not."""
    moments = (-80.0, 20.0)
    config = make_config(evaluate={"moments": moments, "cadences": ("window",)})
    dataset = datasets.load(config.data.name, config.data.dir)
    positives = windows.Positives.create(dataset.metadata, config.data.positives, "home")
    judge = user_retrieval.UserRetrieval("model", dataset, positives, 4, config.evaluate)
    source = held_out.HeldOut(dataset, positives, 4, config.evaluate.window, 40, 10**6, False)

    def popular(moment):
        vectors = jnp.asarray(source.counts(moment).ever[:, None], jnp.float32)
        users = lambda histories: jnp.ones((len(histories["item"]), 1))  # noqa: E731
        return user_retrieval.Towers(users, vectors.__getitem__)

    stale = source.moments(moments)[0]
    rows = judge(popular, "test", full=True)
    found = {row.method: row.metrics["R@10"][0] for row in rows}
    assert found["model"] == found["popularity, ever"]
    (row,) = judge(lambda moment: popular(stale), "test", full=False)
    assert row.metrics["R@10"][0] != found["model"]
