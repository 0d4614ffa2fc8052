"""The loop, on a system small enough to be written down twice."""

import dataclasses
import json
import os
import shutil
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict

from pinjax import checksums, signals
from pinjax.distributed import sharding
from pinjax.errors import InputError
from pinjax.evaluation.metrics import Estimate
from pinjax.training import checkpoint, loop, step, workdirs

COMMIT = "commit_success.txt"
NOT_FINITE = r"step 6 has the loss {loss} and a gradient of norm {norm}; its batch is in .*_6_of_pr"


def assert_same(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def written(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    found = {}
    for line in map(json.loads, lines):
        found[line["step"]] = found.get(line["step"], {}) | line
    return found


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, train):
    workdir = tmp_path_factory.mktemp("unbroken")
    return train(workdir).state, written(workdir)


def test_steps_are_adamw_with_clipping_warm_up_and_cosine(unbroken, regression):
    params, keys = jax.random.split(jax.random.key(0)), None
    del keys
    kernel = np.asarray(jax.random.normal(params[0], (3,)), np.float64)
    theta = np.append(kernel, 0.0)
    m, v, losses, norms = np.zeros(4), np.zeros(4), [], []
    for number, batch in enumerate(regression().batches(0)):
        key = jax.random.fold_in(params[1], number)
        noise = 0.01 * np.asarray(jax.random.normal(key, (8, 3)))
        x = np.column_stack([(batch["x"] + noise) * 2.0, np.ones(8)])
        error = x @ theta - batch["y"]
        grad = 2 * x.T @ error / 8
        losses.append(np.mean(error**2))
        norms.append(np.linalg.norm(grad))
        grad *= min(1.0, 0.5 / np.linalg.norm(grad))
        m, v = 0.9 * m + 0.1 * grad, 0.98 * v + 0.02 * grad**2
        m_hat, v_hat = m / (1 - 0.9 ** (number + 1)), v / (1 - 0.98 ** (number + 1))
        rate = 0.1 * (number / 2 if number < 2 else 0.5 * (1 + np.cos(np.pi * (number - 2) / 10)))
        decay = 0.1 * np.append(theta[:3], 0.0)
        theta -= rate * (m_hat / (np.sqrt(v_hat) + 1e-8) + decay)
    state, logged = unbroken
    np.testing.assert_allclose(state.params["kernel"], theta[:3], rtol=1e-4)
    np.testing.assert_allclose(state.params["bias"], theta[3], rtol=1e-3, atol=1e-5)
    assert int(state.sketches) == int(state.step) == 12
    # Means over the steps since the last line, and norms before clipping.
    assert min(norms) > 0.5
    assert list(logged) == [2, 4, 6, 8, 10, 12]
    for name, values in (("loss", losses), ("gradient_norm", norms)):
        found = [line[name] for line in logged.values()]
        np.testing.assert_allclose(found, np.reshape(values, (6, 2)).mean(axis=1), rtol=1e-3)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("at", [3, 5, 10])
def test_a_run_that_died_ends_as_if_it_had_not(tmp_path, unbroken, at, train):
    def die(number, batch):
        if number == at:
            raise KilledError

    with pytest.raises(KilledError):
        train(tmp_path, disturb=die)
    result = train(tmp_path)
    assert result.stopped is None
    assert_same(result.state, unbroken[0])
    again, first = written(tmp_path), unbroken[1]
    assert again.keys() == first.keys()
    assert all(again[s]["loss"] == first[s]["loss"] for s in again if s > at)


def test_sigterm_saves_and_the_next_call_goes_on(tmp_path, unbroken, train):
    def preempt(number, batch):
        if number == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = train(tmp_path, disturb=preempt)
    assert stopped.stopped.exit_code == 75
    assert 0 < int(stopped.state.step) < 12
    assert checkpoint.Checkpoints(tmp_path).steps[-1] == int(stopped.state.step)
    assert_same(train(tmp_path).state, unbroken[0])


def test_a_signal_while_a_finished_run_is_closed_is_not_swallowed(
    tmp_path, regression, make_config
):
    system = regression()

    def batches(first):
        try:
            yield from system.batches(first)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    config, mesh = make_config(), sharding.make_mesh()
    closing = dataclasses.replace(system, batches=batches)
    with checkpoint.of_run(tmp_path, ConfigDict({"train": config}), system) as checkpoints:
        result = loop.train(closing, config, mesh, tmp_path, checkpoints)
    assert int(result.state.step) == 12
    assert result.stopped.exit_code == 75


def test_without_a_validation_split_nothing_is_evaluated(tmp_path, unbroken, regression, train):
    def refuse(params, split):
        raise AssertionError("evaluated")

    nothing = types.SimpleNamespace(metrics={})
    system = dataclasses.replace(regression(), evaluate=refuse, evaluator=nothing)
    state = train(tmp_path, system=system).state
    assert_same(state, unbroken[0])
    assert checkpoint.Checkpoints(tmp_path).steps[-1] == 12
    with pytest.raises(InputError, match=r"^train\.select: 'valid/error' needs a validation split"):
        checkpoint.of_run(tmp_path, ConfigDict({"train": {"select": "valid/error"}}), system)


@pytest.mark.parametrize(("at", "signum", "code"), [(6, "SIGINT", 130), (12, "SIGHUP", 75)])
def test_a_signal_amid_an_evaluation_breaks_it_off_and_the_next_call_makes_up_for_it(
    tmp_path, unbroken, at, signum, code, train
):
    evaluations = []

    def interrupt(metrics):
        evaluations.append(metrics)
        if len(evaluations) == at // 6:
            os.kill(os.getpid(), getattr(signal, signum))
            signals.check()  # as between two batches
            raise AssertionError("not broken off")

    stopped = train(tmp_path, disturb_evaluation=interrupt)
    assert stopped.stopped.exit_code == code
    assert int(stopped.state.step) == at
    checkpoints = checkpoint.Checkpoints(tmp_path)
    assert checkpoints.steps[-1] == at
    assert not checkpoints.evaluated(at)
    assert "valid/error" not in written(tmp_path)[at]

    assert_same(train(tmp_path).state, unbroken[0])
    assert checkpoints.evaluated(12)
    assert written(tmp_path)[at]["valid/error"] == unbroken[1][at]["valid/error"]


def test_a_checkpoint_is_not_written_again_without_its_evaluation(tmp_path, train):
    """It would be deleted first, and may be the only one."""

    def interrupt(metrics):
        os.kill(os.getpid(), signal.SIGTERM)
        signals.check()

    written = []
    for _ in range(2):
        train(tmp_path, disturb_evaluation=interrupt)
        path = tmp_path / "checkpoints" / str(checkpoint.Checkpoints(tmp_path).steps[-1])
        written.append((path.name, path.stat().st_ino, path.stat().st_mtime_ns))
    assert written[0] == written[1]


def test_a_trace_of_more_steps_than_are_left_is_refused(tmp_path, train):
    with pytest.raises(InputError, match=r"^a trace of 3 steps takes 13, but only 12 are left"):
        train(tmp_path, traced=3)


def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_batch(tmp_path, train):
    def poison(number, batch):
        if number == 5:
            batch["y"][2] = np.nan

    with pytest.raises(InputError, match=NOT_FINITE.format(loss="nan", norm="nan")):
        train(tmp_path, disturb=poison)
    with np.load(tmp_path / "bad_batch_6_of_process_0.npz") as batch:
        assert np.isnan(batch["y"][2])
    assert max(written(tmp_path)) < 6


def test_a_gradient_that_is_not_finite_stops_the_run_before_its_checkpoint(
    tmp_path, train, make_config
):
    def overflow(number, batch):
        if number == 3:  # float32 holds the loss, but not the square of its gradient
            batch["x"][2] *= 1_000
            batch["y"][2] = 1e18

    config = make_config(checkpoint_every=1, log_every=1)
    with pytest.raises(InputError, match=r"loss 1.25e\+35 and a gradient of norm inf"):
        train(tmp_path, config, disturb=overflow)
    assert checkpoint.Checkpoints(tmp_path).steps == [2, 3]


@pytest.fixture(scope="session")
def selecting(make_config):
    """(metric) -> a config that evaluates each step and chooses by the metric."""

    def make(metric="valid/error"):
        return make_config(select=metric, evaluate_every=1, checkpoint_every=1)

    return make


@pytest.fixture
def load_chosen(selecting, regression):
    """(workdir) -> the state that `selecting` chose."""

    def load(workdir):
        config, system, mesh = selecting(), regression(), sharding.make_mesh()
        like = step.abstract_state(system.trainable, step.make_optimizer(config), config, mesh)
        checkpoints = checkpoint.of_run(workdir, ConfigDict({"train": config}), system)
        state = checkpoints.load_chosen(like)
        assert int(state.step) == checkpoints.chosen()
        return state

    return load


def test_the_best_checkpoint_is_kept_and_chosen(tmp_path, train, selecting, load_chosen):
    train(tmp_path, selecting())
    errors = {s: line["valid/error"] for s, line in written(tmp_path).items()}
    best = min(errors, key=errors.get)
    assert checkpoint.Checkpoints(tmp_path).steps == sorted({best, 11, 12})
    state = load_chosen(tmp_path)
    assert int(state.step) == best
    assert float(jnp.abs(state.params["bias"])) == errors[best]


def test_a_metric_that_is_nan_chooses_nothing_and_hides_no_number(
    tmp_path, train, selecting, load_chosen
):
    values = iter([3.0, 2.0, np.nan, 4.0, np.nan, np.nan, np.nan, 5.0, np.nan, np.nan, 6.0, np.nan])

    def replace(metrics):
        metrics["error"] = Estimate(next(values))

    train(tmp_path, selecting(), disturb_evaluation=replace)
    assert checkpoint.Checkpoints(tmp_path).steps == [2, 11, 12]
    assert int(load_chosen(tmp_path).step) == 2
    assert written(tmp_path)[3]["valid/error"] is None


def test_where_no_evaluation_gave_a_number_the_latest_is_chosen(
    tmp_path, train, selecting, load_chosen
):
    nothing = Estimate(np.nan)
    train(tmp_path, selecting(), disturb_evaluation=lambda metrics: metrics.update(error=nothing))
    assert int(load_chosen(tmp_path).step) == 12


@pytest.mark.parametrize("metric", ["valid/eror", "loss", "valid/loss", "error"])
def test_only_a_metric_of_the_evaluation_selects(tmp_path, metric, train, selecting):
    with pytest.raises(InputError, match=f"^train.select: '{metric}' is none of valid/error$"):
        train(tmp_path / "run", selecting(metric))
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, train, selecting):
    """A finished run that chose its third step of twelve and also has the last two."""
    workdir = tmp_path_factory.mktemp("finished")
    values = iter([2.0, 3.0, 1.0, *[4.0] * 9])
    train(
        workdir,
        selecting(),
        disturb_evaluation=lambda metrics: metrics.update(error=Estimate(next(values))),
    )
    return workdir


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place % len(data)] ^= 1 << place % 8
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_named_and_the_next_best_is_served(
    tmp_path, finished, rng, capsys, load_chosen
):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    directory = tmp_path / "checkpoints/3"
    paths = [path for path in directory.rglob("*") if path.is_file() and path.stat().st_size]
    paths = [path for path in paths if path.name not in ("_CHECKPOINT_METADATA", COMMIT)]
    path = paths[rng.integers(len(paths))]
    flip(path, int(rng.integers(path.stat().st_size)))
    state = load_chosen(tmp_path)
    assert int(state.step) == 12  # the latest of equals
    error = capsys.readouterr().err
    assert error.startswith(f"{path}: damaged")
    assert error.endswith("; passing over checkpoint 3\n")
    assert len(list(tmp_path.rglob("*"))) == len(list(finished.rglob("*")))


