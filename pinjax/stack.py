"""Runs all systems on one data set, each on the embeddings of those before it.

    python -m pinjax.stack --data=NAME --workdir=DIR

A stage trains or evaluates a system and embeds by it, in DIR/STAGE, with commands that are printed.
A stage that is finished is not run again, one that was stopped goes on, and one whose data set,
config or vectors have changed since is refused. Stages that the data set or their config cannot
carry are left out. At the end a table compares every stage with its baselines.

    --config.train.seed=1              sets a field in the config of every stage that has it
    --itemsage="--config=FILE --config.model.image_slots=0"    the config of a system's stages
"""

import contextlib
import dataclasses
import itertools
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from pinjax import app, checksums, config_flag, config_json, files, signals
from pinjax.data import dataset as dataset_lib
from pinjax.data import embeddings
from pinjax.data.spec import Spec
from pinjax.errors import InputError
from pinjax.evaluation import comparison, formatting, records
from pinjax.training import workdirs


class Stage(NamedTuple):
    """A system on the embeddings of others.

    Attributes:
      name: of its directory.
      title: in the table.
      system: configs/SYSTEM.py is its config.
      vectors: stages whose embeddings it takes. If one was left out, it takes those before it.
      needs_all: whether it is left out instead.
      dim: the config's field that has to be the dimension of query vectors.
    """

    name: str
    title: str
    system: str
    vectors: tuple[str, ...] = ()
    needs_all: bool = False
    dim: str = ""


# Items that are not products have no vector of ItemSage; its space is that of PinSage.
_PRODUCTS = "pinsage", "itemsage"
STAGES = (
    Stage("pinsage", "PinSage", "pinsage"),
    Stage("searchsage", "SearchSage", "searchsage", ("pinsage",)),
    Stage("itemsage", "ItemSage", "itemsage", ("pinsage", "searchsage"), dim="model.embedding_dim"),
    Stage("pinnerformer", "PinnerFormer", "pinnerformer"),
    Stage("pinnerformer-pinsage", "PinnerFormer on PinSage", "pinnerformer", ("pinsage",), True),
    Stage("pinnerformer-itemsage", "PinnerFormer on ItemSage", "pinnerformer", _PRODUCTS, True),
    Stage("pinnersage", "PinnerSage", "pinnersage", ("pinsage",)),
)
SYSTEMS = tuple(dict.fromkeys(stage.system for stage in STAGES))

DATA = flags.DEFINE_string("data", "pinworld/small", "a data set, as config.data.name")
WORKDIR = flags.DEFINE_string("workdir", "work/stack", "directory of the stages")
VARIANT = flags.DEFINE_string("variant", "", "variant of every stage's config, such as test")
OF_SYSTEM = {
    system: flags.DEFINE_string(system, "", "its --config=FILE and --config.SECTION.FIELD=VALUE")
    for system in SYSTEMS
}
config_flag.define("a config of a run", "system", required=False)

_STATE, _EMBEDDINGS = "stage.json", "embeddings"
# Fields that change no result, or whose content counts and not their name.
_FREE = ("data.name", "data.dir", "data.vectors", "data.workers", "train.log_every")


_PATIENCE = 0.2  # seconds until a process hears of a signal


class _LeftOut(Exception):
    """The data set or the config cannot carry a stage."""


class _Ended(Exception):
    """A signal or a failure ends the stack, with an exit code."""

    def __init__(self, code: int, reason: object):
        super().__init__(reason)
        self.code = code


