"""However a run ends, what it opened is closed: threads, files, a trace, the signal's handler."""

import collections
import contextlib
import os
import pathlib
import signal
import threading
import time

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from pinjax.errors import InputError
from pinjax.systems import system as system_lib
from pinjax.training import checkpoint, loop, sharding

STEPS = 14
FAILING = 11  # steps done when a run fails; where steps are traced, this is one of them
CONFIG = ConfigDict(
    {
        "seed": 0,
        "steps": STEPS,
        "learning_rate": 0.1,
        "warmup_steps": 2,
        "b1": 0.9,
        "b2": 0.99,
        "weight_decay": 0.1,
        "clip_norm": 0.5,
        "log_every": 1,
        "checkpoint_every": FAILING,  # so that a save is under way
        "evaluate_every": 0,
        "select": "",
        "shard": "",
        "shard_optimizer": False,
        "shard_tables": False,
    }
)


class BrokenDataError(Exception):
    pass


class BrokenEvaluationError(Exception):
    pass


def mean_of_numbers(disturb=lambda step, batch: None, evaluate=lambda: 0.0):
    """A system of one parameter."""

    def batch(number):
        made = {"x": np.full((8,), number, np.float32)}
        disturb(number, made)
        return made

    def batches(first):  # read ahead by threads, as `pinjax.data.batches` does
        made = grain.MapDataset.range(first, STEPS).map(batch)
        return iter(made.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)))

    def loss(params, frozen, sketches, batch, key):
        return jnp.mean((params["mean"] - batch["x"]) ** 2), ({}, sketches)

    return system_lib.System(
        init=lambda key: ({"mean": jnp.zeros(())}, jnp.zeros(())),
        loss=loss,
        frozen=jnp.zeros(()),
        batches=batches,
        evaluate=lambda params, split: system_lib.Table(
            [system_lib.Row("mean", {"error": system_lib.Estimate(evaluate())})], []
        ),
        asked=str,
        metrics={"error": "min"},
        embed=None,
        embed_moment=0,
        check_training=lambda: None,
        summary={},
        identity={},
    )


def train(workdir, config=CONFIG, traced=0, **kwargs):
    mesh, system = sharding.make_mesh(), mean_of_numbers(**kwargs)
    with checkpoint.Checkpoints(workdir, config.select) as checkpoints:
        return loop.train(system, config, mesh, workdir, checkpoints, traced)


def open_files():
    """How often each file, pipe and socket is open."""
    targets = []
    for descriptor in pathlib.Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that of this directory itself
            targets.append(os.readlink(descriptor))
    return collections.Counter(targets)


@contextlib.contextmanager
def nothing_left_open():
    threads, files = set(threading.enumerate()), open_files()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    deadline = time.monotonic() + 5  # a thread that was told to end may take a moment
    while True:
        new_threads = set(threading.enumerate()) - threads
        new_files = open_files() - files
        if not (new_threads or new_files) or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    assert (new_threads, new_files) == (set(), collections.Counter())
    assert handlers == {number: signal.getsignal(number) for number in handlers}


@pytest.fixture(scope="module", autouse=True)
def _first_run(tmp_path_factory):
    """Opens what a process keeps for all its runs, as the thread of tqdm's monitor."""
    train(tmp_path_factory.mktemp("first"))


def poison(number, batch):
    if number == FAILING:
        batch["x"][2] = np.nan


def break_data(number, batch):
    if number == FAILING:
        raise BrokenDataError


def preempt(number, batch):
    if number == FAILING:
        os.kill(os.getpid(), signal.SIGTERM)


def break_evaluation():
    raise BrokenEvaluationError


@pytest.mark.parametrize(
    ("error", "kwargs"),
    [
        (None, {}),
        (None, {"disturb": preempt}),
        (InputError, {"disturb": poison}),
        (BrokenDataError, {"disturb": break_data}),
        (BrokenEvaluationError, {"evaluate": break_evaluation}),
    ],
    ids=["finished", "preempted", "not finite", "no data", "not evaluated"],
)
def test_a_run_leaves_nothing_open(tmp_path, error, kwargs):
    with nothing_left_open(), pytest.raises(error) if error else contextlib.nullcontext():
        train(tmp_path, **kwargs)


def test_a_run_that_is_refused_leaves_nothing_open(tmp_path):
    with nothing_left_open(), pytest.raises(InputError, match=r"^a trace of 99 steps"):
        train(tmp_path, traced=99)


def test_a_run_that_failed_while_it_was_traced_ends_its_trace(tmp_path, monkeypatch):
    calls = []  # not traced in earnest, which once crashed a process as old as a suite's
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    with pytest.raises(BrokenDataError):
        train(tmp_path, traced=3, disturb=break_data)
    assert calls == ["start", "stop"]


def test_a_directory_without_a_checkpoint_leaves_nothing_open(tmp_path):
    config = ConfigDict({"train": CONFIG})
    checkpoint.claim(tmp_path, config, {})
    with nothing_left_open(), pytest.raises(InputError, match="holds no checkpoint yet"):
        checkpoint.load_chosen(tmp_path, config, mean_of_numbers(), sharding.make_mesh())
