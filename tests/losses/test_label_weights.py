import jax.numpy as jnp
import numpy as np

from pinjax.losses import label_weights


def test_each_label_counts_the_same():
    exists = jnp.array([[True, False, True], [False, False, False], [False, True, False]])
    expected = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]]) / 3
    np.testing.assert_allclose(label_weights.equal_labels(exists), expected, rtol=1e-6)
    nothing = jnp.zeros((2, 3), bool)
    np.testing.assert_array_equal(label_weights.equal_labels(nothing), np.zeros((2, 3)))


def test_each_user_counts_the_same():
    exists = jnp.array([[True, True, False, True], [False] * 4, [False, True, False, False]])
    expected = [[1 / 6, 1 / 6, 0, 1 / 6], [0] * 4, [0, 1 / 2, 0, 0]]
    np.testing.assert_allclose(label_weights.equal_users(exists), expected, rtol=1e-6)
    nothing = jnp.zeros((2, 3), bool)
    np.testing.assert_array_equal(label_weights.equal_users(nothing), np.zeros((2, 3)))
