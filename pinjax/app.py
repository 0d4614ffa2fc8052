"""The start of every command: flags, quiet logs, and one line for an error in the input."""

import os
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from etils import epath
from ml_collections import ConfigDict

from pinjax import config_flag, files, signals, timestamps
from pinjax.distributed import processes
from pinjax.errors import InputError
from pinjax.training import workdirs

EXIT_INPUT = 2  # wrong flags, config or data; the message says what was expected
# Another process of the job died: start the same command again on all hosts. If JAX's own thread
# learns of it first, it aborts the process, which a shell reports as 134.
EXIT_LOST = 76
_LOST = re.compile(  # in the errors of gRPC, Gloo and NCCL; any other is the program's own
    "UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED|CANCELLED|heartbeat|connection (closed|reset|refused)|"
    "timed out waiting|network error|remote process",
    re.IGNORECASE,
)

_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "HOST:PORT of the first of several processes; a TPU slice and SLURM need no such flag",
)
_PROCESSES = flags.DEFINE_integer(
    "processes", None, "number of processes", lower_bound=1, upper_bound=2**16
)
_PROCESS = flags.DEFINE_integer("process", None, "number of this process, from 0", lower_bound=0)


def run_config(required: bool = True) -> flags.FlagHolder:
    """Defines --config for a run."""
    return config_flag.define("a config of a run", "system", required=required)


def run_flags(config_required: bool = True) -> tuple[flags.FlagHolder, flags.FlagHolder]:
    """Defines --config and --workdir, the flags of the commands that work on a run.

    Commands that need a trained run know its config from its directory.
    """
    config = run_config(config_required)
    workdir = flags.DEFINE_string(
        "workdir", None, "directory of the run; if not given, work/ and the config's name"
    )
    verify_flag()
    return config, workdir


def run_of(config: flags.FlagHolder, workdir: flags.FlagHolder) -> tuple[ConfigDict, epath.Path]:
    """The config and the directory of a run, whose config need not be given.

    Raises:
      InputError: if neither is given, or the directory holds no run.
    """
    if config.value is not None:
        return config.value, workdir_of(workdir)
    if overrides := config_flag.overrides():
        raise InputError(f"--config.{overrides[0][0]} is given without --config")
    path = directory("--workdir", workdir.value or "")
    return workdirs.config_of(path), path


def verify_flag() -> None:
    """Defines --no_verify, for `verifies`."""
    flags.DEFINE_bool("no_verify", False, "do not verify the checksums of files that are read")


def verifies() -> bool:
    """Whether to compare the checksums of opened files."""
    return not flags.FLAGS.no_verify


def as_of_flag(text: str) -> flags.FlagHolder:
    """Defines --as_of, for `as_of_value`; `text` says what is as of that time."""
    about = f"{text}: ISO 8601, UTC; default: the end of training"
    return flags.DEFINE_string("as_of", None, about)


def as_of_value(flag: flags.FlagHolder) -> int | None:
    """Unix seconds of --as_of; None without it.

    Raises:
      InputError: if it is no time.
    """
    return None if flag.value is None else timestamps.parse("--as_of", flag.value)


def workdir_of(flag: flags.FlagHolder) -> epath.Path:
    """The run's directory: as given, or work/CONFIG or work/CONFIG-VARIANT."""
    if flag.value is not None:
        path = directory("--workdir", flag.value)
        path.exists()  # fails if gs:// cannot be reached, before a data set is made
        return path
    file, _, variant = config_flag.source().partition(":")
    stem = epath.Path(file).stem
    return epath.Path("work") / (f"{stem}-{variant}" if variant else stem)


def directory(flag: str, value: str) -> epath.Path:
    """The directory of a flag; ~ is the user's home.

    Raises:
      InputError: if the value is empty, which would be the current directory, or not printable.
    """
    if not value:
        raise InputError(f"{flag} is empty; expected a directory")
    if not value.isprintable():
        raise InputError(f"{flag}={value!r}: expected a directory")
    return files.path(flag, value).expanduser()


def local_directory(flag: str, value: str) -> epath.Path:
    """The directory of a flag, as `directory`, which may not be on gs://.

    Raises:
      InputError: as `directory`, or if it is.
    """
    path = directory(flag, value)
    if files.is_remote(path):
        raise InputError(f"{flag}={value}: expected a directory on this machine")
    return path


