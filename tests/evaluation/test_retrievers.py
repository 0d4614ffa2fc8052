"""Retrievers against dense matrices and loops."""

import dataclasses
import importlib.util
import types

import numpy as np
import pytest

from pinjax.evaluation import baselines, engagements, retrievers, vector_search
from pinjax.evaluation import queries as queries_lib
from pinjax.retrieval import exact, tuning
from pinjax.retrieval import index as index_lib

USERS, ITEMS, TIME = 30, 80, 1_000
HAS_SCANN = importlib.util.find_spec("scann") is not None


def unit(rng, *shape):
    vectors = rng.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def make_queries(rng, order=None, excluded=None, depth=50):
    """A query a user, with a history of items; the item order[i] is in row i."""
    row = np.arange(ITEMS) if order is None else np.argsort(order)
    label_query, label_item = np.nonzero(rng.random((USERS, ITEMS)) < 0.1)
    context = rng.integers(-1, ITEMS, (USERS, 7))
    context = np.where(context < 0, -1, row[context]).astype(np.int32)
    if excluded is None:
        excluded = np.zeros((0, 2), np.int64)
    return queries_lib.EvalQueries(
        users=[f"user {user}" for user in range(USERS)],
        query_user=np.arange(USERS),
        query_time=np.full(USERS, TIME),
        features={"query": np.arange(USERS)},
        context=context,
        history=(context >= 0).sum(axis=1),
        label_query=label_query,
        label_item=row[label_item].astype(np.int32),
        label_exists=np.ones(len(label_item), bool),
        label_task=np.zeros(len(label_item), np.uint8),
        label_time=np.full(len(label_item), TIME + 1),
        excluded=np.stack([excluded[:, 0], row[excluded[:, 1]]], axis=1),
        depth=depth,
    )


def make_index(held=None):
    held = np.ones(ITEMS, bool) if held is None else held
    return queries_lib.Candidates(TIME, np.ones(ITEMS, bool), held)


def make_engagements(rng, levels=400, order=None):
    row = np.arange(ITEMS) if order is None else np.argsort(order)
    item = np.minimum(rng.geometric(0.05, levels), ITEMS) - 1
    time = rng.integers(0, 2 * TIME, levels)
    positive = rng.random(levels) < 0.8
    actor = rng.integers(0, 25, levels)
    made = engagements.Engagements(actor, row[item], time, positive, ITEMS)
    return made, (actor, row[item], time, positive)


def searched(retriever, queries, index):
    """The answers after exclusion, and the ranks of the labels."""
    found = retriever.answer(queries, index)
    found = retrievers.without_excluded(found, queries)
    assert found.rows.shape == (len(queries), queries.listed)
    return found, retrievers.ranks(found, queries)


def check(retriever, queries, index, scores, rounding=0.0):
    """Compares with all scores (queries, items), where a label's ties count against it."""
    found, ranks = searched(retriever, queries, index)
    scores = scores.astype(np.float64)
    allowed = np.where(index.included, scores, -np.inf)
    allowed[tuple(queries.excluded.T)] = -np.inf
    for query, item, rank in zip(queries.label_query, queries.label_item, ranks, strict=True):
        others = np.delete(allowed[query], item)
        expected = (others >= scores[query, item] - rounding).sum()
        if (queries.excluded == [query, item]).all(axis=1).any():
            expected = queries.missed
        # The label at the end of a list may have ties that are not in it.
        exact_rank = queries.rank_all or expected < queries.depth
        assert rank == expected if exact_rank else rank >= queries.depth
    for query in range(len(queries)):
        rows = found.rows[query]
        best = np.sort(allowed[query])[::-1][: queries.listed]
        there = rows >= 0
        assert there.sum() == np.isfinite(best).sum()
        assert len(set(rows[there])) == there.sum()
        np.testing.assert_allclose(
            allowed[query, rows[there]], best[np.isfinite(best)], atol=max(rounding, 1e-12)
        )


