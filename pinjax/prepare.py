"""Prepares a log or engagements of one's own: Parquet, npz or CSV in, a data set on disk out.

    python -m pinjax.prepare --config=configs/prepare/ifdb.py \
        --events=played.parquet --events=wishlists.parquet --items=tags.parquet --out=DIR
    python -m pinjax.prepare --config=configs/prepare/homedepot.py \
        --events=train.parquet --items=train.parquet --out=DIR

The config is a column map. `pinjax.data.column_map` says what it may hold: `default()` for the
timelines of users, `engagements()` for products and what led to them. Any field may be overridden
as --config.section.field=value.
"""

import shlex
import time
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from pinjax import app, config_flag, files
from pinjax.data import datasets, engagements, held_out, pairs, prepared, schema, windows
from pinjax.errors import InputError

_CONFIG = config_flag.define("a column map", "kind", declared=False)
_EVENTS = flags.DEFINE_multi_string(
    "events",
    None,
    "file of events, Parquet, npz or CSV; several, in order: with commas or repeated",
)
_ITEMS = flags.DEFINE_string(
    "items", None, "file of items, Parquet, npz or CSV; then, after commas, those of config.sides"
)
_QUERIES = flags.DEFINE_string(
    "queries", None, "file of queries' own vectors, for engagements; without it they are made"
)
_OUT = flags.DEFINE_string("out", None, "directory of the data set, not there yet")
flags.mark_flags_as_required(["events", "out"])

_WINDOW = 14 * held_out.DAY  # the default of configs/pinnerformer.py


def main(argv: Sequence[str]) -> int:
    del argv
    started = time.monotonic()
    events = ",".join(_EVENTS.value).split(",")
    config = _CONFIG.value
    if files.is_remote(_OUT.value):
        raise InputError(f"--out={_OUT.value}: expected a directory on this machine; copy it then")
    of_pairs = config.kind == "engagements"
    if of_pairs:
        items = _ITEMS.value.split(",") if _ITEMS.value else []
        metadata, is_new = engagements.prepare(events, items, _OUT.value, config, _QUERIES.value)
    elif _QUERIES.value:
        raise InputError(f"--queries is {_QUERIES.value}; expected only with engagements")
    else:
        metadata, is_new = prepared.prepare(events, _ITEMS.value, _OUT.value, config)
    print(_table(metadata.report))
    done = f"prepared in {time.monotonic() - started:.1f} s" if is_new else "already prepared"
    following = _next_for_pairs(metadata, config) if of_pairs else _next_command(metadata)
    asked = _queries_asked() if of_pairs else _users_asked()
    print(f"\n{done}: {_OUT.value}\nevaluated on: {asked}\nnext: {following}")
    return 0


def _table(report: Mapping[str, int | str]) -> str:
    """The report as two columns; what came to nothing is left out."""
    cells = {
        name: f"{value:,}" if isinstance(value, int) else value
        for name, value in report.items()
        if value != 0
    }
    left, right = (max(map(len, column)) for column in (cells.keys(), cells.values()))
    return "\n".join(f"{name:<{left}}  {value:>{right}}" for name, value in cells.items())


def _users_asked() -> str:
    """How many users each table rests on, by the default evaluation and with all actions labels."""
    dataset = datasets.load(_OUT.value, "")
    metadata = dataset.metadata
    least = np.zeros(len(metadata.actions), np.float32)
    least[0] = np.inf  # unknown
    source = held_out.HeldOut(
        dataset,
        windows.Positives(least, np.ones(len(metadata.surfaces), bool)),
        length=1,
        window=_WINDOW,
        max_users=2**31,
        index_size=2**31,
        filter_seen=False,
    )
    (moment,) = source.moments((0.0,))
    counts = {split: len(source.questions(split, moment).users) for split in schema.SPLITS[1:]}
    when = (
        "" if metadata.leave_one_out else f", in the {_WINDOW // held_out.DAY} days after training"
    )
    return ", ".join(f"{n:,} users of {split}" for split, n in counts.items()) + when


def _queries_asked() -> str:
    """How many queries each table rests on."""
    dataset = pairs.read(_OUT.value)
    counts = {split: len(np.unique(dataset.pairs(split)["query"])) for split in schema.SPLITS[1:]}
    return ", ".join(f"{n:,} queries of {split}" for split, n in counts.items())


def _next_command(metadata: schema.Metadata) -> str:
    """Training on all that was prepared: every action type a label, on every surface."""
    variant = ":ml1m" if metadata.leave_one_out else ""
    command = ["python", "-m", "pinjax.train", f"--config=configs/pinnerformer.py{variant}"]
    command.append(f"--config.data.name={_OUT.value}")
    if not metadata.leave_one_out:
        positives = ", ".join(metadata.actions[1:])
        command += ["--config.data.surfaces=", f"--config.data.positives={positives}"]
        if "items without content" not in metadata.report:
            command.append("--config.data.content=False")
    return shlex.join(command)


def _next_for_pairs(metadata: pairs.Metadata, config: ConfigDict) -> str:
    """Training ItemSage, or also SearchSage where there are searches, on all tasks."""
    counts = {task: metadata.report[f"train, {task}"] for task in metadata.tasks}
    fewest = min(filter(None, counts.values()), default=1)
    # As in configs/itemsage.py: equal shares would bring the rarest again and again.
    shares = {task: (count / fewest) ** 0.5 for task, count in counts.items() if count}

    def command(system: str, cap: int, *more: str) -> str:
        settings = ", ".join(f'("{task}", {share:.1f}, {cap})' for task, share in shares.items())
        settings += "," * (len(shares) == 1)
        flags_ = (f"--config.data.name={_OUT.value}", f"--config.tasks=({settings})", *more)
        return shlex.join(
            ["python", "-m", "pinjax.train", f"--config=configs/{system}.py", *flags_]
        )

    texts = "".join(f'("{name}", "{name}"), ' for name, _ in config.catalogue.texts).rstrip()
    dim = metadata.report["numbers in a query's vector"]
    following = command(
        "itemsage", 0, f"--config.model.texts=({texts})", f"--config.model.dim={dim}"
    )
    if config.events.query:
        following += f"\n  or: {command('searchsage', 50)}"
    return following


if __name__ == "__main__":
    app.run(main)
