"""Flags that do not describe a job of several processes are refused before JAX starts."""

import socket
import time

import jax
import pytest

from pinjax.distributed import processes
from pinjax.errors import InputError


@pytest.mark.parametrize(
    ("coordinator", "count", "index", "message"),
    [
        ("localhost:1234", None, None, "go together"),
        (None, 2, None, "go together"),
        (None, None, 0, "go together"),
        (None, 2, 0, "go together"),
        ("localhost:1234", 1, 5, "--process=5: expected from 0 to 0, of 1 processes"),
        ("localhost:1234", 2, -1, "--process=-1: expected from 0 to 1, of 2 processes"),
        ("localhost:1234", 0, 0, "--process=0"),
        ("foo", 2, 0, "--coordinator=foo: expected HOST:PORT"),
        (":1234", 2, 0, "expected HOST:PORT"),
        ("localhost:", 2, 0, "expected HOST:PORT"),
        ("localhost:0", 2, 0, "expected HOST:PORT"),
        ("localhost:65536", 2, 0, "expected HOST:PORT"),
        ("localhost:-1", 2, 0, "expected HOST:PORT"),
        ("localhost:port", 2, 0, "expected HOST:PORT"),
        ("nowhere.invalid:1234", 2, 1, "there is no host nowhere.invalid"),
        (f"{'a' * 300}:1234", 2, 1, "there is no host aaa"),
    ],
)
def test_a_wrong_job_is_refused(coordinator, count, index, message):
    with pytest.raises(InputError, match=message):
        processes.join(coordinator, count, index)


def test_a_port_in_use_is_refused():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"--coordinator=localhost:{port}: Address already"):
            processes.join(f"localhost:{port}", 2, 0)


def test_a_first_process_that_listens_late_is_waited_for(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    servers = []
    monkeypatch.setattr(
        time, "sleep", lambda seconds: servers.append(socket.create_server(("127.0.0.1", port)))
    )
    joined = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *job, **_: joined.append(job))
    processes.join(f"127.0.0.1:{port}", 2, 1)
    servers[0].close()
    assert joined == [(f"127.0.0.1:{port}", 2, 1)]
    assert capsys.readouterr().err == f"waiting for process 0 at 127.0.0.1:{port}\n"


def test_a_first_process_that_never_listens_is_named(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setattr(processes, "_START", 0)
    with pytest.raises(InputError, match=f"127.0.0.1:{port}: process 0 did not answer in 0 sec.*"):
        processes.join(f"127.0.0.1:{port}", 2, 1)


@pytest.mark.parametrize("tasks", ["2", "two"])
def test_slurm_variables_without_a_job_are_refused(monkeypatch, tasks):
    def initialize(**options):  # which JAX itself refuses in a process that has used a device
        raise ValueError("no coordinator")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setenv("SLURM_NTASKS", tasks)
    with pytest.raises(InputError, match=f"SLURM_NTASKS={tasks}, but there is no such job: no co"):
        processes.join(None, None, None)
