"""The bound on a step, in numbers chosen by hand."""

import types

import pytest

from pinjax.compiler import rates, roofline

CHIP = rates.Chip("a chip", flops=1e12, memory=1e9, bandwidth=1e11, interconnect=1e10)


@pytest.mark.parametrize(
    ("flops", "traffic", "sent", "bound", "seconds"),
    [
        (2e12, 1e11, 1e10, "compute", 2.0),
        (1e12, 3e11, 1e10, "HBM", 3.0),
        (1e12, 1e11, 4e10, "interconnect", 4.0),
    ],
)
def test_the_slowest_bounds(flops, traffic, sent, bound, seconds):
    found = roofline.Roofline(CHIP, flops, traffic, sent)
    assert (found.bound, found.step) == (bound, seconds)
    assert f"= {1e3 * seconds:,.2f} ms, bound by {bound}" in found.formula()
    assert f"{sent / 1e9:,.3g} GB / 10 GB/s" in found.formula()


def test_cores_share_a_chip():
    def devices(kind, coords):
        return [types.SimpleNamespace(device_kind=kind, coords=place) for place in coords]

    joined = rates.of(devices("TPU v5", [(0, 0), (0, 1)]))
    assert joined == rates.CHIPS["TPU v5"]
    apart = rates.of(devices("TPU v4", [(0, 0), (0, 0), (0, 1), (0, 1)]))
    assert apart.flops == rates.CHIPS["TPU v4"].flops / 2
    half = rates.of(devices("TPU7x", [(0, 0, 0), (0, 0, 0)]))
    assert half == rates.Chip("TPU7x core", 1153.5e12, 96 * 2**30, 3.69e12, 3e11)
    assert rates.of([types.SimpleNamespace(device_kind="cpu")]) is None
