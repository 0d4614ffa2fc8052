"""The oracle against integrals and sums, and against what then happened."""

import itertools

import numpy as np
import pytest

from pinjax.data.simulated import pinworld, world
from pinjax.data.simulated import shop as shop_lib
from pinjax.data.simulated.oracle import Oracle
from pinjax.timestamps import DAY

T = world.TRAIN_END
WINDOW = 14 * DAY

SHOP = dict(products=50, image_queries=10, text_queries=10, engagements=0)
SMALL = pinworld.Size(train_users=40, eval_users=10, pins=300, roots=3, leaves=6, **SHOP)
WIDE = pinworld.Size(train_users=40, eval_users=1_000, pins=2_000, roots=8, leaves=48, **SHOP)


def make(size: pinworld.Size):
    topics = pinworld.draw_world(size)
    return topics, pinworld.make_oracle(topics, pinworld.draw_shop(topics, size), size)


def timelines(topics: world.World, split: str):
    """The ids and actions of users of `WIDE` that act."""
    for chunk in pinworld.draw_timelines(topics, WIDE, split):
        for number, bounds in zip(chunk.users, itertools.pairwise(chunk.offsets), strict=True):
            if len(actions := chunk.actions[slice(*bounds)]):
                yield pinworld.user_id(number), actions


# Users.


@pytest.fixture(scope="module")
def future(positives):
    """A world, its oracle, and what 2,000 users of it did after `T`."""
    topics, oracle = make(WIDE)
    users = {
        user: positives(acts) for s in ("valid", "test") for user, acts in timelines(topics, s)
    }
    counts = np.zeros((len(users), len(topics.leaf)), np.int32)
    for row, actions in zip(counts, users.values(), strict=True):
        within = (actions["time"] > T) & (actions["time"] <= T + WINDOW)
        np.add.at(row, actions["item"][within], 1)
    scores = oracle.scores(list(users), T, WINDOW)
    return topics, oracle, list(users), counts, scores


