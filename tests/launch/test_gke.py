"""launch/gke.sh with a kubectl that records its calls, and the Dockerfile."""

import itertools
import os
import pathlib
import re
import subprocess

import numpy as np
import pytest
import yaml

from pinjax import app, signals

ROOT = pathlib.Path(__file__).parents[2]
RUN = ["--image=r.dev/p/i:1", "--", "--workdir=gs://b/run"]
V6E = ["--type=v6e", "--topology=4x4"]
KUBECTL = """#!/bin/sh
for argument; do printf '%s\\n' "$argument" >>"$CALLS"; done
echo . >>"$CALLS"
[ "$1" = create ] && cat >>"$CALLS.stdin"
exit ${CODE:-0}
"""
# What the manifest may hold: names, types and values of the fields that it uses, from JobSet's
# schema, which has Kubernetes' Job and Pod within it: kubernetes-sigs/jobset, tag v0.12.0,
# config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml. All of the manifest is valid by that
# file, also of v0.8.1 and v0.10.1.
POD = {
    "restartPolicy": {"Always", "OnFailure", "Never"},
    "terminationGracePeriodSeconds": int,
    "serviceAccountName": str,
    "nodeSelector": {
        # cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus
        "cloud.google.com/gke-tpu-accelerator": str,
        "cloud.google.com/gke-tpu-topology": str,
        # For TPU7x, as Google's xpk does: AI-Hypercomputer/xpk, src/xpk/core/scheduling.py
        "cloud.google.com/placement-policy-name": str,
        # cloud.google.com/kubernetes-engine/docs/concepts/spot-vms
        "cloud.google.com/gke-spot": {"true"},
    },
    "tolerations": [{"key": str, "operator": {"Exists", "Equal"}, "value": str}],
    "containers": [
        {
            "name": str,
            "image": str,
            "args": [str],
            "resources": {
                "requests": {"ephemeral-storage": str, "google.com/tpu": int},
                "limits": {"google.com/tpu": int},
            },
            "volumeMounts": [{"name": str, "mountPath": str}],
        }
    ],
    "volumes": [{"name": str, "emptyDir": {"medium": {"", "Memory"}}}],
}
JOB = {
    "parallelism": int,
    "completions": int,
    "completionMode": {"Indexed", "NonIndexed"},
    "backoffLimit": int,
    "podFailurePolicy": {
        "rules": [
            {
                "action": {"FailJob", "FailIndex", "Ignore", "Count"},
                "onPodConditions": [{"type": str, "status": {"True", "False", "Unknown"}}],
                "onExitCodes": {"operator": {"In", "NotIn"}, "values": [int]},
            }
        ]
    },
    "template": {"spec": POD},
}
JOBSET = {
    "apiVersion": {"jobset.x-k8s.io/v1alpha2"},
    "kind": {"JobSet"},
    "metadata": {
        "name": str,
        "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": str},
    },
    "spec": {
        "network": {"enableDNSHostnames": bool},
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [
                {
                    "name": str,
                    "action": {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"},
                    "onJobFailureReasons": [{"BackoffLimitExceeded", "PodFailurePolicy"}],
                }
            ],
        },
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB}}],
    },
}
# kubernetes.io/docs/reference/kubectl/generated
FLAGS = {
    "create": {"--filename"},
    "get": {"--selector", "--output"},
    "logs": {"--selector", "--follow", "--prefix", "--tail", "--max-log-requests"},
    "delete": {"--cascade"},
}


def gke(*arguments, **options):
    return subprocess.run(
        [ROOT / "launch/gke.sh", *arguments], capture_output=True, text=True, **options
    )


def render(*arguments):
    done = gke("render", "run", *arguments)
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def job_of(manifest):
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]


def pod_of(manifest):
    return job_of(manifest)["template"]["spec"]


