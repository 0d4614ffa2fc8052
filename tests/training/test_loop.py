"""The loop, on a system small enough to be written down twice."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from pinjax.errors import InputError
from pinjax.systems import system as system_lib
from pinjax.training import checkpoint, loop, sharding, step

CONFIG = ConfigDict(
    {
        "seed": 0,
        "steps": 12,
        "learning_rate": 0.1,
        "warmup_steps": 2,
        "b1": 0.9,
        "b2": 0.99,
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


def regression(disturb=lambda step, batch: None):
    """Least squares with noise from the key and a sketch that counts steps."""

    def init(key):
        return {"kernel": jax.random.normal(key, (3,)), "bias": jnp.zeros(())}, jnp.zeros(())

    def loss(params, frozen, sketches, batch, key):
        noise = 0.01 * jax.random.normal(key, batch["x"].shape)
        x = (batch["x"] + noise) * frozen
        error = x @ params["kernel"] + params["bias"] - batch["y"]
        return jnp.mean(error**2), ({"bias": params["bias"]}, sketches + 1)

    def batches(first):
        for number in range(first, CONFIG.steps):
            rng = np.random.default_rng(number)
            x = rng.normal(size=(8, 3)).astype(np.float32)
            batch = {"x": x, "y": (x @ [1.0, -2.0, 0.5]).astype(np.float32)}
            disturb(number, batch)
            yield batch

    def evaluate(params, split):
        metrics = {"error": system_lib.Estimate(float(jnp.abs(params["bias"])))}
        return system_lib.Table([system_lib.Row("regression", metrics)], [])

    return system_lib.System(
        init=init,
        loss=loss,
        frozen=jnp.full((3,), 2.0),
        batches=batches,
        evaluate=evaluate,
        asked=lambda split: "nobody",
        metrics={"error": "min"},
        embed=None,
        embed_moment=0,
        check_training=lambda: None,
        summary={},
        identity={},
    )


def train(workdir, config=CONFIG, traced=0, **kwargs):
    checkpoints = checkpoint.Checkpoints(workdir, config.select)
    mesh = sharding.make_mesh()
    try:
        return loop.train(regression(**kwargs), config, mesh, workdir, checkpoints, traced)
    finally:
        checkpoints.close()


def leaves(state):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def written(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return {line["step"]: line for line in map(json.loads, lines)}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    return train(workdir).state, written(workdir)


def test_steps_are_adamw_with_clipping_warm_up_and_cosine(unbroken):
    params, keys = jax.random.split(jax.random.key(0)), None
    del keys
    kernel = np.asarray(jax.random.normal(params[0], (3,)), np.float64)
    theta = np.append(kernel, 0.0)
    m, v = np.zeros(4), np.zeros(4)
    for number, batch in enumerate(regression().batches(0)):
        key = jax.random.fold_in(params[1], number)
        noise = 0.01 * np.asarray(jax.random.normal(key, (8, 3)))
        x = np.column_stack([(batch["x"] + noise) * 2.0, np.ones(8)])
        grad = 2 * x.T @ (x @ theta - batch["y"]) / 8
        grad *= min(1.0, 0.5 / np.linalg.norm(grad))
        m, v = 0.9 * m + 0.1 * grad, 0.99 * v + 0.01 * grad**2
        m_hat, v_hat = m / (1 - 0.9 ** (number + 1)), v / (1 - 0.99 ** (number + 1))
        rate = 0.1 * (number / 2 if number < 2 else 0.5 * (1 + np.cos(np.pi * (number - 2) / 10)))
        decay = 0.1 * np.append(theta[:3], 0.0)
        theta -= rate * (m_hat / (np.sqrt(v_hat) + 1e-8) + decay)
    state, _ = unbroken
    np.testing.assert_allclose(state.params["kernel"], theta[:3], rtol=1e-4)
    np.testing.assert_allclose(state.params["bias"], theta[3], rtol=1e-3, atol=1e-5)
    assert int(state.sketches) == int(state.step) == 12


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [3, 5, 10])
def test_a_run_that_died_ends_as_if_it_had_not(tmp_path, unbroken, at):
    def die(number, batch):
        if number == at:
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path, disturb=die)
    result = train(tmp_path)
    assert result.finished
    for found, expected in zip(leaves(result.state), leaves(unbroken[0]), strict=True):
        np.testing.assert_array_equal(found, expected)
    again, first = written(tmp_path), unbroken[1]
    assert again.keys() == first.keys()
    assert all(again[s]["loss"] == first[s]["loss"] for s in again if s > at)


def test_sigterm_saves_and_the_next_call_goes_on(tmp_path, unbroken):
    def preempt(number, batch):
        if number == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = train(tmp_path, disturb=preempt)
    assert not stopped.finished
    assert 0 < int(stopped.state.step) < 12
    checkpoints = checkpoint.Checkpoints(tmp_path)
    assert checkpoints.latest == int(stopped.state.step)
    checkpoints.close()
    result = train(tmp_path)
    for found, expected in zip(leaves(result.state), leaves(unbroken[0]), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_trace_of_some_steps(tmp_path, unbroken):
    state = train(tmp_path, traced=2).state
    np.testing.assert_array_equal(state.params["kernel"], unbroken[0].params["kernel"])
    (trace,) = tmp_path.glob("plugins/profile/*/*.xplane.pb")
    assert trace.stat().st_size > 1_000
    with pytest.raises(InputError, match=r"^a trace of 3 steps takes 13, but only 12 are left"):
        train(tmp_path / "other", traced=3)


def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_batch(tmp_path):
    def poison(number, batch):
        if number == 5:
            batch["y"][2] = np.nan

    with pytest.raises(
        InputError, match=r"loss of step 6 is nan; its batch is in .*_6_of_process_0\.npz"
    ):
        train(tmp_path, disturb=poison)
    with np.load(tmp_path / "bad_batch_6_of_process_0.npz") as batch:
        assert np.isnan(batch["y"][2])
    assert max(written(tmp_path)) < 6


def test_the_best_checkpoint_is_kept_and_chosen(tmp_path):
    config = CONFIG.copy_and_resolve_references()
    config.update(select="valid/error", evaluate_every=1, checkpoint_every=1)
    train(tmp_path, config)
    errors = {s: line["valid/error"] for s, line in written(tmp_path).items()}
    checkpoints = checkpoint.Checkpoints(tmp_path, "valid/error")
    assert checkpoints.latest == 12
    assert checkpoints.chosen == max(errors, key=errors.get)
    optimizer = step.make_optimizer(config)
    like = step.abstract_state(regression(), optimizer, config, sharding.make_mesh())
    state = checkpoints.restore(checkpoints.chosen, like)
    assert float(jnp.abs(state.params["bias"])) == errors[checkpoints.chosen]
    checkpoints.close()


def test_an_unknown_metric_to_select_by_is_refused_before_anything_is_saved_by_it(tmp_path):
    config = CONFIG.copy_and_resolve_references()
    config.update(select="valid/eror", evaluate_every=6, checkpoint_every=4)
    known = "bias, gradient_norm, loss, valid/error"
    with pytest.raises(InputError, match=f"train.select: 'valid/eror' is none of {known}"):
        train(tmp_path, config)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    assert checkpoints.latest == 4
    checkpoints.close()


def test_a_work_directory_belongs_to_one_run(tmp_path):
    config = ConfigDict({"train": {"steps": 3, "log_every": 1}})
    identity = {"dataset": "digest"}
    checkpoint.claim(tmp_path, config, identity)
    checkpoint.claim(tmp_path, ConfigDict({"train": {"steps": 3, "log_every": 2}}), identity)
    with pytest.raises(InputError, match=r"train\.steps=3, this one has train\.steps=4"):
        checkpoint.claim(tmp_path, ConfigDict({"train": {"steps": 4, "log_every": 1}}), identity)
    with pytest.raises(InputError, match=r"dataset=digest, this one has dataset=other"):
        checkpoint.claim(tmp_path, config, {"dataset": "other"})