@pytest.mark.parametrize("linked", [False, True])
def test_a_run_goes_on_before_the_damage_and_ends_the_same(
    tmp_path, unbroken, capsys, train, linked
):
    def die(number, batch):
        if number == 10:
            raise KilledError

    with pytest.raises(KilledError):
        train(tmp_path, disturb=die)
    assert checkpoint.Checkpoints(tmp_path).steps == [6, 8]
    flip(tmp_path / "checkpoints/8/state/manifest.ocdbt", 40)
    if linked:
        (tmp_path / "checkpoints/8").rename(tmp_path / "elsewhere")
        (tmp_path / "checkpoints/8").symlink_to(tmp_path / "elsewhere")
    lines = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(lines[:-20])  # a torn last line
    assert_same(train(tmp_path).state, unbroken[0])
    assert "state/manifest.ocdbt: damaged: its checksum is" in capsys.readouterr().err
    assert written(tmp_path).keys() == unbroken[1].keys()


def test_where_every_checkpoint_is_damaged_nothing_is_begun_anew(
    tmp_path, finished, train, selecting
):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for number in (3, 11, 12):
        flip(tmp_path / f"checkpoints/{number}/state/_METADATA", number)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(InputError, match=r"_METADATA: damaged.*no undamaged checkpoint is left"):
        train(tmp_path, selecting())
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError, MemoryError])
def test_what_is_no_fault_of_a_checkpoint_is_not_said_of_it(
    finished, monkeypatch, error, load_chosen
):
    """Otherwise losing another process would end a run like wrong input."""

    def restore(self, path, like):
        raise error("lost")

    monkeypatch.setattr(ocp.StandardCheckpointer, "restore", restore)
    with pytest.raises(error, match="lost"):
        load_chosen(finished)


