"""Commands with many sets of arguments, in one process that imports them once."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
# Forks for each line of arguments, before anything has used a device or started a thread.
SERVER = """
import importlib, json, os, sys, tempfile, warnings
from pinjax import app
warnings.filterwarnings("ignore", message=".*fork")
command = importlib.import_module(sys.argv[1])
for line in sys.stdin:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = [command.__file__, *json.loads(line)]
            app.run(command.main)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = [os.pread(file.fileno(), 2**20, 0).decode() for file in (out, err)]
    print(json.dumps([code, *texts]), flush=True)
"""


class Command:
    """A command; called with arguments, it returns (exit code, stdout, stderr)."""

    def __init__(self, name: str, **env: str):
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, f"pinjax.{name}"],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"} | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        print(json.dumps(arguments), file=self._process.stdin, flush=True)
        return tuple(json.loads(self._process.stdout.readline()))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.communicate()  # closes its input, at whose end it ends