@pytest.fixture(params=["everything", "a sample, without what was seen, some at a time"])
def setting(request, rng, monkeypatch):
    if request.param == "everything":
        return make_queries(rng), make_index()
    monkeypatch.setattr(exact, "QUERIES", 8)
    excluded = np.argwhere(rng.random((USERS, ITEMS)) < 0.1)
    return make_queries(rng, excluded=excluded), make_index(rng.random(ITEMS) < 0.7)


def test_every_rank_is_exact_where_all_of_them_count(rng, setting):
    """Of labels behind the end of the list, too; and what is known of a list alone is missed."""
    queries, index = dataclasses.replace(setting[0], rank_all=True, depth=5), setting[1]
    vectors, items = unit(rng, USERS, 4), unit(rng, ITEMS, 4)
    items[40:] = items[:40]
    scores = vectors @ items.T
    retriever = vector_search.of_vectors(vectors.__getitem__, items)
    check(retriever, queries, index, scores, rounding=1e-6)
    made, actions = make_engagements(rng)
    counts = np.bincount(actions[1][actions[3] & (actions[2] <= TIME)], minlength=ITEMS)
    check(baselines.Popularity(made), queries, index, np.tile(counts, (USERS, 1)))
    engaged = np.zeros((25, ITEMS))
    for actor, item, time, positive in zip(*actions, strict=True):
        engaged[actor, item] += positive and time <= TIME
    engaged = np.minimum(engaged, 1)
    degree = np.maximum(engaged.sum(axis=0), 1)
    cosine = engaged.T @ engaged / np.sqrt(np.outer(degree, degree))
    overlaps = np.stack([cosine[items[items >= 0]].sum(axis=0) for items in queries.context])
    overlaps = overlaps.round(7) + 1e-8 * counts / (1 + counts.max())
    check(baselines.CoOccurrence(made, 7, may_repeat=True), queries, index, overlaps)

    best = np.argsort(-scores, axis=1)[:, :9]
    _, ranks = searched(retrievers.Answers(lambda *_: best), queries, index)
    assert ((ranks < queries.listed) | (ranks == queries.missed)).all()
    assert (ranks == queries.missed).any()


def test_search_by_one_vector(rng, setting):
    vectors, items = unit(rng, USERS, 4), unit(rng, ITEMS, 4)
    retriever = vector_search.of_vectors(vectors.__getitem__, items)
    check(retriever, *setting, vectors @ items.T, rounding=1e-6)


def test_search_by_several_vectors_finds_what_is_near_to_any_of_them(rng, setting):
    """One query has three vectors, one has one; a vector of zeros is none."""
    vectors, items = unit(rng, USERS, 3, 4), unit(rng, ITEMS, 4)
    vectors[::2, 1:] = 0
    scores = np.einsum("uvd,id->uvi", vectors, items)
    scores = np.where(vectors.any(axis=2)[..., None], scores, -np.inf).max(axis=1)
    retriever = vector_search.of_vectors(vectors.__getitem__, items)
    check(retriever, *setting, scores, rounding=1e-6)
    if HAS_SCANN and setting[0].max_excluded == 0:
        check(vector_search.ScannSearch(retriever), *setting, scores, rounding=1e-6)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_oracle_of_several_vectors_searches_with_that_nearest_to_a_label(rng, setting, number):
    """Of a query's first ones; every other query has no more than one, and the first has none."""
    queries, index = setting
    vectors, items = unit(rng, USERS, 3, 4), unit(rng, ITEMS, 4)
    vectors[::2, 1:] = vectors[0] = 0
    several = vector_search.of_vectors(vectors.__getitem__, items)
    found = vector_search.NearestVector(several, number).answer(queries, index)
    split = found.queries
    found = retrievers.without_excluded(found, split)
    ranks = retrievers.ranks(found, split)
    for label, (query, item) in enumerate(
        zip(queries.label_query, queries.label_item, strict=True)
    ):
        own = [v for v in vectors[query, :number] if v.any()]
        scores = max((items @ v for v in own), key=lambda s: s[item], default=None)
        excluded = queries.excluded[queries.excluded[:, 0] == query, 1]
        rank, shown = split.listed, found.rows[split.label_query[label]]
        if scores is None:
            assert (shown == -1).all()
        else:
            allowed = index.included & ~np.isin(np.arange(ITEMS), excluded)
            order = np.flatnonzero(allowed)[np.argsort(-scores[allowed])]
            assert shown[:50].tolist() == np.pad(order, (0, 50), constant_values=-1)[:50].tolist()
            if item not in excluded:
                rank = (scores[allowed & (np.arange(ITEMS) != item)] > scores[item]).sum()
        assert ranks[label] == rank if rank < queries.depth else ranks[label] >= queries.depth
    assert (len(split) > len(queries)) == (number > 1)


