"""Signals end a command at once or at the end of a step, and never twice."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from pinjax import signals

ROOT = pathlib.Path(__file__).parents[1]
COMMAND = """
import contextlib, hashlib, pathlib, sys, time
from pinjax import signals
signals.handle()
with signals.cleaned_up(pathlib.Path(sys.argv[1]).unlink):
    pathlib.Path(sys.argv[1]).touch()
    deferred = sys.argv[2] == "deferred"
    with signals.deferred(alone=True) if deferred else contextlib.nullcontext() as stop:
        print("inside", flush=True)
        while True:
            # As a compilation does, this leaves the main thread no chance to run a handler.
            if sys.argv[2] == "busy":
                hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
            time.sleep(0.01)
            if stop and stop.requested:
                stop.requested = None
                print("told to stop", flush=True)
"""


@pytest.fixture
def command(tmp_path):
    started = []

    def start(kind):
        arguments = [sys.executable, "-c", COMMAND, tmp_path / "file", kind]
        process = subprocess.Popen(arguments, stdout=-1, stderr=-1, text=True)
        started.append(process)
        assert process.stdout.readline() == "inside\n"
        assert (tmp_path / "file").exists()
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("kind", ["idle", "busy"])
@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGTERM, 75), (signal.SIGHUP, 75), (signal.SIGINT, 130)]
)
def test_a_signal_ends_a_command_at_once_with_a_line_and_cleans_up(
    tmp_path, command, kind, signum, code
):
    process = command(kind)
    process.send_signal(signum)
    out, err = process.communicate()
    assert (process.returncode, out) == (code, "")
    assert err == f"stopped by {signum.name}; run the same command again to continue\n"
    assert not (tmp_path / "file").exists()


def test_a_directory_that_is_being_filled_is_removed(tmp_path):
    code = f"""
import itertools
from pinjax import files, signals
signals.handle()
with files.new_directory({str(tmp_path / "made")!r}) as made:
    for number in itertools.count():
        (made / str(number)).mkdir()
        (made / str(number) / "file").write_text("")
        if number == 100:
            print("inside", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True)
    assert process.stdout.readline() == "inside\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert err == "stopped by SIGTERM; run the same command again to continue\n"
    assert not list(tmp_path.iterdir())


def test_deferred_signals_are_noted_and_a_second_interrupt_ends_at_once(command):
    process = command("deferred")
    for signum in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(signum)
        assert process.stdout.readline() == "told to stop\n"
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130


def test_what_is_ignored_from_outside_stays_ignored(command):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = command("idle")
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert "SIGTERM" in process.communicate()[1]


def test_a_signal_ends_a_command_whose_terminal_is_gone(command):
    process = command("idle")
    process.stderr.close()
    process.stdout.close()
    process.send_signal(signal.SIGHUP)
    assert process.wait() == 75


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_amid_the_imports_of_a_command_is_one_line(tmp_path, signum, code):
    """A command imports JAX first; here that import never ends."""
    (tmp_path / "jax.py").write_text('import time\nprint("inside", flush=True)\ntime.sleep(3600)')
    process = subprocess.Popen(
        [sys.executable, "-m", "pinjax.train"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        stdout=-1,
        stderr=-1,
        text=True,
    )
    assert process.stdout.readline() == "inside\n"
    process.send_signal(signum)
    _, err = process.communicate()
    assert process.returncode == code
    assert err == f"stopped by {signum.name}; run the same command again to continue\n"


def test_a_signal_at_the_very_end_is_one_line():
    code = """
import atexit, time
from pinjax import signals
atexit.register(lambda: (print("inside", flush=True), time.sleep(3600)))
signals.handle()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True)
    assert process.stdout.readline() == "inside\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 75
    assert err == "stopped by SIGTERM; run the same command again to continue\n"


def test_check_raises_only_where_work_may_be_broken_off():
    before = signal.getsignal(signal.SIGTERM)
    with signals.deferred(alone=True) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        signals.check()
        assert stop.requested == signal.SIGTERM
        with pytest.raises(signals.Stopped, match="SIGTERM"), stop.checked():
            signals.check()
        signals.check()
    assert signal.getsignal(signal.SIGTERM) == before
