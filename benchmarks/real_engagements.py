"""ItemSage and SearchSage on four real sets of engagements, beside TF-IDF, BM25 and chance.

    python3 -m venv .venv-peers && .venv-peers/bin/pip install -r benchmarks/requirements-peers.txt
    python -m benchmarks.real_engagements --data=DIR --workdir=DIR

On ifdb and instacart ItemSage is compared with the nearest neighbours by TF-IDF of the query item's
texts, above all on cold products: on ifdb these are new since training ended, on instacart they
have no engagements in training, among them a hashed twentieth of all. On homedepot SearchSage is
compared with BM25 over the titles, on searches that were not trained on. On movielens_1m ItemSage
sees texts and images, or one of them.

All methods answer the same queries over the same index (`pinjax.evaluation`). One of them is the
frozen vectors without any training. TF-IDF and BM25 read the same texts. An item that is itself the
query is not an answer. Choices are made on validation, by the metric that is compared: the
checkpoint, whether ItemSage's logits are corrected by logQ, and how TF-IDF and BM25 cut texts into
words. Runs that are finished in --workdir and data sets that are prepared there are not made again.
"""

import json
import pathlib
import runpy
import subprocess
import tempfile
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from ml_collections import ConfigDict

from benchmarks import real_sets, runs
from pinjax.data import item_features
from pinjax.data.dataset import Dataset
from pinjax.data.sources import engine, items, prepare
from pinjax.evaluation import (
    evaluator,
    formatting,
    metrics,
    pair_source,
    retrievers,
    vector_search,
)
from pinjax.models import features
from pinjax.systems import product_table

_DATA = flags.DEFINE_string("data", None, "directory of the raw tables", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "where data sets and runs are kept", required=True)
_SETS = flags.DEFINE_list("sets", ["ifdb", "instacart", "homedepot", "movielens_1m"], "which sets")
_STEPS = flags.DEFINE_integer("steps", None, "of every run; the default is its config's")
_PEERS = flags.DEFINE_string("peers", ".venv-peers/bin/python", "the Python with the peers")

ROOT = pathlib.Path(__file__).parents[1]
K = 10
EVALUATE_EVERY = 100  # steps; the best of these checkpoints is served


class Source(NamedTuple):
    """What is measured on a set.

    Attributes:
      system: name in configs.
      metric: what is compared, and decides what is chosen on validation.
      peer: the method of text_search.py; "" where ItemSage's features are compared.
    """

    system: str
    metric: str
    peer: str


SOURCES = {  # by name in `real_sets.FILES`
    "ifdb": Source("itemsage", "R@10 cold", "TF-IDF"),
    "instacart": Source("itemsage", "R@10 cold", "TF-IDF"),
    "homedepot": Source("searchsage", "R@10", "BM25"),
    "movielens_1m": Source("itemsage", "R@10", ""),
}
NAMES = {"itemsage": "ItemSage", "searchsage": "SearchSage"}
CAPS = {"itemsage": 0, "searchsage": 50}  # pairs of one product, as in the configs
FEATURES = {  # of products: whether texts, and images
    "texts and images": (True, True),
    "texts only": (True, False),
    "images only": (False, True),
}
# The vectors of items and queries lie in one space here, since both are made of words. Corrected
# logits also learn what is popular, which a cold product cannot be.
RESIDUAL = "--config.model.residual=True"
CHOICES = {
    "itemsage": {"logQ": (RESIDUAL,), "no logQ": (RESIDUAL, "--config.loss.log_q=False")},
    "searchsage": {"residual": (RESIDUAL,), "text alone": ()},
}


def trained_tasks(dataset: Dataset) -> tuple[int, ...]:
    """Rows of the tasks that have engagements in training."""
    return tuple(np.unique(dataset.pairs("train")["task"]).tolist())