@pytest.mark.parametrize("seconds", [None, 10, 300])
def test_popularity_is_a_loop_over_the_past(rng, setting, seconds):
    made, actions = make_engagements(rng)
    counts, ever = np.zeros(ITEMS), np.zeros(ITEMS)
    for _, item, time, positive in zip(*actions, strict=True):
        if positive and time <= TIME:
            ever[item] += 1
            counts[item] += seconds is not None and time > TIME - seconds
    scores = ever if seconds is None else counts + ever / (1 + ever.max())
    assert len(np.unique(scores)) > 5
    check(baselines.Popularity(made, seconds), *setting, np.tile(scores, (USERS, 1)))


@pytest.mark.parametrize("few_queries", [False, True])
@pytest.mark.parametrize("may_repeat", [False, True])
def test_co_occurrence_is_the_dense_one(rng, setting, few_queries, may_repeat, monkeypatch):
    """In either order of the products, several times in a history, for some queries at a time.

    Every other query follows one of the same user.
    """
    queries, index = setting
    context = np.fmod(queries.context, 20)
    context[1::2, :-1], context[0, -3:] = context[::2, 1:][: len(context) // 2], (1, 2, 3)
    context[2, :-1] = context[1, 1:]
    queries = dataclasses.replace(queries, context=context)
    if few_queries:  # than there are items in their histories
        keep = queries.label_query < 3
        queries = dataclasses.replace(
            queries,
            context=queries.context[:3],
            query_user=queries.query_user[:3],
            excluded=queries.excluded[queries.excluded[:, 0] < 3],
            **{
                name: getattr(queries, name)[keep]
                for name in vars(queries)
                if name.startswith("label_")
            },
        )
    assert few_queries == (len(np.unique(queries.context[:, -5:])) > len(queries))
    # Two queries at a time; the third is the first of its batch, and a change from the second.
    monkeypatch.setattr(baselines, "_SCORES", 2 * ITEMS)
    last = queries.context[:3, -5:]
    entries = [np.bincount(row[row >= 0], minlength=ITEMS) for row in last]
    assert np.count_nonzero(entries[2] - entries[1]) < np.count_nonzero(entries[2])
    made, actions = make_engagements(rng)
    engaged, counts = np.zeros((25, ITEMS)), np.zeros(ITEMS)
    for actor, item, time, positive in zip(*actions, strict=True):
        if positive and time <= TIME:
            engaged[actor, item] = 1
            counts[item] += 1
    degree = np.maximum(engaged.sum(axis=0), 1)
    cosine = engaged.T @ engaged / np.sqrt(np.outer(degree, degree))
    if not may_repeat:
        np.fill_diagonal(cosine, 0)
    scores = np.zeros((len(queries), ITEMS))
    for query, context in enumerate(queries.context[:, -5:]):
        for item in context[context >= 0]:
            scores[query] += cosine[item]
    scores = scores.round(7) + 1e-8 * counts / (1 + counts.max())
    check(baselines.CoOccurrence(made, 5, may_repeat), queries, index, scores)


def test_answers_from_outside_are_taken_as_they_come(rng, setting):
    queries, index = setting
    answers = np.stack([rng.permutation(ITEMS)[:40] for _ in range(USERS)])
    answers[:, 35:] = -1
    scores = np.full((USERS, ITEMS), -np.inf)
    for query, rows in enumerate(answers):
        scores[query, rows[:35]] = -np.arange(35)
    found, ranks = searched(retrievers.Answers(lambda *_: answers), queries, index)
    scores[:, ~index.included] = -np.inf
    scores[tuple(queries.excluded.T)] = -np.inf
    for query, item, rank in zip(queries.label_query, queries.label_item, ranks, strict=True):
        place = np.flatnonzero(np.argsort(-scores[query], kind="stable") == item)[0]
        assert rank == (place if np.isfinite(scores[query, item]) else queries.listed)
    assert (found.rows >= 0).sum() == np.isfinite(scores).sum()


@pytest.mark.parametrize("levels", [1, 5, 25])
def test_the_order_of_items_changes_nothing(rng, levels):
    """For every retriever, with many ties, with and without the items that users had seen."""
    which = rng.integers(0, levels, ITEMS)
    distinct, users = unit(rng, levels, 4), unit(rng, USERS, 4)
    held = rng.random(ITEMS) < 0.8
    seen = np.argwhere(rng.random((USERS, ITEMS)) < 0.1)
    seed = int(rng.integers(2**31))

    def ranks(order):
        made, _ = make_engagements(np.random.default_rng(seed), levels=40 * levels, order=order)
        search = vector_search.of_vectors(users.__getitem__, distinct[which][order])
        methods = {
            "exact": search,
            "all time": baselines.Popularity(made),
            "recent": baselines.Popularity(made, 100),
            "co-occurrence": baselines.CoOccurrence(made, 5, may_repeat=False),
        }
        if HAS_SCANN:
            methods["ScaNN"] = vector_search.ScannSearch(search)
        for name, method in methods.items():
            for excluded in (None, seen) if name != "ScaNN" else (None,):
                queries = make_queries(np.random.default_rng(seed), order, excluded)
                yield name, searched(method, queries, make_index(held[order]))[1]

    first = list(ranks(np.arange(ITEMS)))
    for _ in range(3):
        for (name, found), (_, expected) in zip(ranks(rng.permutation(ITEMS)), first, strict=True):
            np.testing.assert_array_equal(found < 10, expected < 10, name)
            np.testing.assert_array_equal(found[found < 10], expected[expected < 10], name)
    assert any((found < 10).any() for _, found in first)
    if levels == 1:
        assert not any((found < 10).any() for name, found in first if name in ("exact", "ScaNN"))


def test_what_an_approximate_search_loses_is_missed(rng, monkeypatch):
    """A searcher that never finds an item whose exact score is the best; one is in no sample."""
    items = unit(rng, ITEMS, 4)
    users, held = items[np.arange(USERS)], np.arange(ITEMS) != 7
    queries = dataclasses.replace(
        make_queries(rng),
        label_query=np.array([2, 2, 3]),
        label_item=np.array([2, 7, 3], np.int32),
        label_exists=np.ones(3, bool),
    )

    def search(self, queries, depth, excluded=None):
        del excluded
        scores = queries @ items[held].T
        if self.setting:
            scores[:, 2] = -np.inf
        return exact.best(scores, np.ones(ITEMS - 1, bool), depth)

    def create(ids, vectors, *_):
        return index_lib.Index(ids, vectors, setting={"misses": 2})

    monkeypatch.setattr(vector_search.index_lib, "create", create)
    monkeypatch.setattr(index_lib.Index, "search", search)
    retriever = vector_search.of_vectors(users.__getitem__, items)
    _, exactly = searched(retriever, queries, make_index(held))
    _, found = searched(vector_search.ScannSearch(retriever), queries, make_index(held))
    among = int((items[held] @ users[2] >= items[7] @ users[2]).sum())
    assert exactly.tolist() == [0, min(among, 51), 0]
    assert found.tolist() == [queries.listed, min(among - 1, 51), 0]


@pytest.mark.parametrize("padded", [0, 2, 3])
def test_an_approximate_search_is_not_measured_on_padding(rng, monkeypatch, padded):
    """Whatever is found for a vector of zeros is right."""
    vectors, items = unit(rng, USERS, 3, 4), unit(rng, ITEMS, 4)
    vectors[:, 3 - padded :] = 0
    measured = np.zeros((0, 4), np.float32)

    def compare(index, vectors, k):
        nonlocal measured
        measured = vectors
        return tuning.queries(index, vectors, k)

    def create(ids, vectors, *_):
        return index_lib.Index(ids, vectors)

    patched = types.SimpleNamespace(queries=compare, measure=tuning.measure)
    monkeypatch.setattr(vector_search, "tuning", patched)
    monkeypatch.setattr(vector_search.index_lib, "create", create)
    retriever = vector_search.of_vectors(vectors.__getitem__, items)
    found = vector_search.ScannSearch(retriever).answer(make_queries(rng), make_index())
    expected = vectors[:, : 3 - padded].reshape(-1, 4)
    np.testing.assert_array_equal(np.sort(measured, axis=0), np.sort(expected, axis=0))
    assert ("ANN recall@10" in found.figures) == (padded < 3)


@pytest.mark.parametrize("depth", [10, 50])
def test_a_label_that_did_not_exist_is_missed_however_high_its_score(rng, depth):
    """For every method; a label outside a sampled index still has a rank."""
    queries = make_queries(rng, depth=depth)
    vectors, items = unit(rng, USERS, 4), unit(rng, ITEMS, 4)
    made, _ = make_engagements(rng)
    exists = rng.random(len(queries.label_item)) < 0.5
    gone = dataclasses.replace(queries, label_exists=exists)
    search = vector_search.of_vectors(vectors.__getitem__, items)
    for retriever in (search, baselines.Popularity(made), baselines.CoOccurrence(made, 5, True)):
        _, ranks = searched(retriever, queries, make_index())
        _, without = searched(retriever, gone, make_index())
        np.testing.assert_array_equal(without, np.where(exists, ranks, depth + 1))
        assert (ranks[~exists] <= depth).any()


def test_co_occurrence_of_a_long_log_looks_at_the_latest_engagements(rng, monkeypatch):
    monkeypatch.setattr(engagements, "MOST", 30)
    made, actions = make_engagements(rng)
    first = {}  # positive engagements of each pair, by time
    for actor, item, time, positive in sorted(zip(*actions, strict=True), key=lambda x: x[2]):
        if positive and time <= TIME:
            first.setdefault((actor, item), time)
    latest = sorted(first, key=first.get)[-30:]
    assert len(first) > 30
    found = made.matrix(TIME).toarray() > 0
    expected = np.zeros_like(found)
    expected[tuple(zip(*latest, strict=True))] = True
    np.testing.assert_array_equal(found, expected)


def test_co_occurrence_without_times_looks_at_actors_of_any_row(monkeypatch):
    monkeypatch.setattr(engagements, "MOST", 300)
    actor, item = np.repeat(np.arange(200), 3), np.tile(np.arange(3), 200)
    made = engagements.Engagements(actor, item, np.zeros(600), np.ones(600, bool), 3)
    assert made.pairs == 600
    engaged = np.diff(made.matrix(0).indptr)
    assert (engaged == 3).sum() == 100  # all engagements of half of them
    assert 30 < (engaged[:100] == 3).sum() < 70
