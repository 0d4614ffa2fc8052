"""The gradient of each system's loss is that of the loss's values."""

import jax
import numpy as np
import pytest

from pinjax.systems import registry
from tests.systems.test_build import SYSTEMS, get_config


@pytest.mark.slow
@pytest.mark.parametrize("name", SYSTEMS)
def test_the_gradient_of_a_loss_is_a_central_difference(name, mesh, data_dir, rng):
    """Along a random direction in which the parts of a model do not cancel each other."""
    made = registry.create(get_config(name, data_dir), mesh)
    params, sketches = jax.jit(made.trainable.init)(jax.random.key(1))
    constants, batch = made.constants, next(made.batches(25))  # with PinSage's hard negatives
    compiled = jax.jit(jax.value_and_grad(made.trainable.loss, has_aux=True))

    def evaluate(params):
        (value, _), gradient = compiled(params, constants, sketches, batch, jax.random.key(2))
        return float(value), gradient

    _, gradient = evaluate(params)

    def draw(leaf, slope):
        drawn = rng.standard_normal(leaf.shape).astype(np.float32)
        drawn *= max(np.std(leaf), 0.02)
        return drawn * (1 if np.vdot(drawn, slope) >= 0 else -1)

    direction = jax.tree.map(draw, params, gradient)

    def moved(step):
        return evaluate(jax.tree.map(lambda x, y: x + step * y, params, direction))[0]

    slopes = jax.tree.leaves(jax.tree.map(np.vdot, gradient, direction))
    step = 0.002  # further away are kinks of PinSage's rectifiers
    assert sum(slopes) == pytest.approx((moved(step) - moved(-step)) / step / 2, rel=0.02)