@pytest.mark.parametrize(
    ("reader", "verify"),
    [
        ((checksums, "verify"), True),
        ((ocp.StandardCheckpointer, "restore"), True),
        ((ocp.StandardCheckpointer, "restore"), False),
    ],
)
def test_for_a_checkpoint_that_a_live_run_removes_the_next_latest_is_read(
    tmp_path, finished, monkeypatch, capsys, regression, make_config, reader, verify
):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    read = getattr(*reader)

    def late(*args, **kwargs):
        shutil.rmtree(tmp_path / "checkpoints/12", ignore_errors=True)
        return read(*args, **kwargs)

    monkeypatch.setattr(*reader, late)
    config, system, mesh = make_config(), regression(), sharding.make_mesh()
    like = step.abstract_state(system.trainable, step.make_optimizer(config), config, mesh)
    state = checkpoint.Checkpoints(tmp_path, verify=verify).load_latest(like)
    assert int(state.step) == 11
    assert capsys.readouterr().err == ""


def test_where_nothing_is_renamed_a_commit_tells_what_is_complete(tmp_path, monkeypatch):
    for done, file in ((5, "commit_success.txt"), (10, "checksums.json")):
        (tmp_path / f"checkpoints/{done}").mkdir(parents=True)
        (tmp_path / f"checkpoints/{done}/{file}").touch()
    saved = checkpoint.Checkpoints(tmp_path)
    assert saved.steps == [5, 10]
    monkeypatch.setattr(checkpoint.files, "is_remote", lambda path: True)
    assert saved.steps == [5]


