"""SIGTERM, SIGINT and SIGHUP end a command with one line, at once or at a safe point."""

import contextlib
import functools
import multiprocessing
import multiprocessing.resource_tracker
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

EXIT_PREEMPTED = 75  # stopped from outside: start the same command again
EXIT_INTERRUPTED = 130  # by Ctrl-C, as in shells

_OF_TERMINALS = (signal.SIGINT, signal.SIGHUP)
_SIGNALS = (signal.SIGTERM, *_OF_TERMINALS)


class Stopped(Exception):
    """A signal ends the command."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = EXIT_INTERRUPTED if signum == signal.SIGINT else EXIT_PREEMPTED


class Deferral:
    """Records signals, which do not end the process.

    Attributes:
      requested: the first signal, or None.
    """

    def __init__(self):
        self.requested: int | None = None
        self._checked = False

    def note(self, signum: int, frame: object) -> None:
        del frame
        self.requested = self.requested or signum

    @contextlib.contextmanager
    def checked(self) -> Iterator[None]:
        """Inside, `check` raises `Stopped` after a signal."""
        self._checked = True
        try:
            yield
        finally:
            self._checked = False

    def check(self) -> None:
        if self._checked and self.requested:
            raise Stopped(self.requested)


_deferrals: list[Deferral] = []
_clean_ups: list[Callable[[], None]] = []
_paused: queue.SimpleQueue[None] = queue.SimpleQueue()  # which handlers may use, nested too


def check() -> None:
    """Raises `Stopped` if a signal came; interruptible work calls it now and then.

    An exception from a signal handler could be raised anywhere: in a callback, which would swallow
    it, or during a compilation, whose remains crash when they are freed.
    """
    for deferral in _deferrals:
        deferral.check()


@contextlib.contextmanager
def deferred(alone: bool) -> Iterator[Deferral]:
    """Inside, signals are recorded in a `Deferral`.

    Args:
      alone: False for one of several processes. Then JAX handles SIGTERM for all of them; the other
        signals are passed on to it. At the end JAX's handler of SIGTERM is removed.
    """
    deferral = Deferral()
    _deferrals.append(deferral)
    previous = _set_handler(deferral.note) if alone else _set_handler(_pass_on, _OF_TERMINALS)
    try:
        yield deferral
    finally:
        for signum, before in previous.items():
            signal.signal(signum, before)
        if not alone:  # Python's handler takes the place of JAX's, which is in C++
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        _deferrals.remove(deferral)


@contextlib.contextmanager
def cleaned_up(clean_up: Callable[[], None]) -> Iterator[None]:
    """Calls a function at the end, even if a signal ends the process inside."""
    _clean_ups.append(clean_up)
    try:
        yield
    finally:
        _clean_ups.remove(clean_up)
        clean_up()


@contextlib.contextmanager
def blocked() -> Iterator[None]:
    """Delays signals from a terminal; processes that are started inside never get them."""
    multiprocessing.resource_tracker.ensure_running()  # which unblocks them when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _OF_TERMINALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@functools.cache
def handle() -> None:
    """From now on a signal ends the process, unless it is deferred; a second Ctrl-C always does.

    A thread ends the process, since it learns of signals at once. The main thread handles signals
    only between two Python instructions, and a compilation of minutes may be between them.
    """
    heard, hears = os.pipe()
    os.set_blocking(hears, False)
    signal.set_wakeup_fd(hears, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(heard,), daemon=True).start()
    _set_handler(_pause)  # last: it waits for that thread


def _set_handler(
    handler: Callable[[int, object], None], signums: tuple[int, ...] = _SIGNALS
) -> dict[int, Any]:
    """Sets the handler of signals, except signals that are ignored from outside, as by nohup.

    Returns:
      The former handlers.
    """
    heard = [signum for signum in signums if signal.getsignal(signum) != signal.SIG_IGN]
    return {signum: signal.signal(signum, handler) for signum in heard}


def _pass_on(signum: int, frame: object) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _pause(signum: int, frame: object) -> None:
    """Keeps the main thread from writing to what `_watch` removes, before it ends the process."""
    _paused.put(None)
    time.sleep(60)  # not for ever: the main thread may hold a lock that the end needs


def _watch(heard: int) -> None:
    """Reads signals from a pipe until the process ends."""
    interrupts = 0
    while True:
        signums = os.read(heard, 1)
        interrupts += signums[0] == signal.SIGINT
        if interrupts == 2:
            os._exit(EXIT_INTERRUPTED)
        if signal.getsignal(signums[0]) == _pause:  # and it is not deferred
            _end(Stopped(signums[0]))


def _end(stopped: Stopped) -> NoReturn:
    with contextlib.suppress(queue.Empty):  # a main thread that is compiling does not pause
        _paused.get(timeout=0.5)
    for clean_up in reversed(_clean_ups):
        with contextlib.suppress(OSError):
            clean_up()
    for child in multiprocessing.active_children():
        child.terminate()
    try:
        print(f"{stopped}; run the same command again to continue", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # also where the terminal is gone, as it may be at a SIGHUP
        os._exit(stopped.exit_code)
