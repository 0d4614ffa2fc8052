"""launch/tpu_vm.sh: what it creates, and what is left of that."""

import math
import os
import pathlib
import shlex
import signal
import subprocess

import pytest

from tests.launch import fake_gcloud
from tests.launch.conftest import MANY, ONE, RESOURCES, V5E, flags, verbs

ROOT = pathlib.Path(__file__).parents[2]


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
    assert done.stderr.count("\n") == 2  # and what it costs


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
    asked = "list-instances" if where == MANY else "--format=value("
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


@pytest.mark.parametrize("where", RESOURCES)
def test_a_slice_of_the_same_name_stays_whatever_creating_it_would_say(launch, where):
    launch.create(where)
    before = launch.resources()
    answers = [{"match": " create ", "stderr": "INVALID_ARGUMENT", "code": 1}]
    done, calls = launch("create", "x", *where, answers=answers)
    assert done.returncode == 1
    assert not any(" delete " in call for call in calls)
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
