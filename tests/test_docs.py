"""The README and the guides are right about examples, commands, messages, fields and files."""

import ast
import dataclasses
import importlib.util
import os
import pathlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from pinjax.data.sources import column_map
from tests import commands
from tests.launch import fake_gcloud

ROOT = pathlib.Path(__file__).parents[1]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = {
    path.stem: made
    for path in sorted((ROOT / "configs").glob("*.py"))
    if "VARIANTS" in (made := runpy.run_path(str(path)))
}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?:    .*\n(?:\n(?=    ))?)+")
INLINE = re.compile(r"`([^`]+)`")


# Guides with Python examples are run from top to bottom, beside a directory `embeddings`.
RUN_AS_THEY_STAND = [path for path in GUIDES[1:] if "```python\n" in path.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("guide", RUN_AS_THEY_STAND, ids=lambda path: path.stem)
def test_examples_run(guide, tmp_path, make_embeddings, rng):
    any_dataset = types.SimpleNamespace(spec=types.SimpleNamespace(digest=""))
    tables = {
        name: (np.arange(rows), rng.standard_normal((rows, 8), np.float32))
        for name, rows in (("items", 300), ("users", 40))
    }
    make_embeddings("embeddings", any_dataset, tables)
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    for language, code in FENCE.findall(guide.read_text()):
        if name := re.match(r"# (\w+\.py)\n", code):
            (tmp_path / name[1]).write_text(code)
            continue
        command = {"python": [sys.executable, "-c", code], "sh": ["bash", "-ec", code]}[language]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


# Commands. A line of a code block that begins with one of these is a command, and so is what says
# `python -m pinjax.` anywhere, as in the output of another command; all else is output.
PROGRAM = re.compile(
    r"(?:^(?:\$ )?(?:[A-Z_]+=\S+ )*"
    r"(?=(?:launch/|\./|\.venv/)\S|(?:python3?|pip3?|uv|sbatch|srun|gcloud|gsutil|ssh|scp|git|cd|"
    r"tensorboard|docker|kubectl|curl|make|bash|source|export)\s(?!=))|(?=python -m pinjax\.))"
)
# Other people's commands, which are not checked.
OTHERS = (
    *(["git"], ["cd"], ["source"], ["export"], ["tensorboard"], ["curl"], ["docker"], ["kubectl"]),
    *(["python", "-m", "venv"], ["python", "-m", "build"]),
)
# Fields that depend on the user's own data set, so their values do not fit pinworld.
OF_DATA = ("data.", "tasks=", "model.texts=", "model.embedding_dim=", "model.image_slots=")


@dataclasses.dataclass(frozen=True, order=True)
class Call:
    """A command of pinjax.

    Attributes:
      name: as in `python -m pinjax.NAME`.
      flags: of its command line.
    """

    name: str
    flags: tuple[str, ...]

    def __str__(self):
        return shlex.join([self.name, *self.flags])

    def value(self, flag):
        """The value of a flag, None where it is not given."""
        values = [f.partition("=")[2] for f in self.flags if f.partition("=")[0] == flag]
        return values[-1] if values else None

    def in_test_form(self):
        """The same command, small, on pinworld and in its own directories; None if it can't be run.

        It can't if it needs the user's files, pretrained weights, or a TPU compiler that is not
        installed. `tests/e2e/test_stack.py` runs the stack, `tests/reporting` a report.
        """
        if self.name == "index":
            return self  # see `run_index`
        own_data = (self.value("--config.data.name") or "pinworld/").partition("/")[0] != "pinworld"
        if self.name in ("prepare", "stack", "report") or self.value("--config.model.pretrained"):
            return None
        if self.name == "rank" and self.value("--items"):
            return None
        if self.value("--topology") and importlib.util.find_spec("libtpu") is None:
            return None
        kept = []
        for flag in self.flags:
            name = flag.partition("=")[0]
            if name == "--config":
                flag = f"{flag.partition(':')[0]}:test"
            elif name == "--items":
                flag = "--items=5000"
            elif (
                name
                in (
                    *("--users", "--histories", "--queries", "--allow", "--deny"),
                    *("--embeddings", "--export_features"),
                    *("--workdir", "--out", "--coordinator", "--processes", "--process"),
                    *("--warm_start", "--since"),  # tests/e2e/test_every_day.py
                    *("--config.data.name", "--config.data.dir", "--config.data.vectors"),
                )
                or ("$" in flag)
                or (own_data and flag.removeprefix("--config.").startswith(OF_DATA))
            ):
                continue
            kept.append(flag)
        return Call(self.name, tuple(sorted(kept)))

    def is_trained(self):
        """Whether its system is; without one, as of `prepare`, it makes no difference."""
        system = CONFIGS.get(pathlib.Path(self.value("--config").partition(":")[0]).stem)
        return system is None or "train" in system["get_config"]()

    def training(self):
        """The run that `evaluate` and `embed` work on."""
        return Call("train", tuple(f for f in self.flags if f.startswith("--config")))


def command_lines(guide):
    """A guide's commands, as a shell splits them, without those in examples that are run."""
    blocks = []

    def take(match):
        if match.re is INDENTED:
            blocks.append(match[0])
        elif match[1] != "python" and guide not in RUN_AS_THEY_STAND:
            blocks.append(match[2])
        return "\n"

    text = INDENTED.sub(take, FENCE.sub(take, guide.read_text()))
    code = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    # In a sentence a command without arguments is only named.
    inline = [" ".join(code.split()) for code in INLINE.findall(text)]
    code += [line for line in inline if not re.fullmatch(r"(python -m )?\S+", line)]
    for line in code:
        if found := PROGRAM.search(line):
            for command in re.split(r" && | \| | > ", line[found.end() :]):
                words = shlex.split(command, comments=True)
                words[0] = re.sub(r"^(?:\.venv/bin/)?(python|pip)3?$", r"\1", words[0])
                yield words[:-1] if words[-1] == "..." else words


def calls_of(words):
    """The calls of pinjax in a command line, whose other parts are checked.

    Raises:
      AssertionError: the test does not know such a command.
    """
    program, *rest = words
    if program == "python" and rest[:1] == ["-m"] and rest[1].startswith("pinjax."):
        flags = [flag for flag in rest[2:] if flag != "--config=..."]
        if rest[1] not in ("pinjax.stack", "pinjax.index", "pinjax.report") and not any(
            flag.startswith("--config=") for flag in flags
        ):
            flags.append("--config=configs/pinnerformer.py")
        return [Call(rest[1].removeprefix("pinjax."), tuple(flags))]
    if program == "launch/run.sh" and rest[:1] in (["--stack"], ["--evaluate"], ["--embed"]):
        return calls_of(["python", "-m", f"pinjax.{rest[0].removeprefix('--')}", *rest[1:]])
    if program == "launch/run.sh":
        return calls_of(["python", "-m", "pinjax.train", *rest])
    if program in ("launch/tpu_vm.sh", "launch/gpu_box.sh", "launch/gke.sh"):  # see `test_launch`
        return calls_of(["launch/run.sh", *rest[rest.index("--") + 1 :]]) if "--" in rest else []
    if program == "sbatch":
        script = rest.index("launch/slurm.sbatch")
        assert all(option.startswith("--") for option in rest[:script])
        return calls_of(["launch/run.sh", *rest[script + 1 :]])
    if program == "gcloud":
        fake_gcloud.check(*fake_gcloud.parsed(rest))
        return []
    if program == "launch/test.sh":
        assert all((ROOT / word).exists() for word in rest if "/" in word), words
        return []
    if program == "python" and rest[:1] == ["-m"] and rest[1].startswith("benchmarks."):
        source = (ROOT / f"{rest[1].replace('.', '/')}.py").read_text()
        source = source.replace("app.run_config()", '"config"')  # which defines that flag
        names = [flag.lstrip("-").partition("=")[0].partition(".")[0] for flag in rest[2:]]
        assert all(f'"{name}"' in source or f'"--{name}"' in source for name in names), words
        return []
    if words[:2] == ["pip", "install"]:
        for word in rest[1:]:
            extras = re.search(r"\[(.*)\]", word)
            if word.endswith(".txt"):
                assert (ROOT / word).exists(), words
            elif extras and word.startswith((".", "pinjax")):
                project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
                assert set(extras[1].split(",")) <= set(project["optional-dependencies"]), words
        return []
    assert any(words[: len(known)] == known for known in OTHERS), f"unknown command {words}"
    return []


def documented():
    """(command line, calls or the error) of all guides, each once."""
    lines = {tuple(words) for guide in GUIDES for words in command_lines(guide)}
    for words in sorted(lines):
        try:
            yield words, calls_of(list(words))
        except (AssertionError, IndexError, OSError, ValueError) as error:
            yield words, error


COMMANDS = dict(documented())
CALLS = {call for found in COMMANDS.values() if isinstance(found, list) for call in found}
TESTS = {call.in_test_form() for call in CALLS} - {None}
# What docs/tpus.md exports, for each slice: the first line is for all of them.
EXPORTS = [
    dict(word.split("=", 1) for word in words[1:])
    for words in command_lines(ROOT / "docs/tpus.md")
    if words[0] == "export"
]
SLICES = [EXPORTS[0] | of_slice for of_slice in EXPORTS[1:]]


def filled_in(words):
    """A command, with what the guide exports for each slice in place of its variables."""
    if not any("$" in word for word in words):
        return {words}
    return {
        tuple(re.sub(r"\$(\w+)", lambda name, of=of: of[name[1]], word) for word in words)
        for of in SLICES
    }


LAUNCHES = [
    words
    for command in COMMANDS
    if command[0] in ("launch/tpu_vm.sh", "launch/gpu_box.sh", "launch/gke.sh")
    # This one follows a file, and prints no command.
    and command[:2] != ("launch/tpu_vm.sh", "logs")
    for words in sorted(filled_in(command))
]


@pytest.mark.parametrize("words", COMMANDS, ids=shlex.join)
def test_a_command_is_of_a_known_kind(words):
    assert isinstance(COMMANDS[words], list), COMMANDS[words]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("docs")


@pytest.fixture(scope="module")
def run(home):
    """(call, more flags): it succeeds."""
    modules = (
        "compiler.largest_batch",
        "data.sources.prepare",
        "systems.registry",
        "training.loop",
    )
    settings = {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(home / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with commands.Commands(*(f"pinjax.{name}" for name in modules), **settings) as command:

        def run(call, *more, parse_alone=False):
            devices = int(call.value("--config.train.model_devices") or 1)
            flags = *call.flags, *more
            code, _, err = command(call.name, *flags, devices=devices, parse_alone=parse_alone)
            assert code == 0, err

        yield run


@pytest.mark.parametrize("call", sorted(CALLS), ids=str)
def test_flags_are_those_of_the_command(run, call):
    run(call, parse_alone=True)


@pytest.fixture(scope="module")
def quick(home):
    """(call) -> flags that all runs share: one data set, and no evaluation but the last."""

    def quick(call):
        last_alone = ["--config.train.evaluate_every=0"] * call.is_trained()
        return f"--config.data.dir={home}/data", *last_alone

    return quick


@pytest.fixture(scope="module")
def trained(home, run, quick):
    """(call of train) -> the directory of its run, which is made once."""
    made = {}

    def trained(call):
        if call not in made:
            made[call] = home / f"run-{len(made)}"
            run(call, f"--workdir={made[call]}", *quick(call))
        return made[call]

    return trained


@pytest.mark.slow
@pytest.mark.parametrize("call", sorted(TESTS), ids=str)
def test_a_command_runs_in_its_test_form(run, trained, quick, make_embeddings, tmp_path, call):
    if call.name == "train":
        trained(call)
    elif call.name == "compile":
        run(call)
    elif call.name == "index":
        run_index(run, make_embeddings, tmp_path, call)
    else:
        workdir = trained(call.training()) if call.is_trained() else tmp_path / "run"
        if call.name == "rank" and not (workdir / "embeddings").exists():
            of_run = f"--workdir={workdir}", f"--out={workdir}/embeddings"
            run(Call("embed", call.training().flags), *of_run, *quick(call))
        writes = ("embed", "export", "rank", "recommend")
        out = [f"--out={tmp_path}/out"] * (call.name in writes)
        run(call, f"--workdir={workdir}", *quick(call), *out)


def run_index(run, make_embeddings, tmp_path, call):
    """Runs a command of the index on a few made-up embeddings."""
    vectors = np.eye(50, dtype=np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    ids = 10**9 + np.arange(50)  # as pinworld's
    tables = {name: (ids, vectors) for name in ("items", "users")}
    of = types.SimpleNamespace(spec=types.SimpleNamespace(digest=""))
    embedded = make_embeddings("embedded", of, tables)
    replaced = {
        "--embeddings": embedded,
        "--index": f"{tmp_path}/index",
        "--vectors": f"{tmp_path}/vectors.npy",
        **{name: f"{tmp_path}/made" for name in ("--out", "--draw")},
    }
    if call.flags[0] == "query":
        made = f"--embeddings={embedded}", f"--out={tmp_path}/index"
        run(Call("index", ("build", *made)))
    flags = (flag.partition("=") for flag in call.flags)
    run(Call("index", tuple(f"{x}{eq}{replaced.get(x, y)}" for x, eq, y in flags)))


@pytest.mark.parametrize("words", LAUNCHES, ids=shlex.join)
def test_launch(tmp_path, words):
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    options = list(words)
    options.insert(options.index("--") if "--" in options else len(options), "--dry-run")
    done = subprocess.run(options, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match("gcloud |ssh |scp |kubectl |apiVersion: ", done.stdout)
    for line in done.stdout.splitlines():
        if line.startswith("gcloud "):
            made = shlex.split(line.replace(" $'", " '"))  # shlex does not know Bash's $'\n'
            fake_gcloud.check(*fake_gcloud.parsed(made[1:]))


# Messages.


def texts_of(path):
    """The texts of a Python file, with a zero byte where something is filled in."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
            yield "".join(parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@pytest.fixture(scope="module")
def texts():
    of_python = [text for path in (ROOT / "pinjax").rglob("*.py") for text in texts_of(path)]
    return of_python + [path.read_text() for path in (ROOT / "launch").iterdir()]


QUOTED = re.findall(r"^### `(.*)`$", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("message", QUOTED)
def test_a_message_of_the_guide_is_one_of_the_source(texts, message):
    fixed = [re.escape(part) for part in message.split("...")]
    assert max(map(len, fixed)) >= len(": no column "), "too little of it to be found by"
    assert any(re.search(".*".join(fixed), text) for text in texts)


# Fields and files.

FILES = (".py", ".parquet", ".json", ".safetensors", ".log")


def fields(config, prefix=""):
    for name, value in config.items():
        yield f"{prefix}{name}"
        if isinstance(value, ConfigDict):
            yield from fields(value, f"{prefix}{name}.")


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_fields_exist(guide):
    known = set(fields(column_map.default()))
    for made in CONFIGS.values():
        known |= set(fields(made["get_config"]()))
    sections = {name.partition(".")[0] for name in known if "." in name}
    text = guide.read_text()
    named = re.findall(r"--config\.([a-z_.]*\w)(?==)", text)
    for code in INLINE.findall(INDENTED.sub("", FENCE.sub("", text))):
        name = re.match(r"([a-z_]+)\.[a-z_0-9.]+(?=[=\s]|$)", code)
        if name and name[1] in sections and pathlib.Path(name[0]).suffix not in FILES:
            named.append(name[0])
    assert set(named) <= known | {"section.field"}


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_files_and_variants_exist(guide):
    text = guide.read_text()
    rooms = "pinjax|configs|launch|tests|benchmarks|docs"
    pattern = rf"(?<![\w/.])((?:{rooms})/[\w/]*\w\.(?:py|sh|sbatch|md|txt))(?::(\w+))?"
    for name, variant in re.findall(pattern, text):
        assert (ROOT / name).exists(), name
        system = CONFIGS.get(pathlib.Path(name).stem) if name.startswith("configs/") else None
        assert not variant or (system and variant in system["VARIANTS"]), f"{name}:{variant}"


@pytest.mark.parametrize("guide", GUIDES, ids=lambda path: path.stem)
def test_links_lead_somewhere(guide):
    for link in re.findall(r"(?<!!)\[[^\]]*\]\(([^)#\s]+)", guide.read_text()):
        assert "://" in link or (guide.parent / link).exists(), link
