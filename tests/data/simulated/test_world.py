"""Topics, pins, users and timelines against how they are said to be drawn."""

import hashlib

import numpy as np
import pytest

from pinjax.data.simulated import pinworld, world
from pinjax.data.simulated.world import World
from pinjax.timestamps import DAY


def draw_actions(topics: World, users: int):
    """(latent state, row of the user, actions, leaf of the session) of some users."""
    rng = topics.rng(1)
    drawn = world.draw_users(topics, rng, users)
    return drawn, *world.draw_actions(topics, drawn, rng)


def test_pinworld_is_still_the_same_world():
    """Figures of models are compared across versions, so that not a bit of it may change."""
    size, digest = pinworld.SIZES["tiny"], hashlib.sha256()
    topics = pinworld.draw_world(size)
    for split in ("train", "valid", "test"):
        for chunk in pinworld.draw_timelines(topics, size, split):
            digest.update(chunk.offsets.tobytes() + chunk.actions.tobytes())
    for name in ("ids", "leaf", "created", "popularity", "style"):
        digest.update(getattr(topics, name).tobytes())
    assert digest.hexdigest()[:16] == "958d79d463e79600"
    # How a product of matrices is rounded depends on the machine.
    some = topics.content[:, :3].astype(np.float64).sum(axis=0)
    np.testing.assert_allclose(some, [-14.0456, -10.0550, -21.0162], atol=2e-3)


def test_pins_are_chosen_by_popularity_and_taste_among_those_that_exist(rng):
    topics = World(300, 3, 6)
    time = (world.START + world.END) // 2
    for leaf, taste in [(0, 0), (3, 17), (5, world.TASTES - 1)]:
        draws = 20_000
        pins = topics.choose(rng, *(np.full(draws, value) for value in (leaf, taste, time)))
        exists = (topics.leaf == leaf) & (topics.created <= time)
        assert (topics.leaf == leaf).sum() > exists.sum()
        weight = exists * topics.popularity * np.exp(topics.style @ topics.tastes[taste])
        expected = draws * weight / weight.sum()
        counts = np.bincount(pins, minlength=len(expected))
        assert (counts[~exists] == 0).all()
        squares = (counts[exists] - expected[exists]) ** 2 / expected[exists]
        freedom = exists.sum() - 1
        assert abs(squares.sum() - freedom) < 5 * np.sqrt(2 * freedom)


def test_popularity_within_a_leaf_is_zipf():
    topics = World(3_000, 3, 6)
    for leaf in range(6):
        popularity = np.sort(topics.popularity[topics.leaf == leaf])[::-1]
        slope, _ = np.polyfit(
            np.log(np.arange(len(popularity)) + 1 + world.PIN_OFFSET), np.log(popularity), 1
        )
        assert slope == pytest.approx(-1, abs=1e-3)


def test_content_tells_the_topic_but_with_noise():
    topics = World(3_000, 6, 24)
    content = topics.content.astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(content, axis=1), 1, atol=2e-3)
    centres = np.stack([content[topics.leaf == leaf].mean(axis=0) for leaf in range(24)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    cosines = content @ centres.T
    own = cosines[np.arange(len(content)), topics.leaf]
    assert 0.5 < own.mean() < 0.8
    assert own.mean() > cosines.mean() + 0.4


def test_rhythm_has_mean_one_over_a_week():
    times = world.START + np.arange(0, 7 * DAY, 60)
    rhythm = world.rhythm(times)
    assert rhythm.mean() == pytest.approx(1, abs=1e-6)
    assert rhythm.max() == pytest.approx(world.RHYTHM_MAX, rel=1e-3)
    assert rhythm.min() > 0


def test_sessions_stay_on_their_topic(positives):
    topics = World(1_000, 6, 24)
    _, user, actions, _ = draw_actions(topics, 200)
    same, other = [], []
    for row in range(200):
        timeline = positives(actions[user == row])
        leaf = topics.leaf[timeline["item"]]
        near = np.diff(timeline["time"].astype(np.int64)) < 600
        same.append((leaf[1:] == leaf[:-1])[near])
        other.append((leaf[1:] == leaf[:-1])[~near])
    assert np.concatenate(same).mean() > np.concatenate(other).mean() + 0.3


def test_a_sessions_leaf_is_an_interest_that_wanted_pins_are_of_or_stray_from():
    topics = World(1_000, 6, 24)
    users, user, actions, about = draw_actions(topics, 200)
    slow = np.zeros((200, 24), bool)
    filled = np.nonzero(users.slow_weight)
    slow[filled[0], users.slow_leaf[filled]] = True
    interests = slow.copy()
    interests[users.burst_user, users.burst_leaf] = True
    assert interests[user, about].all()
    assert slow[user, about].mean() < 0.9  # the rest are bursts

    saved = actions["action"] == world.ACTIONS.index("save")
    leaf = topics.leaf[actions["item"]]
    strayed = saved & (leaf != about)
    assert slow[user, leaf][strayed].all()
    assert 0.05 < strayed.sum() / saved.sum() < world.STRAY
    hidden = actions["action"] == world.ACTIONS.index("hide")  # of any leaf
    assert (leaf != about)[hidden].mean() > 0.8
