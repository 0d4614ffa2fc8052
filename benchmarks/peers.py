"""A script in another Python environment that is measured beside pinjax, turn by turn."""

import pathlib
import subprocess
from collections.abc import Callable

import numpy as np

Arrays = dict[str, np.ndarray]


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
        """A line, to be answered."""
        self._process.stdin.write(f"{line}\n")

    def hear(self) -> str:
        """What it answers.

        Raises:
          RuntimeError: it ended; what it had to say of it is on stderr.
        """
        if not (answer := self._process.stdout.readline()):
            raise RuntimeError(f"{self._process.args[1].name} has ended")
        return answer.strip()

    def ask(self, line: str = "") -> str:
        """What it answers to a line."""
        self.tell(line)
        return self.hear()


def in_turn(timers: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each timer, a call to a round: so that all see the same machine."""
    seconds = {name: [] for name in timers}
    for _ in range(rounds):
        for name, timer in timers.items():
            seconds[name].append(timer())
    return seconds


def relative_differences(a: Arrays, b: Arrays) -> dict[str, float]:
    """|a - b| / |a| of each array of `a`."""
    return {name: float(np.linalg.norm(a[name] - b[name]) / np.linalg.norm(a[name])) for name in a}
