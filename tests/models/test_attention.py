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
    # Windows of 256, and of 1, 129, none, 9 and 112 cells.
    end = np.full((BATCH, LENGTH), LENGTH - 1, np.int32)
    end[1] = np.repeat([0, 129, -1, 143, 255], [1, 129, 5, 9, 112])
    return query, key, value, end, weights


def numpy_attention(query, key, value, end):
    """In float64, a window and a head at a time."""
    outputs = np.zeros(query.shape)
    for row, head in np.ndindex(BATCH, HEADS):
        for last in set(end[row].tolist()) - {-1}:
            own = end[row] == last
            q, k, v = (np.asarray(x[row, own, head], np.float64) for x in (query, key, value))
            scores = np.where(np.tri(len(q), dtype=bool), q @ k.T / np.sqrt(DIM), -np.inf)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            outputs[row, own, head] = weights / weights.sum(axis=1, keepdims=True) @ v
    return outputs


def relative_error(a, b):
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def value_and_gradients(function, query, key, value, end, weights):
    """The outputs in windows, and the gradients of their weighted sum."""
    inside = (end >= 0)[..., None, None]

    @jax.jit
    def value_and_gradients(query, key, value):
        def weighted_sum(query, key, value):
            outputs = function(query, key, value, jnp.asarray(end)) * inside
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


@pytest.mark.skipif(
    not attention.has_cudnn(jnp.bfloat16, DIM),
    reason="needs an NVIDIA GPU: TEST_PLATFORM=cuda launch/test.sh tests/models/test_attention.py",
)
@pytest.mark.parametrize("over_mesh", [False, True])
@pytest.mark.parametrize("alone", [False, True])
def test_cudnn_against_xla(arrays, over_mesh, alone):
    """In bfloat16 against float32."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",)) if over_mesh else None
    *inputs, end, weights = arrays
    if alone:
        end = np.array([[255] * 256, [129] * 130 + [-1] * 126], np.int32)
    inputs = [x.astype(jnp.bfloat16) for x in inputs]
    inputs32 = [x.astype(np.float32) for x in inputs]
    expected = value_and_gradients(attention.by_xla, *inputs32, end, weights)
    kernel = attention.by_cudnn_alone if alone else attention.by_cudnn
    found = value_and_gradients(attention.over_data(kernel, mesh), *inputs, end, weights)
    for ours, theirs in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert relative_error(ours, theirs) < 1e-2
