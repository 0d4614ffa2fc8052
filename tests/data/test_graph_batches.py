"""Batches of a graph: the same for any number of devices and hosts, and without leaks."""

import dataclasses
import os

import numpy as np
import pytest
from absl import flags

from pinjax.data import graph_batches, item_pairs
from pinjax.graph import csr, walks
from tests.graph.graphs import graph_of, random_edges

ITEMS, GROUPS = 60, 25
WALKS = walks.Walks(number=30, steps=2, restart=0.5, top=5)


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    rng = np.random.default_rng(0)
    directory = tmp_path_factory.mktemp("graph")
    edges = np.argwhere(rng.random((ITEMS, GROUPS)) < 0.1)
    csr.write(directory, np.append(edges, [[3, GROUPS - 1]], axis=0), ITEMS, GROUPS)
    return csr.read(directory)


def make(graph, pairs=None, devices=1, shard=(0, 1), **fields):
    sizes = graph_batches.BatchSizes(
        **{
            **{"pairs": 8, "groups": 4, "group_items": 3, "negatives": 12, "hard": 2},
            **{"layers": 2, "neighbours": WALKS.top, "items": ITEMS, "devices": devices},
            **fields,
        }
    )
    every = np.arange(ITEMS, dtype=np.int32)
    hard = (every[:, None] + [1, 2, 3]) % ITEMS
    hard[::7, 1:] = -1
    return graph_batches.GraphBatches(
        batch_sizes=sizes,
        graph=graph,
        table=walks.neighbourhoods(graph, every, WALKS, 0),
        walks=WALKS,
        pairs=pairs or item_pairs.Memberships(graph, stream=1),
        find_hard=lambda: (hard.astype(np.int32), every),
        hard_after=3,
        corpus=every[:50],
        steps=9,
        seed=5,
        shard=shard,
    )


