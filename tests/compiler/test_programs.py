"""Reports on programs: which fit, which do not, and the largest batch that does."""

import dataclasses
import importlib.util
import pathlib
import runpy

import jax
import jax.numpy as jnp
import pytest

from pinjax.compiler import largest_batch, programs, rates, report, topology
from pinjax.distributed import sharding
from pinjax.errors import InputError
from pinjax.systems import registry

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
CHIP = rates.Chip("test chip", flops=1e13, memory=2**30, bandwidth=1e11, interconnect=1e10)
TOPOLOGIES = {
    "v4:2x2x2": (8, "TPU v4"),
    "v5e:1x1": (1, "TPU v5e"),
    "v5e:4x4": (16, "TPU v5e"),
    "v5p:2x2x4": (16, "TPU v5p"),
    "v6e:16x16": (256, "TPU v6e"),
    "tpu7x:2x2x1": (8, "TPU7x core"),
}
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU compiler, is not installed"
)


@pytest.fixture
def mesh():
    return sharding.make_mesh()


def make_program(mesh, rows, function=lambda x, w: jnp.sin(x @ w).sum()):
    arguments = {
        "batch": sharding.abstract_batch(mesh, jnp.zeros((1, 64)), rows),
        "feature table": sharding.abstract(mesh, jnp.zeros((64, 32))),
    }
    return programs.Program("step", jax.jit(function), arguments, 2.0 * rows / 8 * 64 * 32)


def test_a_chip_has_its_share_of_what_is_sharded(mesh):
    program = make_program(mesh, 1024)
    found = programs.measure(program, CHIP, "")
    assert found.arguments == {"batch": 1024 // 8 * 64 * 4, "feature table": 64 * 32 * 4}
    assert found.compiled_flops == found.model_flops == found.roofline.flops
    assert found.peak >= sum(found.arguments.values()) + found.temporary
    assert found.roofline.bound == "HBM"
    text = report.table({"step": found}, CHIP)
    for words in ("feature table        8 KiB", "bound by", "  of 1.00 GiB", "0.524 M"):
        assert words in text
    assert len({len(line) for line in text.splitlines()}) == 1
    assert "all-reduce" in report.collectives(found)
    assert report.as_json({"step": found})["step"]["roofline"]["bound"] == "HBM"


def test_arguments_that_do_not_fit_are_refused_before_compiling(mesh):
    message = (
        r"step: the batch takes 16.00 GiB of the 1.00 GiB of a test chip, .* GiB; change the batch"
    )
    with pytest.raises(InputError, match=message):
        programs.check_arguments(make_program(mesh, 2**29), CHIP, "the batch")
    programs.check_arguments(make_program(mesh, 2**20), CHIP, "the batch")


def test_out_of_memory_names_an_array_and_what_to_change(mesh):
    """The TPU compiler's message, which names no array."""
    words = "CompileTimeHbmOom: HLO temporaries (29.87G) exceeds available HBM (15.75G). HLO module"
    program = make_program(mesh, 8192)
    line = programs._too_large(program, programs._needed(words), "a smaller batch")
    assert line == (
        "step: a chip needs 29.87 GiB of the 15.75 GiB that it has; the largest array over all "
        "chips is float32[8192, 32], 1 MiB, in dot_general; change a smaller batch"
    )


def test_what_compiles_and_does_not_fit_is_refused(mesh):
    program = make_program(mesh, 8192)
    small = dataclasses.replace(CHIP, memory=2**18)
    with pytest.raises(InputError, match=r"step: a chip needs .* of the 256 KiB that it has; .*"):
        programs.measure(program, small, "a smaller batch")


def test_the_largest_batch_is_where_memory_ends(mesh, monkeypatch):
    config = runpy.run_path(str(CONFIGS / "pinnerformer.py"))["get_config"]("test")
    tried = []

    def peak(config, mesh, items, chip, field, size):
        tried.append(size)
        if size > 900:
            raise InputError("too large")
        return 1_000 + 10 * size

    monkeypatch.setattr(largest_batch, "_peak", peak)
    chip = rates.Chip("test chip", 1.0, memory=10_999, bandwidth=1.0, interconnect=1.0)
    # The line through 1,160 for 16 and 1,320 for 32 ends at 999, which in fact does not fit.
    size = ("data.users", 16)
    assert largest_batch.find(config, mesh, None, chip, size, 1_160) == 872
    assert tried == [32, 992, 936, 872]

    # If twice the batch does not fit, the largest is below it.
    tried.clear()
    assert largest_batch.find(config, mesh, None, chip, ("data.users", 512), 6_120) == 896
    assert tried == [1024, 768, 896, 960]


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_the_tpu_compiler_it_says_how_to_get_it():
    with pytest.raises(InputError, match=r"pip install --no-deps -r requirements-compile.txt"):
        topology.devices("v5e:4x4")


@needs_libtpu
@pytest.mark.parametrize("name", TOPOLOGIES)
def test_the_chips_of_topologies_are_known(name):
    devices = topology.devices(name)
    assert (len(devices), rates.of(devices).name) == TOPOLOGIES[name]
    assert sharding.make_mesh(devices).devices.shape == (len(devices), 1)


@needs_libtpu
def test_a_train_step_compiles_for_tpus():
    config = runpy.run_path(str(CONFIGS / "searchsage.py"))["get_config"]("test")
    devices = topology.devices("v5e:2x2")
    mesh = sharding.make_mesh(devices)
    step = programs.train_step(registry.build(config, mesh), config.train, mesh)
    found = programs.measure(step, rates.of(devices), "")
    assert found.unknown_loops == 0
    assert "all-reduce" in {collective.kind for collective in found.collectives}
    assert 0 < found.peak < 2**30


@needs_libtpu
def test_out_of_memory_of_the_tpu_compiler_is_one_line():
    devices = topology.devices("v5e:2x2")

    def function(x, w):
        y = jnp.sort(x @ (x.T @ x @ w @ w.T)[:64])
        return jnp.sort(y[:, :1] * y[:, :1].T).T @ y

    program = make_program(sharding.make_mesh(devices), 2**17, function)
    message = (
        r"step: a chip needs [\d.]+ GiB of the 15.75 GiB .* float32\[131072, 131072\], 64.00 GiB"
    )
    with pytest.raises(InputError, match=message):
        programs.measure(program, rates.of(devices), "the batch")
