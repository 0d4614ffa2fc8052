"""The flag --config=FILE or FILE:VARIANT, and its overrides --config.SECTION.FIELD=VALUE."""

import contextlib
import inspect
import os
import pathlib
import re
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence

from absl import flags
from ml_collections import ConfigDict

from pinjax import settings
from pinjax.errors import InputError

# The parent of `configs`, so that a config can import `configs.common` from anywhere.
_ROOT = pathlib.Path(__file__).resolve().parents[1]


class ConfigFlag(flags.Flag):
    """Its value is the config that the file's `get_config` returns, with the overrides, locked.

    Attributes:
      source: FILE or FILE:VARIANT, as given.
      overrides: (field, text) pairs in order; set before the flag is parsed.
    """

    def __init__(self, kind: str, field: str, help_string: str):
        """Makes the flag.

        Args:
          kind: description of the expected file.
          field: a field that only configs of this kind have.
          help_string: of the flag.
        """
        self.source: str | None = None
        self.overrides: list[tuple[str, str]] = []
        self._kind, self._field = kind, field
        parser, serializer = flags.ArgumentParser(), flags.ArgumentSerializer()
        super().__init__(parser, serializer, "config", None, help_string)

    def _parse(self, argument: str) -> ConfigDict:
        if self.source is not None:
            raise InputError(f"--config is given twice: {self.source} and {argument}")
        self.source = argument
        config = load(argument)
        if self._field not in config:
            file = argument.partition(":")[0]
            raise InputError(f"{file} is not {self._kind}: its config has no field {self._field}")
        settings.check(config)
        for name, text in self.overrides:
            settings.override(config, name, text)
        return config.lock()


def define(kind: str, field: str, required: bool = True) -> flags.FlagHolder:
    """Defines --config. Arguments as `ConfigFlag`."""
    flag = ConfigFlag(kind, field, f"{kind}: FILE or FILE:VARIANT")
    return flags.DEFINE_flag(flag, required=required)


def source() -> str:
    """FILE or FILE:VARIANT, as given."""
    return flags.FLAGS["config"].source


def overrides() -> list[tuple[str, str]]:
    """The (field, text) of the overrides, as given."""
    return flags.FLAGS["config"].overrides


def take_overrides(argv: Sequence[str]) -> list[str]:
    """Moves the overrides of a command line to the flag; returns the other arguments.

    Raises:
      InputError: if an override has no value.
    """
    rest, overrides = split_overrides(argv)
    if overrides:
        flags.FLAGS["config"].overrides += overrides
    return rest


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The other arguments of a command line, and the (field, text) of its overrides.

    Raises:
      InputError: if an override has no value.
    """
    rest, overrides = [], []
    for argument in argv:
        override = re.fullmatch(r"--?config\.([^=]*)(=?)(.*)", argument, re.DOTALL)
        if not override:
            rest.append(argument)
            continue
        name, equals, text = override.groups()
        if not equals:
            raise InputError(f"--config.{name}: expected --config.{name}=VALUE")
        overrides.append((name, text))
    return rest, overrides


def load(source: str) -> ConfigDict:
    """The config of FILE or FILE:VARIANT; configs/NAME may be a config of the package.

    Raises:
      InputError: if there is no such file, variant or function `get_config`, or if the file's code
        raises an error; then with its line.
    """
    file, colon, variant = source.partition(":")
    if colon and not variant:
        raise InputError(f"--config={source}: expected FILE or FILE:VARIANT")
    packaged = pathlib.Path(__file__).parent / file
    if file.startswith("configs/") and not os.path.exists(file) and packaged.is_file():
        file = str(packaged)
    try:
        with open(file, "rb"):
            pass
    except OSError as error:
        raise InputError(f"--config={file}: {error.strerror}") from None
    try:
        with _importable(pathlib.Path(file).resolve().parent.parent, _ROOT):
            get_config = runpy.run_path(file).get("get_config")
        if not callable(get_config):
            raise InputError("it defines no function get_config")
        if colon and not inspect.signature(get_config).parameters:
            raise InputError(f"it has no variants, so no {variant!r}")
        config = get_config(variant) if colon else get_config()
        if not isinstance(config, ConfigDict):
            raise InputError(f"get_config returned {type(config).__name__}, expected a ConfigDict")
    except BaseException as error:
        raise InputError(f"{_place(file, error)}: {_message(error)}") from None
    return config


@contextlib.contextmanager
def _importable(*directories: pathlib.Path) -> Iterator[None]:
    """Lets code import what is in directories, unless there is another of the same name."""
    before = list(sys.path)
    sys.path += map(str, directories)
    try:
        yield
    finally:
        sys.path[:] = before


def _place(file: str, error: BaseException) -> str:
    """The file, and its line that raised the error, if it has one."""
    if isinstance(error, SyntaxError) and error.filename == file:
        line = error.lineno
    else:
        frames = traceback.walk_tb(error.__traceback__)
        lines = [number for frame, number in frames if frame.f_code.co_filename == file]
        line = lines[-1] if lines else None
    return f"{file}, line {line}" if line else file


def _message(error: BaseException) -> str:
    try:
        text = error.msg if isinstance(error, SyntaxError) else str(error)
    except BaseException as own:  # the file's error has no text that can be had
        text = f"its text raises {type(own).__name__}"
    if isinstance(error, InputError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
