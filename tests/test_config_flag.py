"""An unusable config file gives one line that says where the fault is."""

import pathlib
import shutil
import subprocess
import sys

import pytest
from absl import flags

from pinjax import config_flag
from pinjax.errors import InputError

CONFIG = """
from pinjax.settings import Int, Section, named

def get_config(variant=""):
    config = Section()
    config.system = Int(1, at_least=1)
    if variant:
        named(VARIANTS, variant)(config)
    return config

def _zero(config):
    config.system = 0

VARIANTS = {"zero": _zero, "two": lambda config: config.update(system=2)}
"""
NO_TEXT = """
class OddError(Exception):
    __str__ = lambda self: 1 / 0
raise OddError
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "config.py"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(path)

    return write


def test_a_config_and_its_variant(write):
    path = write(CONFIG)
    assert config_flag.load(path).system == 1
    assert config_flag.load(f"{path}:two").system == 2


@pytest.mark.parametrize(
    ("text", "variant", "message"),
    [
        (CONFIG, ":", "expected FILE or FILE:VARIANT"),
        (CONFIG, ":too", r"line 8: variant 'too' is none of zero, two; did you mean two\?"),
        (CONFIG, ":zero", "line 12: system=0: expected an integer from 1"),
        (CONFIG, ":two:two", "variant 'two:two' is none of zero, two"),
        ("x = 1\ndef get_config(:\n", "", "line 2: SyntaxError: invalid syntax"),
        ("def get_config():\n  return 1 / 0\n", "", "line 2: ZeroDivisionError: division by zero"),
        ("def get_config():\n  return get_config()\n", "", "line 2: RecursionError"),
        ("\nimport pinjax.nowhere\n", "", "line 2: ModuleNotFoundError: No module named"),
        ("raise SystemExit(3)\n", "", "line 1: SystemExit: 3"),
        ("raise KeyboardInterrupt\n", "", "line 1: KeyboardInterrupt"),
        (NO_TEXT, "", "line 4: OddError: its text raises ZeroDivisionError$"),
        ("x = 1\n", "", "it defines no function get_config"),
        ("get_config = 3\n", "", "it defines no function get_config"),
        ("def get_config():\n  pass\n", "", "get_config returned NoneType, expected a ConfigDict"),
        ("def get_config():\n  pass\n", ":two", "it has no variants, so no 'two'"),
        (b"\xff\xfe\x00", "", "config.py: SyntaxError"),
        ("", "", "it defines no function get_config"),
    ],
)
def test_a_broken_file_is_named_with_its_line(write, text, variant, message):
    path = write(text)
    with pytest.raises(InputError, match=message) as error:
        config_flag.load(path + variant)
    assert str(error.value).startswith((path, f"--config={path}"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere.py", "No such file"),
        ("", "Is a directory"),
        ("a" * 300, "File name too long"),
        ("file/config.py", "Not a directory"),
    ],
)
def test_a_file_that_cannot_be_opened(tmp_path, name, reason):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=f"^--config=.*: {reason}"):
        config_flag.load(f"{tmp_path}/{name}")


@pytest.fixture
def parse(monkeypatch):
    """(arguments) -> the config, as a command would have it."""

    def parse(*arguments, kind="a config of a run", field="system"):
        values = flags.FlagValues()
        monkeypatch.setattr(flags, "FLAGS", values)
        flags.DEFINE_flag(config_flag.ConfigFlag(kind, field, "help"), values, required=True)
        values(["command", *config_flag.take_overrides(arguments)])
        return values["config"].value

    return parse


def test_overrides_may_stand_anywhere(parse, write):
    path = write(CONFIG)
    assert parse("--config.system=5", f"--config={path}").system == 5
    config = parse("--config", path, "-config.system=5", "--config.system=6")
    assert config.system == 6
    assert config.is_locked
    assert config_flag.source() == path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config={}", "--config.system"], "--config.system: expected --config.system=VALUE"),
        (["--config={}", "--config.system", "5"], "--config.system: expected --config.system=V"),
        (["--config={}", "--config.sistem=5"], "no such field; did you mean system?"),
        (["--config={}", "--config={}"], "--config is given twice"),
        (["--config={}", "--confg={}"], "Unknown command line flag 'confg'"),
        (["--config.system=3"], "--config must have a value"),
        ([], "--config must have a value"),
    ],
)
def test_a_wrong_command_line_is_refused(parse, write, arguments, message):
    arguments = [argument.format(write(CONFIG)) for argument in arguments]
    with pytest.raises((InputError, flags.Error)) as error:
        parse(*arguments)
    assert message in str(error.value)


def test_a_config_for_another_command_is_refused(parse):
    root = pathlib.Path(__file__).parents[1] / "configs"
    with pytest.raises(InputError, match=r"ifdb.py is not a config of a run: its config has no fi"):
        parse(f"--config={root}/prepare/ifdb.py")
    with pytest.raises(InputError, match=r"itemsage.py is not a column map: its config has no fi"):
        parse(f"--config={root}/itemsage.py:test", kind="a column map", field="kind")


@pytest.mark.parametrize("mine", [False, True], ids=["of the checkout", "of a user"])
def test_a_config_finds_the_shared_fields_from_any_directory(mine, tmp_path):
    """In another process, since the checkout may be importable in this one anyway."""
    root = pathlib.Path(__file__).parents[1]
    path = root / "configs/pinnerformer.py"
    if mine:
        path = shutil.copy(path, tmp_path)
    (tmp_path / "pinjax").symlink_to(root / "pinjax")  # and nothing else of the checkout
    script = (
        f"import sys; from pinjax import config_flag; before = list(sys.path)\n"
        f"print(config_flag.load('{path}:test').system); assert sys.path == before"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "pinnerformer\n", done.stderr


def test_a_run_takes_no_config_whose_fields_are_not_declared(parse, write):
    path = write(
        "from ml_collections import ConfigDict\n"
        "def get_config():\n  return ConfigDict({'system': 1, 'dropout': 7.0})\n"
    )
    with pytest.raises(InputError, match="field dropout is not declared; declare its type"):
        parse(f"--config={path}")
