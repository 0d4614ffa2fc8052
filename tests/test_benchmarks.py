"""Every script of benchmarks/ starts: what it imports is there, and no flag is defined twice."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SCRIPTS = sorted(
    path.stem for path in (ROOT / "benchmarks").glob("*.py") if "app.run(main" in path.read_text()
)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_it_starts(name):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if "ModuleNotFoundError" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert f"{name}.py:" in done.stdout, done.stderr
