"""The output of a run for people: the summary, the table, the next commands."""

import collections
import json
import math
import shlex
import textwrap

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax import files
from pinjax.distributed import processes
from pinjax.evaluation import formatting, records, tables
from pinjax.systems import system as system_lib
from pinjax.training import workdirs


def summary(
    system: system_lib.System,
    config: ConfigDict,
    mesh: Mesh,
    workdir: epath.Path,
    evaluated_on: str,
) -> str:
    """The summary of a run before it starts."""
    params, _ = jax.eval_shape(system.trainable.init, jax.random.key(0))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(params))
    device = mesh.devices.flat[0]
    lines = {
        "system": config.system,
        "devices": f"{mesh.size} x {device.device_kind}, mesh {dict(mesh.shape)}",
        "parameters": f"{numbers:,}",
        **system.summary,
        "evaluation": evaluated_on,
        "workdir": str(workdir),
    }
    return "\n".join(f"{name:<12}{value}" for name, value in lines.items())


def table(content: tables.Table) -> str:
    """The results table, Recall@10 by task, and the notes."""
    over_all = [(row.method, row.metrics) for row in content.rows if row.task is None]
    by_task = collections.defaultdict(dict)
    for row in content.rows:
        if row.task is not None:
            by_task[row.method][f"R@10 {row.task}"] = row.metrics["R@10"]
    blocks = [formatting.format_table(rows) for rows in (over_all, [*by_task.items()]) if rows]
    notes = [textwrap.fill(note, 100, subsequent_indent="  ") for note in content.notes]
    return "\n\n".join([*blocks, "\n".join(notes)])


def write(workdir: epath.Path, split: str, step: int, table: tables.Table) -> None:
    """Writes a table and its records to the work directory.

    `results_SPLIT.json` has [value, low, high] of each cell, null for NaN; `records_SPLIT.parquet`
    the ranks of all labels (`evaluation.records`).
    """
    if not processes.is_first():
        return
    rows = {
        row.name: {
            name: [x if math.isfinite(x) else None for x in estimate]
            for name, estimate in row.metrics.items()
        }
        for row in table.rows
    }
    content = {"step": step, "rows": rows, "notes": table.notes}
    files.make_directory(workdir)  # of a system without training nothing has made it
    with files.replacing(workdir / workdirs.results_file(split)) as file:
        file.write((json.dumps(content, indent=2, allow_nan=False) + "\n").encode())
    if table.records is not None:
        records.write(workdir / workdirs.records_file(split), table.records)


def next_commands(workdir: epath.Path) -> str:
    """The paths of a run's files, and the next commands."""
    metrics = workdir / workdirs.METRICS_FILE
    return "\n".join(
        [
            f"checkpoints   {workdir}/checkpoints",
            f"metrics       {metrics}, and for TensorBoard: --logdir={workdir}",
            f"next          {command('recommend', workdir, out=f'{workdir}/recommended.parquet')}",
            f"              {command('embed', workdir, out=f'{workdir}/embeddings')}",
            f"              {command('report', workdir)}",
        ]
    )


def command(name: str, workdir: epath.Path, **more: str) -> str:
    """A command on a run, with further flags."""
    flags = {"workdir": str(workdir)} | more
    quoted = (f"--{flag}={shlex.quote(value)}" for flag, value in flags.items())
    return f"python -m pinjax.{name} {' '.join(quoted)}"