def recalls(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Recall@10 of each user with labels."""
    top = np.argsort(-scores, axis=1, kind="stable")[:, :10]
    labels = counts > 0
    hits = np.take_along_axis(labels, top, axis=1).sum(axis=1)
    return (hits / np.maximum(labels.sum(axis=1), 1))[labels.any(axis=1)]


def interval(values: np.ndarray) -> float:
    """Half of the 99.9 % interval of a mean."""
    return 3.3 * values.std() / np.sqrt(len(values))


def test_scores_are_the_expected_positives(future):
    topics, oracle, users, counts, scores = future
    counts = np.where(topics.created <= T, counts, 0)
    assert (scores[:, topics.created > T] == 0).all()

    # Calibrated over all, on the topics of running bursts, and on slow interests.
    row = {user: i for i, user in enumerate(users)}
    on = (oracle.burst_start <= T) & (oracle.burst_end > T)
    bursts = np.zeros((len(users), 48), bool)
    for user, leaf in zip(oracle.burst_user[on], oracle.burst_leaf[on], strict=True):
        if (name := oracle.users[user].item()) in row:
            bursts[row[name], leaf] = True
    slow = np.zeros((len(users), 48), bool)
    known = [oracle.users.tolist().index(user) for user in users]
    np.put_along_axis(slow, oracle.slow_leaf[known], oracle.slow_weight[known] > 0.2, axis=1)
    assert 0.2 < bursts.any(axis=1).mean() < 0.5
    everything = np.ones_like(slow)
    for part in (everything, bursts & ~slow, slow & ~bursts, ~slow & ~bursts):
        items = part[:, topics.leaf]
        error = ((counts - scores) * items).sum(axis=1)
        assert abs(error.mean()) < interval(error)
        assert interval(error) < 0.35 * (scores * items).sum(axis=1).mean()  # it could fail


def test_the_closed_form_is_the_integral_over_the_window():
    _, oracle = make(SMALL)
    leaves = np.arange(SMALL.leaves)
    expected = np.zeros((len(oracle.users), SMALL.pins))
    ticks = 500
    for time in T + WINDOW * (np.arange(ticks) + 0.5) / ticks:
        survives = np.exp(-(time - T) / world.BURST_SECONDS)
        for user in range(len(oracle.users)):
            slow = (oracle.slow_weight[user] * (oracle.slow_leaf[user] == leaves[:, None])).sum(1)
            burst = world.BURST_RATE * world.BURST_SECONDS * (1 - survives)
            burst = burst * oracle.leaf_popularity
            for i in np.flatnonzero(oracle.burst_user == user):
                if oracle.burst_start[i] <= T < oracle.burst_end[i]:
                    burst[oracle.burst_leaf[i]] += survives
            rate = (1 - world.STRAY) * (slow + burst) + world.STRAY * slow * (1 + burst.sum())
            weight = oracle.popularity * np.exp(oracle.style @ oracle.tastes[oracle.taste[user]])
            weight = weight * (oracle.created <= time)
            share = weight / np.bincount(oracle.leaf, weight)[oracle.leaf]
            expected[user] += oracle.rate[user] * rate[oracle.leaf] * share * WINDOW / ticks
    old = oracle.created <= T
    scores = oracle.scores(oracle.users.tolist(), T, WINDOW)
    np.testing.assert_allclose(scores, expected * old, rtol=1e-2)
    np.testing.assert_allclose(scores.sum(axis=1), (expected * old).sum(axis=1), rtol=3e-3)


def test_expected_recall_is_what_is_measured(future):
    """Of the items that exist at `T`, on each of which actions are Poisson events."""
    topics, _, _, counts, scores = future
    measured = recalls(scores, np.where(topics.created <= T, counts, 0))
    chance = -np.expm1(-scores)
    expected = np.sort(chance, axis=1)[:, -10:].sum(axis=1) / chance.sum(axis=1)
    expected = np.average(expected, weights=-np.expm1(-scores.sum(axis=1)))
    assert abs(measured.mean() - expected) < interval(measured)
    assert interval(measured) < 0.1 * expected


def test_no_other_ranking_beats_the_oracle(future, rng):
    topics, oracle, users, counts, scores = future
    half = len(users) // 2  # popularity is counted on users that are not ranked for
    popularity = counts[:half].sum(axis=0)
    about = np.stack([scores[:, topics.leaf == leaf].sum(axis=1) for leaf in range(48)], axis=1)
    about = about[:, topics.leaf]
    rivals = {
        "popularity": np.broadcast_to(popularity, scores.shape),
        "topics": about,
        "topics and popularity": about * topics.popularity,
        "no popularity": scores / topics.popularity,
        "blurred": scores * np.exp(rng.standard_normal(scores.shape)),
        "a month old": oracle.scores(users, T - 28 * DAY, WINDOW),
        "for a day": oracle.scores(users, T, DAY),
    }
    best = recalls(scores[half:], counts[half:])
    for name, rival in rivals.items():
        lead = best - recalls(rival[half:], counts[half:])
        assert lead.mean() > -interval(lead), name
    assert best.mean() > 4 * recalls(rivals["popularity"][half:], counts[half:]).mean()


def test_a_burst_matters_while_it_runs(future):
    oracle = future[1]
    fresh = (oracle.burst_start > T - DAY) & (oracle.burst_start < T)
    burst = np.flatnonzero(fresh)[0]
    user = [oracle.users[oracle.burst_user[burst]].item()]
    topic = oracle.leaf == oracle.burst_leaf[burst]
    start, end = int(oracle.burst_start[burst]) + 1, int(oracle.burst_end[burst]) + 1
    shares = []
    for time in (start - DAY, start, end):
        scores = oracle.scores(user, time, DAY)[0]
        shares.append(scores[topic].sum() / scores.sum())
    assert shares[1] > shares[0]
    assert shares[1] > shares[2]


def test_each_query_has_its_own_request_time(future, rng):
    topics, oracle, users, _, _ = future
    requested = rng.choice(users, 40).tolist()
    request_times = T + rng.integers(0, WINDOW, 40)
    expected = oracle.expect(requested, request_times, DAY)
    items = np.arange(len(topics.leaf))
    for query, (user, time) in enumerate(zip(requested, request_times, strict=True)):
        there = topics.created <= time
        scores = oracle.scores([user], int(time), DAY)[0]
        np.testing.assert_allclose(expected.of(query, items)[there], scores[there], rtol=1e-5)

    index = rng.random(len(items)) < 0.8
    for queries, some, scores in expected.candidates(index, 10):
        every = np.where(index, expected.of(queries[:, None], items), 0)
        best = np.argsort(-every, axis=1)[:, :10]
        np.testing.assert_array_equal(some[np.argsort(-scores, axis=1)[:, :10]], best)
        assert len(some) < index.sum()


def test_the_next_action_is_as_likely_as_the_oracle_says(future, positives):
    """Of positive actions after `T`: the session that a user is in tells the most."""
    topics, oracle, *_ = future
    length, users, request_times, labels, windows_ = 16, [], [], [], []
    for user, actions in timelines(topics, "test"):
        wanted = np.isin(actions, positives(actions)) & (topics.created[actions["item"]] <= T)
        for i in np.flatnonzero(wanted & (actions["time"] > T) & (np.arange(len(wanted)) > 0)):
            users.append(user)
            request_times.append(max(int(actions["time"][i - 1]), T))
            labels.append(actions["item"][i])
            windows_.append(actions[max(0, i - length) : i])
    history = {name: np.zeros((len(users), length)) for name in ("time", "duration")}
    history |= {name: np.zeros((len(users), length), int) for name in ("action", "surface")}
    history["item"] = np.full((len(users), length), -1)
    for row, window in enumerate(windows_):
        for name, field in history.items():
            field[row, length - len(window) :] = window[name]

    index = topics.created <= T
    found, likely = {}, {}
    for name, seen in (("session", history), ("state", None)):
        expected = oracle.expect(users, np.array(request_times), DAY, seen)
        hits, chance = np.zeros(len(users)), np.zeros(len(users))
        for queries, items, scores in expected.candidates(index, 10):
            best = np.argsort(-scores, axis=1)[:, :10]
            hits[queries] = (items[best] == np.array(labels)[queries, None]).any(axis=1)
            chance[queries] = np.take_along_axis(scores, best, axis=1).sum(axis=1)
        found[name], likely[name] = hits, chance
    error = found["session"] - likely["session"]
    assert abs(error.mean()) < interval(error)
    assert interval(error) < 0.05 * found["session"].mean()
    assert found["session"].mean() > 1.2 * found["state"].mean()


# Queries.


def over_window(shop, product_chance, query: int, kind: int, start: int) -> np.ndarray:
    """The mean of `product_chance` over a window, float64: between creations it is constant."""
    end = start + WINDOW
    created = shop.world.created.astype(np.float64)
    within = created[(created > start) & (created < end)]
    times = np.r_[start, np.sort(within), end]
    topic, style = shop.queries.topic[query], shop.queries.style[query]
    parts = [
        (after - before) * product_chance(topic, style, kind, (before + after) / 2)
        for before, after in itertools.pairwise(times)
    ]
    mean = np.sum(parts, axis=0) / WINDOW
    if shop.queries.pin[query] >= 0:
        mean[shop.queries.pin[query]] = 0
    return mean


@pytest.fixture(scope="module")
def oracle(shop):
    return pinworld.make_oracle(shop.world, shop, pinworld.SIZES["tiny"])


def test_the_closed_form_is_the_sum(shop, oracle, rng, product_chance):
    start = T - 28 * DAY  # more is created after it
    end = start + WINDOW
    created = shop.world.created
    assert ((created[shop.pin] > start) & (created[shop.pin] < end)).sum() > 3
    late = created >= end
    assert late[shop.pin].sum() > 3
    itself = np.flatnonzero(np.isin(shop.queries.pin, shop.pin))[:5]
    everything = np.flatnonzero(shop.queries.topic == 24 + 6)[:2]
    queries = np.r_[rng.choice(400, 10, replace=False), everything, itself]
    for kind in range(4):
        scores = oracle.query_scores(queries, kind, start, WINDOW)
        assert scores.dtype == np.float32
        expected = np.stack(
            [over_window(shop, product_chance, query, kind, start) for query in queries]
        )
        np.testing.assert_allclose(scores, expected, rtol=2e-5)
        other = shop.queries.pin[queries] < 0
        np.testing.assert_allclose(scores[other].sum(axis=1), 1, rtol=1e-5)
        assert (scores[-5:].sum(axis=1) < 0.99).all()
        assert (scores[:, late] == 0).all()


@pytest.fixture(scope="module")
def later(engagements):
    time = engagements["time"]
    return engagements[(time >= T) & (time < T + WINDOW)]


def test_what_happens_is_what_the_oracle_expects(shop, oracle, later, assert_drawn_from):
    popularity = shop.queries.popularity
    for kind in range(4):
        scores = oracle.query_scores(np.arange(400), kind, T, WINDOW)
        drawn = later[later["task"] % 4 == kind]
        assert_drawn_from(np.bincount(drawn["item"], minlength=1_000), popularity @ scores)
        by_query = popularity * scores.sum(axis=1)
        assert_drawn_from(np.bincount(drawn["query"], minlength=400), by_query)

        # For the most popular query alone, too.
        head = np.argmax(popularity)
        drawn = drawn["item"][drawn["query"] == head]
        if len(drawn) > 500:
            assert_drawn_from(np.bincount(drawn, minlength=1_000), scores[head])


def test_expected_recall_is_what_is_measured_and_beats_popularity(shop, oracle, later):
    queries, popularity = np.arange(400), shop.queries.popularity
    for kind in range(4):
        drawn = later[later["task"] % 4 == kind]
        scores = oracle.query_scores(queries, kind, T, WINDOW)
        top = np.argsort(-scores, axis=1)[:, :10]
        hits = (top[drawn["query"]] == drawn["item"][:, None]).any(axis=1)
        found = np.sort(scores, axis=1)[:, -10:].sum(axis=1)
        expected = popularity @ found / (popularity @ scores.sum(axis=1))
        assert abs(hits.mean() - expected) < 3.3 * hits.std() / np.sqrt(len(hits))
        popular = np.argsort(-np.bincount(later["item"], minlength=1_000))[:10]
        assert hits.mean() > 2 * np.isin(drawn["item"], popular).mean()


def test_the_oracle_comes_back_from_its_file(oracle, tmp_path):
    oracle.save(tmp_path)
    loaded = Oracle.load(tmp_path)
    queries, users = np.array([399, 3, 3]), oracle.users.tolist()
    for task, name in enumerate(shop_lib.TASKS):
        kind = shop_lib.KINDS.index(name.split("/")[1])
        np.testing.assert_array_equal(
            loaded.task_scores(queries, task),
            oracle.query_scores(queries, kind, T, world.END - T),
        )
    rows = [7, 3, 7, 150]  # and scores come in the order of the request
    np.testing.assert_array_equal(
        loaded.scores([users[row] for row in rows], T, WINDOW),
        oracle.scores(users, T, WINDOW)[rows],
    )
    with pytest.raises(KeyError):
        loaded.scores(["nobody"], T, WINDOW)
