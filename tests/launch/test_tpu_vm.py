"""launch/tpu_vm.sh against a gcloud that refuses what is not documented; see fake_gcloud.py."""

import math
import os
import pathlib
import shlex
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from tests.launch import fake_gcloud

ROOT = pathlib.Path(__file__).parents[2]
V5E = ("--zone=us-west4-a", "--type=v5litepod-16")  # by the Cloud TPU API
ONE = ("--zone=us-east5-b", "--type=v6e-8")  # by Compute Engine: an instance
MANY = ("--zone=us-east5-b", "--type=v6e-16")  # a group of four instances
RESOURCES = {
    V5E: {"queued-resource x"},
    ONE: {"instance x"},
    MANY: {"group x", "policy x", "template x"},
}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    path = tmp_path_factory.mktemp("repository")
    shutil.copytree(ROOT / "launch", path / "launch")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x", "-C", str(path)]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    return path


@pytest.fixture
def cloud(tmp_path):
    with fake_gcloud.Cloud(tmp_path) as cloud:
        yield cloud
        cloud.shutdown()
        assert cloud.refusals == []


class Launch:
    """(arguments, answers) -> the finished script and the calls that it made."""

    def __init__(self, code, cloud):
        self.code, self.cloud = code, cloud

    def start(self, *arguments, answers=()):
        self.cloud.calls.clear()
        self.cloud.answers[:] = answers
        path = f"{self.code.parent}:{os.environ['PATH']}"
        return subprocess.Popen(
            ["launch/tpu_vm.sh", *arguments],
            cwd=self.code,
            env={**os.environ, "PATH": path, "POLL_SECONDS": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __call__(self, *arguments, answers=()):
        process = self.start(*arguments, answers=answers)
        return self.finish(process), self.cloud.lines()

    def finish(self, process):
        out, error = process.communicate()
        return subprocess.CompletedProcess(process.args, process.returncode, out, error)

    def create(self, where):
        """What `create` creates, without running it."""
        for resource in RESOURCES[where]:
            self.cloud.resources[resource] = {"--size=": "4"}

    def resources(self):
        """What is there, and costs money."""
        return set(self.cloud.resources)


@pytest.fixture
def launch(tmp_path, repository, cloud):
    return Launch(shutil.copytree(repository, tmp_path / "code"), cloud)


def verbs(calls):
    """What was done: 'tpu-vm ssh', 'instances create' and so on."""
    return [" ".join(fake_gcloud.command_of(call).split()[-2:]) for call in calls]


def flags(call):
    return dict(word.split("=", 1) for word in call.split() if "=" in word)


# What each type is.


@pytest.mark.parametrize(
    ("type", "runtime"),
    [
        ("v2-8", "tpu-ubuntu2204-base"),
        ("v3-32", "tpu-ubuntu2204-base"),
        ("v4-8", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-32", "v2-alpha-tpuv5"),
        ("v6e-4", "v2-alpha-tpuv6e"),
    ],
)
def test_the_software_fits_the_type(launch, type, runtime):
    done, calls = launch("create", "x", "--zone=z", f"--type={type}", "--api=tpu")
    assert done.returncode == 0
    assert flags(calls[0]) == {
        "--zone": "z",
        "--node-id": "x",
        "--accelerator-type": type,
        "--runtime-version": runtime,
    }
    assert verbs(calls) == ["queued-resources create", "queued-resources describe"]
    assert launch.resources() == {"queued-resource x"}


def test_the_topology_of_every_size():
    two_to = [2**power for power in range(13)]
    sizes = {
        "v4": two_to[3:],
        "v5litepod": [1, *two_to[2:9]],
        "v5p": [*two_to[3:], 8192, 12288],
        "v6e": [1, *two_to[2:9]],
    }
    types = [f"{generation}-{size}" for generation in sizes for size in sizes[generation]]
    script = """
fail() { echo "$@"; exit 1; }
source launch/tpu_types.sh
for type; do resolve_type; echo "$type $topology $chips $devices $target $hosts $machine"; done
"""
    told = subprocess.run(
        ["bash", "-euc", script, "bash", *types, "tpu7x-1x1x1", "tpu7x-2x2x1", "tpu7x-4x4x8"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = told.stdout.splitlines()
    assert len(lines) == len(types) + 3
    for line in lines:
        type, topology, chips, devices, target, hosts, *machine = line.split()
        generation, size = type.split("-")
        sides = list(map(int, topology.split("x")))
        assert int(chips) == math.prod(sides)
        assert target == f"{generation.replace('litepod', 'e')}:{topology}"
        if generation == "tpu7x":
            assert (size, int(devices)) == (topology, 2 * int(chips))
        else:
            cores = 2 if generation in ("v4", "v5p") else 1
            assert (int(size), devices) == (cores * int(chips), chips)
            assert sides == sorted(sides) or int(chips) == 4
        if machine:
            assert int(hosts) * int(machine[0].rpartition("-")[2].removesuffix("t")) == int(chips)


@pytest.mark.parametrize("where", RESOURCES)
def test_another_version_can_be_chosen(launch, where):
    done, _ = launch("create", "x", *where, "--version=other", "--dry-run")
    assert ("--runtime-version=other" in done.stdout) == (where == V5E)
    assert ("--image-family=other" in done.stdout) == (where != V5E)


@pytest.mark.parametrize(
    ("type", "machine"),
    [
        ("v5p-8", "ct5p-hightpu-4t"),
        ("v6e-1", "ct6e-standard-1t"),
        ("v6e-4", "ct6e-standard-4t"),
        ("v6e-8", "ct6e-standard-8t"),
        ("tpu7x-1x1x1", "tpu7x-standard-1t"),
        ("tpu7x-2x2x1", "tpu7x-standard-4t"),
    ],
)
def test_one_host_is_an_instance(launch, type, machine):
    done, calls = launch("create", "x", "--zone=us-east5-a", f"--type={type}")
    assert done.returncode == 0
    assert verbs(calls) == ["instances create", "instances describe"]
    assert flags(calls[0])["--machine-type"] == machine
    assert launch.resources() == {"instance x"}


@pytest.mark.parametrize(
    ("type", "machine", "chips"),
    [
        ("v5p-16", "ct5p-hightpu-4t", 8),
        ("v5p-12288", "ct5p-hightpu-4t", 6144),
        ("v6e-16", "ct6e-standard-4t", 16),
        ("v6e-256", "ct6e-standard-4t", 256),
        ("tpu7x-2x2x2", "tpu7x-standard-4t", 8),
        ("tpu7x-4x4x8", "tpu7x-standard-4t", 128),
    ],
)
def test_several_hosts_are_a_group(launch, type, machine, chips):
    done, calls = launch("create", "x", "--zone=us-east5-a", f"--type={type}")
    assert done.returncode == 0
    policy, template, group = map(flags, calls[:3])
    assert policy["--type"] == "HIGH_THROUGHPUT"
    topology = policy["--accelerator-topology"]
    assert math.prod(map(int, topology.split("x"))) == chips
    assert not type.startswith("tpu7x") or type == f"tpu7x-{topology}"
    assert template["--machine-type"] == machine
    assert int(group["--size"]) * 4 == chips
    assert launch.resources() == RESOURCES[MANY]


@pytest.mark.parametrize("where", RESOURCES)
def test_spot(launch, where):
    _, calls = launch("create", "x", *where, "--spot")
    spot = [call for call in calls if "--spot" in call or "--provisioning-model=SPOT" in call]
    [kind] = verbs(spot)
    assert kind in ("queued-resources create", "instances create", "instance-templates create")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["create", "x"], "create needs --zone"),
        (["create", "x", "--zone=z"], "create needs --type"),
        (["check", "x", "--zone=z"], "check needs --type"),
        (["run", "x", "--zone=z", "--spot"], "run needs --type"),
        (["create", "x", "--zone=z", "--type=h100-8"], "expected v2-, v3-, v4-, v5litepod-"),
        (["create", "x", "--zone=z", "--type=v6e-5"], "expected v6e- and one of 1 4 8 16"),
        (["create", "x", "--zone=z", "--type=v6e-.*"], "expected v6e- and one of 1 4 8 16"),
        (["create", "x", "--zone=z", "--type=v6e"], "expected v6e- and one of 1 4 8 16"),
        (["create", "x", "--zone=z", "--type=v4-8", "--api=compute"], "v4-8 needs --api=tpu"),
        (["run", "x", "--zone=z", "--type=tpu7x-2x2x1", "--api=tpu"], "needs --api=compute"),
        (["create", "x", "--zone=z", "--type=v6e-8", "--api=gke"], "--api=compute or --api=tpu"),
        (["run", "x", "--zone=z", "--config=a.py"], "training arguments come after --"),
        (["start", "x", "--zone=z"], "start is none of check, create"),
        (["create"], "expected check, create"),
    ],
)
def test_wrong_arguments_are_one_line(launch, arguments, message):
    done, calls = launch(*arguments)
    assert done.returncode == 2
    assert calls == []
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


# To have a slice.


@pytest.mark.parametrize(
    ("where", "first", "told"),
    [
        (V5E, {"match": "value(state.state", "stdout": "PROVISIONING"}, "x is PROVISIONING ..."),
        (ONE, {"match": "value(status)", "stdout": "STAGING"}, "for hosts: 1 STAGING of 1"),
        (MANY, {"match": "value(instanceStatus)", "stdout": "RUNNING"}, "hosts: 1 RUNNING of 4"),
        (MANY, {"match": "value(instanceStatus)", "stdout": "\nRUNNING"}, "1 MISSING 1 RUNNING"),
    ],
)
def test_create_waits_until_the_slice_is_there(launch, where, first, told):
    done, calls = launch("create", "x", *where, answers=[first | {"once": True}])
    assert done.returncode == 0
    assert sum(first["match"] in call for call in calls) == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_group_that_waits_for_capacity_says_so(launch):
    why = "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS"
    done, _ = launch(
        *("create", "x", *MANY),
        answers=[
            {"match": "value(instanceStatus)", "stdout": "\n\n\n", "once": True},
            {"match": "lastProgressCheck", "stdout": why},
        ],
    )
    assert done.returncode == 0
    assert why in done.stderr


NOT_ENABLED = "Cloud TPU API has not been used in project 1 before or it is disabled."
FAILURES = [
    (V5E, "queued-resources create", f"ERROR: PERMISSION_DENIED: {NOT_ENABLED}", "gcloud services"),
    (
        *(V5E, "queued-resources create"),
        "RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepodPerZone' has been exceeded. Limit: 0",
        "quota is too small for v5litepod-16",
    ),
    (
        *(V5E, "queued-resources create", "PERMISSION_DENIED: User does not have permission"),
        "your account is not permitted",
    ),
    (
        *(V5E, "queued-resources create"),
        "The resource 'projects/p/locations/z/acceleratorTypes/v5litepod-16' was not found",
        "us-west4-a does not have v5litepod-16",
    ),
    (
        *(ONE, "instances create"),
        "code: ZONE_RESOURCE_POOL_EXHAUSTED\nmessage: The zone does not have enough resources",
        "us-east5-b has no capacity for v6e-8 now",
    ),
    (ONE, "instances create", "Quota 'TPUS' exceeded.  Limit: 0.0 in region r.", "quota is too"),
    (
        *(ONE, "instances create", "Required 'compute.instances.create' permission for 'p'"),
        "your account is not permitted",
    ),
    (
        *(MANY, "instance-templates create", "Compute Engine API has not been used in project 1"),
        "gcloud services enable compute.googleapis.com",
    ),
    (
        *(MANY, "instance-groups managed create"),
        "Machine type with name 'ct6e-standard-4t' does not exist in zone 'us-east5-b'.",
        "us-east5-b does not have v6e-16",
    ),
    (
        *(MANY, "instance-groups managed create"),
        "unrecognized arguments: --target-size-policy-mode=bulk",
        "gcloud components update",
    ),
    (MANY, "instance-groups managed create", "a fault of another kind", "x: a fault of another"),
]


@pytest.mark.parametrize(("where", "failing", "said", "meaning"), FAILURES)
def test_a_creation_that_fails_says_why_and_leaves_nothing(launch, where, failing, said, meaning):
    answers = [{"match": failing, "stderr": said, "code": 1}]
    done, _ = launch("create", "x", *where, answers=answers)
    assert done.returncode == 1
    assert launch.resources() == set()
    assert meaning in done.stderr
    assert " ".join(said.split()) in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("where", "match", "stdout", "meaning"),
    [
        (V5E, "value(state.state", "FAILED\tThere is no more capacity in the zone", "no capacity"),
        (V5E, "value(state.state", "FAILED", "without a reason"),
        (V5E, "value(state.state", "SUSPENDED", "preempted or deleted while"),
        (ONE, "value(status)", "STOPPING", "preempted or deleted while"),
        (MANY, "value(instanceStatus)", "RUNNING\nTERMINATED", "preempted or deleted while"),
    ],
)
def test_a_slice_that_does_not_come_is_given_back(launch, where, match, stdout, meaning):
    answers = [{"match": match, "stdout": stdout}]
    done, _ = launch("create", "x", *where, answers=answers)
    assert done.returncode == 1
    assert launch.resources() == set()
    assert meaning in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_group_that_lacks_quota_is_given_back(launch):
    done, _ = launch(
        *("create", "x", *MANY),
        answers=[
            {"match": "value(instanceStatus)", "stdout": "\n\n\n"},
            {"match": "lastProgressCheck", "stdout": "[{'code': 'QUOTA_EXCEEDED'}]"},
        ],
    )
    assert done.returncode == 1
    assert launch.resources() == set()
    assert "quota is too small for v6e-16" in done.stderr


@pytest.mark.parametrize(("words", "tries"), [("it was not found", 1), ("no network", 5)])
@pytest.mark.parametrize("where", RESOURCES)
def test_a_slice_that_is_lost_from_sight_is_given_back(launch, where, words, tries):
    asked = "list-instances" if where == MANY else "describe"
    answers = [{"match": asked, "stderr": words, "code": 1}]
    done, calls = launch("create", "x", *where, answers=answers)
    assert done.returncode == 1
    assert launch.resources() == set()
    assert sum(asked in call for call in calls) == tries
    assert words in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("where", RESOURCES)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_creation_leaves_nothing(launch, where, signum):
    asked = "list-instances" if where == MANY else "describe"
    process = launch.start("create", "x", *where, answers=[{"match": asked, "until": "never"}])
    with launch.cloud.changed:
        launch.cloud.changed.wait_for(lambda: any(asked in call for call in launch.cloud.lines()))
    assert launch.resources()
    os.killpg(process.pid, signum)
    done = launch.finish(process)
    assert done.returncode == 130
    assert done.stderr.endswith("deleting x ...\nerror: x: interrupted\n")
    assert launch.resources() == set()


@pytest.mark.parametrize("where", RESOURCES)
def test_a_slice_of_the_same_name_stays(launch, where):
    launch.create(where)
    before = launch.resources()
    done, _ = launch("create", "x", *where)
    assert done.returncode == 1
    assert "the name is taken" in done.stderr
    assert launch.resources() == before


def test_a_template_of_the_same_name_stays(launch):
    launch.cloud.resources["template x"] = {}
    done, _ = launch("create", "x", *MANY)
    assert done.returncode == 1
    assert launch.resources() == {"template x"}


@pytest.mark.parametrize("where", RESOURCES)
def test_delete_leaves_nothing(launch, where):
    launch.create(where)
    done, _ = launch("delete", "x", *where)
    assert (done.returncode, done.stderr) == (0, "")
    assert launch.resources() == set()


def test_delete_goes_on_where_something_is_gone(launch):
    launch.create(MANY)
    del launch.cloud.resources["group x"]
    done, _ = launch("delete", "x", *MANY)
    assert done.returncode == 0
    assert launch.resources() == set()


def test_what_cannot_be_deleted_is_told(launch):
    done, _ = launch(
        *("create", "x", *ONE),
        answers=[
            {"match": "value(status)", "stdout": "STOPPING"},
            {"match": "instances delete", "stderr": "no network", "code": 1},
        ],
    )
    assert "no network" in done.stderr
    assert "x may cost money" in done.stderr


# To use it.


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
    assert "--config=configs/pinnerformer.py:test" in log.splitlines()
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
    others = [{"match": f"ssh x-{i}", "until": "pkill"} for i in (2, 3)]
    done, calls = launch(
        *("run", "x", *where, "--", "--config=a.py"),
        answers=[
            {"match": first, "until": "pkill"},
            *others,
            {"match": f"{second} ", "stdout": "error: no such file\nended with 2", "code": 2},
        ],
    )
    assert done.returncode == 2
    assert "error: no such file" in done.stderr
    assert "all of it is in work/logs/x" in done.stderr
    stops = [call for call in calls if "pkill" in call]
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
    answers = [{"match": "--worker=0", "code": 255}]
    done, calls = launch("run", "x", *V5E, "--", "--config=a.py", answers=answers)
    assert done.returncode == 255
    assert sum("--worker=0" in call for call in calls) == 1


@pytest.mark.parametrize(
    ("command", "failing", "before"),
    [
        ("setup", "tpu-vm scp", 13),  # a host may not answer yet
        ("setup", "tpu-vm ssh", 3),
        ("run", "networkEndpoints", 2),  # and what the slice's state is
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


@pytest.mark.parametrize("where", RESOURCES)
def test_status(launch, where):
    launch.create(where)
    done, _ = launch("status", "x", *where)
    assert done.returncode == 0
    assert set(done.stdout.split()) <= {"ACTIVE", "READY", "RUNNING"}
    assert done.stdout.count("\n") == {V5E: 2, ONE: 1, MANY: 4}[where]


# What would be done.


@pytest.mark.parametrize("where", RESOURCES)
def test_a_dry_run_prints_commands_that_gcloud_takes_and_calls_nothing(launch, where):
    arguments = ("--", "--config=configs/pinnerformer.py:paper", "--workdir=gs://b/r")
    for command in ("check", "create", "setup", "run", "status", "delete"):
        done, calls = launch(command, "x", *where, "--delete", "--dry-run", *arguments)
        assert (done.returncode, done.stderr, calls) == (0, "", [])
        lines = [shlex.split(line) for line in done.stdout.splitlines() if line[0] != "#"]
        for program, *words in lines:
            assert program in ("gcloud", "git", ".venv/bin/python")
            if program == "gcloud":
                fake_gcloud.check(*fake_gcloud.parsed(words))
        assert lines


# To know beforehand.


@pytest.fixture
def compiler(launch):
    """Stands for an environment that is installed; its pinjax.compile prints its arguments."""
    environment = launch.code / "launch/env.sh"
    environment.write_text("install() { :; }\n")
    python = launch.code / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@"\n[ "$2" != pinjax.compile ] || exit "${FAILING:-0}"\n')
    python.chmod(0o755)


@pytest.mark.parametrize(
    ("where", "facts"),
    [
        (V5E, ("16 chips", "Cloud TPU API", "v2-alpha-tpuv5-lite", "Python 3.10", "v5e:4x4")),
        (ONE, ("8 chips", "an instance: ct6e-standard-8t", "v5e-v5p-v6e", "v6e:2x4")),
        (MANY, ("group: 4 x ct6e-standard-4t", "Python 3.10", "100 GB", "v6e:4x4")),
        (
            ("--zone=us-east5-a", "--type=v5p-32"),
            ("16 chips", "group: 4 x ct5p-hightpu-4t", "Python 3.10", "v5p:2x2x4"),
        ),
        (
            ("--zone=us-east5-a", "--type=tpu7x-2x2x1"),
            ("4 chips, 8 devices", "tpu7x-standard-4t", "Python 3.12", "tpu7x:2x2x1"),
        ),
    ],
)
def test_check_tells_what_would_be_made(launch, compiler, where, facts):
    done, calls = launch(
        *("check", "x", *where, "--", "--config=a.py:paper", "--config.data.users=8"),
        *("--workdir=gs://b/run",),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert launch.resources() == set()
    assert all(" describe" in call for call in calls)
    for fact in facts:
        assert fact in done.stdout
    assert "-m pinjax.compile --config=a.py:paper --config.data.users=8 --topology=" in done.stdout
    assert "PROBLEM" not in done.stdout


@pytest.mark.parametrize(
    ("where", "answer", "problem"),
    [
        (V5E, {"match": "accelerator-types", "stderr": "acceleratorTypes/a was not found"},
         "zone     PROBLEM: us-west4-a does not have v5litepod-16"),
        (ONE, {"match": "machine-types", "stderr": "The resource 'machineTypes/m' was not found"},
         "zone     PROBLEM: us-east5-b does not have v6e-8"),
        (ONE, {"match": "machine-types", "stderr": "SERVICE_DISABLED"},
         "gcloud services enable compute.googleapis.com"),
        (ONE, {"match": "images", "stderr": "The resource was not found"}, "image    PROBLEM"),
        (V5E, {"match": "versions", "stderr": "NOT_FOUND"}, "runtime  PROBLEM"),
        (ONE, {"match": "buckets", "stderr": "gs://b not found: 404."}, "bucket   PROBLEM"),
    ],
)  # fmt: skip
def test_check_tells_problems(launch, compiler, where, answer, problem):
    done, _ = launch(
        *("check", "x", *where, "--", "--workdir=gs://b/run"), answers=[answer | {"code": 1}]
    )
    assert done.returncode == 1
    assert problem in done.stdout
    assert done.stdout.count("PROBLEM") == 1


def test_check_of_a_config_that_does_not_fit(launch, compiler, monkeypatch):
    monkeypatch.setenv("FAILING", "2")
    done, _ = launch("check", "x", *ONE, "--", "--config=a.py:paper")
    assert done.returncode == 1
    assert done.stdout.endswith("config   PROBLEM: it does not compile for v6e:2x4; see above\n")


def test_check_compares_regions(launch):
    for place, said in (
        ("US-EAST5\tregion", "is in us-east5, like the slice"),
        ("EUROPE-WEST4\tregion", "is in europe-west4 (region), the slice in us-east5: slower"),
    ):
        answers = [{"match": "buckets describe gs://b ", "stdout": place}]
        done, _ = launch("check", "x", *ONE, "--", "--workdir=gs://b/r", answers=answers)
        assert f"bucket   gs://b {said}" in done.stdout


def test_check_asks_for_a_bucket_where_there_are_several_hosts(launch):
    done, _ = launch("check", "x", *MANY)
    assert done.returncode == 0
    done, _ = launch("check", "x", *MANY, "--", "--workdir=work/run")
    assert done.returncode == 1
    assert done.stdout.endswith("workdir  PROBLEM: 4 hosts need one on gs://\n")


# The reference, by which all of this is judged.


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ("compute tpus queued-resources delete x --zone=z --quiet --now", "unrecognized"),
        ("compute tpus queued-resources delete x --quiet", "must be specified"),
        ("compute tpus make x", "no such command"),
        ("compute ssh x y --zone=z --command=c", "takes 1 arguments"),
        ("compute resource-policies create workload-policy x --region=r --type=FAST", "is none of"),
        (
            "compute tpus queued-resources create x --zone=z --node-id=x "
            "--accelerator-type=v6e-8 --runtime-version=v2-alpha-tpuv5-lite",
            "is no software for v6e",
        ),
        (
            "compute instances create x --zone=z --machine-type=tpu7x-standard-4t "
            "--image-family=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e --image-project=p "
            "--maintenance-policy=TERMINATE",
            "is no image",
        ),
    ],
)
def test_the_reference_refuses(call, reason):
    with pytest.raises(fake_gcloud.Refused, match=reason):
        fake_gcloud.check(*fake_gcloud.parsed(call.split()))
