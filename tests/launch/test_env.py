"""launch/env.sh on machines that fake commands describe."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
HEADER = "| NVIDIA-SMI 580.1   Driver Version: 580.1   CUDA Version: {} |"
# A Python that fits. Asked for a venv it puts a copy of itself there; it notes what pip is to do,
# which for uv is a command that notes what it is to do, too.
FITS = """case $* in
  "-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
  "-m pip --version") ;;
  *" uv=="*)
    printf '#!/bin/sh\\necho "$0 $*" >>calls; exit %s\\n' ${UV:-0} >.venv/bin/uv
    chmod +x .venv/bin/uv ;;
  "-m pip "*) echo "$0 $*" >>calls; exit ${PIP:-0} ;;
esac"""
# A Python of which `lacks` says what does not fit.
LACKS = f"""exec {sys.executable} -c 'import sys
{{lacks}}
exec(sys.argv[2])' "$@"
"""
OLD = LACKS.format(lacks="sys.version_info = (3, 10, 12)")
# The installer that curl downloads, of a uv that has Python 3.11 when it has installed it.
UV = """case $* in
  "--no-config python install "*) touch has-3.11 ;;
  "--no-config python find --managed-python 3.11") [ -e has-3.11 ] && echo "$PWD/bin/fits" ;;
  *) exit 2 ;;
esac"""
INSTALLER = f"""echo "$*" >>curl-calls
cat <<'END'
mkdir -p "$UV_UNMANAGED_INSTALL"
cat >"$UV_UNMANAGED_INSTALL/uv" <<'UV'
#!/bin/sh
{UV}
UV
chmod +x "$UV_UNMANAGED_INSTALL/uv"
END"""


def write(path, commands):
    path.write_text(f"#!/bin/sh\n{commands}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("says", "extra"),
    [
        (f"echo '{HEADER.format('13.0')}'", "cuda13"),
        (f"echo '{HEADER.format('12.4')}'", "cuda12"),
        ("echo 'no devices were found'; exit 6", None),
    ],
)
def test_the_jax_that_fits_the_driver(tmp_path, says, extra):
    write(tmp_path / "nvidia-smi", says)
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


@pytest.fixture
def machine(tmp_path):
    """Ubuntu 22.04, whose Python is 3.10: (variables) -> `install`, finished."""
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    fake = tmp_path / "bin"
    fake.mkdir()
    write(fake / "python3", OLD)
    for name in ("python3.11", "python3.12", "python3.13", "nvidia-smi"):
        write(fake / name, "exit 127")
    write(fake / "fits", FITS)
    write(fake / "curl", INSTALLER)

    def install(**variables):
        return subprocess.run(
            # As launch/tpu_vm.sh does it: without `set -e`, which && would turn off anyway.
            ["bash", "-c", ". launch/env.sh && install requirements.txt && echo installed"],
            cwd=tmp_path,
            env={"PATH": f"{fake}:/usr/bin:/bin", **variables},
            capture_output=True,
            text=True,
        )

    install.root = tmp_path
    return install


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("system", [OLD, LACKS.format(lacks="sys.modules['ensurepip'] = None")])
def test_uv_brings_a_python_where_the_systems_does_not_fit(machine, system):
    write(machine.root / "bin/python3", system)
    for _ in range(2):  # the second time nothing is left to do
        done = machine()
        assert (done.returncode, done.stdout) == (0, "installed\n")
    (call,) = lines(machine.root / "curl-calls")
    assert re.search(r" https://astral\.sh/uv/\d+\.\d+\.\d+/install\.sh$", call)
    (call,) = lines(machine.root / "calls")
    assert call.startswith(".venv/bin/uv pip install ")
    assert call.endswith(" -r requirements.txt")


def test_pip_installs_where_uv_fails(machine):
    write(machine.root / "bin/python3", FITS)
    assert machine(UV="1").stdout == "installed\n"
    uv, pip = lines(machine.root / "calls")
    assert uv.startswith(".venv/bin/uv pip install ")
    assert pip.startswith(".venv/bin/python -m pip install ")
    assert pip.endswith(" -r requirements.txt")


@pytest.mark.parametrize("name", ["python3", "python3.12"])
def test_a_python_of_the_system_that_fits_is_taken(machine, name):
    write(machine.root / "bin" / name, FITS)
    assert machine().returncode == 0
    assert len(lines(machine.root / "calls")) == 1
    assert not lines(machine.root / "curl-calls")


def test_the_chosen_python_wins(machine):
    write(machine.root / "bin/python3", FITS.replace("-m venv", "another"))
    assert machine(PYTHON=str(machine.root / "bin/fits")).returncode == 0
    assert len(lines(machine.root / "calls")) == 1
    assert not lines(machine.root / "curl-calls")


@pytest.mark.parametrize("name", ["python3", "no such"])
def test_a_chosen_python_that_does_not_fit_is_refused(machine, name):
    done = machine(PYTHON=name)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: pinjax needs Python 3.11 or newer with venv, which PYTHON={name} is not\n"
    )


@pytest.mark.parametrize(("command", "code"), [("curl", 6), ("curl", 127), ("uv", 1)])
def test_offline_it_says_what_to_install(machine, command, code):
    path = machine.root / (".venv-uv/uv" if command == "uv" else f"bin/{command}")
    path.parent.mkdir(exist_ok=True)
    write(path, f"echo {command} fails >&2; exit {code}")
    done = machine()
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: pinjax needs Python 3.11 or newer with venv, and uv cannot download it: install "
        "python3.11 and python3.11-venv, or set PYTHON=/path/to/it\n"
    )
    assert not (machine.root / ".venv").exists()


def test_an_installation_that_failed_is_tried_again(machine):
    assert machine(UV="1", PIP="1").returncode == 1
    assert machine().returncode == 0
    assert len(lines(machine.root / "calls")) == 3
