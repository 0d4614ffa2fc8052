"""What the tests of all systems need."""

import functools
import pathlib
import runpy

import jax
import pytest

from pinjax.systems import registry
from pinjax.training import sharding, step

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def make_config(request, data_dir):
    """(section=fields, ...) -> the :test variant of the module's SYSTEM with other fields."""

    def make(**sections):
        path = CONFIGS / f"{request.module.SYSTEM}.py"
        config = runpy.run_path(str(path))["get_config"]("test")
        config.data.dir = str(data_dir)
        for section, fields in sections.items():
            config[section].update(fields)
        return config

    return make


@pytest.fixture(scope="session")
def mesh():
    """Of one device."""
    return sharding.make_mesh(jax.devices()[:1])


@pytest.fixture
def train_on_devices():
    """(config, steps) -> the losses and the final state on 1, 2 and 8 devices, say."""

    def train(config, steps, numbers=(1, 2, 8)):
        ends = []
        for devices in numbers:
            mesh = sharding.make_mesh(jax.devices()[:devices], config.train.model_devices)
            system = registry.create(config, mesh)
            optimizer = step.make_optimizer(config.train)
            like = step.abstract_state(system, optimizer, config.train, mesh)
            places = jax.tree.map(lambda x: x.sharding, like)
            init = functools.partial(step.init_state, system, optimizer, 0)
            state = jax.jit(init, out_shardings=places)()
            train_step = jax.jit(
                step.make_step(system, optimizer),
                out_shardings=(places, sharding.replicated(mesh)),
            )
            losses, batches = [], system.batches(0)
            for _ in range(steps):
                batch = sharding.place_batch(mesh, next(batches))
                assert all(len(x.sharding.device_set) == devices for x in batch.values())
                state, metrics = train_step(state, system.frozen, batch)
                losses.append(float(metrics["loss"]))
            ends.append((losses, jax.device_get(state)))
        return ends

    return train
