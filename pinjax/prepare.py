"""Prepares a data set: users' files in, one directory that every system trains from out.

    python -m pinjax.prepare --config=configs/prepare/ifdb.py \
        --events=playedgames.parquet,wishlists.parquet \
        --items=gametags.parquet,game_docs_retrieval.parquet --out=DIR

The config is a column map: docs/preparing.md says how to write one, and
`pinjax.data.sources.column_map` what it may hold. Any field may be overridden as
--config.section.field=value. Files are Parquet, CSV (also compressed), JSON lines or npz.
"""

import json
import re
import shlex
import time
from collections.abc import Mapping, Sequence

import numpy as np
import tqdm
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from pinjax import app, config_flag
from pinjax.data import dataset as dataset_lib
from pinjax.data import windows
from pinjax.data.sources import prepare
from pinjax.data.spec import SPLITS, Spec
from pinjax.errors import InputError
from pinjax.evaluation import timeline_source
from pinjax.timestamps import DAY

_CONFIG = config_flag.define("a column map", "events")
_EVENTS = flags.DEFINE_multi_string(
    "events", None, "files of events, in order; separate several, or globs, by commas"
)
_ITEMS = flags.DEFINE_multi_string(
    "items", [], "the table of items, then, after commas, the files of config.sides"
)
_QUERIES = flags.DEFINE_multi_string("queries", [], "files with vectors of queries")
_OUT = flags.DEFINE_string("out", None, "new directory, for the data set")
_MEMORY = flags.DEFINE_string("memory", "", "budget, such as 3GiB; default: half of the machine's")
flags.mark_flags_as_required(["events", "out"])

_WINDOW, _PCA_DIM = 14 * DAY, 24  # of configs/pinnerformer.py:own
_UNITS = {"MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
# Action types that are no sign of interest, by how one of their words begins.
_NEGATIVE = re.compile(
    r"(?:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z]))"
    r"(?i:(un|dis)_?like|hat(e|ed)|hid(e|den)|block|report|skip|unfollow|remov)"
)


def main(argv: Sequence[str]) -> int:
    del argv
    started = time.monotonic()
    out = _out()
    inputs = prepare.Inputs.find(*(_names(flag) for flag in (_EVENTS, _ITEMS, _QUERIES)))
    memory = _memory(_MEMORY.value)
    form = "preparing: {desc}{elapsed}"
    with tqdm.tqdm(bar_format=form, leave=False, disable=None) as progress:  # on a terminal alone
        made = prepare.prepare(inputs, out, _CONFIG.value, memory, progress.set_description)
    print(_table(made.report))
    for remark in made.remarks:
        print(f"\nnote: {remark}")
    done = f"prepared in {time.monotonic() - started:.1f} s" if made.is_new else "already prepared"
    parts = ", ".join(("catalogue", *made.spec.parts))
    print(f"\n{done}: {out} ({parts})\n")
    for system, text in _next(dataset_lib.open_directory(out)).items():
        print(f"{system:<12}  {text}")
    return 0


def _out() -> epath.Path:
    return app.local_directory("--out", _OUT.value)


def _names(flag: flags.FlagHolder) -> list[str]:
    return [name for value in flag.value for name in value.split(",")]


def _memory(text: str) -> int | None:
    """Bytes of text like 3GiB; None for "".

    Raises:
      InputError: for other text.
    """
    if not text:
        return None
    written = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]+)?)(MiB|GiB|TiB)", text)
    if not written:
        raise InputError(f"--memory={text}: expected a size like 512MiB or 3GiB")
    number, unit = written.groups()
    bytes_ = int(float(number) * _UNITS[unit])
    if not 2**27 <= bytes_ <= 2**50:
        raise InputError(f"--memory={text}: expected from 128MiB to 1024TiB")
    return bytes_


