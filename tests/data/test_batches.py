"""Batches are a function of (seed, step), for any start, hosts and workers."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest
from absl import flags

from pinjax.data import batches, packing, pairs, timelines, windows

EVERYTHING = windows.Positives(np.zeros(1, np.float32), np.ones(1, bool))


class Timelines:
    """A TFDS data source in memory: user u acts on items 100 u, 100 u + 1, ..."""

    def __init__(self, users):
        self.users = users

    def __len__(self):
        return self.users

    def __getitem__(self, row):
        actions = np.zeros(5 + row % 3, timelines.ACTION)
        actions["item"] = 100 * row + np.arange(len(actions))
        actions["time"] = 10 * np.arange(len(actions))
        return {"actions": timelines.pack(actions)}

    def __getitems__(self, rows):
        return [self[row] for row in rows]


def make(users=4, groups=1, rows=None, source=10, **fields):
    sampler = windows.Sampler(
        length=4,
        objective="dense_all_action",
        labels=2,
        horizon=1_000,
        positives=EVERYTHING,
        train_end=10_000,
    )
    return batches.Batches(
        timelines=Timelines(source),
        lengths=5 + np.arange(source) % 3,
        sampler=sampler,
        layout=packing.Layout(groups, users, rows or users, 4, 1.0, users, 2),
        **({"steps": 9, "seed": 3} | fields),
    )


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name])


@pytest.mark.parametrize(("first", "workers"), [(0, 0), (4, 0), (4, 2)])
def test_iteration_from_any_step_gives_the_batches_of_those_steps(first, workers, monkeypatch):
    monkeypatch.setitem(vars(flags.FLAGS), "__flags_parsed", True)  # as in a command
    source = make()
    found = list(source.iterate(first, workers))
    assert len(found) == 9 - first
    for step, batch in enumerate(found, start=first):
        assert_equal(batch, source[step])


def test_each_epoch_visits_users_once_and_leaves_out_less_than_a_batch():
    source = make(users=4, source=11, steps=2_000)
    visits, orders = np.zeros(11, int), set()
    for epoch in range(500):
        seen = np.concatenate([source.users_of(2 * epoch + step) for step in range(2)])
        assert len(set(seen.tolist())) == 8
        visits += np.bincount(seen, minlength=11)
        orders.add(tuple(seen))
    assert len(orders) > 450
    # 8 / 11 of 500 each, within four standard deviations.
    np.testing.assert_allclose(visits, 500 * 8 / 11, atol=4 * (500 * 8 / 11 * 3 / 11) ** 0.5)


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_short_and_long_histories_are_in_every_batch_and_on_every_device(groups):
    lengths = np.minimum(np.random.default_rng(0).lognormal(4, 1, 6_400), 256).astype(int)
    source = dataclasses.replace(make(users=64, groups=groups, source=6_400), lengths=lengths)
    sums = [lengths[source.users_of(step)].reshape(groups, -1).sum(axis=1) for step in range(100)]
    # Drawn at random, the sums would have twice the spread and more.
    expected = lengths.mean() * 64 / groups
    random = lengths.std() * (64 / groups) ** 0.5 / expected
    assert np.std(sums) / expected < random / 2


@pytest.mark.parametrize(("users", "hosts"), [(4, 2), (4, 4), (16, 2)])
def test_hosts_share_the_batch_of_one_host(users, hosts):
    full = make(users=users, groups=4)[7]
    shares = [make(users=users, groups=4, shard=(host, hosts))[7] for host in range(hosts)]
    joined = {name: np.concatenate([share[name] for share in shares]) for name in full}
    assert_equal(joined, full)


@pytest.mark.parametrize("rows", [8, 7])
def test_windows_are_those_of_the_sampler(rows):
    """With fewer rows than windows they share rows; here the timelines are short."""
    source = make(users=8, rows=rows)
    rows_of_users = source.users_of(3)
    uniforms = source.sampler.uniforms(np.random.default_rng([3, 3]), 8)
    actions = source.timelines.__getitems__(rows_of_users.tolist())
    records, offsets = timelines.unpack(row["actions"] for row in actions)
    expected = source.sampler(records, offsets, uniforms)
    batch = source[3]
    item = batch["item"].ravel()
    for user in range(8):
        own = expected["item"][user]
        exists, kept = (x["label_item"][user] >= 0 for x in (expected, batch))
        for place, label, packed, packed_label in zip(
            expected["label_position"][user, exists],
            expected["label_item"][user, exists],
            batch["label_position"][user, kept],
            batch["label_item"][user, kept],
            strict=True,
        ):
            assert label == packed_label
            assert item[packed] == own[place]
    assert sorted(item[item >= 0]) == sorted(expected["item"][expected["item"] >= 0])


@pytest.mark.parametrize("users", [4, 7, 10, 16, 25])  # of 10
def test_places_of_the_same_user_are_known(users):
    for step in range(9):
        source = make(users=users)
        user, same = source.users_of(step), source[step]["same_user"]
        assert same.shape == (users, -(-users // 10))
        for own, places in zip(user, same, strict=True):
            assert sorted(places[places >= 0]) == np.flatnonzero(user == own).tolist()


def test_rows_of_the_same_user_are_those_of_the_global_batch():
    """On several hosts too; here labels take two rows each where there are two."""
    source = make(users=8, groups=4)
    source = dataclasses.replace(
        source, layout=source.layout._replace(label_rows=16, label_width=1)
    )
    full = source[7]
    shares = [dataclasses.replace(source, shard=(host, 2))[7] for host in range(2)]
    assert_equal({name: np.concatenate([x[name] for x in shares]) for name in full}, full)
    user = source.users_of(7)
    owner = full["label_item"][:, 0] // 100  # the user by its items
    np.testing.assert_array_equal(owner, np.repeat(user, 2))
    for row, same in enumerate(full["same_user"]):
        assert sorted(same) == np.flatnonzero(owner == owner[row]).tolist()


def test_seed_changes_order_and_draws():
    a, b = make(seed=1)[0], make(seed=2)[0]
    assert any((a[name] != b[name]).any() for name in ("item", "label_item"))


def test_reading_ahead_stops_with_the_consumer():
    iterator = make(steps=10**9).iterate(0, workers=0)
    assert len(list(itertools.islice(iterator, 3))) == 3


TASKS = {1: batches.Task("image/click", 3.0, 0), 2: batches.Task("text/save", 1.0, 2)}


def make_pairs(rng, number=300):
    made = np.zeros(number, pairs.PAIR)
    made["query"] = rng.integers(0, 20, number)
    made["item"] = rng.integers(0, 30, number)
    made["task"] = rng.integers(0, 4, number)
    made["time"] = np.arange(number)  # distinguishes the pairs
    return made


def make_pair_batches(made, **fields):
    largest = {
        task: np.bincount(of_task["query"]).max() / len(of_task)
        for task in TASKS
        if len(of_task := made[made["task"] == task])
    }
    defaults = {"pairs": made, "tasks": TASKS, "size": 14, "steps": 40, "seed": 3}
    return batches.PairBatches(**(defaults | {"largest_query": largest} | fields))


@pytest.mark.parametrize("number", [1, 2, 5, 300, 65_537])
def test_an_epoch_visits_every_row_once_and_in_a_new_order(number):
    found = {
        (seed, epoch): batches.visited(number, seed, range(epoch * number, (epoch + 1) * number))
        for seed in (0, 1)
        for epoch in (0, 1, 7)
    }
    for rows in found.values():
        np.testing.assert_array_equal(np.sort(rows), np.arange(number))
    if number >= 300:
        assert len({rows.tobytes() for rows in found.values()}) == len(found)
        for one, other in itertools.combinations([np.arange(number), *found.values()], 2):
            assert abs(np.corrcoef(one, other)[0, 1]) < 5 / number**0.5


def test_visits_of_several_epochs_are_those_of_each():
    visits = range(17, 101)
    expected = [batches.visited(13, 5, range(visit, visit + 1))[0] for visit in visits]
    np.testing.assert_array_equal(batches.visited(13, 5, visits), expected)


def test_all_orders_are_equally_likely():
    """Pearson's statistic of the 24 orders of 4 rows, over seeds: 23 ± 6.8."""
    orders = [tuple(batches.visited(4, seed, range(4)).tolist()) for seed in range(6_000)]
    counts = np.array(list(collections.Counter(orders).values()))
    assert len(counts) == 24
    assert ((counts - 250) ** 2 / 250).sum() < 60


