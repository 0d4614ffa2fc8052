"""What the tests of all systems need."""

import functools
import re

import jax
import numpy as np
import pytest

from pinjax.distributed import sharded_table, sharding
from pinjax.systems import registry
from pinjax.training import step
from tests.serving import exports


@pytest.fixture(scope="session")
def mesh():
    """Of one device."""
    return sharding.make_mesh(jax.devices()[:1])


@pytest.fixture
def train_on_devices():
    """(config, steps) -> the losses and the final state on 1 and 8 devices, say."""

    def train(config, steps, numbers=(1, 8)):
        ends = []
        for devices in numbers:
            mesh = sharding.make_mesh(jax.devices()[:devices], config.train.model_devices)
            system = registry.create(config, mesh)
            optimizer = step.make_optimizer(config.train)
            like = step.abstract_state(system.trainable, optimizer, config.train, mesh)
            places = jax.tree.map(lambda x: x.sharding, like)
            init = functools.partial(step.init_state, system.trainable, optimizer, 0)
            state = jax.jit(init, out_shardings=places)()
            train_step = jax.jit(
                step.make_step(system.trainable, optimizer),
                out_shardings=(places, sharding.replicated(mesh)),
            )
            losses, batches = [], system.batches(0)
            for _ in range(steps):
                batch = sharding.place_batch(mesh, next(batches))
                assert all(len(x.sharding.device_set) == devices for x in batch.values())
                state, metrics = train_step(state, system.constants, batch)
                losses.append(float(metrics["loss"]))
            ends.append((losses, jax.device_get(state)))
        return ends

    return train


@pytest.fixture
def check_sharded_tables():
    """(config) asserts that sharded tables give the loss and gradient of replicated ones."""

    def check(config):
        config.train.update(model_devices=2, shard_tables=True)
        many = sharding.make_mesh(jax.devices()[:8], 2)
        sharded = registry.create(config, many)
        like = step.abstract_state(
            sharded.trainable, step.make_optimizer(config.train), config.train, many
        )
        places = jax.tree.map(lambda x: x.sharding, (like.params, like.sketches))
        sketches = jax.jit(lambda key: sharded.trainable.init(key)[1], out_shardings=places[1])(
            jax.random.key(1)
        )
        params = jax.device_put(exports.random_params(sharded), places[0])
        batch, key = next(sharded.batches(0)), jax.random.key(2)

        def loss_and_gradient(system, *state, batch):
            compiled = jax.jit(jax.value_and_grad(system.trainable.loss, has_aux=True))
            (loss, _), gradient = compiled(state[0], system.constants, state[1], batch, key)
            return float(loss), jax.device_get(gradient)

        found = loss_and_gradient(
            sharded, params, sketches, batch=sharding.place_batch(many, batch)
        )

        config.train.update(model_devices=1, shard_tables=False)
        one = sharding.make_mesh(jax.devices()[:1])
        replicated = registry.create(config, one)
        layout = sharded_table.Layout(many)

        def as_replicated(path, rows, like):
            name = sharding.path_name(path)
            if not re.search(sharded_table.PARAMETERS, name):
                return rows
            return rows[layout.lies_at(np.arange(len(like)), len(rows))]

        like, _ = jax.eval_shape(replicated.trainable.init, jax.random.key(1))
        params = jax.tree_util.tree_map_with_path(as_replicated, jax.device_get(params), like)
        batch = next(replicated.batches(0))
        expected = loss_and_gradient(replicated, params, jax.device_get(sketches), batch=batch)
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
        gradient = jax.tree_util.tree_map_with_path(as_replicated, found[1], like)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5)
        jax.tree.map(close, gradient, expected[1])

    return check
