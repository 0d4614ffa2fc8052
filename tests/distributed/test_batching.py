"""Rows in batches are rows, and what is made ahead is what would be made."""

import numpy as np
import pytest

from pinjax.distributed import batching
from pinjax.errors import InputError


@pytest.mark.parametrize("sizes", [[7], [0, 3, 1], [4, 4], [1] * 9, [11, 0, 2]])
def test_parts_are_as_one(rng, sizes):
    parts = [{"x": rng.normal(size=(size, 2)), "n": np.arange(size)} for size in sizes]
    seen = []

    def function(batch):
        assert len(batch["x"]) == len(batch["n"]) == 4
        seen.append(1)
        return batch["x"].sum(axis=1) + batch["n"]

    found = batching.over_parts(function, parts, 4)
    expected = np.concatenate([part["x"].sum(axis=1) + part["n"] for part in parts])
    np.testing.assert_array_equal(found, expected)
    assert len(seen) == -(-sum(sizes) // 4)


def test_no_rows_are_nothing():
    assert batching.over_parts(lambda x: x, [np.zeros((0, 2))], 4) is None
    assert batching.over_parts(lambda x: x, [], 4) is None


def test_nan_is_refused():
    with pytest.raises(InputError, match="an embedding is NaN"):
        batching.in_batches(lambda x: x, np.array([1.0, np.nan, 0]), 2)


def test_values_made_ahead_come_in_order():
    made = []

    def values():
        for number in range(4):
            made.append(number)
            yield number
        raise OSError("no more")

    ahead = batching.ahead(values())
    assert [next(ahead) for _ in range(4)] == made == [0, 1, 2, 3]
    with pytest.raises(OSError, match="no more"):
        next(ahead)
    assert list(batching.ahead([])) == []
