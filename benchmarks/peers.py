"""Scripts in another Python environment that take turns with pinjax in a measurement."""

import pathlib
import subprocess
from collections.abc import Callable
from typing import TypeVar

import numpy as np

Arrays = dict[str, np.ndarray]
Measured = TypeVar("Measured")


class Peer:
    """A script of this directory that answers each line with a line.

    It runs as soon as it is made. A `with` block ends its input and waits for it.
    """

    def __init__(self, python: str, script: str, *arguments: object):
        command = [python, pathlib.Path(__file__).with_name(script), *map(str, arguments)]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self._process = subprocess.Popen(command, **pipes)

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.__exit__(*exception)

    def tell(self, line: str = "") -> None:
        """Sends a line."""
        self._process.stdin.write(f"{line}\n")

    def hear(self) -> str:
        """The next line of its answers.

        Raises:
          RuntimeError: it ended; stderr says why.
        """
        if not (answer := self._process.stdout.readline()):
            raise RuntimeError(f"{self._process.args[1].name} has ended")
        return answer.strip()

    def ask(self, line: str = "") -> str:
        """Sends a line and returns the answer."""
        self.tell(line)
        return self.hear()


def in_turn(timers: dict[str, Callable[[], Measured]], rounds: int) -> dict[str, list[Measured]]:
    """What each timer measured, once a round, so that all see the same machine."""
    measured = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            measured[name].append(timer())
    return measured


def relative_differences(a: Arrays, b: Arrays) -> dict[str, float]:
    """|a - b| / |a| of each array of `a`."""
    return {name: float(np.linalg.norm(a[name] - b[name]) / np.linalg.norm(a[name])) for name in a}