def _table(report: Mapping[str, int | str]) -> str:
    """The report as two columns; what came to nothing is left out."""
    cells = {
        name: f"{value:,}" if isinstance(value, int) else value
        for name, value in report.items()
        if value != 0
    }
    left = max(map(len, cells))
    right = max(len(text) for name, text in cells.items() if isinstance(report[name], int))
    return "\n".join(f"{name:<{left}}  {text:>{right}}" for name, text in cells.items())


def _next(dataset: dataset_lib.Dataset) -> dict[str, str]:
    """By system, the command to train it and what it is evaluated on, or why it cannot be."""
    spec = dataset.spec
    searches = [task for task in spec.tasks if task.startswith("text/")]
    described = spec.text_features or spec.image_dim
    found = {}
    if "timelines" not in spec.parts:
        found["PinnerFormer"] = "no timelines: it needs events.user, with times or leave-one-out"
    elif not _positives(spec):
        found["PinnerFormer"] = f"no action that could be a label among {', '.join(spec.actions)}"
    else:
        found["PinnerFormer"] = f"{_pinnerformer(spec)}\n{'':14}# {_users_evaluated(dataset)}"
    if "pairs" not in spec.parts:
        found["ItemSage"] = "no pairs: it needs events.query or pairs.sequence"
    elif not described:
        found["ItemSage"] = "no texts and no images: it needs catalogue.texts or catalogue.images"
    elif not (shares := _shares(dataset, spec.tasks, 0)):
        found["ItemSage"] = f"no engagement that could be learned among {', '.join(spec.tasks)}"
    else:
        about = _queries_evaluated(dataset, [name for name, *_ in shares])
        found["ItemSage"] = f"{_itemsage(spec, shares)}\n{'':14}# {about}"
    if not searches:
        found["SearchSage"] = "no text of a search: it needs events.query"
    elif not (shares := _shares(dataset, searches, 50)):
        found["SearchSage"] = f"no engagement that could be learned among {', '.join(searches)}"
    else:
        command = _command("searchsage.py", f"--config.tasks={_literal(shares)}", *_residual())
        about = _queries_evaluated(dataset, [name for name, *_ in shares])
        found["SearchSage"] = f"{command}\n{'':14}# {about}"
    found["PinSage"] = _pinsage(dataset)
    if "timelines" in spec.parts and spec.content_dim and _positives(spec):
        found["PinnerSage"] = _pinnersage(spec)
    else:
        found["PinnerSage"] = "it needs timelines, and content vectors of items"
    return found


def _command(config: str, *settings: str, module: str = "train") -> str:
    flags_ = (f"--config=configs/{config}", f"--config.data.name={_out()}", *settings)
    return shlex.join(["python", "-m", f"pinjax.{module}", *flags_])


def _positives(spec: Spec) -> list[str]:
    return [name for name in spec.actions[1:] if name.isprintable() and not _NEGATIVE.search(name)]


def _pinnerformer(spec: Spec) -> str:
    """Training on every action type that may be a label, on every surface."""
    positives = f"--config.data.positives={windows.join(_positives(spec))}"
    if spec.leave_one_out:
        return _command("pinnerformer.py:ml1m", positives)
    if not spec.content_dim:
        return _command("pinnerformer.py:own_ids", positives)
    whole = ("--config.data.pca_dim=0",) if spec.content_dim < _PCA_DIM else ()
    return _command("pinnerformer.py:own", positives, *whole)


def _itemsage(spec: Spec, shares: tuple) -> str:
    """Training on all tasks, with all texts and images."""
    settings = [f"--config.tasks={_literal(shares)}"]
    settings.append(f"--config.model.embedding_dim={spec.query_dim}")
    texts = tuple((name, name) for name in spec.text_features)
    settings.append(f"--config.model.texts={_literal(texts)}")
    if not spec.image_dim:
        settings.append("--config.model.image_slots=0")
    return _command("itemsage.py", *settings, *_residual())


def _residual() -> tuple[str, ...]:
    """The flag to start from the vectors, if those of items and queries are made of words."""
    config = _CONFIG.value
    in_one_space = config.vectors.texts and not config.catalogue.images and not _QUERIES.value
    return ("--config.model.residual=True",) if in_one_space else ()