def run(
    main: Callable[[Sequence[str]], int | None],
    trains: bool = False,
    uses_devices: Callable[[], bool] = lambda: True,
    verbs: Sequence[str] = (),
) -> None:
    """Parses the flags, runs `main` and exits with its return value.

    An `InputError`, and a flag or config override that does not parse, end as one line on
    stderr and `EXIT_INPUT`.

    Args:
      main: of the command.
      trains: whether JAX handles SIGTERM of several processes for the training loop, which stops
        all of them after the same step. Otherwise SIGTERM ends each process at once.
      uses_devices: by the flags, whether the command uses the devices of this machine.
      verbs: one of which stands before the flags, and is the second of `main`'s arguments.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    jax.config.update("jax_enable_preemption_service", trains)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed from outside, as by 2>&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, for the rest of the process
    # Errors are printed once, by the main thread, which also raises those of other threads.
    logging.set_verbosity(logging.FATAL)
    threading.excepthook = lambda error: None
    sys.unraisablehook = _tell_of_main_thread

    def parse(argv: Sequence[str]) -> list[str]:
        first = 1 + (len(argv) > 1 and argv[1] in verbs)  # absl reads no flag after another word
        try:
            flags_alone = [argv[0], *config_flag.take_overrides(argv[first:])]
            rest = flags.FLAGS(flags_alone)
            return [*argv[:first], *rest[1:]]
        except (flags.Error, InputError, OSError) as error:
            raise SystemExit(_complain(error)) from None

    def guarded(argv: Sequence[str]) -> int | None:
        if verbs and (len(argv) < 2 or argv[1] not in verbs):
            return _complain(f"expected {', '.join(verbs)} before the flags")
        if stray := argv[1 + bool(verbs) :]:
            return _complain(f"unexpected argument {stray[0]!r}; every argument is a --flag=value")
        try:
            if uses_devices():
                processes.join(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
                if processes.count() > 1:  # Gloo's first exchange waits 30 s, later ones longer
                    processes.wait_for_others("joined")
                if not processes.is_first():
                    sys.stdout = open(os.devnull, "w")  # noqa: SIM115, for the rest of the process
            return main(argv)
        except Exception as error:
            if not jax.distributed.is_initialized():
                return _told(error)
            try:
                code = _told(error)
            except Exception:
                traceback.print_exc()
                code = 1
            processes.leave(code)

    signals.handle()  # while a config file runs, too, and until the very end
    app.run(guarded, flags_parser=parse)


def _told(error: Exception) -> int:
    """Prints an error that one line tells, and returns its exit code; raises any other."""
    match error:
        case InputError():
            return _complain(error)
        case ConnectionError() | TimeoutError() if not isinstance(error, BrokenPipeError):
            _complain(f"the network failed, start again: {error!r}")
            return EXIT_LOST
        case OSError():
            return _complain(f"{error.filename}: {error.strerror}" if error.filename else error)
        case ImportError() if "gcsfs" in str(error):
            return _complain("gs:// needs more: pip install -r requirements-gcp.txt")
        case MemoryError():
            return _complain(f"out of memory: {error}")
        case jax.errors.JaxRuntimeError():
            if "RESOURCE_EXHAUSTED" in str(error):
                return _complain(f"out of memory: {str(error).splitlines()[0]}")
            if jax.distributed.is_initialized() and _LOST.search(str(error)):
                _complain(f"lost another process of the job, start all of them again: {error}")
                return EXIT_LOST
            raise error
    if "no_verify" not in flags.FLAGS or verifies() or isinstance(error, ImportError):
        raise error
    about = f"{type(error).__name__}: {error}"
    return _complain(f"{about}; if a file is damaged, it is named without --no_verify")


def _tell_of_main_thread(error: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(error)


def _complain(error: object) -> int:
    line = " ".join(str(error).split())
    print(f"error: {line}", file=sys.stderr)
    # Objects that the error left unfinished must print nothing when they are freed.
    sys.unraisablehook = lambda error: None
    warnings.simplefilter("ignore")
    return EXIT_INPUT
