import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinjax.models import features

UINT32_MAX = 2**32 - 1


def times(rng):
    edges = [0, 1, 2**16 - 1, 2**16, 2**31 - 1, 2**31, UINT32_MAX - 1, UINT32_MAX]
    timestamps = rng.integers(1_500_000_000, 1_900_000_000, 100)
    anything = rng.integers(0, UINT32_MAX, 100, endpoint=True)
    return np.concatenate([edges, timestamps, anything]).astype(np.uint32)


def exact_turns(t, period):
    """t / period modulo 1 in [-1/2, 1/2)."""
    return (Fraction(int(t)) / Fraction(period) + Fraction(1, 2)) % 1 - Fraction(1, 2)


def test_turns_are_exact_over_all_of_uint32(rng):
    t = times(rng)
    # The last one's inverse has a lower word of nearly all ones, the worst case of the carries.
    periods = (
        *features.ABSOLUTE_PERIODS,
        *features.RELATIVE_PERIODS,
        *np.exp(rng.uniform(0, 20, 30)).tolist(),
        *(1.0, 2.0, 3.0, 1.0000000001),
    )
    result = np.asarray(features.turns(jnp.asarray(t), periods))
    assert result.shape == (len(t), len(periods))
    for i, j in np.ndindex(result.shape):
        exact = exact_turns(t[i], periods[j])
        error = abs(Fraction(float(result[i, j])) - exact)
        error = min(error, 1 - error)  # half a turn forward is half a turn back
        assert error <= Fraction(1, 2**31) + abs(exact) / 2**24


def test_high_word(rng):
    a, b = (np.append(rng.integers(0, 2**32, 500), 2**32 - 1).astype(np.uint32) for _ in range(2))
    expected = [int(x) * int(y) >> 32 for x, y in zip(a, b, strict=True)]
    np.testing.assert_array_equal(features._high_word(jnp.asarray(a), jnp.asarray(b)), expected)


def test_time_encoding_and_the_gradient_of_its_phases(rng):
    t = times(rng)[-12:].reshape(3, 4)
    periods = (900.0, 86_400.0, 12_345.678)
    encoding = features.TimeEncoding(periods)
    phases = rng.uniform(-3, 3, (2, 3)).astype(np.float32)
    weights = rng.standard_normal((3, 4, 7)).astype(np.float32)

    def weighted(phases):
        encoded = encoding.apply({"params": {"phases": phases}}, jnp.asarray(t))
        return (encoded * weights).sum(), encoded

    gradient, encoded = jax.grad(weighted, has_aux=True)(jnp.asarray(phases))

    turns = np.array([[float(exact_turns(x, p)) for p in periods] for x in t.ravel()])
    angles = 2 * np.pi * turns.reshape(3, 4, 3)
    cosines, sines = angles + phases[0], angles + phases[1]
    logs = np.log1p(t.astype(np.float64))[..., None]
    waves = np.concatenate([np.cos(cosines), np.sin(sines)], axis=-1)
    expected = np.concatenate([waves, logs / 4], axis=-1)
    np.testing.assert_allclose(encoded, expected, rtol=1e-6, atol=1e-6)
    by_phase = np.stack([-np.sin(cosines) * weights[..., :3], np.cos(sines) * weights[..., 3:6]])
    by_phase = by_phase.sum(axis=(1, 2))
    np.testing.assert_allclose(gradient, by_phase, rtol=1e-5, atol=1e-5)


def test_a_second_is_told_apart_today():
    encoding = features.TimeEncoding(features.ABSOLUTE_PERIODS)
    t = jnp.array([1_800_000_000, 1_800_000_001], jnp.uint32)
    encoded = encoding.apply(encoding.init(jax.random.key(0), t), t)
    step = 2 * math.pi / features.ABSOLUTE_PERIODS[0]
    moved = jnp.abs(encoded[1] - encoded[0]).reshape(-1)
    assert float(jnp.hypot(moved[0], moved[11])) == pytest.approx(step, rel=1e-3)