def main(argv: Sequence[str]) -> int:
    del argv
    if config_flag.source() is not None:
        raise InputError("--config: every stage has its own; give --SYSTEM='--config=FILE'")
    workdir = app.local_directory("--workdir", WORKDIR.value)
    if "," in str(workdir):
        raise InputError(f"--workdir={workdir}: expected a directory without commas")
    arguments = _arguments()
    data_dir = next(_config(of_system) for of_system in arguments.values()).data.dir
    spec = Spec.read(dataset_lib.ensure(DATA.value, data_dir))
    runs, left_out = {}, set()
    with files.only_writer(workdir), signals.deferred(alone=True) as deferral:
        for stage in STAGES:
            run = _Run(stage, workdir, spec, dataset_lib.copies(data_dir), deferral)
            try:
                run.finish(arguments.get(stage.system), left_out)
            except _LeftOut as reason:
                left_out.add(stage.name)
                print(f"{stage.title} is left out: {reason}\n", flush=True)
            except _Ended as ended:
                print(ended, file=sys.stderr)
                return ended.code
            else:
                runs[stage.title] = records.read(run.directory / workdirs.records_file("test"))
    if not runs:
        raise InputError(f"--data={DATA.value}: no stage can be run on it")
    print(formatting.format_table(comparison.rows(runs)))
    print("\ndifferences of R@10 are paired; over baseline: to the best one of the stage")
    return 0


def _arguments() -> dict[str, list[str]]:
    """For each system the --config of its commands, and its overrides.

    Raises:
      InputError: if a config cannot be made of them.
    """
    found, known = {}, set()
    shared = flags.FLAGS["config"].overrides
    for system, flag in OF_SYSTEM.items():
        wrong = InputError(
            f"--{system}={flag.value}: expected --config=FILE and --config.SECTION.FIELD=VALUE"
        )
        try:
            words = shlex.split(flag.value)
        except ValueError:  # a quote that does not end
            raise wrong from None
        rest, own = config_flag.split_overrides(words)
        if not rest:
            rest = [f"--config=configs/{system}.py" + (VARIANT.value and f":{VARIANT.value}")]
        if len(rest) > 1 or not rest[0].startswith("--config="):
            raise wrong
        fields = _fields(rest)
        known |= fields.keys()
        overrides = [*((name, text) for name, text in shared if name in fields), *own]
        found[system] = rest + [f"--config.{name}={text}" for name, text in overrides]
        _config(found[system])
    for name, _ in shared:
        if name not in known:
            raise InputError(f"--config.{name}: the config of no stage has such a field")
    return found


def _config(arguments: Sequence[str]) -> ConfigDict:
    """The config of a command's arguments."""
    (source,), overrides = config_flag.split_overrides(arguments)
    flag = config_flag.ConfigFlag("a config of a run", "system", "")
    flag.overrides = overrides
    flag.parse(source.removeprefix("--config="))
    return flag.value


def _fields(arguments: Sequence[str]) -> dict[str, Any]:
    """The values of its fields by name, as in JSON."""
    return config_json.flat(config_json.to_json(_config(arguments)))


