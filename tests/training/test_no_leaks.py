"""However a run ends, its threads, files, trace and signal handlers are closed."""

import collections
import contextlib
import os
import pathlib
import signal
import threading
import time

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from pinjax.distributed import sharding
from pinjax.errors import InputError
from pinjax.training import checkpoint

FAILING = 11  # steps done when a run fails; if steps are traced, this is one of them


class BrokenDataError(Exception):
    pass


class BrokenEvaluationError(Exception):
    pass


@pytest.fixture(scope="module")
def config(make_config):
    """The only checkpoint is being saved when a run fails."""
    return make_config(log_every=1, checkpoint_every=FAILING, evaluate_every=0)


def open_files():
    """How often each file, pipe and socket is open."""
    targets = []
    for descriptor in pathlib.Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # this directory's own
            targets.append(os.readlink(descriptor))
    return collections.Counter(targets)


@contextlib.contextmanager
def nothing_left_open():
    threads, files = set(threading.enumerate()), open_files()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    deadline = time.monotonic() + 60  # a thread may take a while to end
    while True:
        new_threads = set(threading.enumerate()) - threads
        new_files = open_files() - files
        if not (new_threads or new_files) or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    assert (new_threads, new_files) == (set(), collections.Counter())
    assert handlers == {number: signal.getsignal(number) for number in handlers}


@pytest.fixture(scope="module", autouse=True)
def _first_run(tmp_path_factory, train):
    """Opens what a process keeps for all its runs, such as the thread of tqdm's monitor."""
    train(tmp_path_factory.mktemp("first"))


def poison(number, batch):
    if number == FAILING:
        batch["y"][2] = np.nan


def break_data(number, batch):
    if number == FAILING:
        raise BrokenDataError


def preempt(number, batch):
    if number == FAILING:
        os.kill(os.getpid(), signal.SIGTERM)


def break_evaluation(metrics):
    raise BrokenEvaluationError


@pytest.mark.parametrize(
    ("error", "kwargs"),
    [
        (None, {}),
        (None, {"disturb": preempt}),
        (InputError, {"disturb": poison}),
        (BrokenDataError, {"disturb": break_data}),
        (BrokenEvaluationError, {"disturb_evaluation": break_evaluation}),
    ],
    ids=["finished", "preempted", "not finite", "no data", "not evaluated"],
)
def test_a_run_leaves_nothing_open(tmp_path, train, config, error, kwargs):
    with nothing_left_open(), pytest.raises(error) if error else contextlib.nullcontext():
        train(tmp_path, config, **kwargs)


def test_a_run_that_is_refused_leaves_nothing_open(tmp_path, train, config):
    with nothing_left_open(), pytest.raises(InputError, match=r"^a trace of 99 steps"):
        train(tmp_path, config, traced=99)


def test_a_run_that_failed_while_it_was_traced_ends_its_trace(tmp_path, train, config, monkeypatch):
    calls = []  # no real trace, which once crashed a process that had run a whole suite
    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    with pytest.raises(BrokenDataError):
        train(tmp_path, config, traced=2, disturb=break_data)
    assert calls == ["start", "stop"]


def test_a_directory_without_a_checkpoint_leaves_nothing_open(tmp_path, config, regression):
    run = ConfigDict({"train": config})
    checkpoint.claim(tmp_path, run, {})
    with nothing_left_open(), pytest.raises(InputError, match="holds no checkpoint yet"):
        checkpoint.load_chosen(tmp_path, run, regression(), sharding.make_mesh())
