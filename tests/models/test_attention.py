import functools
import types

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


def relative_error(a, b):
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def value_and_gradients(function, query, key, value, mask, weights):
    """The outputs at real positions, and the gradients of their weighted sum."""

    @jax.jit
    def value_and_gradients(query, key, value):
        def weighted_sum(query, key, value):
            outputs = function(query, key, value, jnp.asarray(mask)) * mask[..., None, None]
            return (outputs * weights).sum(), outputs

        return jax.grad(weighted_sum, (0, 1, 2), has_aux=True)(query, key, value)

    with jax.default_matmul_precision("highest"):
        return value_and_gradients(query, key, value)


def test_by_kernel_and_by_xla_against_numpy(arrays):
    gradients, outputs = value_and_gradients(attention.by_xla, *arrays)
    np.testing.assert_allclose(outputs, numpy_attention(*arrays[:4]), rtol=1e-4, atol=1e-5)
    kernel = functools.partial(attention.splash, interpret=True)
    of_kernel, outputs_of_kernel = value_and_gradients(kernel, *arrays)
    np.testing.assert_allclose(outputs_of_kernel, outputs, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(of_kernel, gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("capabilities", "dtype", "dim", "expected"),
    [
        (("8.0", "9.0"), jnp.bfloat16, 24, True),
        (("12.1",), jnp.float16, 128, True),
        (("7.5",), jnp.bfloat16, 24, False),
        (("9.0", "7.5"), jnp.bfloat16, 24, False),
        (("9.0",), jnp.float32, 24, False),
        (("9.0",), jnp.bfloat16, 20, False),
        (("9.0",), jnp.bfloat16, 136, False),
    ],
)
def test_what_cudnn_needs(monkeypatch, capabilities, dtype, dim, expected):
    def devices(backend):
        assert backend == "cuda"
        return [types.SimpleNamespace(compute_capability=text) for text in capabilities]

    assert not attention.has_cudnn(dtype, dim)  # there is no GPU here
    monkeypatch.setattr(jax, "devices", devices)
    assert attention.has_cudnn(dtype, dim) == expected


def test_rotation_against_numpy(rng):
    x = jnp.asarray(rng.standard_normal((3, 5, 4)), jnp.float32)
    by = jnp.array([0, 2, 5])
    rotated, pull_back = jax.vjp(lambda x: attention.rotate(x, by), x)
    expected = [np.roll(row, -n, axis=0) for row, n in zip(x, by, strict=True)]
    np.testing.assert_array_equal(rotated, expected)
    np.testing.assert_array_equal(pull_back(rotated)[0], x)


@pytest.mark.skipif(
    not attention.has_cudnn(jnp.bfloat16, DIM),
    reason="needs an NVIDIA GPU: TEST_PLATFORM=cuda launch/test.sh tests/models/test_attention.py",
)
@pytest.mark.parametrize("over_mesh", [False, True])
def test_cudnn_against_xla(arrays, over_mesh):
    """In bfloat16 against float32, with the padding behind."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",)) if over_mesh else None
    *inputs, mask, weights = arrays
    inputs, mask = [x.astype(jnp.bfloat16) for x in inputs], mask[:, ::-1]
    inputs32 = [x.astype(np.float32) for x in inputs]
    expected = value_and_gradients(attention.by_xla, *inputs32, mask, weights)
    by_cudnn = attention.over_data(attention.by_cudnn, mesh)
    found = value_and_gradients(by_cudnn, *inputs, mask, weights)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert relative_error(ours, theirs) < 1e-2
