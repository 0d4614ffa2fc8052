"""Several processes on one machine, as they run on several hosts."""

import functools
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

ROOT = pathlib.Path(__file__).parents[2]
DEVICES = 4  # of all processes together
STEPS = 20


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def free_coordinator():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start(workdir, data_dir, count, *flags):
    """Starts the processes of a job."""
    coordinator = free_coordinator()
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(DEVICES // count),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # compiles faster
    }
    command = [
        *(sys.executable, "-m", "pinjax.train", "--config=configs/pinnerformer.py:test"),
        *(f"--workdir={workdir}", f"--config.data.dir={data_dir}"),
        *("--config.model.layers=1", f"--config.train.steps={STEPS}", "--config.train.log_every=1"),
        *("--config.train.evaluate_every=0", "--config.train.checkpoint_every=1"),
        *('--config.evaluate.cadences=("window",)', "--config.evaluate.users=20"),
        *flags,
    ]
    jobs = [
        (f"--coordinator={coordinator}", f"--processes={count}", f"--process={index}")
        for index in range(count if count > 1 else 0)
    ] or [()]
    return [
        subprocess.Popen(
            [*command, *job], cwd=ROOT, env=env, text=True, stdout=-1, stderr=subprocess.PIPE
        )
        for job in jobs
    ]


def finish(processes):
    """[(exit code, stdout, stderr), ...]"""
    try:
        outputs = [process.communicate() for process in processes]
        return [(p.returncode, *texts) for p, texts in zip(processes, outputs, strict=True)]
    finally:
        for process in processes:
            process.kill()


def outcome(workdir):
    """A run's losses, final parameters and table."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    path = workdir / f"checkpoints/{STEPS}/state"
    with ocp.StandardCheckpointer() as checkpointer:
        like = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            checkpointer.metadata(path).item_metadata.tree,
        )
        state = checkpointer.restore(path, like)
    table = json.loads((workdir / "results_test.json").read_text())["rows"]
    return [json.loads(line)["loss"] for line in lines], state["params"], table


@pytest.fixture(scope="module")
def alone(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("alone")
    [(code, _, stderr)] = finish(start(workdir, data_dir, 1))
    assert code == 0, stderr
    return outcome(workdir)


def assert_same(found, expected):
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    assert len(found[0]) == STEPS
    # The gradient of a key's bias is zero but for rounding, which Adam makes large.
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3)
    jax.tree.map(close, found[1], expected[1])
    assert found[2].keys() == expected[2].keys()
    assert found[2]["PinnerFormer"]["R@10"] == pytest.approx(
        expected[2]["PinnerFormer"]["R@10"], abs=0.02
    )


@pytest.mark.slow
def test_four_processes_do_what_one_does(tmp_path, data_dir):
    """With tables that are sharded over all devices, which exchange rows."""
    outcomes = {}
    for count in (1, 4):
        workdir = tmp_path / str(count)
        ends = finish(start(workdir, data_dir, count, "--config.train.shard_tables=True"))
        for code, _, stderr in ends:
            assert code == 0, stderr
        assert "R@10" in ends[0][1]
        assert not any("R@10" in stdout for _, stdout, _ in ends[1:])  # one of them speaks
        outcomes[count] = outcome(workdir)
    assert_same(outcomes[4], outcomes[1])


@pytest.mark.slow
def test_a_job_goes_on_after_one_process_was_stopped_and_one_died(tmp_path, data_dir, alone):
    processes = start(tmp_path, data_dir, 2)
    wait_for_steps(tmp_path, processes, 1)
    processes[1].send_signal(signal.SIGHUP)  # which is passed on to JAX as SIGTERM
    ends = finish(processes)
    assert [code for code, _, _ in ends] == [75, 75], ends
    assert "run the same command again to continue" in ends[0][1]

    processes = start(tmp_path, data_dir, 2)
    wait_for_steps(tmp_path, processes, STEPS // 2)
    processes[1].kill()
    (code, _, stderr), _ = finish(processes)
    if code != -signal.SIGABRT:  # by JAX's own thread, if it is the first to notice
        assert code == 76
        assert "start all of them again" in stderr
        assert len(stderr.splitlines()[-1]) < 1_000

    ends = finish(start(tmp_path, data_dir, 2))
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert_same(outcome(tmp_path), alone)


def wait_for_steps(workdir, processes, steps):
    metrics = workdir / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_text().splitlines()) < steps:
        assert all(process.poll() is None for process in processes), finish(processes)
        time.sleep(0.02)


def start_code(count, *words):
    """Starts the processes of a job, each as `python -c WORDS FLAGS`."""
    job = f"--coordinator={free_coordinator()}", f"--processes={count}"
    return [
        subprocess.Popen(
            [sys.executable, "-c", *words, *job, f"--process={index}"],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            cwd=ROOT,
            text=True,
            stdout=-1,
            stderr=subprocess.PIPE,
        )
        for index in range(count)
    ]


COMMAND = """
import sys, time
from pinjax import app, signals

def main(argv):
    if trains:
        with signals.deferred(alone=False):  # as the loop does, which is over
            pass
    print("inside", file=sys.stderr, flush=True)
    time.sleep(3600)

trains = sys.argv.pop(1) == "trains"
app.run(main, trains)
"""


@pytest.mark.parametrize("kind", ["trains", "evaluates"])
def test_a_signal_outside_the_loop_ends_each_process_at_once(kind):
    processes = start_code(2, COMMAND, kind)
    for process in processes:
        while process.stderr.readline() != "inside\n":
            assert process.poll() is None
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for code, _, stderr in finish(processes):
        assert code == 75
        assert stderr.startswith("stopped by SIGTERM; ")


FAILING = """
import jax
from pinjax import app
from pinjax.errors import InputError

ERRORS = [
    InputError("expected a larger table"),
    OSError("no space left"),
    jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed to compile"),
    jax.errors.JaxRuntimeError("Gloo all-reduce failed: Connection closed by peer"),
]

def main(argv):
    raise ERRORS[jax.process_index()]

app.run(main, trains=True)
"""


@pytest.mark.slow
def test_each_process_ends_with_the_code_of_its_own_error():
    """It waits for no other, and is not taken for one that has lost another."""
    ends = finish(start_code(4, FAILING))
    assert [code for code, _, _ in ends] == [2, 2, 1, 76], ends
    for (_, _, stderr), last in zip(
        ends,
        (
            "error: expected a larger table",
            "error: no space left",
            "jax.errors.JaxRuntimeError: INTERNAL: Mosaic failed to compile",
            "error: lost another process of the job, start all of them again: Gloo all-reduce "
            "failed: Connection closed by peer",
        ),
        strict=True,
    ):
        assert stderr.splitlines()[-1] == last
