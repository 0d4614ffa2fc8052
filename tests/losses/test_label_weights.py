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
    """Of four users the first has two rows, and the third no label."""
    exists = jnp.array(
        [[True, True, False], [True, False, False], [False, True, False], [False] * 3, [True] * 3]
    )
    labels = jnp.array([3, 3, 1, 0, 3])
    expected = np.array([[1, 1, 0], [1, 0, 0], [0, 3, 0], [0, 0, 0], [1, 1, 1]]) / 9
    np.testing.assert_allclose(label_weights.equal_users(exists, labels), expected, rtol=1e-6)
    nothing = label_weights.equal_users(jnp.zeros((2, 3), bool), jnp.zeros(2, int))
    np.testing.assert_array_equal(nothing, np.zeros((2, 3)))
