"""launch/run.sh with a fake Python, which prints its arguments."""

import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "-m pinjax.train --config=configs/pinnerformer.py"),
        (["--workdir=a b"], "-m pinjax.train --config=configs/pinnerformer.py --workdir=a b"),
        (["--config=x.py", "--workdir=d"], "-m pinjax.train --config=x.py --workdir=d"),
        (["--stack"], "-m pinjax.stack"),
        (["--stack", "--data=d", "--itemsage=--config=x"], "-m pinjax.stack --data=d --itemsage="),
        (["--embed", "--workdir=d", "--out=e"], "-m pinjax.embed --workdir=d --out=e"),
        (["--evaluate", "--workdir=d"], "-m pinjax.evaluate --workdir=d"),
    ],
)
def test_the_arguments_go_to_train_or_to_a_named_command(tmp_path, arguments, expected):
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/usr/bin/env bash\necho "$*"\n')
    python.chmod(0o755)
    command = [tmp_path / "launch/run.sh", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].startswith(expected)