def test_tasks_with_as_many_pairs_are_in_different_orders():
    """A query's click and purchase of an item are seldom in one batch."""
    made = np.zeros(600, pairs.PAIR)
    made["task"] = np.repeat([1, 2], 300)
    made["item"] = np.tile(np.arange(300), 2)
    tasks = {task: batches.Task(str(task), 1.0, 0) for task in (1, 2)}
    batch = make_pair_batches(made, tasks=tasks, size=60)[0]
    of_tasks = [batch["item"][batch["task"] == task] for task in (1, 2)]
    assert len(np.intersect1d(*of_tasks)) < 15  # 3 are expected


def test_every_batch_has_each_tasks_share(rng):
    source = make_pair_batches(make_pairs(rng))
    assert source.shares == {1: 11, 2: 3}  # 10.5 and 3.5: the first of equal remainders
    for step in range(40):
        assert np.bincount(source[step]["task"], minlength=4).tolist() == [0, 11, 3, 0]
    assert make_pair_batches(make_pairs(rng), size=16).shares == {1: 12, 2: 4}


def test_each_epoch_of_a_task_visits_its_pairs_once_and_caps_items(rng):
    made = make_pairs(rng)
    source = make_pair_batches(made)
    rows = [source[step] for step in range(40)]
    for task, settings in TASKS.items():
        of_task = made[made["task"] == task]
        kept = collections.Counter()
        for item, count in collections.Counter(of_task["item"].tolist()).items():
            kept[item] = min(count, settings.cap or count)
        drawn = np.concatenate([row["item"][row["task"] == task] for row in rows])
        batch = source.shares[task]
        within = collections.Counter(drawn[: kept.total() // batch * batch].tolist())
        beyond = collections.Counter(drawn[: -(-kept.total() // batch) * batch].tolist())
        assert within <= kept <= beyond


def test_visits_are_how_often_a_batch_has_a_pair(rng):
    """Epochs visit all pairs that are kept equally often, so a pair's visits are off by one."""
    made, steps = make_pairs(rng), 150
    made["query"] = np.arange(len(made))  # tells pairs apart
    source = make_pair_batches(made)
    drawn = np.concatenate([source[step]["query"] for step in range(steps)])
    found = np.bincount(drawn, minlength=len(made))
    assert np.abs(found - steps * source.visits).max() < 1
    np.testing.assert_allclose(source.visits.sum(), source.size)


def test_excluded_are_the_items_of_the_same_query(rng):
    source = make_pair_batches(make_pairs(rng), size=28)
    for step in range(10):
        batch = source[step]
        assert batch["excluded"].shape == (28, source.widest)
        for query, excluded in zip(batch["query"], batch["excluded"], strict=True):
            expected = batch["item"][batch["query"] == query]
            assert sorted(excluded[excluded >= 0]) == sorted(expected)


def test_a_batch_with_more_pairs_of_a_query_than_expected_is_wider(rng):
    made = make_pairs(rng)
    narrow, wide = make_pair_batches(made, size=28), make_pair_batches(made, size=28)
    narrow.__dict__["widest"] = 1
    for step in range(10):
        found, expected = narrow[step]["excluded"], wide[step]["excluded"]
        width = found.shape[1]
        assert (expected >= 0).sum(axis=1).max() <= width < expected.shape[1]
        np.testing.assert_array_equal(found, expected[:, :width])
        assert (expected[:, width:] == -1).all()


def test_worker_processes_make_the_batches_of_pairs(rng, monkeypatch):
    monkeypatch.setitem(vars(flags.FLAGS), "__flags_parsed", True)
    source = make_pair_batches(make_pairs(rng), steps=7)
    found = list(source.iterate(0, workers=1))
    assert len(found) == 7
    for step, batch in enumerate(found):
        assert_equal(batch, source[step])


def test_hosts_share_a_batch_of_pairs(rng):
    made = make_pairs(rng)
    full = make_pair_batches(made)[7]
    shares = [make_pair_batches(made, shard=(host, 2))[7] for host in range(2)]
    joined = {name: np.concatenate([share[name] for share in shares]) for name in full}
    assert_equal(joined, full)


def test_seed_changes_the_order_of_users():
    assert len({tuple(make(seed=seed).users_of(0)) for seed in range(5)}) > 1


def test_seed_changes_the_order_of_pairs_and_what_a_cap_leaves_out(rng):
    made = make_pairs(rng)
    made["query"] = np.arange(len(made))  # tells pairs apart
    found = [make_pair_batches(made, seed=seed) for seed in (1, 2)]
    drawn = [set(x[0]["query"][x[0]["task"] == 1]) for x in found]  # without a cap
    assert drawn[0] != drawn[1]
    assert (found[0].visits != found[1].visits).any()


def test_a_cap_leaves_out_early_and_late_pairs(rng):
    made = make_pairs(rng, number=2_000)
    kept = np.flatnonzero(make_pair_batches(made).visits[made["task"] == 2])
    assert 0.3 < (kept > (made["task"] == 2).sum() / 2).mean() < 0.7


def test_tasks_are_mixed_within_a_batch(rng):
    source = make_pair_batches(make_pairs(rng))
    early = [(source[step]["task"][:7] == 2).sum() for step in range(40)]
    assert abs(np.mean(early) - 1.5) < 0.65  # half of three, within five standard deviations
