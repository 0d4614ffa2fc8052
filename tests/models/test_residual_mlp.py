import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinjax.models import mlp, residual_mlp


@pytest.mark.parametrize(
    ("layers", "gated"), [(1, False), (1, True), (2, False), (3, True)], ids=str
)
def test_residual_mlp_is_the_formula(rng, layers, gated):
    x = rng.standard_normal((3, 2, 5)).astype(np.float32)
    model = residual_mlp.ResidualMLP(7, 4, jnp.float32, layers, gated)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32),
        jax.eval_shape(model.init, jax.random.key(0), x)["params"],
    )

    def dense(x, name):
        layer = {key: np.asarray(value, np.float64) for key, value in params[name].items()}
        return x @ layer["kernel"] + layer["bias"]

    def gelu(y):
        return y * 0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))

    def hidden(x, number=""):
        y = gelu(dense(x, f"hidden{number}"))
        return y * dense(x, f"gate{number}") if gated else y

    y = hidden(x)
    for layer in range(1, layers):
        z = (y - y.mean(axis=-1, keepdims=True)) / np.sqrt(y.var(axis=-1, keepdims=True) + 1e-6)
        norm = {key: np.asarray(value) for key, value in params[f"norm_{layer}"].items()}
        y = y + hidden(z * norm["scale"] + norm["bias"], f"_{layer}")
    found = model.apply({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(found, dense(y, "out"), rtol=1e-4, atol=1e-4)
    if (layers, gated) == (1, False):
        plain = mlp.MLP(7, 4, jnp.float32).apply({"params": params}, jnp.asarray(x))
        np.testing.assert_array_equal(plain, found)