def _pinsage(dataset: dataset_lib.Dataset) -> str:
    """Training on pairs of items or, without these, on groups whose edges are held out."""
    spec = dataset.spec
    images = [task for task in spec.tasks if task.startswith("image/")]
    if "graph" not in spec.parts:
        return "no graph: it needs events.group or catalogue.tags"
    content = (
        () if spec.content_dim else ("--config.data.content=False", "--config.model.id_dim=64")
    )
    if images:
        return f"{_command('pinsage.py', *content)}\n{'':14}# {_queries_evaluated(dataset, images)}"
    if not spec.edges["test"]:
        return "no pair of items and no held-out edge: it needs pairs.sequence or events.group"
    content = ("--config.data.content=True",) if spec.content_dim else ()
    groups = [len(np.unique(dataset.held_out_edges(split)[:, 0])) for split in SPLITS[1:]]
    return (
        f"{_command('pinsage.py:users', *content)}\n"
        f"{'':14}# evaluated on {groups[0]:,} groups of valid, {groups[1]:,} of test"
    )


def _pinnersage(spec: Spec) -> str:
    """Evaluation, as there is nothing to train."""
    positives = f"--config.data.positives={windows.join(_positives(spec))}"
    flags_ = (positives, "--config.data.surfaces=", "--workdir=work/pinnersage")
    return _command("pinnersage.py", *flags_, module="evaluate")


def _shares(dataset: dataset_lib.Dataset, names: Sequence[str], cap: int) -> tuple:
    """Tasks as in configs/itemsage.py: with equal shares the rarest would come all the time."""
    tasks = dataset.spec.tasks
    counts = np.bincount(dataset.pairs("train")["task"], minlength=len(tasks))
    of_task = {name: int(counts[tasks.index(name)]) for name in names}
    of_task = {name: n for name, n in of_task.items() if n and not _NEGATIVE.search(name)}
    fewest = min(of_task.values(), default=1)
    return tuple((name, round((n / fewest) ** 0.5, 1), cap) for name, n in of_task.items())


def _literal(value: tuple | str | float) -> str:
    """A value as Python reads it, with double quotes: a shell's are single."""
    if isinstance(value, tuple):
        inner = ", ".join(map(_literal, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    return json.dumps(value, ensure_ascii=False)


def _users_evaluated(dataset: dataset_lib.Dataset) -> str:
    """How many users each table rests on, by the default evaluation and the labels proposed."""
    spec = dataset.spec
    positives = _positives(spec)
    least = np.array([0 if name in positives else np.inf for name in spec.actions], np.float32)
    rules = {"window": _WINDOW, "window_starts": (0,), "users": 2**31, "index_size": 2**31}
    source = timeline_source.TimelineSource(
        dataset,
        windows.Positives(least, np.ones(len(spec.surfaces), bool)),
        length=1,
        config=ConfigDict({**rules, "filter_seen": False}),
    )
    counts = [sum(len(x.users) for x in source.queries(split).values()) for split in SPLITS[1:]]
    days = _WINDOW // DAY
    when = "" if spec.leave_one_out else f" in the {days} days after training"
    about = f"evaluated on {counts[0]:,} users of valid, {counts[1]:,} of test{when}"
    warnings = [] if counts[0] else source.too_few("valid")
    return f"\n{'':14}# ".join([about, *warnings, *source.too_few("test")])


def _queries_evaluated(dataset: dataset_lib.Dataset, names: Sequence[str]) -> str:
    """How many queries of some tasks each table rests on."""
    tasks = [dataset.spec.tasks.index(name) for name in names]
    counts = []
    for split in SPLITS[1:]:
        pairs = dataset.pairs(split)
        counts.append(len(np.unique(pairs["query"][np.isin(pairs["task"], tasks)])))
    return f"evaluated on {counts[0]:,} queries of valid, {counts[1]:,} of test"


if __name__ == "__main__":
    app.run(main)
