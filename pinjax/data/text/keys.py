"""Counts and ids of keys, which are uint64: hashes of words, or packed characters."""

import numpy as np

from pinjax.ragged import offsets_of


def mix(values: np.ndarray) -> np.ndarray:
    """The mixing bijection of SplitMix64 on uint64 (Steele et al., OOPSLA 2014)."""
    values = values ^ values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def count_distinct(
    keys: np.ndarray, counts: np.ndarray, *columns: np.ndarray
) -> tuple[np.ndarray, ...]:
    """Distinct keys, ascending, with the sum of their counts and one row of the columns each."""
    order = np.argsort(keys)
    keys = keys[order]
    first = np.flatnonzero(np.append(True, keys[1:] != keys[:-1])[: len(keys)])
    sums = np.diff(offsets_of(counts[order])[np.append(first, len(keys))])
    return keys[first], sums, *(column[order[first]] for column in columns)


class Counts:
    """Sums counts of keys over parts, each of `count_distinct`."""

    def __init__(self):
        self._parts = []

    def add(self, *part: np.ndarray) -> None:
        self._parts.append(part)
        # Merged only when they have doubled, so that a key is sorted a logarithmic number of times.
        if sum(len(keys) for keys, *_ in self._parts[1:]) > len(self._parts[0][0]):
            self._parts = [self.total()]

    def total(self) -> tuple[np.ndarray, ...]:
        return count_distinct(
            *(np.concatenate(column) for column in zip(*self._parts, strict=True))
        )


class Lookup:
    """Ids by key: a hash table with linear probing, at most a quarter full."""

    def __init__(self, keys: np.ndarray, first_id: int):
        bits = max(4 * len(keys), 2).bit_length()
        self._shift = np.uint64(64 - bits)
        home = self._home(keys)
        order = np.argsort(home, kind="stable")
        rank = np.arange(len(keys))
        # Each key takes the first free slot from its home slot on.
        slot = rank + np.maximum.accumulate(home[order] - rank)
        slots = max(2**bits, slot.max(initial=0) + 1) + 1
        self._keys, self._ids = np.zeros(slots, np.uint64), np.full(slots, -1, np.int32)
        self._keys[slot], self._ids[slot] = keys[order], first_id + order

    def _home(self, keys: np.ndarray) -> np.ndarray:
        return (mix(keys) >> self._shift).astype(np.int64)

    def __call__(self, keys: np.ndarray) -> np.ndarray:
        """Int32 (n,), -1 for unknown keys."""
        slot = self._home(keys)
        ids = self._ids[slot]
        wrong = np.flatnonzero((self._keys[slot] != keys) & (ids >= 0))
        while len(wrong):
            slot[wrong] += 1
            ids[wrong] = self._ids[slot[wrong]]
            wrong = wrong[(self._keys[slot[wrong]] != keys[wrong]) & (ids[wrong] >= 0)]
        return ids
