"""A command has the setting that glibc reads at its start."""

import os
import subprocess
import sys

import pytest

CONFIG = """
import os, sys
print(os.environ.get("GLIBC_TUNABLES"), sys.flags.utf8_mode, os.getpid(), file=sys.stderr)
sys.stderr.flush()
os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
@pytest.mark.parametrize("given", [None, "glibc.malloc.perturb=0"])
def test_commands_begin_anew_with_the_setting(tmp_path, given):
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
    if given:
        environment["GLIBC_TUNABLES"] = given
    command = [sys.executable, "-X", "utf8", "-m", "pinjax.evaluate", f"--config={config}"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    _, said = process.communicate()
    expected = given or "glibc.malloc.hugetlb=1"
    assert said == f"{expected} 1 {process.pid}\n"


def test_importing_the_package_begins_nothing_anew():
    code = "import os; before = os.getpid(), dict(os.environ); import pinjax; "
    code += "assert (os.getpid(), dict(os.environ)) == before; print('once')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "once\n")
