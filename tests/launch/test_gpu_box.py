"""launch/gpu_box.sh against an ssh and an scp that record their calls and work in another HOME.

The fake ssh really runs the command, so that runs, logs, codes and stops are the real ones.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# Calls are numbered over a test; those in FAIL do nothing but fail.
CALL = """#!/usr/bin/env bash
cd "$BOX"
echo "${0##*/} $*" | tr '\\n' ' ' >>calls; echo >>calls
case " $FAIL " in *" $(wc -l <calls) "*) echo "no connection" >&2; exit 255 ;; esac
cd "$HERE"
"""
SSH = CALL + '[ "$1 $2" = "-n gpu" ] || exit 1; cd "$BOX"; HOME=$BOX exec sh -c "$3"\n'
SCP = CALL + '[ "$1 $3" = "-q gpu:" ] || exit 1; exec cp "$2" "$BOX"\n'
# Ends with the codes of the file `codes`, one a run; `hold 3` waits for the file `end` before.
RUN = """#!/usr/bin/env bash
trap 'echo; echo saved; exit 75' TERM
for argument in "$@"; do echo "argument $argument"; done
for ((i = 1; i <= 30; i++)); do echo "line $i"; done
printf '\\r 10%% of steps\\r 20%% of steps'
read -r code <codes; sed -i 1d codes
case $code in hold*) code=${code#hold }; until [ -e end ]; do sleep 0.02; done ;; esac
exit "$code"
"""
# In place of .venv/bin/python: records what is installed, and runs code with a fake jax. It brings
# no uv.
PYTHON = f"""#!/usr/bin/env bash
[ "$1" != -c ] || exec {sys.executable} "$@"
case $* in *" uv=="*) exit 1 ;; "-m pip --version") exit 0 ;; esac
echo "$*" >>pip
[ "$(wc -l <pip)" != "$(cat fail-pip 2>/dev/null)" ]
"""
JAX = """
def default_backend(): return {backend!r}
def devices(): return ["Device(id=0)"]
"""


def executable(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    """A checkout of the launch directory, with the fake programs beside it."""
    code = tmp_path_factory.mktemp("code")
    shutil.copytree(ROOT / "launch", code / "launch")
    shutil.copy(ROOT / "requirements.txt", code)
    env = (code / "launch/env.sh").read_text()
    for tpu in ("/dev/accel0", "/dev/vfio/0"):
        env = env.replace(tpu, "/nowhere")  # though the tests may run beside one
    (code / "launch/env.sh").write_text(env)
    executable(code / "launch/run.sh", RUN)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", str(code)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    executable(code / "bin/ssh", SSH)
    executable(code / "bin/scp", SCP)
    executable(code / "bin/nvidia-smi", '#!/bin/sh\n[ ! -e "$BOX/no-gpu" ]\n')
    return code


class Box:
    """The host, and this side's script."""

    def __init__(self, code, home):
        self.code, self.home, self.started = code, home, []
        self.pinjax = home / "pinjax"
        self.log = self.pinjax / "work/logs/gpu_box.log"
        executable(self.pinjax / "launch/run.sh", RUN)
        executable(self.pinjax / ".venv/bin/python", PYTHON)
        (self.pinjax / "jax.py").write_text(JAX.format(backend="gpu"))

    def start(self, *arguments, fail=""):
        path = f"{self.code / 'bin'}:{os.environ['PATH']}"
        env = os.environ | {"PATH": path, "BOX": str(self.home), "FAIL": fail}
        process = subprocess.Popen(
            ["launch/gpu_box.sh", *arguments],
            cwd=self.code,
            env=env | {"HERE": str(self.code)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def __call__(self, *arguments, fail=""):
        return self.finish(self.start(*arguments, fail=fail))

    def finish(self, process):
        out, err = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def ends(self, *codes):
        """Says how the next runs end."""
        (self.pinjax / "codes").write_text("".join(f"{code}\n" for code in codes))

    def calls(self):
        """'ssh' or 'scp' for each call."""
        file = self.home / "calls"
        return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []

    def lines(self):
        return self.log.read_text().splitlines() if self.log.exists() else []

    def holds(self):
        """Waits until the run has printed all that it prints before it ends."""
        wait_until(lambda: self.lines() and self.lines()[-1].endswith("20% of steps"))

    def processes(self):
        """The ids of all processes on the host."""
        ids = []
        for environ in pathlib.Path("/proc").glob("[0-9]*/environ"):
            try:
                if f"BOX={self.home}\0".encode() in environ.read_bytes():
                    ids.append(int(environ.parent.name))
            except OSError:  # it has ended, or is not ours
                pass
        return ids


def wait_until(condition):
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture
def box(code, tmp_path):
    box = Box(code, tmp_path)
    # A shell's background jobs ignore it, and so would what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield box
    signal.signal(signal.SIGINT, before)
    try:
        wait_until(lambda: not box.processes())
    finally:
        for process in box.processes():
            os.kill(process, signal.SIGKILL)
        for process in box.started:
            with process:  # closes its pipes
                pass


def test_setup_copies_the_code_and_installs_the_jax_of_the_requirements(box):
    (box.pinjax / "launch/run.sh").unlink()
    (box.pinjax / "launch/of_another_commit.sh").touch()
    (box.pinjax / "work").mkdir()
    done = box("setup", "gpu")
    assert (done.returncode, done.stderr) == (0, "")
    assert box.calls() == ["scp", "ssh"]
    copied = (box.pinjax / "launch/gpu_box.sh").read_text()
    assert copied == (ROOT / "launch/gpu_box.sh").read_text()
    assert (box.pinjax / "launch/run.sh").exists()
    assert not (box.pinjax / "launch/of_another_commit.sh").exists()
    assert (box.pinjax / "work").exists()
    version = re.search("^jax==([0-9.]+)$", (ROOT / "requirements.txt").read_text(), re.M)[1]
    first, second = (box.pinjax / "pip").read_text().splitlines()
    assert first.endswith(f" -r requirements.txt jax[cuda13]=={version}")
    assert second.endswith(f" jax[cuda13]=={version}")
    assert done.stdout == "['Device(id=0)']\n"


@pytest.mark.parametrize(("call", "made"), [(1, ["scp"]), (2, ["scp", "ssh"])])
def test_setup_ends_with_the_first_call_that_fails(box, call, made):
    done = box("setup", "gpu", fail=str(call))
    assert (done.returncode, done.stdout, done.stderr) == (255, "", "no connection\n")
    assert box.calls() == made
    assert not (box.pinjax / "pip").exists()


@pytest.mark.parametrize("install", [1, 2])
def test_setup_ends_with_the_first_installation_that_fails(box, install):
    (box.pinjax / "fail-pip").write_text(str(install))
    done = box("setup", "gpu")
    assert (done.returncode, done.stdout) == (1, "")
    assert len((box.pinjax / "pip").read_text().splitlines()) == install


def test_setup_without_a_gpu_is_an_error_before_anything_is_installed(box):
    (box.home / "no-gpu").touch()
    done = box("setup", "gpu")
    assert done.returncode == 1
    assert done.stderr == "error: nvidia-smi finds no GPU on gpu\n"
    assert not (box.pinjax / "pip").exists()


def test_setup_where_jax_sees_no_gpu_is_an_error(box):
    (box.pinjax / "jax.py").write_text(JAX.format(backend="cpu"))
    done = box("setup", "gpu")
    assert done.returncode == 1
    assert done.stdout == "['Device(id=0)']\n"
    assert done.stderr.startswith("error: jax[cuda13]==")
    assert "sees no GPU on gpu" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_run_is_followed_and_ends_with_its_code(box):
    box.ends(0)
    arguments = ["--config=a.py", "--name=b c", "--it='$s'"]
    done = box("run", "gpu", "--", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == box.log.read_text()
    lines = done.stdout.splitlines()
    assert lines[0] == "started with --config=a.py --name=b c --it='$s'"
    assert lines[1:5] == [*(f"argument {argument}" for argument in arguments), "line 1"]
    assert lines[-1] == "ended with 0"
    assert box("status", "gpu").stdout == "ended with 0\n"
    assert box.calls() == ["ssh"] * 3


def test_a_run_that_fails_shows_its_last_lines(box):
    box.ends(3)
    done = box("run", "gpu")
    assert done.returncode == 3
    last = [*(f"line {i}" for i in range(14, 31)), " 10% of steps", " 20% of steps"]
    assert done.stderr.splitlines() == [*last, "ended with 3"]
    assert box("status", "gpu").stdout == "ended with 3\n"


def test_a_run_that_was_stopped_is_started_again_on_the_host(box):
    box.ends(75, 75, 4)
    done = box("run", "gpu", "--", "--config=a.py")
    assert done.returncode == 4
    lines = box.lines()
    assert lines.count("argument --config=a.py") == 3
    assert lines.count("stopped, its state saved: it goes on") == 2
    assert [line for line in lines if line.startswith("ended")] == ["ended with 4"]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_run_needs_no_connection(box, how):
    box.ends("hold 0")
    local = box.start("run", "gpu")
    box.holds()
    # Until it follows, a shell may be between two commands, where SIGINT does not end it.
    assert local.stdout.readline() == "started with \n"
    os.killpg(local.pid, how)  # whatever is not detached goes with it
    assert box.finish(local).returncode != 0
    assert box("status", "gpu").stdout == "running\n 20% of steps\n"
    again = box.start("logs", "gpu")
    assert again.stdout.readline() == "started with \n"
    (box.pinjax / "end").touch()
    assert box.finish(again).returncode == 0
    assert box.lines()[-1] == "ended with 0"


def test_while_a_run_goes_on_another_and_setup_are_refused(box):
    box.ends("hold 0")
    local = box.start("run", "gpu")
    box.holds()
    log = box.log.read_text()
    for command, message in (
        ("run", "a run is going on gpu already"),
        ("setup", "a run is going on gpu: stop it first"),
    ):
        done = box(command, "gpu")
        assert (done.returncode, done.stdout, done.stderr) == (1, "", f"error: {message}\n")
    assert box.log.read_text() == log
    (box.pinjax / "end").touch()
    assert box.finish(local).returncode == 0


def test_stop_waits_for_the_state_and_the_same_command_goes_on(box):
    box.ends("hold 0", 0)
    local = box.start("run", "gpu")
    box.holds()
    stopped = box("stop", "gpu")
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (0, "ended with 75\n", "")
    assert box.lines()[-2:] == ["saved", "ended with 75"]
    assert box.lines().count("line 1") == 1
    assert box.finish(local).returncode == 75
    again = box("run", "gpu")
    assert again.returncode == 0
    assert again.stdout.startswith("started with")  # only the new run's lines
    assert again.stdout.count("line 1\n") == 1


def test_a_host_where_nothing_ran(box):
    assert box("status", "gpu").stdout == "never ran\n"
    for command, message in (
        ("logs", "nothing ever ran on gpu"),
        ("stop", "no run is going on gpu"),
    ):
        done = box(command, "gpu")
        assert (done.returncode, done.stderr) == (1, f"error: {message}\n")
    shutil.rmtree(box.pinjax)
    done = box("run", "gpu")
    assert (done.returncode, done.stderr) == (1, "error: no pinjax on gpu: set it up first\n")


def test_a_run_that_the_host_has_cut_off_is_said_so(box):
    box.log.parent.mkdir(parents=True)
    box.log.write_text("started with\n 10% of steps")
    assert box("status", "gpu").stdout == "cut off: start it again, and it goes on\n"
    done = box("logs", "gpu")
    assert done.returncode == 1
    assert done.stderr == "error: the run on gpu was cut off: start it again, and it goes on\n"
    box.ends(0)
    assert box("run", "gpu").returncode == 0
    assert box.lines()[1:3] == [" 10% of steps", "started with "]


@pytest.mark.parametrize(
    ("command", "call"), [("run", 1), ("run", 2), ("logs", 1), ("status", 1), ("stop", 1)]
)
def test_a_call_that_fails_is_the_last(box, command, call):
    box.ends(0)
    done = box(command, "gpu", fail=str(call))
    assert (done.returncode, done.stderr) == (255, "no connection\n")
    assert len(box.calls()) == call


@pytest.mark.parametrize("command", ["setup", "run", "logs", "status", "stop"])
def test_a_dry_run_prints_commands_and_calls_nothing(box, command):
    done = box(command, "gpu", "--dry-run", "--", "--config=a.py")
    assert done.returncode == 0
    assert box.calls() == []
    assert [line.split()[0] for line in done.stdout.splitlines()] == {
        "setup": ["scp", "ssh"],
        "run": ["ssh", "ssh"],
    }.get(command, ["ssh"])


def test_what_a_dry_run_prints_can_be_run(box):
    printed = box("status", "gpu", "--dry-run").stdout
    env = os.environ | {"BOX": str(box.home), "HERE": ".", "FAIL": ""}
    env["PATH"] = f"{box.code / 'bin'}:{env['PATH']}"
    ran = subprocess.run(["bash", "-c", printed], env=env, capture_output=True, text=True)
    assert ran.stdout == "never ran\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "gpu", "--config=a.py"], "training arguments come after --"),
        (["start", "gpu"], "start is none of setup, run"),
        (["setup"], "expected setup, run"),
        (["setup", "--dry-run"], "expected a host, not '--dry-run'"),
        (["setup", ""], "expected a host, not ''"),
    ],
)
def test_wrong_arguments_are_one_line(box, arguments, message):
    done = box(*arguments)
    assert done.returncode == 2
    assert box.calls() == []
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