def test_what_is_read_is_not_written_to(tmp_path, finished, load_chosen):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    under_way = tmp_path / "checkpoints/13.orbax-checkpoint-tmp"
    under_way.mkdir()
    for name in ("\u00b2", "013"):  # digits to Python, but not the name of a step
        (tmp_path / "checkpoints" / name).mkdir()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    load_chosen(tmp_path)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


def test_a_work_directory_is_claimed_by_its_first_checkpoint(tmp_path):
    config = ConfigDict({"train": {"steps": 3, "log_every": 1}})
    other = ConfigDict({"train": {"steps": 4, "log_every": 1}})
    identity = {"dataset": "digest"}
    with pytest.raises(InputError, match="holds no run; train one with"):
        workdirs.check(tmp_path, config, identity)
    checkpoint.claim(tmp_path, other, identity)
    checkpoint.claim(tmp_path, config, identity)
    (tmp_path / "checkpoints/2").mkdir(parents=True)
    checkpoint.claim(tmp_path, ConfigDict({"train": {"steps": 3, "log_every": 2}}), identity)
    with pytest.raises(InputError, match=r"train\.steps=3, this one has train\.steps=4"):
        checkpoint.claim(tmp_path, other, identity)
    moved = ConfigDict({"train": {"steps": 3, "log_every": 1}, "data": {"name": "moved"}})
    checkpoint.claim(tmp_path, moved, identity)
    with pytest.raises(InputError, match=r"data.name=None, this one has data.name=moved"):
        checkpoint.claim(tmp_path, moved, {"dataset": "other"})
    with pytest.raises(InputError, match=r"dataset=digest, this one has dataset=other"):
        checkpoint.claim(tmp_path, config, {"dataset": "other"})
    flip(tmp_path / "run.json", 10)
    with pytest.raises(InputError, match=r"run.json: damaged"):
        checkpoint.claim(tmp_path, config, identity)
