"""The simulated world against its own law, and the oracle against what then happened."""

import itertools
import tracemalloc

import numpy as np
import pytest
import tensorflow_datasets as tfds

from pinjax.data import pinworld, schema
from pinjax.data import pinworld_simulation as simulation
from pinjax.errors import InputError

MOMENT = simulation.TRAIN_END
WINDOW = pinworld.WINDOW


def config(**changes) -> pinworld.Config:
    sizes = dict(train_users=40, eval_users=10, pins=300, roots=3, leaves=6)
    return pinworld.Config(name="test", **(sizes | changes))


def build(where, **changes):
    builder = pinworld.Pinworld(
        config=config(**changes), data_dir=where, file_format="array_record"
    )
    with pinworld._quiet():
        builder.download_and_prepare()
    return builder.data_path


def positives(actions: np.ndarray) -> np.ndarray:
    save, closeup, click = (simulation.ACTIONS.index(n) for n in ("save", "closeup", "click"))
    engaged = np.isin(actions["action"], [closeup, click]) & (actions["duration"] >= 10)
    home = actions["surface"] == simulation.SURFACES.index("home")
    return actions[home & (engaged | (actions["action"] == save))]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return pinworld.ensure("tiny", tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def rows(tiny):
    """Per split: {user: actions}."""
    builder = tfds.builder_from_directory(tiny)
    return {
        split: {
            row["user"].decode(): schema.unpack([row["actions"]])[0]
            for row in builder.as_data_source(split)
        }
        for split in schema.SPLITS
    }


@pytest.fixture(scope="module")
def catalogue(tiny):
    return schema.Catalogue.read(tiny / schema.CATALOGUE_FILE)


# The data set.


def test_the_same_seed_makes_the_same_bytes(tmp_path):
    first, second = build(tmp_path / "a"), build(tmp_path / "b")
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_another_seed_makes_another_world(tmp_path):
    first, second = build(tmp_path / "a"), build(tmp_path / "b", seed=1)
    for path in first.iterdir():
        if path.name != "features.json":
            assert path.read_bytes() != (second / path.name).read_bytes(), path.name


def test_ensure_builds_once_and_in_silence(tmp_path, capfd):
    directory = pinworld.ensure("tiny", tmp_path)
    before = {path.name: path.stat().mtime for path in directory.iterdir()}
    assert pinworld.ensure("tiny", tmp_path) == directory
    assert {path.name: path.stat().mtime for path in directory.iterdir()} == before
    assert capfd.readouterr() == ("", "")


def test_ensure_names_the_sizes_there_are(tmp_path):
    with pytest.raises(InputError, match=r"pinworld/huge.*pinworld/tiny, pinworld/small"):
        pinworld.ensure("huge", tmp_path)


def test_splits_hold_different_users(rows):
    assert len(rows["train"]) > 290
    assert len(rows["valid"]) > 95
    assert len(rows["test"]) > 95
    assert len(set.union(*(set(part) for part in rows.values()))) == sum(map(len, rows.values()))


def test_every_row_respects_the_schema(tiny, rows, catalogue):
    metadata = schema.Metadata.from_tfds(tfds.builder_from_directory(tiny).info.metadata)
    assert metadata.name == "pinworld/tiny"
    assert metadata.num_items == len(catalogue) == len(set(catalogue.ids.tolist()))
    for actions in itertools.chain(*(part.values() for part in rows.values())):
        assert len(actions)
        assert (np.diff(actions["time"].astype(np.int64)) >= 0).all()
        assert actions["time"].min() >= simulation.START
        assert actions["time"].max() < simulation.END
        assert (actions["item"] >= 0).all()
        assert (actions["time"] >= catalogue.created[actions["item"]]).all()
        assert (actions["action"] > 0).all()
        assert (actions["action"] < len(metadata.actions)).all()
        assert (actions["surface"] > 0).all()
        assert (actions["surface"] < len(metadata.surfaces)).all()
        timed = np.isin(
            actions["action"], [metadata.actions.index(a) for a in ("closeup", "click")]
        )
        np.testing.assert_array_equal(timed, actions["duration"] > 0)
    assert metadata.train_end + WINDOW < simulation.END


def test_the_catalogue_counts_training_actions_up_to_the_end_of_training(rows, catalogue):
    actions = np.concatenate(list(rows["train"].values()))
    before = actions["item"][actions["time"] <= MOMENT]
    np.testing.assert_array_equal(catalogue.counts, np.bincount(before, minlength=len(catalogue)))


def test_timelines_are_long_varied_and_mostly_positive(rows):
    lengths = np.array([len(actions) for actions in rows["train"].values()])
    assert 60 < np.median(lengths) < 120
    assert np.quantile(lengths, 0.95) > 4 * np.quantile(lengths, 0.05)
    actions = np.concatenate(list(rows["train"].values()))
    assert len(positives(actions)) / len(actions) == pytest.approx(0.6, abs=0.02)


def test_users_are_drawn_as_they_are_needed():
    huge = config(train_users=10**12)
    world = pinworld.draw_world(huge)
    tracemalloc.start()
    try:
        few = list(itertools.islice(pinworld.timelines(world, huge, "train"), 10))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(few) == 10
    assert peak < 100e6  # of one chunk


# The law.


def test_pins_are_chosen_by_popularity_and_taste_among_those_that_exist(rng):
    world = pinworld.draw_world(config())
    moment = (simulation.START + simulation.END) // 2
    for leaf, taste in [(0, 0), (3, 17), (5, simulation.TASTES - 1)]:
        draws = 20_000
        pins = world.choose(rng, *(np.full(draws, value) for value in (leaf, taste, moment)))
        exists = (world.leaf == leaf) & (world.created <= moment)
        assert (world.leaf == leaf).sum() > exists.sum()
        weight = exists * world.popularity * np.exp(world.style @ world.tastes[taste])
        expected = draws * weight / weight.sum()
        counts = np.bincount(pins, minlength=len(expected))
        assert (counts[~exists] == 0).all()
        squares = (counts[exists] - expected[exists]) ** 2 / expected[exists]
        freedom = exists.sum() - 1
        assert abs(squares.sum() - freedom) < 5 * np.sqrt(2 * freedom)


def test_popularity_within_a_leaf_is_zipf():
    world = pinworld.draw_world(config(pins=3_000))
    for leaf in range(6):
        popularity = np.sort(world.popularity[world.leaf == leaf])[::-1]
        slope, _ = np.polyfit(
            np.log(np.arange(len(popularity)) + 1 + simulation.PIN_OFFSET), np.log(popularity), 1
        )
        assert slope == pytest.approx(-1, abs=1e-3)


def test_content_tells_the_topic_but_with_noise():
    world = pinworld.draw_world(config(pins=3_000, roots=6, leaves=24))
    content = world.content.astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(content, axis=1), 1, atol=2e-3)
    centres = np.stack([content[world.leaf == leaf].mean(axis=0) for leaf in range(24)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    cosines = content @ centres.T
    own = cosines[np.arange(len(content)), world.leaf]
    assert 0.5 < own.mean() < 0.8
    assert own.mean() > cosines.mean() + 0.4


def test_rhythm_has_mean_one_over_a_week():
    times = simulation.START + np.arange(0, 7 * simulation.DAY, 60)
    rhythm = simulation.rhythm(times)
    assert rhythm.mean() == pytest.approx(1, abs=1e-6)
    assert rhythm.max() == pytest.approx(simulation.RHYTHM_MAX, rel=1e-3)
    assert rhythm.min() > 0


def test_sessions_stay_on_their_topic():
    world_config = config(train_users=200, pins=1_000, roots=6, leaves=24)
    world = pinworld.draw_world(world_config)
    same, other = [], []
    for _, actions in pinworld.timelines(world, world_config, "train"):
        actions = positives(actions)
        leaf = world.leaf[actions["item"]]
        near = np.diff(actions["time"].astype(np.int64)) < 600
        same.append((leaf[1:] == leaf[:-1])[near])
        other.append((leaf[1:] == leaf[:-1])[~near])
    assert np.concatenate(same).mean() > np.concatenate(other).mean() + 0.3


# The oracle.


@pytest.fixture(scope="module")
def future():
    """A world, its oracle, and what 2,000 users of it did after `MOMENT`."""
    world_config = config(eval_users=1_000, pins=2_000, roots=8, leaves=48)
    world = pinworld.draw_world(world_config)
    oracle = pinworld.make_oracle(world, world_config)
    users = {
        pinworld.user_id(number): positives(actions)
        for split in ("valid", "test")
        for number, actions in pinworld.timelines(world, world_config, split)
    }
    counts = np.zeros((len(users), len(world.leaf)), np.int32)
    for row, actions in zip(counts, users.values(), strict=True):
        within = (actions["time"] > MOMENT) & (actions["time"] <= MOMENT + WINDOW)
        np.add.at(row, actions["item"][within], 1)
    scores = oracle.scores(list(users), MOMENT, WINDOW)
    return world, oracle, list(users), counts, scores


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
    world, oracle, users, counts, scores = future
    counts = np.where(world.created <= MOMENT, counts, 0)
    assert (scores[:, world.created > MOMENT] == 0).all()

    # Calibrated over all, on the topics of running bursts, and on slow interests.
    row = {user: i for i, user in enumerate(users)}
    on = (oracle.burst_start <= MOMENT) & (oracle.burst_end > MOMENT)
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
        items = part[:, world.leaf]
        error = ((counts - scores) * items).sum(axis=1)
        assert abs(error.mean()) < interval(error)
        assert interval(error) < 0.35 * (scores * items).sum(axis=1).mean()  # it could fail


def test_the_closed_form_is_the_integral_over_the_window():
    world_config = config()
    oracle = pinworld.make_oracle(pinworld.draw_world(world_config), world_config)
    leaves = np.arange(world_config.leaves)
    expected = np.zeros((len(oracle.users), world_config.pins))
    ticks = 500
    for time in MOMENT + WINDOW * (np.arange(ticks) + 0.5) / ticks:
        survives = np.exp(-(time - MOMENT) / oracle.burst_seconds)
        for user in range(len(oracle.users)):
            slow = (oracle.slow_weight[user] * (oracle.slow_leaf[user] == leaves[:, None])).sum(1)
            burst = oracle.burst_rate * oracle.burst_seconds * (1 - survives)
            burst = burst * oracle.leaf_popularity
            for i in np.flatnonzero(oracle.burst_user == user):
                if oracle.burst_start[i] <= MOMENT < oracle.burst_end[i]:
                    burst[oracle.burst_leaf[i]] += survives
            rate = (1 - oracle.stray) * (slow + burst) + oracle.stray * slow * (1 + burst.sum())
            weight = oracle.popularity * np.exp(oracle.style @ oracle.tastes[oracle.taste[user]])
            weight = weight * (oracle.created <= time)
            share = weight / np.bincount(oracle.leaf, weight)[oracle.leaf]
            expected[user] += oracle.rate[user] * rate[oracle.leaf] * share * WINDOW / ticks
    old = oracle.created <= MOMENT
    scores = oracle.scores(oracle.users.tolist(), MOMENT, WINDOW)
    np.testing.assert_allclose(scores, expected * old, rtol=1e-2)
    np.testing.assert_allclose(scores.sum(axis=1), (expected * old).sum(axis=1), rtol=3e-3)

    chance = np.where(old, 1 - np.exp(-expected), 0)
    found = np.sort(chance, axis=1)[:, -10:].sum(axis=1)
    recall = found / (chance.sum(axis=1) + expected[:, ~old].sum(axis=1))
    recall = np.average(recall, weights=1 - np.exp(-expected.sum(axis=1)))
    assert oracle.expected_recall(MOMENT, WINDOW) == pytest.approx(recall, rel=1e-3)


def test_expected_recall_is_what_is_measured(future):
    _, oracle, _, counts, scores = future
    measured = recalls(scores, counts)
    expected = oracle.expected_recall(MOMENT, WINDOW)
    assert abs(measured.mean() - expected) < interval(measured)
    assert interval(measured) < 0.1 * expected


def test_no_other_ranking_beats_the_oracle(future, rng):
    world, oracle, users, counts, scores = future
    half = len(users) // 2  # popularity is counted on users that are not ranked for
    popularity = counts[:half].sum(axis=0)
    topics = np.stack([scores[:, world.leaf == leaf].sum(axis=1) for leaf in range(48)], axis=1)
    topics = topics[:, world.leaf]
    rivals = {
        "popularity": np.broadcast_to(popularity, scores.shape),
        "topics": topics,
        "topics and popularity": topics * world.popularity,
        "no popularity": scores / world.popularity,
        "blurred": scores * np.exp(rng.standard_normal(scores.shape)),
        "a month old": oracle.scores(users, MOMENT - 28 * simulation.DAY, WINDOW),
        "for a day": oracle.scores(users, MOMENT, simulation.DAY),
    }
    best = recalls(scores[half:], counts[half:])
    for name, rival in rivals.items():
        lead = best - recalls(rival[half:], counts[half:])
        assert lead.mean() > -interval(lead), name
    assert best.mean() > 4 * recalls(rivals["popularity"][half:], counts[half:]).mean()


def test_a_burst_matters_while_it_runs(future):
    oracle = future[1]
    fresh = (oracle.burst_start > MOMENT - simulation.DAY) & (oracle.burst_start < MOMENT)
    burst = np.flatnonzero(fresh)[0]
    user = [oracle.users[oracle.burst_user[burst]].item()]
    topic = oracle.leaf == oracle.burst_leaf[burst]
    start, end = int(oracle.burst_start[burst]) + 1, int(oracle.burst_end[burst]) + 1
    shares = []
    for moment in (start - simulation.DAY, start, end):
        scores = oracle.scores(user, moment, simulation.DAY)[0]
        shares.append(scores[topic].sum() / scores.sum())
    assert shares[1] > shares[0]
    assert shares[1] > shares[2]


def test_each_query_has_its_own_moment(future, rng):
    world, oracle, users, _, _ = future
    asked = rng.choice(users, 40).tolist()
    moments = MOMENT + rng.integers(0, WINDOW, 40)
    expected = oracle.expect(asked, moments, simulation.DAY)
    items = np.arange(len(world.leaf))
    for query, (user, moment) in enumerate(zip(asked, moments, strict=True)):
        there = world.created <= moment
        scores = oracle.scores([user], int(moment), simulation.DAY)[0]
        np.testing.assert_allclose(expected.of(query, items)[there], scores[there], rtol=1e-5)

    index = rng.random(len(items)) < 0.8
    for queries, some, scores in expected.candidates(index, 10):
        every = np.where(index, expected.of(queries[:, None], items), 0)
        best = np.argsort(-every, axis=1)[:, :10]
        np.testing.assert_array_equal(some[np.argsort(-scores, axis=1)[:, :10]], best)
        assert len(some) < index.sum()


def test_the_next_action_is_as_likely_as_the_oracle_says(future):
    """Of positive actions after `MOMENT`: the session that a user is in tells the most."""
    world, oracle, *_ = future
    world_config = config(eval_users=1_000, pins=2_000, roots=8, leaves=48)
    length, users, moments, labels, windows_ = 16, [], [], [], []
    for number, actions in pinworld.timelines(world, world_config, "test"):
        wanted = np.isin(actions, positives(actions)) & (world.created[actions["item"]] <= MOMENT)
        for i in np.flatnonzero(wanted & (actions["time"] > MOMENT) & (np.arange(len(wanted)) > 0)):
            users.append(pinworld.user_id(number))
            moments.append(max(int(actions["time"][i - 1]), MOMENT))
            labels.append(actions["item"][i])
            windows_.append(actions[max(0, i - length) : i])
    history = {name: np.zeros((len(users), length)) for name in ("time", "duration")}
    history |= {name: np.zeros((len(users), length), int) for name in ("action", "surface")}
    history["item"] = np.full((len(users), length), -1)
    for row, window in enumerate(windows_):
        for name, field in history.items():
            field[row, length - len(window) :] = window[name]

    index = world.created <= MOMENT
    found, likely = {}, {}
    for name, seen in (("session", history), ("state", None)):
        expected = oracle.expect(users, np.array(moments), simulation.DAY, seen)
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


def test_the_stored_oracle_is_the_one_reported(tiny):
    oracle = pinworld.Oracle.load(tiny)
    metadata = schema.Metadata.from_tfds(tfds.builder_from_directory(tiny).info.metadata)
    expected = oracle.expected_recall(metadata.train_end, WINDOW)
    assert metadata.report["oracle_recall_at_10"] == pytest.approx(expected, rel=1e-6)


def test_scores_come_in_the_order_asked_for(tiny):
    oracle = pinworld.Oracle.load(tiny)
    users = oracle.users.tolist()
    rows = [7, 3, 7, 150]
    np.testing.assert_array_equal(
        oracle.scores([users[row] for row in rows], MOMENT, WINDOW),
        oracle.scores(users, MOMENT, WINDOW)[rows],
    )
    with pytest.raises(KeyError):
        oracle.scores(["nobody"], MOMENT, WINDOW)


def test_of_two_that_build_a_world_at_once_the_first_stays(tmp_path, monkeypatch):
    write, first = schema.Catalogue.write, []

    def write_after_another(catalogue, path):
        if not first:
            first.append(path)
            (pinworld.ensure("tiny", tmp_path) / "of the first").touch()
        write(catalogue, path)

    monkeypatch.setattr(schema.Catalogue, "write", write_after_another)
    directory = pinworld.ensure("tiny", tmp_path)
    assert (directory / "of the first").exists()
    assert list(directory.parent.iterdir()) == [directory]
