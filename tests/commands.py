"""Runs commands in forks of one process, which imports what they need once."""

import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
# Forks for each line of arguments, before anything has used a device or started a thread.
SERVER = """
import importlib, json, os, sys, tempfile, warnings
import jax
from pinjax import app
from pinjax.distributed import processes
warnings.filterwarnings("ignore", message=".*fork")
for module in sys.argv[1:]:
    importlib.import_module(module)
for line in sys.stdin:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            name, arguments, devices, parse_alone = json.loads(line)
            if devices:
                jax.config.update("jax_num_cpu_devices", devices)
            command = importlib.import_module(f"pinjax.{name}")
            sys.argv = [command.__file__, *arguments]
            if parse_alone:
                processes.join = lambda *job: None
                command.main = lambda argv: os._exit(0)
            app.run(command.main, verbs=tuple(getattr(command, "VERBS", ())))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = [os.pread(file.fileno(), 2**20, 0).decode() for file in (out, err)]
    print(json.dumps([code, *texts]), flush=True)
"""


class Commands:
    """All commands; called with a name and arguments, it returns (exit code, stdout, stderr).

    No two commands can be imported into one process, so the process imports the modules that they
    use instead.
    """

    def __init__(self, *modules: str, **env: str):
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVER, *modules],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"} | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(
        self, name: str, *arguments: str, devices: int = 0, parse_alone: bool = False
    ) -> tuple[int, str, str]:
        """Runs a command.

        Args:
          name: as in `python -m pinjax.NAME`.
          arguments: of its command line.
          devices: number of CPU devices; 0: as the environment says.
          parse_alone: whether it ends, with 0, once it has parsed its flags.
        """
        line = name, arguments, devices, parse_alone
        print(json.dumps(line), file=self._process.stdin, flush=True)
        return tuple(json.loads(self._process.stdout.readline()))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.communicate()  # closes its input, which ends it


class Command(Commands):
    """One command; called with arguments, it returns (exit code, stdout, stderr)."""

    def __init__(self, name: str, **env: str):
        super().__init__(f"pinjax.{name}", **env)
        self._name = name

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        return super().__call__(self._name, *arguments)
