import functools

import jax
import jax.numpy as jnp
import numpy as np

from pinjax.models import learned_ids

IDS = jnp.array([[3, -1, 0], [49, 3, 7]])
MODEL = learned_ids.LearnedIds(num_items=50, dim=4)


def test_vectors_and_gradient_against_a_dense_computation(rng):
    table = rng.standard_normal((50, 4)).astype(np.float32)
    weights = rng.standard_normal((*IDS.shape, 4)).astype(np.float32)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def function(table):
        vectors = MODEL.apply({"params": {"embedding": table}}, IDS)
        return (vectors * weights).sum(), vectors

    gradient, vectors = function(table)
    one_hot = 4**0.5 * np.eye(50)[IDS] * (np.asarray(IDS) >= 0)[..., None]
    np.testing.assert_allclose(vectors, one_hot @ table, rtol=1e-5)
    np.testing.assert_allclose(gradient, np.einsum("abi,abd->id", one_hot, weights), rtol=1e-5)


def test_an_unseen_item_adds_nothing():
    vectors, _ = MODEL.init_with_output(jax.random.key(0), IDS)
    assert not vectors.any()
