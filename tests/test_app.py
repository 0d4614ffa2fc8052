"""Paths and names in flags, and how a command ends."""

import importlib.util
import os
import subprocess
import sys

import pytest
from etils import epath

from pinjax import app
from pinjax.errors import InputError


def test_a_directory_may_be_of_the_users_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert app.directory("--out", "~/runs") == epath.Path("/home/somebody/runs")
    assert app.directory("--out", "runs") == epath.Path("runs")


@pytest.mark.parametrize("value", ["", "s3://bucket/x", "file:///x", "/\udcff", "/a\nb"])
def test_what_is_no_directory_is_refused(value):
    with pytest.raises(InputError, match=r"^--out.*expected a directory") as error:
        app.directory("--out", value)
    assert "\n" not in str(error.value)


COMMAND = """
import sys
from pinjax import app
from pinjax.errors import InputError

class Unfinished:
    def __del__(self):
        raise RuntimeError("freed")

async def never_awaited():
    pass

def main(argv):
    sys.unfinished = Unfinished()
    sys.coroutine = never_awaited()
    print("begun", file=sys.stderr)
    if app.verifies():
        raise InputError("what, where, what was expected")
    raise KeyError("damaged")

app.run_flags()
app.run(main)
"""
CONFIG = """
from pinjax.settings import Choice, Section
def get_config():
    config = Section()
    config.system = Choice("none")
    return config
"""


@pytest.fixture
def run(tmp_path):
    """(redirections and flags, environment) -> (exit code, stdout, stderr) of a failure."""
    (tmp_path / "config.py").write_text(CONFIG)

    def run(more, **env):
        arguments = [sys.executable, "-c", COMMAND, f"--config={tmp_path}/config.py"]
        shell = ["bash", "-c", f'exec "$@" {more}', "bash"]
        done = subprocess.run(
            [*shell, *arguments], capture_output=True, text=True, env=os.environ | env
        )
        return done.returncode, done.stdout, done.stderr

    return run


def test_nothing_is_said_after_the_error(run):
    assert run("") == (2, "", "begun\nerror: what, where, what was expected\n")


def test_unverified_damage_is_one_line(run):
    code, _, err = run("--no_verify")
    assert code == 2
    assert err.splitlines()[1:] == [
        "error: KeyError: 'damaged'; if a file is damaged, it is named without --no_verify"
    ]


def test_closed_streams_change_nothing(run):
    assert run("2>&-") == (2, "", "")
    assert run(">&-") == (2, "", "begun\nerror: what, where, what was expected\n")


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset by peer"), TimeoutError()])
def test_where_the_network_fails_a_job_is_to_be_started_again(error, capsys):
    assert app._told(error) == app.EXIT_LOST
    line = f"error: the network failed, start again: {error!r}\n"
    assert capsys.readouterr().err == line
    assert app._told(BrokenPipeError(32, "broken")) == app.EXIT_INPUT


@pytest.mark.parametrize("platform", ["nonsense", "cuda"])
def test_a_platform_that_is_not_there_is_refused(run, platform):
    if platform == "cuda" and importlib.util.find_spec("jax_cuda12_plugin"):
        pytest.skip("JAX has its plugin for CUDA")
    code, _, err = run("", JAX_PLATFORMS=platform)
    assert code == 2
    assert err.startswith(f"error: JAX_PLATFORMS={platform}: no device: ")
    assert err.count("\n") == 1
