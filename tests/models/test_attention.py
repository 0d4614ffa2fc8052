import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinjax.models import attention

BATCH, LENGTH, HEADS, DIM = 2, 256, 2, 24


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    shape = (BATCH, LENGTH, HEADS, DIM)
    query, key, value, weights = rng.standard_normal((4, *shape)).astype(np.float32)
    mask = np.arange(LENGTH) >= np.array([[0], [130]])
    return query, key, value, mask, weights


def numpy_attention(query, key, value, mask):
    """In float64, a user and a head at a time."""
    outputs = np.zeros(query.shape)
    for user, head in np.ndindex(BATCH, HEADS):
        q, k, v = (np.asarray(x[user, :, head], np.float64) for x in (query, key, value))
        scores = np.where(mask[user] & np.tri(LENGTH, dtype=bool), q @ k.T / np.sqrt(DIM), -np.inf)
        scores[~mask[user]] = 0
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        outputs[user, :, head] = weights / weights.sum(axis=1, keepdims=True) @ v
    return outputs * mask[..., None, None]


def value_and_gradients(function, query, key, value, mask, weights):
    """What comes out where there is no padding, and the gradients of its weighted sum."""

    @jax.jit
    def value_and_gradients(query, key, value):
        def weighted_sum(query, key, value):
            outputs = function(query, key, value, jnp.asarray(mask)) * mask[..., None, None]
            return (outputs * weights).sum(), outputs

        return jax.grad(weighted_sum, (0, 1, 2), has_aux=True)(query, key, value)

    return value_and_gradients(query, key, value)


def test_by_kernel_and_by_xla_against_numpy(arrays):
    gradients, outputs = value_and_gradients(attention.by_xla, *arrays)
    np.testing.assert_allclose(outputs, numpy_attention(*arrays[:4]), rtol=1e-4, atol=1e-5)
    kernel = functools.partial(attention.splash, interpret=True)
    of_kernel, outputs_of_kernel = value_and_gradients(kernel, *arrays)
    np.testing.assert_allclose(outputs_of_kernel, outputs, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(of_kernel, gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


def test_tpus_get_the_kernel_and_others_do_not(arrays):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    function = jax.jit(functools.partial(attention.causal_attention, mesh=mesh))
    for platform, found in (("tpu", True), ("cpu", False)):
        lowered = function.trace(*arrays[:4]).lower(lowering_platforms=(platform,))
        assert ("tpu_custom_call" in lowered.as_text()) == found
