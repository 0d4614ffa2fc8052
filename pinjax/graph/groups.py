"""Reads the groups of items, and the items of groups, of many at once."""

import numpy as np

from pinjax.graph import csr
from pinjax.graph.compiled import compiled, read_only


def common(items: csr.Side, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """A group that both items of each pair are in: int32 (pairs,), -1 where there is none.

    Args:
      items: the groups of items.
      first, second: int32 (pairs,), items.
    """
    return _common(read_only(items.offsets), read_only(items.neighbours), first, second)


def members(
    groups: csr.Side, rows: np.ndarray, most: int, seed: int, leave_out: np.ndarray | None = None
) -> np.ndarray:
    """At most `most` items of each group, int32 (rows, most), padded with -1.

    Of a group with more items it is a random sample, a function of the seed and the group.

    Args:
      groups: the items of groups.
      rows: int32 (rows,), groups.
      most: items of a group.
      seed: of the samples.
      leave_out: int32 (rows,), an item of each group that is left out.
    """
    if leave_out is None:
        leave_out = np.full(len(rows), -1, np.int32)
    side = read_only(groups.offsets), read_only(groups.neighbours)
    return _members(*side, rows, most, np.uint64(seed), leave_out)


def equal_weights(members: np.ndarray) -> np.ndarray:
    """Weights of the items of groups, as `members` lists them, of sum 1: float32 (rows, most)."""
    exists = members >= 0
    weights = exists / np.maximum(exists.sum(axis=1, keepdims=True), 1)
    return weights.astype(np.float32)


@compiled
def _common(offsets, neighbours, first, second):
    found = np.full(len(first), -1, np.int32)
    for pair in range(len(first)):
        a, a_end = offsets[first[pair]], offsets[first[pair] + 1]
        b, b_end = offsets[second[pair]], offsets[second[pair] + 1]
        while a < a_end and b < b_end:
            if neighbours[a] == neighbours[b]:
                found[pair] = neighbours[a]
                break
            if neighbours[a] < neighbours[b]:
                a += 1
            else:
                b += 1
    return found


_INCREMENT = np.uint64(0x9E3779B97F4A7C15)


@compiled
def _mixed(x):
    """The output function of SplitMix64, as in `walks`: Numba's cache sees one module alone."""
    x += _INCREMENT
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@compiled
def _members(offsets, neighbours, rows, most, seed, leave_out):
    found = np.full((len(rows), most), -1, np.int32)
    for row in range(len(rows)):
        group = rows[row]
        if group < 0:
            continue
        items = neighbours[offsets[group] : offsets[group + 1]]
        left_out = np.searchsorted(items, leave_out[row])
        skips = left_out < len(items) and items[left_out] == leave_out[row]
        number = len(items) - skips
        if not skips:
            left_out = number
        for i in range(min(most, number)):
            place = i
            if number > most:  # Floyd's sample without replacement (CACM 1987)
                last = number - most + i
                bits = _mixed(_mixed(_mixed(seed) + np.uint64(group)) + np.uint64(i))
                place = np.int64(bits % np.uint64(last + 1))
                for earlier in range(i):
                    if found[row, earlier] == place:
                        place = last
                        break
            found[row, i] = place
        for i in range(min(most, number)):
            place = found[row, i]
            found[row, i] = items[place + (place >= left_out)]
    return found
