"""launch/tpu_vm.sh with a gcloud that refuses what is not documented, for its tests."""

import os
import pathlib
import shutil
import subprocess

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

    def start(self, *arguments, answers=(), poll=0):
        self.cloud.calls.clear()
        self.cloud.answers[:] = answers
        path = f"{self.code.parent}:{os.environ['PATH']}"
        return subprocess.Popen(
            ["launch/tpu_vm.sh", *arguments],
            cwd=self.code,
            env={**os.environ, "PATH": path, "POLL_SECONDS": str(poll)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __call__(self, *arguments, answers=(), poll=0):
        """The calls are without those that ask whether something is there already."""
        process = self.start(*arguments, answers=answers, poll=poll)
        done = self.finish(process)
        return done, [line for line in self.cloud.lines() if "--format=none" not in line]

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