def unknown(value, schema, path=""):
    """The paths of a manifest that its schema does not have."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [path]
        parts = [(v, schema.get(k, set()), f"{path}.{k}") for k, v in value.items()]
    elif isinstance(schema, list):
        if not isinstance(value, list):
            return [path]
        parts = [(v, schema[0], f"{path}[{i}]") for i, v in enumerate(value)]
    elif isinstance(schema, set):
        return [] if value in schema else [path]
    else:
        return [] if type(value) is schema else [path]
    return list(itertools.chain.from_iterable(unknown(*part) for part in parts))


@pytest.mark.parametrize(
    ("kind", "topology", "accelerator", "hosts", "chips"),
    [
        ("v5e", "1x1", "tpu-v5-lite-podslice", 1, 1),
        ("v5e", "2x2", "tpu-v5-lite-podslice", 1, 4),
        ("v5e", "16x16", "tpu-v5-lite-podslice", 64, 4),
        ("v6e", "2x4", "tpu-v6e-slice", 1, 8),
        ("v6e", "4x4", "tpu-v6e-slice", 4, 4),
        ("v5p", "2x2x1", "tpu-v5p-slice", 1, 4),
        ("v5p", "4x8x12", "tpu-v5p-slice", 96, 4),
        ("tpu7x", "2x2x2", "tpu7x", 2, 4),
        ("tpu7x", "16x16x36", "tpu7x", 2304, 4),
    ],
)
def test_a_pod_on_each_host_of_the_slice(kind, topology, accelerator, hosts, chips):
    manifest = render(f"--type={kind}", f"--topology={topology}", *RUN)
    assert unknown(manifest, JOBSET) == []
    job, pod = job_of(manifest), pod_of(manifest)
    assert (job["parallelism"], job["completions"]) == (hosts, hosts)
    assert job["completionMode"] == "Indexed"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    resources = pod["containers"][0]["resources"]
    assert resources["limits"] == {"google.com/tpu": chips}
    assert resources["requests"]["google.com/tpu"] == chips
    # Pods of several hosts have to be in one node pool, which is one slice.
    assert manifest["metadata"] == {"name": "run"} | (
        {
            "annotations": {
                "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
            }
        }
        if hosts > 1
        else {}
    )


def test_spot_the_placement_and_the_service_account():
    options = "--spot", "--placement-policy=cube", "--service-account=trainer"
    manifest = render(*V6E, *options, *RUN)
    assert unknown(manifest, JOBSET) == []
    pod = pod_of(manifest)
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["nodeSelector"]["cloud.google.com/placement-policy-name"] == "cube"
    assert pod["tolerations"] == [
        {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"}
    ]
    assert pod["serviceAccountName"] == "trainer"
    plain = pod_of(render(*V6E, *RUN))
    assert plain["serviceAccountName"] == "default"
    assert "tolerations" not in plain


def starts_again(manifest, code, disrupted=False):
    """What Kubernetes and JobSet do when a pod ends with this code, by their API references.

    Of each list of rules the first that matches decides. A pod that is counted fails a job with
    backoffLimit 0 as BackoffLimitExceeded; a failed job that no rule matches restarts the JobSet.
    """
    job, policy = job_of(manifest), manifest["spec"]["failurePolicy"]
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # what podFailurePolicy asks for
    action = "Count"
    for rule in job["podFailurePolicy"]["rules"]:
        conditions, codes = rule.get("onPodConditions"), rule.get("onExitCodes")
        if conditions:
            matches = disrupted and {"type": "DisruptionTarget", "status": "True"} in conditions
        else:
            matches = (code in codes["values"]) == (codes["operator"] == "In")
        if matches:
            action = rule["action"]
            break
    reason = {"Count": "BackoffLimitExceeded", "FailJob": "PodFailurePolicy"}[action]
    for rule in policy["rules"]:
        if reason in rule["onJobFailureReasons"]:
            return rule["action"].startswith("RestartJobSet")
    return policy["maxRestarts"] > 0


def test_only_a_job_that_is_to_go_on_starts_again():
    manifest = render(*V6E, *RUN)
    # 1: an error of ours, 137: out of memory, 139: a crash
    again = {code: starts_again(manifest, code) for code in (1, 2, 75, 76, 130, 134, 137, 139)}
    assert [code for code, does in again.items() if does] == [
        signals.EXIT_PREEMPTED,
        app.EXIT_LOST,
        134,  # SIGABRT
    ]
    # A host that is taken away ends its pod with any code.
    assert all(starts_again(manifest, code, disrupted=True) for code in (1, 75, 137, 143))
    codes = job_of(manifest)["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"]
    assert codes == sorted(set(codes))  # as the API asks


def test_arguments_arrive_as_they_are_given():
    rng = np.random.default_rng(0)
    signs = [
        "a",
        " ",
        '"',
        "'",
        "\\",
        "$",
        "(",
        ")",
        "#",
        ": ",
        "\n",
        "\t",
        "é",
        "{",
        "[",
        ",",
        "&",
    ]
    given = [f"--x={''.join(rng.choice(signs, 12))}" for _ in range(40)]
    given += ["--home=$(HOME)", "--image=$IMAGE", "--end=x$", "--workdir=gs://b/run"]
    args = pod_of(render(*V6E, "--image=i", "--", *given))["containers"][0]["args"]
    # Kubernetes replaces $(NAME), and $$ by $: kubernetes.io/docs/tasks/inject-data-application/
    # define-interdependent-environment-variables
    expanded = [re.sub(r"\$\$|\$\(\w+\)", lambda m: "$" * (m[0] == "$$"), arg) for arg in args]
    assert expanded == ["pinjax.train", *given]


@pytest.fixture
def kubectl(tmp_path):
    """(arguments of gke.sh or bash, its exit code) -> what was done, and kubectl's calls."""
    fake = tmp_path / "bin/kubectl"
    fake.parent.mkdir()
    fake.write_text(KUBECTL)
    fake.chmod(0o755)
    calls = tmp_path / "calls"

    def run(*command, code=0):
        env = os.environ | {"CALLS": str(calls), "CODE": str(code)}
        env["PATH"] = f"{fake.parent}:{env['PATH']}"
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=ROOT)
        made = calls.read_text().split("\n.\n")[:-1] if calls.exists() else []
        calls.unlink(missing_ok=True)
        return done, [call.splitlines() for call in made]

    run.stdin = tmp_path / "calls.stdin"
    return run


