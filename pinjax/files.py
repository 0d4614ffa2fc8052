"""Files and directories that appear complete or not at all, and have one writer at a time."""

import contextlib
import errno
import fcntl
import functools
import glob
import os
import pathlib
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from typing import IO, Any

from etils import epath

from pinjax import checksums, signals
from pinjax.errors import InputError

LOCK_FILE = "writer.lock"

_FILE, _DIRECTORY = os.O_RDWR | os.O_CREAT, os.O_RDONLY | os.O_DIRECTORY  # what is locked
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EFBIG, errno.EIO)


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is not local, such as gs://."""
    return "://" in os.fspath(path)


def path(name: str, value: str) -> epath.Path:
    """A user's path, local or on gs://.

    Args:
      name: of the flag or field.
      value: the path.

    Raises:
      InputError: if it is on another store.
    """
    if "://" in value and not value.startswith("gs://"):
        raise InputError(f"{name}={value}: expected a directory, on this machine or on gs://")
    return epath.Path(value)


@contextlib.contextmanager
def writing_to(path: epath.PathLike) -> Iterator[None]:
    """Inside, disk errors become OSErrors with a path.

    The error of a full disk has no path, and errors of C++ writers have it only in their text.
    """
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    except (RuntimeError, ValueError) as error:
        for number in _OF_DISKS:
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number), str(path)) from error
        raise


def make_directory(directory: epath.PathLike) -> None:
    """Makes a directory and its parents, unless it exists.

    Raises:
      OSError: if that is not possible.
    """
    try:
        epath.Path(directory).mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        reason = os.strerror(errno.ENOTDIR)
        raise NotADirectoryError(errno.ENOTDIR, reason, str(directory)) from None
    except RecursionError:  # of os.makedirs, a call for each directory
        reason = os.strerror(errno.ENAMETOOLONG)
        raise OSError(errno.ENAMETOOLONG, reason, str(directory)) from None


@contextlib.contextmanager
def replacing(path: epath.PathLike) -> Iterator[IO[bytes]]:
    """A file to write, which replaces `path` once it is complete.

    Several writers of one local file take turns; that of the last one stays.

    Raises:
      InputError: if the path is a directory or a device.
      OSError: if it cannot be written, with the path; then the new file is removed.
    """
    path = epath.Path(path)
    local = not is_remote(path)
    if not path.name or (local and os.path.exists(path) and not os.path.isfile(path)):
        raise InputError(f"{path}: expected a file, or a name that is free")
    temporary = path.with_name(path.name + ".tmp")
    left = [temporary]

    def remove() -> None:
        while left:
            left.pop().unlink(missing_ok=True)

    with contextlib.ExitStack() as stack:
        stack.enter_context(writing_to(path))
        if local:
            stack.enter_context(_locked(pathlib.Path(temporary), wait=True))
        stack.enter_context(signals.cleaned_up(remove))
        with temporary.open("wb") as file:
            yield file
            if local:  # otherwise a power cut may leave the new name without content
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        left.clear()  # the next writer may have made a file of that name


def write_json(path: epath.PathLike, content: Mapping[str, Any]) -> None:
    """Writes JSON with its own checksum, for `checksums.read`. Raises as `replacing`."""
    with replacing(path) as file:
        file.write(checksums.dump(content).encode())


@contextlib.contextmanager
def new_directory(directory: epath.PathLike) -> Iterator[epath.Path]:
    """A directory to fill, which becomes `directory` at the end, with the checksums of its files.

    Until then it lies beside it and is private to this call: it is locked while the process lives,
    and removed after a failure. If the process is killed, `.NAME.RANDOM.unfinished` remains until
    the next call for the same `directory` removes it. If another process was first to finish, its
    directory stays.

    Raises:
      OSError: if it cannot be written or renamed.
    """
    directory = pathlib.Path(directory)
    with contextlib.ExitStack() as stack:
        stack.enter_context(writing_to(directory))
        make_directory(directory.parent)
        for left in directory.parent.glob(f".{glob.escape(directory.name)}.*.unfinished"):
            with contextlib.suppress(BlockingIOError, FileNotFoundError), _locked(left, _DIRECTORY):
                shutil.rmtree(left)
        locked = False
        while not locked:
            made = directory.parent / f".{directory.name}.{uuid.uuid4().hex[:8]}.unfinished"
            remove = functools.partial(shutil.rmtree, made, ignore_errors=True)
            stack.enter_context(signals.cleaned_up(remove))  # first: a signal may come at once
            made.mkdir()
            with contextlib.suppress(BlockingIOError, FileNotFoundError):  # another call removed it
                stack.enter_context(_locked(made, _DIRECTORY))
                locked = True
        yield epath.Path(made)
        checksums.record(made)
        try:
            made.rename(directory)
        except OSError:
            if not directory.is_dir() or not any(directory.iterdir()):
                raise


@contextlib.contextmanager
def only_writer(directory: epath.PathLike) -> Iterator[None]:
    """Inside, no other process can write to a directory; it is made if it does not exist.

    The lock belongs to the operating system, so it ends with the process. An object store has no
    locks: there, concurrent writers are not prevented.

    Raises:
      InputError: if another process is inside; it says which.
      OSError: if the directory cannot be written.
    """
    make_directory(directory)
    if is_remote(directory):
        yield
        return
    path = pathlib.Path(directory) / LOCK_FILE
    with contextlib.ExitStack() as stack:
        try:
            descriptor = stack.enter_context(_locked(path))
        except BlockingIOError:
            writer = ""
            with contextlib.suppress(FileNotFoundError):  # if it has just ended
                writer = path.read_text()
            raise InputError(
                f"{directory}: {writer or 'another process'} is writing there; wait until it ends, "
                "or choose another directory"
            ) from None
        remove = functools.partial(path.unlink, missing_ok=True)
        stack.enter_context(signals.cleaned_up(remove))
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


@contextlib.contextmanager
def _locked(path: pathlib.Path, flags: int = _FILE, wait: bool = False) -> Iterator[int]:
    """The descriptor of a directory, or of a file that is made if missing, locked inside.

    Args:
      path: of it.
      flags: `_FILE` or `_DIRECTORY`.
      wait: until another process that has it locked is done.

    Raises:
      BlockingIOError: if another process has it locked, and this one does not wait.
      FileNotFoundError: if there is no such directory.
    """
    while True:
        descriptor = os.open(path, flags, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # The former owner of the lock may have removed the file, and a new one may exist.
            if path.exists() and os.path.samestat(os.stat(path), os.fstat(descriptor)):
                yield descriptor
                return
        finally:
            os.close(descriptor)
