import jax
import jax.numpy as jnp
import numpy as np

from pinjax.models import history_sums

LENGTH = 6


END = np.array([[5, 5, 5, 5, 5, 5], [1, 1, 4, 4, 4, -1]], np.int32)


def test_sums_are_weighted_and_grow_with_the_root_of_the_weight(rng):
    x = rng.standard_normal((2, LENGTH, 3))
    w = rng.random((2, LENGTH)) * np.array([[0, 1, 1, 0, 1, 1], [0, 1, 0, 1, 1, 0]])
    positions = np.arange(2 * LENGTH).reshape(2, LENGTH)
    values = (jnp.asarray(values, jnp.float32) for values in (x, w))
    found = history_sums.sums_until(*values, jnp.asarray(END), jnp.asarray(positions))
    for user, position in np.ndindex(w.shape):
        if END[user, position] >= 0:
            first = np.flatnonzero(END[user] == END[user, position])[0]
            seen = slice(first, position + 1)
            weights = w[user, seen]
            expected = weights @ x[user, seen] / np.sqrt(weights.sum()) if weights.any() else 0
            np.testing.assert_allclose(found[user, position], expected, rtol=1e-5, atol=1e-6)


def liked(params, kernel, *arrays):
    params = {name: jnp.log(value) for name, value in params.items()}
    params["key"] = {"kernel": jnp.asarray(kernel, jnp.float32)}
    return history_sums.Liked().apply({"params": params}, *arrays)


def test_liked_is_the_formula(rng):
    e = rng.standard_normal((2, LENGTH, 4))
    e /= np.linalg.norm(e, axis=-1, keepdims=True)
    w = rng.random((2, LENGTH)) * np.array([[1, 1, 1, 1, 1, 1], [0, 0, 1, 0, 1, 0]])
    time = 1_700_000_000 + rng.integers(0, 30_000, (2, LENGTH)).cumsum(axis=1)
    positions = np.array([[5, 0, 3], [4, 2, 3], [1, 0, 0]])  # the last two share a row
    kernel = rng.standard_normal((4, 4))
    params = {"sharpness": 3.0, "gain": 2.0, "visit": 4.0}

    def expected(e, kernel, sharpness, gain, visit):
        out = np.zeros((3, 3, 4))
        for user, p in np.ndindex(positions.shape):
            u, first = min(user, 1), 2 * (user == 1)
            key = e[u] @ kernel
            key /= np.linalg.norm(key, axis=-1, keepdims=True)
            alike = np.exp(sharpness * (key @ key.T - 1))
            age = (time[u][:, None] - time[u]) / (3600 * visit)
            actions = range(first, positions[user, p] + 1)
            v = {
                t: w[u, t]
                / (1 + sum(w[u, s] * alike[s, t] * np.exp(-age[t, s]) for s in range(first, t)))
                for t in actions
            }
            for t in actions:
                n = sum(v[s] * alike[s, t] for s in actions)
                out[user, p] += v[t] * e[u, t] * np.log(1 + gain * n) / n if n > 0 else 0
        return out / np.maximum(np.linalg.norm(out, axis=-1, keepdims=True), 1e-12)

    def found(e, kernel, params):
        e, weights = (jnp.asarray(x, jnp.float32) for x in (e, w))
        history = {"time": jnp.asarray(time, jnp.uint32), "end": jnp.asarray(END)}
        cells = jnp.asarray(positions + np.array([[0], [LENGTH], [LENGTH]]))
        return liked(params, kernel, e, weights, history, cells)

    outputs = np.asarray(found(e, kernel, params))
    np.testing.assert_allclose(outputs, expected(e, kernel, **params), rtol=1e-4, atol=1e-6)
    assert not outputs[2].any()  # a user without actions

    # The gradient, along a random direction, against a central difference in float64.
    along_e, along_kernel = rng.standard_normal(e.shape), rng.standard_normal((4, 4))
    back, step = rng.standard_normal((3, 3, 4)), 1e-6
    ends = [
        expected(
            e + h * along_e, kernel + h * along_kernel, **{k: x + h for k, x in params.items()}
        )
        for h in (-step, step)
    ]
    to_e, to_kernel, to_params = jax.grad(lambda *x: (found(*x) * back).sum(), argnums=(0, 1, 2))(
        jnp.asarray(e, jnp.float32), jnp.asarray(kernel, jnp.float32), params
    )
    slope = (to_e * along_e).sum() + (to_kernel * along_kernel).sum() + sum(to_params.values())
    np.testing.assert_allclose(slope, ((ends[1] - ends[0]) * back).sum() / (2 * step), rtol=1e-3)


def test_a_topic_counts_by_the_logarithm_of_its_visits():
    e = jnp.eye(3)[jnp.array([[0, 0, 1, 0, 2, 2, 2]])]
    days = np.array([[0, 0, 1, 2, 3, 3, 3]])  # the second action on topic 0 is of the first visit
    time = jnp.asarray(1_700_000_000 + 86_400 * days, jnp.uint32)
    params = {"sharpness": 50.0, "gain": 2.0, "visit": 0.1}
    history = {"time": time, "end": jnp.full((1, 7), 6)}
    found = liked(params, np.eye(3), e, jnp.ones((1, 7)), history, jnp.array([[6]]))
    # Of simultaneous actions the n-th adds 1 / n of a visit.
    expected = np.log1p(2.0 * np.array([1 + 1 / 2 + 1, 1, 1 + 1 / 2 + 1 / 3]))
    np.testing.assert_allclose(found[0, -1], expected / np.linalg.norm(expected), rtol=1e-5)
