"""Training that goes on from a run of four weeks before, against training anew, on pinworld.

    python -m benchmarks.warm_start --workdir=DIR [--seeds=2] [--data_dir=~/.cache/pinjax]

The log of pinworld/small is prepared twice: as it was four weeks before the end of training, when
some items, and actions on them, were still to come, and in full. On the earlier one a run takes all
steps of the default config. On the full one three runs are compared by Recall@10: one trained anew
with all steps, one with a quarter of them, and one with a quarter from the earlier run. Runs that
are finished in --workdir are not made again.
"""

import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from absl import app, flags
from etils import epath

from benchmarks import runs
from pinjax.data import catalogue
from pinjax.data import dataset as dataset_lib
from pinjax.data.sources import column_map, prepare
from pinjax.evaluation import comparison, formatting
from pinjax.timestamps import DAY

_WORKDIR = flags.DEFINE_string("workdir", None, "for data sets and runs", required=True)
_SEEDS = flags.DEFINE_integer("seeds", 2, "of every run")
_DATA_DIR = flags.DEFINE_string("data_dir", "~/.cache/pinjax", "where pinworld is")

CONFIG = "configs/pinnerformer.py"
STEPS, QUARTER = 160, 40
EARLIER = 28 * DAY  # before the end of training
SEEN = DAY  # of the earlier log after its training ends, to be evaluated on


def main(_):
    workdir = pathlib.Path(_WORKDIR.value)
    world = dataset_lib.load("pinworld/small", _DATA_DIR.value)
    end = world.spec.train_end
    earlier, full = workdir / "data-earlier", workdir / "data-full"
    _prepare(world, earlier, end - EARLIER, end - EARLIER + SEEN)
    _prepare(world, full, end, None)
    for seed in range(_SEEDS.value):
        former = workdir / f"earlier-{seed}"
        few = f"--config.train.steps={QUARTER}", "--config.train.warmup_steps=10"
        made = {
            f"anew, {STEPS} steps": (full, ()),
            f"anew, {QUARTER} steps": (full, few),
            f"warm start, {QUARTER} steps": (full, (*few, f"--warm_start={former}")),
        }
        common = f"--config.train.seed={seed}", "--config.train.log_every=5"
        runs.train(CONFIG, former, f"--config.data.name={earlier}", *common)
        found, seconds = {}, {}
        for name, (data, more) in made.items():
            directory = workdir / runs.directory(name, seed)
            runs.train(CONFIG, directory, f"--config.data.name={data}", *common, *more)
            found[name] = runs.records(directory)
            seconds[name] = _seconds_a_step(directory)
        print(f"\nseed {seed}\n{formatting.format_table(comparison.rows(found))}")
        print("seconds a step:", ", ".join(f"{name}: {s:.2f}" for name, s in seconds.items()))


def _prepare(
    world: dataset_lib.Dataset, out: pathlib.Path, train_end: int, last: int | None
) -> None:
    """Prepares the log up to a time, with the items that were there by then."""
    spec, items = world.spec, world.catalogue
    until = np.uint32(2**32 - 1 if last is None else last)
    users, columns = [], []
    for split in ("train", "valid", "test"):
        for chunk in world.chunks(split):
            kept = chunk.records["time"] <= until
            users += np.repeat(chunk.users, np.diff(chunk.offsets))[kept].tolist()
            columns.append(chunk.records[kept])
    actions = np.concatenate(columns)
    out.parent.mkdir(parents=True, exist_ok=True)
    log, table = out.parent / f"{out.name}.parquet", out.parent / f"{out.name}-items.parquet"
    events = {
        "user": users,
        "item": items.ids[actions["item"]],
        "time": actions["time"].astype(np.int64),
        "seconds": actions["duration"],
        "action": np.array(spec.actions)[actions["action"]],
        "surface": np.array(spec.surfaces)[actions["surface"]],
    }
    pq.write_table(pa.table(events), log)
    there = np.flatnonzero(items.created <= until)
    known = {
        "item": items.ids[there],
        "created": items.created[there].astype(np.int64),
        "vector": catalogue.vector_array(items.content[there], "float32"),
    }
    pq.write_table(pa.table(known), table)
    config = column_map.default()
    config.name = out.name
    config.events.update(user="user", time="time", time_unit="s", duration="seconds")
    config.events.update(action="action", surface=("surface",))
    config.catalogue.update(created="created", created_unit="s", content="vector")
    config.split.train_end = str(np.datetime64(train_end, "s"))
    inputs = prepare.Inputs.find([str(log)], [str(table)])
    made = prepare.prepare(inputs, epath.Path(out), config).spec
    print(f"{out}: {made.users}, {made.num_items:,} items, trained on until {train_end}")


def _seconds_a_step(workdir: pathlib.Path) -> float:
    """Without the first steps, in which programs are compiled."""
    some = [line for line in runs.metrics(workdir) if "loss" in line]
    return (some[-1]["time"] - some[0]["time"]) / (some[-1]["step"] - some[0]["step"])


if __name__ == "__main__":
    app.run(main)
