"""The bag of tokens against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinjax.models import hash_embedding, searchsage

TOKENS, DIM, QUERIES = 30, 4, 5


@pytest.mark.parametrize("buckets", [0, 7])
def test_queries_are_the_formula_with_its_gradient(rng, buckets):
    """With a row for each token and with hashes; one query has no token, and some are padding."""
    model = searchsage.BagTower(TOKENS, buckets, DIM, width=6, dim=3)
    tokens = jnp.asarray(rng.integers(0, TOKENS, 14), jnp.int32)
    segments = jnp.array([0, 0, 0, 1, 1, 3, 3, 3, 3, 4, 4, 5, 5, 5])
    shapes = jax.eval_shape(
        lambda *args: model.init(jax.random.key(0), *args, QUERIES), tokens, segments
    )
    point = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), shapes["params"])

    def formula(params):
        table, head = params["text"], params["head"]
        bags = np.zeros((QUERIES, DIM))
        for token, query in zip(tokens.tolist(), segments.tolist(), strict=True):
            if query == QUERIES:
                continue
            if buckets:
                rows = np.asarray(hash_embedding.hash_ids(jnp.asarray(token))) % buckets
                embedding = table["importance"][token] @ table["embedding"][rows]
            else:
                embedding = table["embedding"][token]
            bags[query] += DIM**0.5 * embedding
        x = bags @ head["hidden"]["kernel"] + head["hidden"]["bias"]
        x = x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
        x = x @ head["out"]["kernel"] + head["out"]["bias"]
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    back = rng.standard_normal((QUERIES, 3))
    direction = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), point)

    @jax.jit
    def outputs_and_gradient(params):
        def loss(params):
            found = model.apply({"params": params}, tokens, segments, QUERIES)
            return (found * back).sum(), found

        gradient, found = jax.grad(loss, has_aux=True)(params)
        return found, gradient

    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), point)
    found, gradient = outputs_and_gradient(params)
    np.testing.assert_allclose(found, formula(point), atol=1e-5)

    def moved(step):
        at = jax.tree.map(lambda x, y: x + step * y, point, direction)
        return (formula(at) * back).sum()

    products = sum(jax.tree.leaves(jax.tree.map(np.vdot, gradient, direction)))
    assert products == pytest.approx((moved(1e-5) - moved(-1e-5)) / 2e-5, rel=1e-3, abs=1e-4)
