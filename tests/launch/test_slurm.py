"""launch/slurm.sbatch with an srun and a scontrol that record their calls."""

import os
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("code", "again"), [(0, False), (2, False), (75, True), (76, True), (134, True)]
)
def test_a_job_that_is_to_go_on_is_queued_again(tmp_path, code, again):
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    (tmp_path / "launch/env.sh").write_text("install() { echo install $1 >>calls; }\n")
    fake = tmp_path / "bin"
    fake.mkdir()
    for name, exit_code in (("srun", code), ("scontrol", 0)):
        (fake / name).write_text(f'#!/bin/sh\necho {name} "$@" >>calls\nexit {exit_code}\n')
        (fake / name).chmod(0o755)
    env = {"PATH": f"{fake}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path)}
    done = subprocess.run(
        ["bash", "launch/slurm.sbatch", "--config=a.py", "--workdir=run"],
        cwd=tmp_path,
        env=env | {"SLURM_JOB_ID": "7"},
    )
    assert done.returncode == code
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls[0] == "install requirements.txt"
    assert calls[1].endswith(".venv/bin/python -m pinjax.train --config=a.py --workdir=run")
    assert calls[2:] == ["scontrol requeue 7"] * again
