"""launch/tpu_vm.sh: setup, run and status of a slice that is there."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.launch.conftest import MANY, ONE, RESOURCES, ROOT, V5E, verbs


def test_setup_copies_the_code_to_all_workers_and_installs(launch):
    done, calls = launch("setup", "x", *V5E)
    assert done.returncode == 0
    assert verbs(calls) == ["tpu-vm describe", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]
    assert all("--worker=all" in call for call in calls[1:])
    assert "install requirements.txt && install requirements-gcp.txt" in calls[2]
    assert "jax.device_count() != 16)" in calls[3]
    assert "add -- --workdir=gs://BUCKET/smoke" in done.stderr


def test_setup_of_a_group(launch):
    launch.create(MANY)
    devices = "hello of a worker"
    done, calls = launch(
        *("setup", "x", *MANY, "--", "--workdir=gs://b/s"),
        answers=[{"match": "jax.local_devices", "stdout": devices}],
    )
    assert done.returncode == 0
    assert done.stdout.split("\n").count(devices) == 4
    copies = [call for call in calls if call.startswith("compute scp")]
    assert sorted(call.split()[3] for call in copies) == [f"x-{i}:" for i in range(4)]
    for part, times in (("install requirements-gcp.txt", 4), ("pinnerformer.py:test", 4)):
        assert sum(part in call for call in calls) == times
    assert all("--workdir=gs://b/s" in call for call in calls if ":test" in call)


def test_one_host_needs_no_bucket_for_its_run_of_test(launch):
    launch.create(ONE)
    done, calls = launch("setup", "x", *ONE)
    assert (done.returncode, done.stderr) == (0, "")
    [run] = [call for call in calls if ":test" in call]
    assert "--workdir=/tmp/pinjax-smoke" in run
    assert "--coordinator" not in run


JAX = """
def local_devices(): return [type("Device", (), dict(device_kind="TPU v6 lite"))] * 8
def device_count(): return {}
def default_backend(): return "tpu"
"""


@pytest.mark.parametrize(("devices", "code"), [(8, 0), (4, 1)])
def test_what_setup_runs_on_a_host(launch, tmp_path, devices, code):
    launch.create(ONE)
    launch("setup", "x", *ONE)
    commands = [words[-1] for words in launch.cloud.calls if words[1] == "ssh"]
    _, of_devices, of_training = (word.removeprefix("--command=") for word in commands)
    code_of_host = tmp_path / "pinjax"
    for path, text in (
        (".venv/bin/python", f'#!/bin/sh\nexec {sys.executable} -S "$@"\n'),
        ("jax.py", JAX.format(devices)),
        ("launch/stop.sh", "#!/bin/sh\necho stopped\n"),
        ("launch/run.sh", "#!/bin/sh\nprintf '%s\n' \"$@\"\nprintf 'half a line'\nexit 75\n"),
    ):
        (code_of_host / path).parent.mkdir(parents=True, exist_ok=True)
        (code_of_host / path).write_text(text)
        (code_of_host / path).chmod(0o755)

    def run(command):
        env = {**os.environ, "PYTHONPATH": "."}
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        return done.returncode, done.stdout

    told = f"{socket.gethostname()}: 8 of {devices} x TPU v6 lite\n"
    assert run(of_devices) == (code, told)
    ended, log = run(of_training)
    assert ended == 75
    assert log.startswith("stopped\n--config=configs/pinnerformer.py:test\n")
    assert log.endswith("\nended with 75\n")


def test_a_batch_of_the_run_of_test_can_be_divided(launch):
    where = ("--zone=us-east5-a", "--type=tpu7x-2x4x4")
    done, _ = launch("setup", "x", *where, "--dry-run", "--", "--workdir=gs://b/s")
    assert "--config.data.users=64 --config.evaluate.batch=64" in done.stdout


@pytest.mark.parametrize("failing", ["jax.local_devices", "pinnerformer.py:test"])
@pytest.mark.parametrize("where", RESOURCES)
def test_a_slice_that_does_not_work_is_seen_by_setup(launch, where, failing):
    launch.create(where)
    done, _ = launch(
        *("setup", "x", *where, "--", "--workdir=gs://b/s"),
        answers=[{"match": failing, "code": 1}],
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_setup_waits_for_hosts_that_do_not_answer_yet(launch):
    launch.create(ONE)
    refused = {"match": "compute scp", "stderr": "Connection refused", "code": 255, "once": True}
    done, calls = launch("setup", "x", *ONE, answers=[refused])
    assert done.returncode == 0
    assert sum("compute scp" in call for call in calls) == 2
    assert "x does not answer yet ..." in done.stderr


def test_run_has_a_log_for_each_worker_and_deletes_at_the_end(launch):
    launch.create(V5E)
    done, calls = launch(
        *("run", "x", *V5E, "--delete", "--", "--config=a.py", "--name=b c"),
        answers=[
            {"match": f"--worker={i}", "stdout": f"hello of {i}\nended with 0"} for i in (0, 1)
        ],
    )
    assert done.returncode == 0
    assert sorted(verbs(calls)) == [
        *("queued-resources delete", "tpu-vm describe", "tpu-vm ssh", "tpu-vm ssh")
    ]
    assert launch.resources() == set()
    assert "launch/run.sh --config=a.py --name=b\\ c;" in next(c for c in calls if "ssh" in c)
    for worker in (0, 1):
        log = (launch.code / f"work/logs/x/worker-{worker}.log").read_text().split("\n")
        assert [line for line in log if line] == [
            *("started with --config=a.py --name=b c", f"hello of {worker}", "ended with 0")
        ]


def test_run_without_arguments_passes_none_on(launch):
    done, calls = launch("run", "x", *V5E)
    assert done.returncode == 0
    assert sum("{ launch/run.sh; code=" in call for call in calls) == 2


def test_the_workers_of_a_group_are_told_where_the_first_is(launch):
    launch.create(MANY)
    done, calls = launch("run", "x", *MANY, "--", "--config=a.py")
    assert done.returncode == 0
    [address] = [call for call in calls if "networkIP" in call]
    assert " x-0 " in address
    told = {call.split()[2]: call for call in calls if call.startswith("compute ssh")}
    assert set(told) == {f"x-{i}" for i in range(4)}
    for i in range(4):
        assert (
            "launch/run.sh --config=a.py --coordinator=10.0.0.2:8482 --processes=4 "
            f"--process={i};" in told[f"x-{i}"]
        )


def test_a_group_that_lacks_a_host_does_not_run(launch):
    launch.create(MANY)
    answers = [{"match": "basename", "stdout": "x-0\nx-1"}]
    done, calls = launch("run", "x", *MANY, "--", "--config=a.py", answers=answers)
    assert done.returncode == 1
    assert "x has 2 of 4 hosts" in done.stderr
    assert not any("ssh" in call for call in calls)


@pytest.mark.parametrize("where", [V5E, MANY])
def test_run_ends_with_the_first_worker_that_fails(launch, where):
    launch.create(where)
    first, second = ("--worker=0", "--worker=1") if where == V5E else ("ssh x-0", "ssh x-1")
    others = [{"match": f"ssh x-{i}", "until": "pinjax/launch/stop.sh"} for i in (2, 3)]
    done, calls = launch(
        *("run", "x", *where, "--", "--config=a.py"),
        answers=[
            {"match": first, "until": "pinjax/launch/stop.sh"},
            *others,
            {"match": f"{second} ", "stdout": "error: no such file\nended with 2", "code": 2},
        ],
    )
    assert done.returncode == 2
    assert "error: no such file" in done.stderr
    assert "all of it is in work/logs/x" in done.stderr
    stops = [call for call in calls if "pinjax/launch/stop.sh" in call]
    assert len(stops) == (1 if where == V5E else 4)


LOST = [
    (V5E, "--worker=1", {"match": "value(state)", "stdout": "PREEMPTED"}),
    (ONE, "compute ssh", {"match": "value(status)", "stdout": "STOPPING"}),
    (MANY, "ssh x-3", {"match": "value(instanceStatus)", "stdout": "RUNNING\nTERMINATED"}),
]


@pytest.mark.parametrize(("where", "dying", "state"), LOST)
def test_a_spot_slice_that_was_taken_away_is_asked_for_again(launch, where, dying, state):
    launch.create(where)
    done, calls = launch(
        *("run", "x", *where, "--spot", "--", "--config=a.py"),
        answers=[{"match": dying, "code": 255, "once": True}, state | {"once": True}],
    )
    assert done.returncode == 0
    assert "creating it again" in done.stderr
    made = [call for call in calls if " create " in call or " delete " in call]
    kinds = 3 if where == MANY else 1
    assert sum(" delete " in call for call in made[:kinds]) == kinds
    assert sum(" create " in call for call in made[kinds:]) == kinds
    again = calls[calls.index(made[-1]) :]
    assert any("scp" in call for call in again)
    assert any("--config=a.py" in call for call in again)
    assert not any(":test" in call for call in again)


def test_a_spot_host_is_asked_for_until_there_is_capacity(launch):
    exhausted = {"match": "instances create", "stderr": "ZONE_RESOURCE_POOL_EXHAUSTED", "code": 1}
    done, calls = launch(
        *("run", "x", *ONE, "--spot", "--", "--config=a.py"),
        answers=[
            {"match": "compute ssh", "code": 255, "once": True},
            *[exhausted | {"once": True}] * 2,
        ],
    )
    assert done.returncode == 0
    assert sum("instances create" in call for call in calls) == 3
    assert launch.resources() == {"instance x"}


def test_a_spot_host_may_be_lost_again_and_again(launch):
    launch.create(ONE)
    lost = {"match": "compute ssh", "code": 255, "once": True}
    states = ["STOPPING", "STOPPING", "RUNNING", "STOPPING", "STOPPING", "RUNNING"]
    done, calls = launch(
        *("run", "x", *ONE, "--spot", "--", "--config=a.py"),
        answers=[
            *[lost] * 5,  # while it trains, is set up, and trains again; with a stop after each run
            *[{"match": "value(status)", "stdout": state, "once": True} for state in states],
        ],
    )
    assert done.returncode == 0
    assert sum("instances create" in call for call in calls) == 3
    assert launch.resources() == {"instance x"}


def test_a_spot_host_is_not_asked_for_again_where_it_is_refused(launch):
    refused = {"match": "instances create", "stderr": "Quota 'TPUS' exceeded.", "code": 1}
    done, calls = launch(
        *("run", "x", *ONE, "--spot", "--", "--config=a.py"),
        answers=[{"match": "compute ssh", "code": 255, "once": True}, refused],
    )
    assert done.returncode == 1
    assert sum("instances create" in call for call in calls) == 1


@pytest.mark.parametrize("code", [75, 76, 134])
def test_a_run_that_was_stopped_is_started_again(launch, code):
    stopped = {"match": "--worker=0", "stdout": f"ended with {code}", "code": 1, "once": True}
    done, calls = launch("run", "x", *V5E, "--", "--config=a.py", answers=[stopped])
    assert done.returncode == 0
    assert sum("--worker=0" in call for call in calls) == 2


def test_an_earlier_run_that_was_stopped_does_not_start_this_one_again(launch):
    stopped = launch.code / "work/logs/x/worker-0.log"
    stopped.parent.mkdir(parents=True)
    stopped.write_text("ended with 75\n")
    stopped.with_name("worker-9.log").write_text("ended with 75\n")
    answers = [{"match": "--worker=0", "stdout": "ended with 1", "code": 1}]
    done, calls = launch("run", "x", *V5E, "--", "--config=a.py", answers=answers)
    assert done.returncode == 1
    assert sum("--worker=0" in call for call in calls) == 1


def test_what_no_restart_mends_decides_whoever_ends_first(launch):
    answers = [
        {"match": "--worker=0", "stdout": "ended with 134", "code": 134},
        {"match": "--worker=1", "stdout": "error: no such file\nended with 2", "code": 2},
    ]
    done, calls = launch("run", "x", *V5E, "--", "--config=a.py", answers=answers, poll=1)
    assert done.returncode == 2
    assert "error: no such file" in done.stderr
    assert sum("--worker=0" in call for call in calls) == 1


def test_a_worker_that_is_out_of_reach_is_tried_three_times(launch):
    answers = [{"match": "--worker=0", "code": 255}]
    done, calls = launch("run", "x", *V5E, "--", "--config=a.py", answers=answers)
    assert done.returncode == 255
    assert sum("--worker=0" in call for call in calls) == 3
    assert "error: a worker ended with 255 within minutes, three times" in done.stderr


def test_how_a_worker_ended_that_was_stopped_is_not_told_of_the_next_try(launch):
    """The other worker ends while the first try is stopped, and before worker 0 in the next."""
    answers = [
        {"match": "--worker=0", "code": 255, "once": True},
        {"match": "--worker=0", "code": 255, "delay": 0.5},
        {"match": "--worker=1", "delay": 0.1},
    ]
    done, calls = launch("run", "x", *V5E, "--", "--config=a.py", answers=answers, poll=0.3)
    assert done.returncode == 255
    assert sum("--worker=0" in call for call in calls) == 3


def test_a_slice_without_hosts_has_not_ended_its_run(launch):
    answers = [{"match": "networkEndpoints", "stdout": "0"}]
    done, calls = launch("run", "x", *V5E, "--", "--config=a.py", answers=answers)
    assert done.returncode == 1
    assert done.stderr.endswith("error: the hosts of x are not known\n")
    assert not any("--worker" in call for call in calls)


def test_a_warning_of_gcloud_is_no_state(launch):
    """Else a healthy slice would be deleted, and created again."""
    launch.create(V5E)
    answers = [
        {"match": "--worker=0", "code": 75, "once": True},
        {"match": "value(state)", "stdout": "READY", "stderr": "WARNING: an old Python"},
    ]
    done, calls = launch("run", "x", *V5E, "--spot", "--", "--config=a.py", answers=answers)
    assert done.returncode == 0
    assert not any(" delete " in call or " create " in call for call in calls)


def test_a_deletion_that_fails_once_is_tried_again(launch):
    launch.create(V5E)
    answers = [
        {"match": "--worker=0", "code": 75, "once": True},
        {"match": "value(state)", "stdout": "PREEMPTED", "once": True},
        {"match": " delete ", "stderr": "TransportError", "code": 1, "once": True},
    ]
    done, calls = launch("run", "x", *V5E, "--spot", "--", "--config=a.py", answers=answers)
    assert done.returncode == 0
    assert sum(" delete " in call for call in calls) == 2
    assert sum(" create " in call for call in calls) == 1


def test_a_slice_is_not_given_up_because_it_could_not_be_asked(launch):
    """Say, as this machine was offline for a moment."""
    launch.create(V5E)
    dropped = {"match": "--worker=0", "code": 255, "once": True}
    offline = {"match": "value(state)", "stderr": "Unable to connect", "code": 1, "once": True}
    done, calls = launch(
        "run", "x", *V5E, "--spot", "--", "--config=a.py", answers=[dropped, offline]
    )
    assert done.returncode == 0
    assert not any(" delete " in call or " create " in call for call in calls)
    assert sum("--worker=0" in call for call in calls) == 2


PKILL = """#!/bin/bash
echo "$*" >>calls
[[ $1 = -KILL ]] || exit "$(<found)"
"""


@pytest.mark.parametrize(
    ("found", "left", "killed"), [(1, 0, False), (0, 3, False), (0, 1_000, True)]
)
def test_what_still_runs_on_a_host_is_waited_for(tmp_path, found, left, killed):
    for name, text in (
        ("pkill", PKILL),
        ("pgrep", '#!/bin/bash\nleft=$(<left)\necho $((left - 1)) >left\n[ "$left" -gt 0 ]\n'),
        ("sleep", "#!/bin/sh\n"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "found").write_text(str(found))
    (tmp_path / "left").write_text(str(left))
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([str(ROOT / "launch/stop.sh")], cwd=tmp_path, env=env)
    assert done.returncode == killed  # as this one is still there
    kill, *forced = (tmp_path / "calls").read_text().splitlines()
    assert kill == "-f -- -m pinjax[.]"
    assert forced == ["-KILL -f -- -m pinjax[.]"] * killed
    if found == 0 and not killed:
        assert (tmp_path / "left").read_text() == "-1\n"


@pytest.mark.parametrize(
    ("command", "failing", "before"),
    [
        ("setup", "tpu-vm scp", 13),  # a host may not answer yet
        ("setup", "tpu-vm ssh", 3),
        ("run", "networkEndpoints", 6),  # and what the slice's state is, three times
        ("status", "queued-resources describe", 1),
        ("status", "value(state,health)", 2),
        ("delete", "queued-resources delete", 1),
    ],
)
def test_a_command_that_fails_is_the_last(launch, command, failing, before):
    launch.create(V5E)
    done, calls = launch(command, "x", *V5E, answers=[{"match": failing, "code": 1}])
    assert done.returncode != 0
    assert len(calls) == before


@pytest.mark.parametrize("where", [V5E, MANY])
def test_an_interrupted_run_stops_its_workers(launch, where):
    launch.create(where)
    process = launch.start(
        "run", "x", *where, answers=[{"match": "launch/run.sh", "until": "pinjax/launch/stop.sh"}]
    )
    with launch.cloud.changed:
        launch.cloud.changed.wait_for(
            lambda: any("launch/run.sh" in call for call in launch.cloud.lines())
        )
    os.killpg(process.pid, signal.SIGINT)
    done = launch.finish(process)
    assert done.returncode == 130
    assert done.stderr.endswith("stopping the workers of x ...\n")
    assert any("pinjax/launch/stop.sh" in call for call in launch.cloud.lines())
    assert launch.resources() == RESOURCES[where]


@pytest.mark.parametrize("where", RESOURCES)
def test_status(launch, where):
    launch.create(where)
    done, _ = launch("status", "x", *where)
    assert done.returncode == 0
    assert set(done.stdout.split()) <= {"ACTIVE", "READY", "RUNNING"}
    assert done.stdout.count("\n") == {V5E: 2, ONE: 1, MANY: 4}[where]
