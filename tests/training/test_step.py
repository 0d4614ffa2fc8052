import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from pinjax.training import step


def make(steps, warmup_steps, weight_decay=0.0):
    fields = {"learning_rate": 0.1, "clip_norm": 1.0, "weight_decay": weight_decay}
    return step.make_optimizer(ConfigDict(fields | {"steps": steps, "warmup_steps": warmup_steps}))


@pytest.mark.parametrize("warmup_steps", [4, 9])
def test_a_run_may_end_with_its_warm_up(warmup_steps):
    """Then it has warmed up by its end."""
    optimizer, params = make(4, warmup_steps), {"kernel": jnp.ones(1)}
    state, rates = optimizer.init(params), []
    for _ in range(4):
        updates, state = optimizer.update({"kernel": jnp.ones(1)}, state, params)
        rates.append(-float(updates["kernel"][0]))
    np.testing.assert_allclose(rates, 0.1 * np.arange(4) / 4, rtol=1e-4, atol=1e-8)


def test_weights_of_layers_alone_decay():
    names = "kernel", "key", "value", "bias", "scale", "embedding", "importance"
    params = {"layer": dict.fromkeys(names, jnp.ones(2))}
    optimizer = make(4, 0, weight_decay=0.5)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zeros, optimizer.init(params), params)
    decayed = [name for name in names if updates["layer"][name].any()]
    assert decayed == ["kernel", "key", "value"]