def test_the_last_batches_have_room_for_their_hard_negatives(tmp_path):
    rng = np.random.default_rng(0)
    items = 4_000
    edges = np.stack([np.arange(items), rng.permutation(items) // 4], axis=1)
    edges = np.append(edges, np.stack([np.arange(items), rng.permutation(items) // 4], 1), axis=0)
    csr.write(tmp_path, edges, items, items // 4)
    graph = csr.read(tmp_path)
    every = np.arange(items, dtype=np.int32)
    made = dataclasses.replace(
        make(graph, items=items, hard=40),
        table=walks.neighbourhoods(graph, every, WALKS, 0),
        find_hard=lambda: (rng.integers(items, size=(items, 50)).astype(np.int32), every),
        hard_after=1,
        steps=41,
    )
    batch = made[40]
    assert (batch["hard"] >= 0).all()
    assert made.sizes[-1] < items  # otherwise there is always room
    targets, near, _ = made._targets(40, made._share(made._draw(40), 0))
    kept = batch[graph_batches.BY_DEVICE + "neighbours_1"][0]
    assert (kept >= 0).sum() == (near.ids >= 0).sum() > len(targets)


def test_of_a_large_group_each_step_reads_others(tmp_path):
    """Each item is in a group of all, and in one of its own, of which nothing is left to read."""
    every = np.arange(ITEMS, dtype=np.int32)
    edges = np.concatenate([np.stack([every, 0 * every], 1), np.stack([every, every + 1], 1)])
    csr.write(tmp_path, edges, ITEMS, ITEMS + 1)
    made, found = make(csr.read(tmp_path), layers=0), set()
    for step in range(9):
        batch = made[step]
        parts = ("nodes", "group_at", "group_weights")
        nodes, places, weights = (batch[graph_batches.BY_DEVICE + name][0] for name in parts)
        found |= set(nodes[places[weights > 0]].tolist())
    assert len(found) > 20


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize("devices", [1, 2])
def test_shapes_are_those_of_every_batch(graph, layers, devices):
    made = make(graph, layers=layers, devices=devices)
    expected = made.batch_sizes.shapes(made.sizes, made.widths)
    for step in range(9):
        assert {name: (x.shape, x.dtype.type) for name, x in made[step].items()} == expected


def test_worker_processes_make_the_same_batches_and_look_for_no_hard_negatives(graph, monkeypatch):
    """Which all of them would hold; they get copies of what was found before."""
    monkeypatch.setitem(vars(flags.FLAGS), "__flags_parsed", True)
    made, here = make(graph), os.getpid()
    every = np.arange(ITEMS, dtype=np.int32)

    def find_hard():
        assert os.getpid() == here
        return np.stack([every[::-1], every - 1], axis=1), every

    made = dataclasses.replace(made, find_hard=find_hard)
    found = list(made.iterate(4, workers=1))
    assert len(found) == 5
    for step, batch in enumerate(found, start=4):
        expected = made[step]
        assert batch.keys() == expected.keys()
        for name, values in batch.items():
            np.testing.assert_array_equal(values, expected[name])


def test_hosts_and_devices_share_the_batch_of_one_device(graph):
    alone, apart = make(graph)[4], make(graph, devices=4)[4]
    for name, values in alone.items():
        if not name.startswith(graph_batches.BY_DEVICE):
            np.testing.assert_array_equal(values, apart[name])
    hosts = [make(graph, devices=4, shard=(host, 2))[4] for host in range(2)]
    for name, values in apart.items():
        np.testing.assert_array_equal(values, np.concatenate([host[name] for host in hosts]))


def test_places_are_those_of_what_a_device_embeds(graph):
    made = make(graph, devices=2, layers=0)
    for step in range(9):
        batch = made[step]
        for device in range(2):
            of_device = {
                name.removeprefix(graph_batches.BY_DEVICE): values[device]
                for name, values in batch.items()
                if name.startswith(graph_batches.BY_DEVICE)
            }
            nodes = np.append(of_device["nodes"], -1)  # the last element is for padding
            ends = [batch[x].reshape(2, -1)[device] for x in ("query", "item", "group_item")]
            ends = np.concatenate(ends)
            np.testing.assert_array_equal(nodes[: len(ends)], ends)
            for name in ("negatives", "hard"):
                expected = batch[name].reshape(2, -1)[device]
                np.testing.assert_array_equal(nodes[of_device[f"{name}_at"]].ravel(), expected)
            weights = of_device["group_weights"]
            np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)
            np.testing.assert_array_equal(weights > 0, of_device["group_at"] >= 0)


def test_pairs_of_groups_are_uniform_over_edges_and_two_items_of_a_group():
    edges = random_edges(np.random.default_rng(0), ITEMS, GROUPS, 0.04)
    graph = graph_of(edges, ITEMS, GROUPS)
    source = item_pairs.Memberships(graph, stream=1)
    drawn = source(0, 0, 40_000)
    degrees = np.diff(graph.groups.offsets)
    assert (degrees == 1).any()
    assert (drawn.query != drawn.item).all()
    for row in range(200):
        of_group = graph.groups.of(drawn.group[row])
        assert {drawn.query[row], drawn.item[row]} <= set(of_group.tolist())
    share = np.where(degrees > 1, degrees, 0)
    expected = len(drawn.group) * share / share.sum()
    found = np.bincount(drawn.group, minlength=GROUPS)
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected)).all()
    expected = len(drawn.item) * source.counts / source.counts.sum()
    found = np.bincount(drawn.item, minlength=ITEMS)
    assert (np.abs(found - expected) <= 5 * np.sqrt(expected)).all()
    biggest = degrees.argmax()
    others = drawn.query[(drawn.group == biggest) & (drawn.item == graph.groups.of(biggest)[0])]
    assert set(others) == set(graph.groups.of(biggest)[1:])


def test_engagements_belong_to_a_group_of_both_items(graph):
    rng = np.random.default_rng(1)
    query, item = rng.integers(ITEMS, size=(2, 30)).astype(np.int32)
    pairs = item_pairs.Engagements(query, item, graph.items)
    visited = [pairs(0, step, 10) for step in range(3)]
    seen = np.concatenate([np.stack(drawn[:2], axis=1) for drawn in visited])
    assert sorted(map(tuple, seen)) == sorted(zip(query, item, strict=True))  # one epoch
    for drawn in visited:
        for a, b, group in zip(*drawn, strict=True):
            both = set(graph.items.of(a).tolist()) & set(graph.items.of(b).tolist())
            assert group in both or (group == -1 and not both)


def test_hard_negatives_come_one_after_the_other(graph):
    made = make(graph)
    for step in range(9):
        batch = made[step]
        number = min(step // 3, 2)
        left = np.where(batch["query"] % 7 == 0, 1, 3)  # candidates
        np.testing.assert_array_equal((batch["hard"] >= 0).sum(axis=1), np.minimum(number, left))
        candidates = made.hard[0][batch["query"]]
        np.testing.assert_array_equal(batch["hard_ranks"], batch["query"])
        np.testing.assert_array_equal(batch["group_drawn"], batch["group_item"] < 50)
        assert all(set(row) <= {*of, -1} for row, of in zip(batch["hard"], candidates, strict=True))


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_pairs_own_edge_does_not_tell_one_item_of_the_other(tmp_path, layers):
    """Pairs of items with one group in common, which only this group connects, are no neighbours.

    They are not in any convolution. The same holds of an edge of a group: its item is not among the
    group's items, nor finds them.
    """
    number = 20
    item = np.arange(2 * number)
    bridge, own = np.repeat(np.arange(number), 2), number + item
    third = np.stack([2 * number + item, own], axis=1)  # another item of each item's own group
    edges = np.concatenate([np.stack([item, bridge], 1), np.stack([item, own], 1), third])
    csr.write(tmp_path, edges, 4 * number, 3 * number)
    graph = csr.read(tmp_path)
    first = np.arange(0, 2 * number, 2, dtype=np.int32)
    pairs = item_pairs.Engagements(first, first + 1, graph.items)
    every = np.arange(4 * number, dtype=np.int32)
    made = dataclasses.replace(
        make(graph, pairs, layers=layers, items=4 * number),
        table=walks.neighbourhoods(graph, every, WALKS, 0),
        find_hard=lambda: (np.zeros((4 * number, 3), np.int32), every),
    )
    for step in range(5):
        batch = made[step]
        graph_of = {
            name.removeprefix(graph_batches.BY_DEVICE): values[0]
            for name, values in batch.items()
            if name.startswith(graph_batches.BY_DEVICE)
        }
        lists = [graph_of["nodes"]]
        for layer in range(layers):
            lists.append(lists[-1][graph_of[f"own_{layer}"]])
        near = [
            [of_layer[row[row >= 0]] for row in graph_of[f"neighbours_{layer}"]]
            for layer, of_layer in enumerate(lists[:-1])
        ]
        for of_layer, ends in zip(near, lists[1:], strict=True):
            for row, (query, item) in enumerate(zip(batch["query"], batch["item"], strict=True)):
                for end, this, other in ((row, query, item), (row + 8, item, query)):
                    assert ends[end] == this
                    assert len(of_layer[end])
                    assert other not in of_layer[end]
        for row, item in enumerate(batch["group_item"]):
            members = lists[-1][graph_of["group_at"][row]][graph_of["group_weights"][row] > 0]
            assert item not in members
            assert not any(set(members) & set(of_layer[16 + row]) for of_layer in near)


def test_draws_are_others_with_each_seed_and_stream(graph):
    query, item = np.random.default_rng(1).integers(ITEMS, size=(2, 30)).astype(np.int32)
    sources = [item_pairs.Engagements(query, item, graph.items)]
    sources += [item_pairs.Memberships(graph, stream) for stream in (1, 2)]
    drawn = {tuple(source(seed, 0, 10).item) for source in sources for seed in (5, 6)}
    assert len(drawn) == 6
    one, other = (dataclasses.replace(make(graph), seed=seed)[8] for seed in (5, 6))
    assert (one["negatives"] != other["negatives"]).any()


def test_hard_negatives_are_any_of_the_candidates(graph):
    made, places = make(graph), set()
    for step in range(6, 9):
        batch = made[step]
        places |= set(((batch["hard"] - batch["query"][:, None]) % ITEMS)[batch["hard"] >= 0])
    assert places == {1, 2, 3}


def test_negatives_are_of_the_corpus(graph):
    made = make(graph)
    assert all((made[step]["negatives"] < 50).all() for step in range(9))
