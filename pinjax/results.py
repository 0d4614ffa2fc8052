"""What a person reads before and after a run: the summary, the table, the next commands."""

import json
import math

import jax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax import files
from pinjax.distributed import processes
from pinjax.evaluation import table as table_lib
from pinjax.systems import system as system_lib


def summary(
    system: system_lib.System,
    config: ConfigDict,
    mesh: Mesh,
    workdir: epath.Path,
    asked: str,
) -> str:
    """What is about to run, a line for each thing."""
    params, _ = jax.eval_shape(system.trainable.init, jax.random.key(0))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(params))
    device = mesh.devices.flat[0]
    lines = {
        "system": config.system,
        "devices": f"{mesh.size} x {device.device_kind}, mesh {dict(mesh.shape)}",
        "parameters": f"{numbers:,}",
        **system.summary,
        "evaluation": asked,
        "workdir": str(workdir),
    }
    return "\n".join(f"{name:<12}{value}" for name, value in lines.items())


def table(content: system_lib.Table) -> str:
    """The results table, and its notes below."""
    rows = table_lib.format_table([(row.method, row.metrics) for row in content.rows])
    return "\n".join([rows, "", *content.notes])


def write(workdir: epath.Path, split: str, step: int, table: system_lib.Table) -> None:
    """The table as `results_SPLIT.json` in the work directory: [value, low, high], null for NaN."""
    if not processes.is_first():
        return
    rows = {
        row.method: {
            name: [x if math.isfinite(x) else None for x in estimate]
            for name, estimate in row.metrics.items()
        }
        for row in table.rows
    }
    content = {"step": step, "rows": rows, "notes": table.notes}
    with files.replacing(workdir / f"results_{split}.json") as file:
        file.write((json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def next_commands(workdir: epath.Path, flags: str) -> str:
    """Where everything lies, and what to type next."""
    return "\n".join(
        [
            f"checkpoints   {workdir}/checkpoints",
            f"metrics       {workdir}/metrics.jsonl, and for TensorBoard: --logdir={workdir}",
            f"next          python -m pinjax.embed {flags} --out={workdir}/embeddings",
            f"              python -m pinjax.evaluate {flags}",
        ]
    )
