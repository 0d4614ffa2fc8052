"""Groups in common, and samples of groups, against enumeration."""

import collections

import numpy as np
import scipy.stats

from pinjax.graph import csr, groups


def test_a_common_group_is_one_of_both_items(rng, tmp_path):
    edges = np.argwhere(rng.random((30, 12)) < 0.15)
    csr.write(tmp_path, edges, 30, 12)
    items = csr.read(tmp_path).items
    first, second = rng.integers(30, size=(2, 200)).astype(np.int32)
    of = collections.defaultdict(set)
    for item, group in edges.tolist():
        of[item].add(group)
    both = [of[a] & of[b] for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    found = groups.common(items, first, second)
    assert all(g in c if c else g == -1 for g, c in zip(found.tolist(), both, strict=True))
    assert 0 < sum(map(bool, both)) < 200


def test_small_groups_are_complete_but_for_the_item_left_out(rng, tmp_path):
    edges = np.argwhere(rng.random((20, 9)) < 0.3)
    csr.write(tmp_path, edges, 20, 9)
    side = csr.read(tmp_path).groups
    rows = np.arange(9, dtype=np.int32)
    left_out = np.array([side.of(g)[-1] if g % 2 else -1 for g in rows], np.int32)
    found = groups.members(side, rows, 20, 0, left_out)
    for group, out, items in zip(rows, left_out, found, strict=True):
        expected = [item for item in side.of(group).tolist() if item != out]
        assert items[: len(expected)].tolist() == expected
        assert (items[len(expected) :] == -1).all()
    assert (groups.members(side, np.array([-1], np.int32), 3, 0) == -1).all()


def test_samples_of_large_groups_are_uniform_and_have_no_item_twice(tmp_path):
    size, most, number = 8, 3, 6_000
    edges = np.stack([np.tile(np.arange(size), number), np.repeat(np.arange(number), size)], 1)
    csr.write(tmp_path, edges, size, number)
    side, rows = csr.read(tmp_path).groups, np.arange(number, dtype=np.int32)
    left_out = np.full(number, 5, np.int32)
    found = groups.members(side, rows, most, 7, left_out)
    assert (np.diff(np.sort(found, axis=1), axis=1) > 0).all()
    sets, counts = np.unique(np.sort(found, axis=1), axis=0, return_counts=True)
    assert len(sets) == 35  # of 3 out of 7
    assert not (sets == 5).any()
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    np.testing.assert_array_equal(found, groups.members(side, rows, most, 7, left_out))
    assert (found != groups.members(side, rows, most, 8, left_out)).any()
