"""Ward's clustering against SciPy's."""

import numpy as np
import pytest
from scipy.cluster import hierarchy

from pinjax.systems import ward


def unit(rng, points, dim):
    vectors = rng.standard_normal((points, dim))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


# Points by their number; those of a lattice have many equal distances.
KINDS = {
    "random": lambda rng, n: unit(rng, n, 16),
    "duplicates": lambda rng, n: unit(rng, n, 16)[rng.integers(0, n // 2 + 1, n)],
    "a lattice": lambda rng, n: rng.integers(0, 3, (n, 5)),
    "one point": lambda rng, n: np.ones((n, 3)),
}


@pytest.mark.parametrize(
    ("kind", "number"),
    [*((kind, number) for kind in KINDS for number in (2, 3, 200)), ("duplicates", 5_000)],
)
def test_merges_are_those_of_scipy(rng, kind, number):
    points = KINDS[kind](rng, number).astype(np.float32)
    merged, distances = ward.linkage(points)
    tree = hierarchy.linkage(points.astype(np.float64), "ward")
    np.testing.assert_allclose(np.sort(distances), tree[:, 2], atol=1e-6, rtol=1e-6)
    assert merged.shape == (number - 1, 2)
    between = [
        (low + high) / 2
        for low, high in zip(tree[:-1, 2], tree[1:, 2], strict=True)
        if high - low > 1e-5
    ]
    for threshold in (*between[:: len(between) // 3 + 1], tree[-1, 2] + 1):
        found = ward.clusters(points, threshold)
        expected = hierarchy.fcluster(tree, threshold, "distance")
        pairs = set(zip(found.tolist(), expected.tolist(), strict=True))
        assert len(pairs) == found.max() + 1 == expected.max()
        assert len({cluster for cluster, _ in pairs}) == len(pairs)


@pytest.mark.parametrize("number", [0, 1])
def test_fewer_than_two_points_are_never_merged(number):
    points = np.zeros((number, 4), np.float32)
    merged, distances = ward.linkage(points)
    assert merged.shape == (0, 2)
    assert len(distances) == 0
    assert ward.clusters(points, 1.0).tolist() == [0] * number
