"""A system small enough to be written down twice, and how it is trained."""

import types

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from pinjax.distributed import sharding
from pinjax.evaluation import tables
from pinjax.evaluation.metrics import Estimate
from pinjax.systems import system as system_lib
from pinjax.training import checkpoint, loop


@pytest.fixture(scope="session")
def make_config():
    """(fields) -> the `train` section of a config."""

    def make(**fields):
        config = ConfigDict(
            {
                "seed": 0,
                "steps": 12,
                "learning_rate": 0.1,
                "warmup_steps": 2,
                "weight_decay": 0.1,
                "clip_norm": 0.5,
                "log_every": 2,
                "checkpoint_every": 4,
                "evaluate_every": 6,
                "select": "",
                "shard": "",
                "shard_optimizer": False,
                "shard_tables": False,
            }
        )
        config.update(fields)
        return config

    return make


@pytest.fixture(scope="session")
def regression():
    """(disturb, disturb_evaluation) -> least squares, with noise and a sketch that counts steps."""

    def make(disturb=lambda step, batch: None, disturb_evaluation=lambda metrics: None):
        def init(key):
            return {"kernel": jax.random.normal(key, (3,)), "bias": jnp.zeros(())}, jnp.zeros(())

        def loss(params, constants, sketches, batch, key):
            noise = 0.01 * jax.random.normal(key, batch["x"].shape)
            x = (batch["x"] + noise) * constants["factor"]
            error = x @ params["kernel"] + params["bias"] - batch["y"]
            return jnp.mean(error**2), ({"bias": params["bias"]}, sketches + 1)

        def batch(number):
            rng = np.random.default_rng(number)
            x = rng.normal(size=(8, 3)).astype(np.float32)
            made = {"x": x, "y": (x @ [1.0, -2.0, 0.5]).astype(np.float32)}
            disturb(number, made)
            return made

        def batches(first):  # read ahead by threads, as `pinjax.data.batches` does
            made = grain.MapDataset.range(first, 12).map(batch)
            options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
            return iter(made.to_iter_dataset(options))

        def evaluate(params, split):
            metrics = {"error": Estimate(float(jnp.abs(params["bias"])))}
            disturb_evaluation(metrics)
            return tables.Table([tables.Row("regression", metrics)], [])

        constants = {"factor": jnp.full((3,), 2.0)}
        return system_lib.System(
            dataset=None,
            trainable=system_lib.Trainable(
                init=init,
                loss=loss,
                constants=jax.eval_shape(lambda: constants),
                batch=jax.eval_shape(lambda: batch(0)),
                batch_size="data.rows",
                embedders={},
                search=None,
            ),
            constants=constants,
            batches=batches,
            evaluate=evaluate,
            evaluator=types.SimpleNamespace(metrics={"error": "min"}),
            serve=None,
            check_training=lambda: None,
            summary={},
        )

    return make


@pytest.fixture(scope="session")
def train(make_config, regression):
    """(workdir, config, traced, system or **disturbances) -> the result of `loop.train`."""

    def run(workdir, config=None, traced=0, system=None, **kwargs):
        config = config or make_config()
        mesh, system = sharding.make_mesh(), system or regression(**kwargs)
        with checkpoint.of_run(workdir, ConfigDict({"train": config}), system) as checkpoints:
            return loop.train(system, config, mesh, workdir, checkpoints, traced)

    return run