@pytest.mark.parametrize(
    ("command", "verbs"),
    [
        (["apply", "run", *V6E, *RUN], ["create"]),
        (["logs", "run"], ["logs"]),
        (["status", "run"], ["get jobset run", "get pods"]),
        (["delete", "run"], ["delete jobset run"]),
    ],
)
def test_what_a_dry_run_prints_is_what_is_called(kubectl, command, verbs):
    printed, calls = kubectl("launch/gke.sh", command[0], command[1], "--dry-run", *command[2:])
    assert (printed.returncode, calls) == (0, [])
    done, calls = kubectl("launch/gke.sh", *command)
    assert done.returncode == 0
    assert [" ".join(w for w in call if not w.startswith("--")) for call in calls] == verbs
    for verb, *arguments in calls:
        assert {a.partition("=")[0] for a in arguments if a.startswith("--")} <= FLAGS[verb]
    assert kubectl("bash", "-c", printed.stdout)[1] == calls
    if "create" in verbs:
        manifest = gke("render", *command[1:]).stdout
        assert kubectl.stdin.read_text() == 2 * manifest


@pytest.mark.parametrize("command", [["apply", "run", *V6E, *RUN], ["status", "run"]])
def test_a_call_that_fails_is_the_last(kubectl, command):
    done, calls = kubectl("launch/gke.sh", *command, code=1)
    assert (done.returncode, len(calls)) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", *V6E], "--image=: expected an image"),
        (["run", "--topology=4x4", *RUN], "--type=: expected v5e, v5p, v6e or tpu7x"),
        (["run", "--type=v4", "--topology=2x2x1", *RUN], "--type=v4: expected v5e"),
        (["run", "--type=v6e", *RUN], "--topology=: v6e has 1x1, 2x2, 2x4, 4x4"),
        (["run", "--type=v6e", "--topology=2x2x1", *RUN], "v6e has 1x1"),
        (["run", "--type=v6e", "--topology=4x2", *RUN], "v6e has 1x1"),
        (["run", "--type=tpu7x", "--topology=4x4", *RUN], "tpu7x has 2x2x1, 2x2x2"),
        (["run", "--type=v5p", "--topology=8x4x4", *RUN], "A <= B <= C, up to 6144 chips"),
        (["run", "--type=v5p", "--topology=4x4x6", *RUN], "multiples of four"),
        (["run", "--type=v5p", "--topology=16x16x28", *RUN], "up to 6144 chips"),
        (["run", "--type=v5p", "--topology=4x4x08", *RUN], "multiples of four"),
        (["run", *V6E, "--image=a b", *RUN[1:]], "--image=a b: expected an image"),
        (["run", *V6E, "--service-account=A", *RUN], "--service-account=A: expected"),
        (["run", *V6E, "--placement-policy=a b", *RUN], "--placement-policy=a b: expected"),
        (["run", *V6E, *RUN[:-1], "--workdir=run"], "expected --workdir=gs://... after --"),
        (["run", *V6E, "--config=a.py"], "--config=a.py is no option"),
        (["Run", *V6E, *RUN], "'Run' is no name"),
        (["a" * 41, *V6E, *RUN], "is no name"),
        ([], "expected apply, render, logs"),
    ],
)
@pytest.mark.parametrize("command", ["apply", "render"])
def test_wrong_arguments_are_one_line(kubectl, command, arguments, message):
    done, calls = kubectl("launch/gke.sh", command, *arguments)
    assert (done.returncode, calls, done.stdout) == (2, [], "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_unknown_command_is_refused(kubectl):
    done, calls = kubectl("launch/gke.sh", "stop", "run")
    assert (done.returncode, calls) == (2, [])
    assert done.stderr == "error: stop is none of apply, render, logs, status, delete\n"


def test_the_image_has_the_jax_of_the_requirements_and_starts_what_the_manifest_says():
    dockerfile = (ROOT / "Dockerfile").read_text()
    jax = subprocess.run(
        ["sh", "-c", re.search(r"\$\((sed .*)\)", dockerfile)[1]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    version = re.search(r"^jax==(\S+)", (ROOT / "requirements.txt").read_text(), re.M)[1]
    assert jax.stdout == f"jax[tpu]=={version}\n"
    for sources in re.findall(r"^COPY (.*) \S+$", dockerfile, re.M):
        assert all((ROOT / source).exists() for source in sources.split())
    # The manifest's args take the place of CMD.
    assert 'ENTRYPOINT ["tini", "--", "python", "-m"]\nCMD ["pinjax.train",' in dockerfile
