"""launch/env.sh on machines that a fake nvidia-smi describes."""

import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]
HEADER = "| NVIDIA-SMI 580.1   Driver Version: 580.1   CUDA Version: {} |"


@pytest.mark.parametrize(
    ("says", "extra"),
    [
        (f"echo '{HEADER.format('13.0')}'", "cuda13"),
        (f"echo '{HEADER.format('12.4')}'", "cuda12"),
        ("echo 'no devices were found'; exit 6", None),
    ],
)
def test_the_jax_that_fits_the_driver(tmp_path, says, extra):
    fake = tmp_path / "nvidia-smi"
    fake.write_text(f"#!/usr/bin/env bash\n{says}\n")
    fake.chmod(0o755)
    made = subprocess.run(
        ["bash", "-euc", "source launch/env.sh; accelerator"],
        cwd=ROOT,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    version = re.search(r"^jax==(\S+)", (ROOT / "requirements.txt").read_text(), re.M)[1]
    assert made.stdout.strip() == (f"jax[{extra}]=={version}" if extra else "")
