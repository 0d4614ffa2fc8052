import numpy as np
import pytest

from pinjax import ragged


def test_lists_of_different_lengths():
    counts = np.array([2, 0, 3])
    np.testing.assert_array_equal(ragged.offsets_of(counts), [0, 2, 2, 5])
    places = ragged.positions(np.array([4, 9, 0]), counts)
    np.testing.assert_array_equal(places, [4, 5, 0, 1, 2])


@pytest.mark.parametrize(("least", "size"), [(0, 1), (1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_a_power_of_two(least, size):
    assert ragged.power_of_two(least) == size