def train(
    source: Source,
    dataset: Dataset,
    texts: list[str],
    workdir: pathlib.Path,
    *more: str,
) -> tuple[dict[str, metrics.Estimate], float]:
    """Trains by the command.

    Returns:
      (rows of its table over all tasks, the best of what is compared on valid).
    """
    names = [dataset.spec.tasks[task] for task in trained_tasks(dataset)]
    settings = [f"--config.data.name={dataset.directory}"]
    settings += [f"--config.tasks={tuple((name, 1.0, CAPS[source.system]) for name in names)}"]
    settings += [f"--config.train.evaluate_every={EVALUATE_EVERY}"]
    settings += [f"--config.train.select=valid/{source.metric}"]
    if source.system == "itemsage":
        settings += [f"--config.model.embedding_dim={dataset.spec.query_dim}"]
        settings += [f"--config.model.texts={tuple((name, name) for name in texts)}"]
        settings += [f"--config.loss.sketch_width={2**22}"]  # for a million different pairs
    if _STEPS.value:
        settings += [f"--config.train.steps={_STEPS.value}"]
    rows = runs.train(f"configs/{source.system}.py", workdir, *settings, *more)
    best = max(line.get(f"valid/{source.metric}") or 0.0 for line in runs.metrics(workdir))
    over_all = {name: cells for name, cells in rows.items() if "R@10 cold" in cells}
    return over_all, best


def item_texts(name: str, raw: pathlib.Path, dataset: Dataset) -> list[str]:
    """All texts of each item in one, in the order of the data set's catalogue."""
    files = [str(raw / name / file) for file in real_sets.FILES[name].items]
    inputs = prepare.Inputs.find(files[:1], files)  # no events are read here
    column_map, ids = _config(f"prepare/{name}"), dataset.catalogue.ids
    columns = ", ".join(f'"text {feature}"' for feature, _ in column_map.catalogue.texts)
    with (
        tempfile.TemporaryDirectory() as directory,
        engine.open_database(pathlib.Path(directory), None) as database,
    ):
        sources = items.open_sources(database, inputs.items, inputs.sides, column_map)
        job = engine.Job(database, column_map, pathlib.Path(directory), report={})
        items.read(job, sources, ids.dtype != object)
        query = f"SELECT id, concat_ws(chr(10), {columns}) FROM given"
        texts = dict(database.rows(query))
    return [texts.get(item, "") for item in ids.tolist()]


def peer_answers(
    method: str,
    dataset: Dataset,
    texts: list[str],
    rows: np.ndarray,
    workdir: pathlib.Path,
) -> dict[str, np.ndarray]:
    """A peer's answers to rows of queries, by how it cuts texts into words, int (rows, 100)."""
    ids = dataset.queries.ids[rows]
    own = dataset.queries.items[rows]
    content = {
        "method": method,
        "products": texts,
        "queries": [
            query if item < 0 else texts[item] for query, item in zip(ids, own, strict=True)
        ],
        "own": own.tolist(),
    }
    queries, answers = workdir / "queries.json", workdir / "answers.npz"
    queries.write_text(json.dumps(content))
    script = pathlib.Path(__file__).with_name("text_search.py")
    subprocess.run([_PEERS.value, script, queries, answers], check=True)
    with np.load(answers) as file:
        return dict(file)


def peer(
    source: Source,
    pairs: pair_source.PairSource,
    texts: list[str],
    workdir: pathlib.Path,
) -> tuple[dict[str, metrics.Estimate], str]:
    """A peer's row on test, and what was chosen for it on validation."""
    rows = {}
    for split in ("valid", "test"):
        (queries,) = pairs.queries(split).values()
        rows[split] = queries.features["query"]
    everything = np.concatenate(list(rows.values()))
    found = peer_answers(source.peer, pairs.dataset, texts, everything, workdir)

    def row(chosen: str, split: str) -> dict[str, metrics.Estimate]:
        parts = np.split(found[chosen], [len(rows["valid"])])
        answers = dict(zip(rows, parts, strict=True))[split]
        return measured(pairs, retrievers.Answers(lambda queries, index: answers), split)

    chosen = max(found, key=lambda name: row(name, "valid")[source.metric])
    return row(chosen, "test"), chosen


