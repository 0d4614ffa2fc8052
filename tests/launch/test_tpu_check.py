"""launch/tpu_vm.sh check."""

import pytest

from tests.launch.conftest import MANY, ONE, V5E


@pytest.fixture
def compiler(launch):
    """Stands for an environment that is installed; its pinjax.compile prints its arguments."""
    environment = launch.code / "launch/env.sh"
    environment.write_text(
        'install() { :; }\npip_install() { .venv/bin/python -m pip install "$@"; }\n'
    )
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
