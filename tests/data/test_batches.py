"""Batches are a function of (seed, step): whatever the start, the hosts and the workers."""

import itertools

import numpy as np
import pytest

from pinjax.data import batches, schema, windows

EVERYTHING = windows.Positives(np.zeros(1, np.float32), np.ones(1, bool))


class Timelines:
    """What a TFDS data source offers, from memory: user u acts on items 100 u, 100 u + 1, ..."""

    def __init__(self, users):
        self.users = users

    def __len__(self):
        return self.users

    def __getitem__(self, row):
        actions = np.zeros(5 + row % 3, schema.ACTION)
        actions["item"] = 100 * row + np.arange(len(actions))
        actions["time"] = 10 * np.arange(len(actions))
        return {"actions": schema.pack(actions)}

    def __getitems__(self, rows):
        return [self[row] for row in rows]


def make(**fields):
    sampler = windows.Sampler(
        length=4,
        objective="dense_all_action",
        labels=2,
        horizon=1_000,
        positives=EVERYTHING,
        train_end=10_000,
    )
    return batches.Batches(
        **(
            {"timelines": Timelines(10), "sampler": sampler, "users": 4, "steps": 9, "seed": 3}
            | fields
        )
    )


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name])


@pytest.mark.parametrize("first", [0, 4])
def test_iteration_from_any_step_gives_the_batches_of_those_steps(first):
    source = make()
    found = list(source.iterate(first, workers=0))
    assert len(found) == 9 - first
    for step, batch in enumerate(found, start=first):
        assert_equal(batch, source[step])


def test_each_epoch_visits_every_user_once():
    source = make(users=5)
    for epoch in range(3):
        items = np.concatenate([source[2 * epoch + i]["item"][:, -1] for i in range(2)])
        assert sorted(items // 100) == list(range(10))
    orders = [tuple(source[2 * epoch]["item"][:, -1] // 100) for epoch in range(3)]
    assert len(set(orders)) == 3


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_share_the_batch_of_one_host(hosts):
    whole = make()[7]
    shares = [make(shard=(host, hosts))[7] for host in range(hosts)]
    joined = {name: np.concatenate([share[name] for share in shares]) for name in whole}
    assert_equal(joined, whole)


def test_seed_changes_order_and_draws():
    a, b = make(seed=1)[0], make(seed=2)[0]
    assert any((a[name] != b[name]).any() for name in ("item", "label_item"))


def test_reading_ahead_stops_with_the_consumer():
    iterator = make(steps=10**9).iterate(0, workers=0)
    assert len(list(itertools.islice(iterator, 3))) == 3