def test_log_seconds():
    logs = features.log_seconds(jnp.array([0, 1, 9, UINT32_MAX], jnp.uint32))
    np.testing.assert_allclose(logs[:, 0], np.log1p([0, 1, 9, UINT32_MAX]) / 16, rtol=1e-6)
    assert logs[0, 0] == 0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32])
def test_unknown_categories_contribute_nothing_and_learn_nothing(dtype):
    embedding = features.CategoryEmbedding(num_categories=4, dim=3)
    rows = jnp.asarray(np.array([[0, 3, 1], [3, 4, 200]], dtype))
    params = embedding.init(jax.random.key(0), rows)
    table = params["params"]["embedding"]

    embedded = embedding.apply(params, rows)
    expected = np.zeros((2, 3, 3), np.float32)
    expected[0, 1], expected[0, 2], expected[1, 0] = table[3], table[1], table[3]
    np.testing.assert_array_equal(embedded, expected)

    gradient = jax.grad(lambda params: embedding.apply(params, rows).sum())(params)
    expected = np.array([0, 1, 0, 2])[:, None] * np.ones(3)
    np.testing.assert_array_equal(gradient["params"]["embedding"], expected)


def test_unit_length(rng):
    x = rng.standard_normal((5, 7)).astype(np.float32)
    expected = x / np.linalg.norm(x, axis=-1, keepdims=True)
    np.testing.assert_allclose(features.unit_length(jnp.asarray(x)), expected, rtol=1e-6)


@pytest.mark.parametrize("x", [0.0, 1e-8])
def test_unit_length_of_almost_nothing_is_linear(x):
    x = jnp.full(3, x)
    value, gradient = jax.value_and_grad(lambda x: features.unit_length(x).sum())(x)
    np.testing.assert_allclose(value, 1e6 * x.sum(), rtol=1e-6)
    np.testing.assert_allclose(gradient, 1e6 * np.ones(3), rtol=1e-6)


def test_relative_times():
    last = 2**32 - 1  # differences must not pass through signed or floating numbers
    time = np.array([[0, 0, last - 10, last - 7, last], [1, 2, 4, 8, 2**31 + 9]], np.uint32)
    time = np.concatenate([time, time[1:]])
    end = np.array([[-1, -1, 4, 4, 4], [4, 4, 4, 4, 4], [0, 2, 2, 4, 4]])  # windows
    age, gap = features.relative_times(jnp.asarray(time), jnp.asarray(end, jnp.int32))
    np.testing.assert_array_equal(age[0, 2:], [10, 7, 0])
    np.testing.assert_array_equal(gap[0, 2:], [0, 3, 7])
    np.testing.assert_array_equal(age[1], time[1, -1] - time[1])
    np.testing.assert_array_equal(gap[1], [0, 1, 2, 4, 2**31 + 1])
    np.testing.assert_array_equal(age[2], [0, 2, 0, 2**31 + 1, 0])
    np.testing.assert_array_equal(gap[2], [0, 0, 2, 0, 2**31 + 1])


def test_a_residual_is_all_there_is_where_there_is_no_own_vector(rng):
    own, x = (rng.standard_normal((4, 8)).astype(np.float32) for _ in range(2))
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    own[2] = 0

    def embed(gain):
        return features.unit_length(features.plus_residual(jnp.asarray(own), gain, jnp.asarray(x)))

    for gain in (0.0, 0.3):
        expected = own + np.array([gain, gain, 1, gain])[:, None] * x
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(embed(jnp.float32(gain)), expected, atol=1e-6)
    # The projection of x: with the gain beside no vector it would be a million times as large.
    slope = jax.jacobian(embed)(jnp.float32(0))
    ideal = x - (x * own).sum(axis=1, keepdims=True) * own
    np.testing.assert_allclose(slope, np.where(own.any(axis=1)[:, None], ideal, 0), atol=1e-5)
