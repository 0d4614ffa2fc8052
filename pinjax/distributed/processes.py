"""The processes of a job, one for each host: all run the same program, the first one writes."""

import contextlib
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from typing import NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from pinjax.errors import InputError

_TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")
_PATIENCE = 60  # seconds without a sign of life after which a process is taken to be dead
_START = 300  # seconds that the first process may take until it listens
_FAREWELL = 5  # seconds


def join(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Joins the other processes of the job, before any device is used. No job: does nothing.

    JAX finds the hosts of a TPU slice in the metadata of their machines (agent-worker-number,
    worker-network-endpoints) or in what GKE sets (TPU_WORKER_ID, TPU_WORKER_HOSTNAMES).

    Args:
      coordinator: HOST:PORT of the first process; None: found by SLURM or a TPU slice.
      count: number of processes.
      index: of this process.

    Raises:
      InputError: if the arguments or SLURM's variables name no job, the first process does not
        listen, there is no device, or the devices are those of other processes, too.
      ConnectionError: if a host of a TPU slice is out of reach.
    """
    _check_job(coordinator, count, index)
    reason = ""
    if coordinator:
        if index > 0:
            _wait_for_first(coordinator)
        jax.distributed.initialize(coordinator, count, index, heartbeat_timeout_seconds=_PATIENCE)
    elif (tasks := os.environ.get("SLURM_NTASKS", "1")) != "1":
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=_PATIENCE)
        except ValueError as error:  # say, in a shell of `salloc`, where no task runs
            raise InputError(f"SLURM_NTASKS={tasks}, but there is no such job: {error}") from None
    elif any(map(os.path.exists, _TPU_DEVICES)):
        try:
            jax.distributed.initialize(heartbeat_timeout_seconds=_PATIENCE)
        except (ValueError, OSError) as error:  # a single host, or another device of that name
            reason = f" ({error})"
        except RuntimeError as error:  # say, a name that DNS does not know
            raise ConnectionError(f"a host of the TPU slice is out of reach: {error}") from None
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # AssertionError: for cuda without its plugin
        platforms = os.environ.get("JAX_PLATFORMS", "")
        cause = str(error) or "not installed"
        raise InputError(f"JAX_PLATFORMS={platforms}: no device: {cause}") from None
    _check_devices(count, reason)


def leave(code: int) -> NoReturn:
    """Ends this process after an error that the others may not have had.

    An orderly exit would wait for the others, which wait for this process in a collective. They
    cannot go on without the first process, so it leaves time to those that fail as it does.
    """
    with contextlib.suppress(RuntimeError):  # there is no device
        if is_first():
            time.sleep(_FAREWELL)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _check_devices(count: int | None, reason: str) -> None:
    """Raises where hosts would run as jobs of their own.

    A TPU's runtime forms the slice by itself, so it may know of other processes than JAX does. It
    also has an order of its own, which `jax.process_index` tells and need not be that of `index`.
    """
    if count not in (None, jax.process_count()):
        raise InputError(
            f"--processes={count}, but by the devices it is {jax.process_count()}: a job on TPUs "
            "is all hosts of one slice"
        )
    if jax.process_count() > 1 and not jax.distributed.is_initialized():
        raise InputError(
            f"this is one of {jax.process_count()} hosts of a TPU slice, but JAX does not find the "
            f"others{reason}; name them by --coordinator, --processes and --process"
        )


def _check_job(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Raises for arguments with which JAX would abort the process minutes later."""
    if coordinator is count is index is None:
        return
    if None in (coordinator, count, index):
        raise InputError("--coordinator, --processes and --process go together")
    if not 0 <= index < count:
        raise InputError(f"--process={index}: expected from 0 to {count - 1}, of {count} processes")
    host, port = _address(coordinator)
    if not host or not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 2**16:
        raise InputError(f"--coordinator={coordinator}: expected HOST:PORT, a port to 65535")
    try:
        socket.getaddrinfo(host, int(port))
    except (OSError, UnicodeError):  # UnicodeError: no name that DNS could hold
        raise InputError(f"--coordinator={coordinator}: there is no host {host}") from None
    if index > 0:
        return
    try:
        socket.create_server(("", int(port))).close()
    except OSError as error:
        raise InputError(f"--coordinator={coordinator}: {error.strerror}") from None


def _wait_for_first(coordinator: str) -> None:
    """Waits until the first process listens; without it JAX aborts the process on a timeout."""
    deadline, told = time.monotonic() + _START, False
    while True:
        try:
            socket.create_connection(_address(coordinator), timeout=_PATIENCE).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise InputError(
                    f"--coordinator={coordinator}: process 0 did not answer in {_START} seconds: "
                    f"{error.strerror or error}"
                ) from None
        if not told:
            print(f"waiting for process 0 at {coordinator}", file=sys.stderr)
            told = True
        time.sleep(1)


def _address(coordinator: str) -> tuple[str, str]:
    host, _, port = coordinator.rpartition(":")
    return host.strip("[]"), port


def is_first() -> bool:
    return jax.process_index() == 0


def shard() -> tuple[int, int]:
    """This process's index, and the number of processes."""
    return jax.process_index(), jax.process_count()


def count() -> int:
    return jax.process_count()


@contextlib.contextmanager
def first_before_others() -> Iterator[None]:
    """Runs the body on the first process and then on the others: for files made on demand.

    Raises:
      InputError: in the others, if the first one failed.
    """
    failed = True
    try:
        if not is_first() and as_first(np.array(False)):
            raise InputError("the first process of the job has failed; it says why")
        yield
        failed = False
    finally:
        if is_first():
            as_first(np.array(failed))


def as_first(array: np.ndarray) -> np.ndarray:
    """The first process's array, on every process."""
    return np.asarray(multihost_utils.broadcast_one_to_all(array))


def wait_for_others(name: str) -> None:
    """Returns when every process has called it."""
    multihost_utils.sync_global_devices(name)


def gathered(array: jax.Array) -> np.ndarray:
    """The global array on every process, from the part that each process has."""
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def agree_to_stop(requested: bool, step: int) -> bool:
    """Whether to stop after a step: the same for all processes, soon after any got SIGTERM."""
    if jax.process_count() == 1:
        return requested
    return multihost_utils.reached_preemption_sync_point(step)
