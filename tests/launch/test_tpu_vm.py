"""launch/tpu_vm.sh against a gcloud that records its calls and fails where it is told to."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
GCLOUD = f"""#!{sys.executable}
import json, os, pathlib, sys, time
home = pathlib.Path(os.environ["FAKE_GCLOUD"])
line = " ".join(sys.argv[1:])
with (home / "calls").open("a") as calls:
    calls.write(line.replace("\\n", " ") + "\\n")
for number, answer in enumerate(json.loads((home / "answers").read_text())):
    used = home / f"used-{{number}}"
    if answer["match"] in line and not used.exists():
        if answer.get("once"):
            used.touch()
        print(answer.get("stdout", ""), flush=True)
        while answer.get("until", "") not in (home / "calls").read_text():
            time.sleep(0.01)
        sys.exit(answer.get("code", 0))
"""
USUAL = [
    {"match": "queued-resources describe", "stdout": "ACTIVE"},
    {"match": "networkEndpoints", "stdout": "2"},
    {"match": "value(state)", "stdout": "READY"},
]


@pytest.fixture
def launch(tmp_path):
    """(arguments, answers) -> the finished script and the calls that it made."""
    code = tmp_path / "code"
    shutil.copytree(ROOT / "launch", code / "launch")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", str(code)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "gcloud").write_text(GCLOUD)
    (fake / "gcloud").chmod(0o755)

    def run(*arguments, answers=()):
        (fake / "answers").write_text(json.dumps([*answers, *USUAL]))
        env = {**os.environ, "PATH": f"{fake}:{os.environ['PATH']}"}
        env |= {"FAKE_GCLOUD": str(fake), "POLL_SECONDS": "0"}
        done = subprocess.run(
            ["launch/tpu_vm.sh", *arguments],
            cwd=code,
            env=env,
            capture_output=True,
            text=True,
        )
        calls = fake / "calls"
        made = calls.read_text().splitlines() if calls.exists() else []
        calls.unlink(missing_ok=True)
        return done, made

    run.code = code
    return run


def verbs(calls):
    """What was done, without its flags: 'tpu-vm ssh', and so on."""
    return [" ".join(call.split()[2:4]) for call in calls]


def test_create_waits_until_the_slice_is_there(launch):
    waiting = {"match": "queued-resources describe", "stdout": "PROVISIONING", "once": True}
    done, calls = launch("create", "x", "--zone=z", "--type=v5litepod-16", answers=[waiting])
    assert done.returncode == 0
    assert calls[0] == (
        "compute tpus queued-resources create x --node-id=x --accelerator-type=v5litepod-16 "
        "--runtime-version=v2-alpha-tpuv5-lite --zone=z"
    )
    assert verbs(calls)[1:] == ["queued-resources describe"] * 2
    assert done.stderr == "x is PROVISIONING ...\n"


def test_setup_copies_the_code_to_all_workers_and_installs(launch):
    done, calls = launch("setup", "x", "--zone=z")
    assert done.returncode == 0
    assert verbs(calls) == ["tpu-vm scp", "tpu-vm ssh"]
    assert all("--worker=all" in call for call in calls)
    assert "install requirements.txt && install requirements-gcp.txt" in calls[1]


def test_run_has_a_log_for_each_worker_and_deletes_at_the_end(launch):
    done, calls = launch(
        *("run", "x", "--zone=z", "--delete", "--", "--config=a.py", "--name=b c"),
        answers=[
            {"match": f"--worker={i}", "stdout": f"hello of {i}\nended with 0"} for i in (0, 1)
        ],
    )
    assert done.returncode == 0
    assert sorted(verbs(calls)) == [
        *("queued-resources delete", "tpu-vm describe", "tpu-vm ssh", "tpu-vm ssh")
    ]
    assert verbs(calls)[-1] == "queued-resources delete"
    assert "launch/run.sh --config=a.py --name=b\\ c;" in next(c for c in calls if "ssh" in c)
    for worker in (0, 1):
        log = launch.code / f"work/logs/x/worker-{worker}.log"
        assert log.read_text() == f"hello of {worker}\nended with 0\n"


def test_run_without_arguments_passes_none_on(launch):
    answers = [{"match": f"--worker={i}", "stdout": "ended with 0"} for i in (0, 1)]
    done, calls = launch("run", "x", "--zone=z", answers=answers)
    assert done.returncode == 0
    assert sum("{ launch/run.sh; code=" in call for call in calls) == 2


def test_run_ends_with_the_first_worker_that_fails(launch):
    done, calls = launch(
        *("run", "x", "--zone=z", "--", "--config=a.py"),
        answers=[
            {"match": "--worker=0", "until": "pkill"},
            {"match": "--worker=1", "stdout": "error: no such file\nended with 2", "code": 2},
        ],
    )
    assert done.returncode == 2
    assert "error: no such file" in done.stderr
    assert "all of it is in work/logs/x" in done.stderr
    assert any("--worker=all" in call and "pkill" in call for call in calls)


def test_a_spot_slice_that_was_taken_away_is_asked_for_again(launch):
    done, calls = launch(
        *("run", "x", "--zone=z", "--type=v5litepod-16", "--spot", "--", "--config=a.py"),
        answers=[
            {"match": "--worker=1", "code": 255, "once": True},
            {"match": "value(state)", "stdout": "PREEMPTED", "once": True},
        ],
    )
    assert done.returncode == 0
    # The call to a single worker that was killed may be noted later.
    to_one = ["--worker=0" in call or "--worker=1" in call for call in calls]
    made = verbs([call for call, one in zip(calls, to_one, strict=True) if not one])
    again = made.index("queued-resources delete")
    assert made[again:] == [
        *("queued-resources delete", "queued-resources create", "queued-resources describe"),
        *("tpu-vm scp", "tpu-vm ssh", "tpu-vm describe"),
    ]
    assert to_one[-2:] == [True, True]
    assert any("create" in call and "--spot" in call for call in calls)


@pytest.mark.parametrize("code", [75, 76, 134])
def test_a_run_that_was_stopped_is_started_again(launch, code):
    stopped = {"match": "--worker=0", "stdout": f"ended with {code}", "code": 1, "once": True}
    done, calls = launch("run", "x", "--zone=z", "--", "--config=a.py", answers=[stopped])
    assert done.returncode == 0
    assert sum("--worker=0" in call for call in calls) == 2


@pytest.mark.parametrize(
    ("command", "failing", "before"),
    [
        ("create", "queued-resources create", 1),
        ("create", "queued-resources describe", 2),
        ("setup", "tpu-vm scp", 1),
        ("setup", "tpu-vm ssh", 2),
        ("run", "networkEndpoints", 2),  # and what the slice's state is
        ("status", "queued-resources describe", 1),
        ("status", "value(state,health)", 2),
        ("delete", "queued-resources delete", 1),
    ],
)
def test_a_command_that_fails_is_the_last(launch, command, failing, before):
    answers = [{"match": failing, "code": 1}]
    done, calls = launch(command, "x", "--zone=z", "--type=v5litepod-16", answers=answers)
    assert done.returncode != 0
    assert len(calls) == before


def test_a_slice_that_is_refused_is_said_so(launch):
    refused = {"match": "queued-resources describe", "stdout": "FAILED"}
    done, _ = launch("create", "x", "--zone=z", "--type=v5litepod-16", answers=[refused])
    assert done.returncode == 1
    assert done.stderr == "error: x is FAILED\n"


@pytest.mark.parametrize("command", ["create", "setup", "run", "status", "delete"])
def test_a_dry_run_prints_commands_and_calls_nothing(launch, command):
    done, calls = launch(
        *(command, "x", "--zone=z", "--type=v5litepod-16", "--dry-run", "--", "--config=a.py")
    )
    assert done.returncode == 0
    assert calls == []
    assert all(line.startswith("gcloud compute tpus ") for line in done.stdout.splitlines())
    assert done.stdout.count("\n") == {"delete": 1}.get(command, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "x"], "create needs --zone"),
        (["create", "x", "--zone=z"], "create needs --type"),
        (["run", "x", "--zone=z", "--config=a.py"], "training arguments come after --"),
        (["start", "x", "--zone=z"], "start is none of create, setup"),
        (["create"], "expected create, setup"),
    ],
)
def test_wrong_arguments_are_one_line(launch, arguments, message):
    done, calls = launch(*arguments)
    assert done.returncode == 2
    assert calls == []
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
