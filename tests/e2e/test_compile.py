"""The command for eight devices at hand, in a process of its own, from flags to output."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from tests import commands

ROOT = pathlib.Path(__file__).parents[2]


def run(config, *flags):
    command = [sys.executable, "-m", "pinjax.compile", f"--config={ROOT}/configs/{config}", *flags]
    settings = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "8"}
    settings["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    env = os.environ | settings
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
def test_pinnerformer_as_json():
    done = run("pinnerformer.py:test", "--json")
    found = json.loads(done.stdout)
    assert not done.stderr
    assert (found["devices"], found["mesh"]) == ("8 x cpu", {"data": 8, "model": 1})
    assert set(found["programs"]) == {"train step", "embed users", "embed items", "search"}
    step = found["programs"]["train step"]
    # AdamW keeps two numbers and two counts; content is 1,000 vectors of 256 numbers in bfloat16.
    arguments = step["arguments"]
    assert arguments["optimiser"] == 2 * arguments["parameters"] + 2 * 4
    assert arguments["feature table"] == 1_000 * 256 * 2 + 1_000 * 4
    # All gradients are summed over the devices, here in float32, and little else is.
    assert 2 * 7 / 8 * arguments["parameters"] < step["sent"] < 4 * arguments["parameters"]
    # Negatives are embedded on every device, and a model of this size does little beside.
    assert step["model_flops"] < step["compiled_flops"] < 2 * step["model_flops"]
    assert step["peak"] > sum(arguments.values())


def test_searchsage_as_a_table():
    out = run("searchsage.py:test").stdout
    head, memory, collectives = (part.splitlines() for part in out.strip().split("\n\n"))
    assert head[1:] == [
        "devices  8 x cpu",
        "mesh     {'data': 8, 'model': 1}",
        "batch    data.pairs=32, 4 on each device",
    ]
    assert re.split("  +", memory[0]) == ["on each device", "train step", "embed queries", "search"]
    cells = {line[:14].strip(): line[14:].split() for line in memory[1:]}
    assert cells["index"] == ["0.978", "MiB"]  # only for the search: 1,000 items of 256 numbers
    assert {line.split()[0] for line in collectives[1:]} == {"all-reduce", "all-gather"}


@pytest.fixture(scope="module")
def compile_():
    with commands.Command("compile", JAX_NUM_CPU_DEVICES="8") as compile_:
        yield compile_


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.data.users=12"], "data.users=12 is not divisible by the 8 devices of the mesh"),
        (["--config.data.name=nowhere"], "no prepared data set in nowhere"),
        (
            ["--topology=v5e:3x5"],
            "--topology=v5e:3x5 is none like v5e:4x4 or v5p:2x2x4: "
            if importlib.util.find_spec("libtpu")
            else "--topology needs the TPU compiler: pip install --no-deps -r requirements-compi",
        ),
        (["--items=1000000000000"], "--items=1000000000000: 1000000000000 is not an integer in"),
    ],
)
def test_wrong_input_is_one_line(compile_, flags, message):
    code, out, err = compile_("--config=configs/pinnerformer.py:test", *flags)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert message in line
