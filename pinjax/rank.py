"""Does a run's embedding help a ranking model, and what does it know of items? See docs/rank.md.

    python -m pinjax.rank --workdir=DIR
    python -m pinjax.rank --workdir=DIR --probe=topic --out=FILE.parquet

A ranking model is trained with and without the embeddings that `pinjax.embed` wrote, on what the
evaluation users did after training, and tested on what they did later: AUC, log loss and HIT@3 of
each type of action, and the lift over counts alone. With --probe, a linear model predicts an
attribute of items from their embeddings, and fills it in where it is missing.
"""

import os
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from pinjax import app, files
from pinjax.data import catalogue
from pinjax.data import dataset as dataset_lib
from pinjax.data.dataset import Dataset
from pinjax.distributed import processes
from pinjax.errors import InputError
from pinjax.evaluation import formatting
from pinjax.ranking import lift, probe, rows, vectors
from pinjax.systems import registry

CONFIG, WORKDIR = app.run_flags(config_required=False)
EMBEDDINGS = flags.DEFINE_list(
    "embeddings", [], "directories by pinjax.embed, as of several times or of several runs"
)
SAMPLED = flags.DEFINE_integer(
    "negatives",
    None,
    "items that are sampled for each label; 0: rows are all actions of the log; default: 0, or "
    f"{rows.SAMPLED} if the log holds labels alone",
    lower_bound=0,
)
SEEDS = flags.DEFINE_integer("seeds", 3, "ranking models of each method", lower_bound=1)
EXPORT = flags.DEFINE_string("export_features", None, "Parquet file to write rows and features to")
PROBE = flags.DEFINE_string(
    "probe", None, "attribute of items to predict: topic, or a column of --items"
)
ITEMS = flags.DEFINE_list("items", [], "files of items, with the column of --probe")
ITEM_ID = flags.DEFINE_string("item_id", "id", "the column of ids in --items")
OUT = flags.DEFINE_string("out", None, "Parquet file to write the values of --probe to")

RESULTS = "rank.json"  # in the work directory


def main(argv: Sequence[str]) -> int:
    del argv
    config, workdir = app.run_of(CONFIG, WORKDIR)
    dataset, _ = registry.open_dataset(config, app.verifies())
    names = [os.fspath(app.directory("--embeddings", name)) for name in EMBEDDINGS.value]
    names = names or [os.fspath(workdir / "embeddings")]
    copies = dataset_lib.copies(config.data.dir)
    runs = vectors.find(names, dataset, copies, app.verifies())
    return _rank(workdir, config, dataset, runs) if PROBE.value is None else _probe(dataset, runs)


def _rank(workdir: epath.Path, config: ConfigDict, dataset: Dataset, runs: list[vectors.Run]):
    prepared = lift.prepare(config, dataset, runs, SAMPLED.value)
    written = [workdir / RESULTS]
    if EXPORT.value is not None:
        written.append(app.directory("--export_features", EXPORT.value))
        if processes.is_first():
            prepared.export(written[-1], dataset)
    measured = prepared.measure(SEEDS.value)
    print(f"{workdir}: {prepared.about}\n")
    print(lift.text(measured))
    if processes.is_first():
        files.make_directory(workdir)
        with files.replacing(workdir / RESULTS) as file:
            file.write(lift.to_json(measured).encode())
    print(f"\nmade  {', '.join(map(str, written))}")
    if EXPORT.value is None:
        print("next  the same command with --export_features=FILE.parquet writes the features")
    return 0


def _probe(dataset: Dataset, runs: list[vectors.Run]) -> int:
    ids, column = dataset.catalogue.ids, PROBE.value
    if column in ("item", "probability"):
        raise InputError(f"--probe={column}: --out has a column of this name; rename it")
    if ITEMS.value:
        attribute = probe.read(ITEMS.value, column, ITEM_ID.value, ids)
    elif column == probe.TOPIC:
        attribute = probe.topics(dataset)
    else:
        raise InputError(f"--probe={column}: expected --items=FILE with this column")
    tables = {run.name: vectors.item_vectors(run, dataset) for run in runs}
    found = probe.probe(attribute, tables, probe.words_of(dataset, column))
    training, held_out = found.items
    print(f"{column}: {found.values} values, {training:,} items to learn from\n")
    print(formatting.format_table(found.rows))
    print(f"\non {held_out:,} other items; {len(found.missing):,} more have no {column}")
    if OUT.value is None:
        print("next  the same command with --out=FILE.parquet fills it in")
        return 0
    filled = {
        "item": catalogue.id_array(ids[found.missing]),
        column: attribute.values.take(pa.array(found.code)),
        "probability": pa.array(found.probability),
    }
    out = app.directory("--out", OUT.value)
    if processes.is_first():
        with files.replacing(out) as file:
            pq.write_table(pa.table(filled), file)
    print(f"made  {out}: {len(found.missing):,} items, {column} and probability")
    return 0


if __name__ == "__main__":
    app.run(main)