@dataclasses.dataclass(frozen=True)
class _Run:
    """A stage in a work directory.

    Attributes:
      stage: which one.
      workdir: of all stages.
      spec: of the data set.
      copies: directory of copies of what is on gs://.
      deferral: of signals.
    """

    stage: Stage
    workdir: epath.Path
    spec: Spec
    copies: epath.Path
    deferral: signals.Deferral

    @property
    def directory(self) -> epath.Path:
        return self.workdir / self.stage.name

    def finish(self, arguments: Sequence[str], left_out: set[str]) -> None:
        """Runs the commands of the stage that are not done.

        Args:
          arguments: of its commands.
          left_out: names of stages.

        Raises:
          InputError: if it was made of something else before, or a command refuses its input.
          _LeftOut: if the data set cannot carry it.
          _Ended: if a signal or a failure ended a command.
        """
        arguments, made_from = self._inputs(arguments, left_out)
        state, embedded = self._read(made_from), None
        print(self.stage.title, flush=True)
        if state is None:
            self._call("train" if "train.steps" in made_from["config"] else "evaluate", arguments)
            self._write(made_from, None)
        elif state["embeddings"]:
            with contextlib.suppress(InputError):  # incomplete or damaged
                embedded = self._embeddings(verify=True)
        if embedded is None or embedded.identity != state["embeddings"]:
            self._call("embed", [*arguments, f"--out={self.directory / _EMBEDDINGS}"])
            self._write(made_from, self._embeddings(verify=False).identity)
        print(f"  finished: {self.directory}\n", flush=True)

    def _inputs(
        self, arguments: Sequence[str], left_out: set[str]
    ) -> tuple[list[str], dict[str, Any]]:
        """The arguments of the stage's commands, and what it is made from."""
        stage = self.stage
        there = list(itertools.takewhile(lambda name: name not in left_out, stage.vectors))
        if stage.needs_all and len(there) < len(stage.vectors):
            raise _LeftOut(f"it needs the embeddings of {stage.vectors[len(there)]}")
        if stage.needs_all and not _config(arguments).data.get("content", True):
            raise _LeftOut("its config reads no vectors, by data.content=False")
        dim, identity, added = self.spec.query_dim, "", [f"--config.data.name={DATA.value}"]
        if there:
            names = ",".join(str(self.workdir / name / _EMBEDDINGS) for name in there)
            found = embeddings.find(names, self.copies, verify=False)
            dim, identity = embeddings.dim(found), embeddings.identity(found)
            added.append(f"--config.data.vectors={names}")
        if stage.dim and dim:
            added.append(f"--config.{stage.dim}={dim}")
        source, *overrides = arguments
        arguments = [source, *added, *overrides]
        fields = _fields(arguments)
        made_from = {
            "data set": self.spec.digest,
            "vectors": identity,
            "config": {name: value for name, value in fields.items() if name not in _FREE},
        }
        return [*arguments, f"--workdir={self.directory}"], made_from

    def _read(self, made_from: dict[str, Any]) -> dict[str, Any] | None:
        """What was written of the stage; None if it was not trained.

        Raises:
          InputError: if it was made from something else.
        """
        if not (self.directory / _STATE).exists():
            return None
        state = checksums.read(self.directory / _STATE)
        old, new = ({**of.pop("config"), **of} for of in (state["made_from"], dict(made_from)))
        if different := config_json.first_difference(old, new):
            name, before, now = different
            raise InputError(
                f"{self.directory} was made with {name}={before}, and now it is {now}; remove it, "
                "or choose another --workdir"
            )
        return state

    def _write(self, made_from: dict[str, Any], identity: str | None) -> None:
        content = {"made_from": made_from, "embeddings": identity}
        files.write_json(self.directory / _STATE, content)

    def _embeddings(self, verify: bool) -> embeddings.Embeddings:
        return embeddings.open_directory(self.directory / _EMBEDDINGS, self.copies, verify)

    def _call(self, command: str, arguments: Sequence[str]) -> None:
        """Runs a command; its output goes to a file."""
        module = ["-m", f"pinjax.{command}", *arguments]
        print(f"  {shlex.join(['python', *module])}", flush=True)
        files.make_directory(self.directory)
        log = pathlib.Path(self.directory / f"{command}.log")
        with log.open("w") as output:
            code = _wait(
                subprocess.Popen([sys.executable, *module], stdout=output, stderr=output),
                self.deferral,
            )
        reason = f"exit code {code}; see {log}"
        errors = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
        if code == app.EXIT_INPUT and errors:
            reason = errors[-1].removeprefix("error: ")
            # What a data set lacks is said with its name. A wrong config is to be mended instead.
            lacks = command != "embed" and names(reason, self.spec.name)
            if lacks and not (self.directory / workdirs.RUN_FILE).exists():
                raise _LeftOut(reason)
            raise InputError(f"{self.stage.title}: {reason}")
        if code:  # negative after a signal that cannot be caught
            raise _Ended(code if code > 0 else 1, f"{self.stage.title}, {command}: {reason}")


def names(reason: str, data: str) -> bool:
    """Whether a message names a data set, and not only a path or a field with such a part."""
    return re.search(rf"(?<![\w./-]){re.escape(data)}(?![\w./-])", reason) is not None


def _wait(process: subprocess.Popen, deferral: signals.Deferral) -> int:
    """The exit code of a process, which is told of signals.

    Raises:
      _Ended: if there was one.
    """
    told = False
    while process.poll() is None:
        if deferral.requested and not told:
            process.terminate()
            told = True
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_PATIENCE)
    if deferral.requested:
        stopped = signals.Stopped(deferral.requested)
        raise _Ended(stopped.exit_code, f"{stopped}; run the same command again to continue")
    return process.returncode


if __name__ == "__main__":
    app.run(main, uses_devices=lambda: False)
