"""The cloud that the tests of slices use refuses what it should."""

import pytest

from tests.launch import fake_gcloud


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


@pytest.fixture
def ask(tmp_path):
    """(call) -> its exit code and what it says."""
    with fake_gcloud.Cloud(tmp_path) as cloud:
        yield lambda call: (lambda code, _, error: (code, error))(*cloud.call(call.split()))
        cloud.shutdown()


GROUP = (
    "compute instance-groups managed create x --zone=us-east5-b --size={} --template=x "
    "--workload-policy=regions/us-east5/resourcePolicies/x {}"
)
BULK = "--target-size-policy-mode=bulk"


def test_a_group_is_made_of_what_is_there_and_fits(ask):
    policy = "compute resource-policies create workload-policy x --region={} --type=HIGH_THROUGHPUT"
    template = (
        "compute instance-templates create x --machine-type=ct6e-standard-4t --image-project=p "
        "--image-family=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e --maintenance-policy=TERMINATE"
    )
    assert ask(template) == (0, "")
    assert "there is no policy" in ask(GROUP.format(4, BULK))[1]
    assert ask(f"{policy.format('us-east5')} --accelerator-topology=4x4") == (0, "")
    assert "needs the mode bulk" in ask(GROUP.format(4, ""))[1]
    assert "2 x ct6e-standard-4t are not 4x4" in ask(GROUP.format(2, BULK))[1]
    assert ask(GROUP.format(4, BULK)) == (0, "")
    assert "already exists" in ask(GROUP.format(4, BULK))[1]

    delete = [
        "compute resource-policies delete x --region=us-east5 --quiet",
        "compute instance-templates delete x --quiet",
        "compute instance-groups managed delete x --zone=us-east5-b --quiet",
    ]
    for call in delete[:2]:
        assert "is already being used" in ask(call)[1]
    for call in reversed(delete):
        assert ask(call) == (0, "")
        assert "was not found" in ask(call)[1]