def measured(
    pairs: pair_source.PairSource, retriever: retrievers.Retriever, split: str
) -> dict[str, metrics.Estimate]:
    """The table's row of a method."""
    return evaluator.Evaluator("it", pairs)(retriever, split, full=False).rows[0].metrics


def untrained(pairs: pair_source.PairSource) -> dict[str, metrics.Estimate]:
    """The row of the frozen vectors: the queries', and the mean of each item's images."""
    queries = features.unit_length(jnp.asarray(pairs.dataset.queries.vectors))
    items = item_features.item_vectors(pairs.dataset)
    return measured(pairs, vector_search.of_vectors(np.asarray(queries).__getitem__, items), "test")


def findable(source: Source, dataset: Dataset, texts: list[str]) -> np.ndarray:
    """Bool (items,), which items the system's index may hold if it sees texts and images."""
    if source.system == "searchsage":
        return item_features.item_vectors(dataset).any(axis=1)
    config = _config(source.system)
    config.model.texts = tuple((name, name) for name in texts)
    return product_table.findable(product_table.read(config, dataset))


def measure(name: str, raw: pathlib.Path, workdir: pathlib.Path) -> None:
    """Trains and measures everything on a set and prints the table."""
    source = SOURCES[name]
    workdir.mkdir(parents=True, exist_ok=True)
    dataset = real_sets.prepare(name, raw, workdir)
    fields = list(dataset.spec.text_features)
    pairs = pair_source.PairSource(
        NAMES[source.system],
        dataset,
        findable(source, dataset, fields),
        _config(source.system).evaluate,
        trained_tasks(dataset),
    )
    rows = {"vectors alone": untrained(pairs)}
    print(f"\n{name}: {pairs.describe('test')}, {dataset.spec.num_items:,} items")
    if source.peer:
        texts = item_texts(name, raw, dataset)
        rows[source.peer], chosen = peer(source, pairs, texts, workdir)
        print(f"{source.peer}: {chosen}")
        tried = {}
        for choice, settings in CHOICES[source.system].items():
            directory = workdir / f"{name}-{runs.directory(choice, 0)}"
            tried[choice] = train(source, dataset, fields, directory, *settings)
            print(
                f"{NAMES[source.system]}, {choice}: {source.metric} {tried[choice][1]:.4f} on valid"
            )
        rows |= max(tried.values(), key=lambda made: made[1])[0]
    else:
        for method, (with_texts, with_images) in FEATURES.items():
            directory = workdir / f"{name}-{runs.directory(method, 0)}"
            settings = () if with_images else ("--config.model.image_slots=0",)
            made, _ = train(source, dataset, fields if with_texts else [], directory, *settings)
            own = NAMES[source.system]
            made = {row.replace(own, method): cells for row, cells in made.items()}
            rows = made | rows  # the baselines of the first, whose candidates are the most
    index = min(int(pairs.eligible.sum()), pairs.config.index_size)
    rows["chance"] = {
        metric: metrics.Estimate(K / index) for metric in dict.fromkeys(("R@10", source.metric))
    }
    print(formatting.format_table(list(rows.items())))
    if source.peer:
        ours, others = NAMES[source.system], (source.peer, "vectors alone", "chance")
    else:
        ours, *others = (*FEATURES, "chance")
    for other in others:
        ratio = rows[ours][source.metric][0] / rows[other][source.metric][0]
        print(f"{source.metric}, {ours} / {other:<13} {ratio:.2f}")


def _config(name: str) -> ConfigDict:
    return runpy.run_path(str(ROOT / f"configs/{name}.py"))["get_config"]()


def main(_):
    logging.set_verbosity(logging.ERROR)
    for name in _SETS.value:
        raw, workdir = (pathlib.Path(path.value).absolute() for path in (_DATA, _WORKDIR))
        measure(name, raw, workdir)


if __name__ == "__main__":
    app.run(main)
