"""The kurtosis of similarities, against SciPy and distributions whose kurtosis is known."""

import math

import numpy as np
import pytest
from scipy import stats

from pinjax.evaluation import similarities


def test_kurtosis_is_that_of_all_pairs(rng):
    """Of vectors of several lengths; zeros are left out."""
    vectors = (rng.standard_normal((60, 3)) * rng.uniform(0.1, 9, (60, 1))).astype(np.float32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    every = (unit @ unit.T)[np.triu_indices(60, 1)]
    with_zeros = np.insert(vectors, [0, 7, 60], 0, axis=0)
    found = similarities.kurtosis(with_zeros, pairs=400_000)
    assert found == pytest.approx(stats.kurtosis(every), abs=0.02)
    assert similarities.kurtosis(vectors, 1) != similarities.kurtosis(vectors, 2)
    assert similarities.kurtosis(vectors, 1) == similarities.kurtosis(vectors, 1)


@pytest.mark.parametrize(("dim", "expected"), [(2, -1.5), (3, -1.2), (256, -6 / 258)])
def test_kurtosis_of_random_directions(rng, dim, expected):
    """It is that of a coordinate of a random point of the sphere, -6 / (dim + 2)."""
    vectors = rng.standard_normal((20_000, dim)).astype(np.float32)
    assert similarities.kurtosis(vectors) == pytest.approx(expected, abs=0.05)


def test_similarities_without_a_spread_have_none(rng):
    same = np.tile(rng.standard_normal(5).astype(np.float32), (9, 1))
    for vectors in (same, same[:1], np.zeros((9, 5), np.float32)):
        assert math.isnan(similarities.kurtosis(vectors))
