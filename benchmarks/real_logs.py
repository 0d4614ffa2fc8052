"""PinnerFormer on two real logs, beside popularity, item co-occurrence and RecTools' SASRec.

    python3 -m venv .venv-peers && .venv-peers/bin/pip install -r benchmarks/requirements-peers.txt
    python -m benchmarks.real_logs --data=DIR      # of DIR/ifdb/*.parquet and DIR/globo/*.parquet

Split by global time and by user: all methods learn from the same training users up to the same
moment, and answer the same questions about other users, later. A question is what a user had done
by a moment T; an answer is ten of the items that existed at T, none that the user has acted on; the
right one is what the user engages with in the window after T. An item that did not exist at T is
missed by everybody. All answers are judged by the same code. Popularity, the degrees of items that
PinnerFormer sees of ifdb and the last row also know what the training users did between the end of
training and T.

The last row is of both: PinnerFormer's logits, and the logarithm of recent popularity added. As a
product of two vectors that is one number more in each. What a trained model does not know of the
days after training, an index that is built anew does.

What was chosen was chosen on the validation users: PinnerFormer's config, the history that
co-occurrence looks at, the time that counts as recent for popularity, its weight beside logits. Of
globo a seeded part of the users is taken, so that a CPU is enough.
"""

import dataclasses
import os
import pathlib
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy.sparse
from absl import app, flags, logging
from etils import epath

from benchmarks import real_sets
from pinjax.data import dataset as dataset_lib
from pinjax.data import windows
from pinjax.distributed import batching, sharding
from pinjax.evaluation import held_out, metrics, table
from pinjax.systems import item_table, pinnerformer, registry
from pinjax.training import checkpoint

_DATA = flags.DEFINE_string("data", None, "directory of the raw logs", required=True)
_WORKDIR = flags.DEFINE_string("workdir", "work/real_sets", "where data sets and runs are kept")
_LOGS = flags.DEFINE_list("logs", ["ifdb", "globo"], "which logs")
_PEERS = flags.DEFINE_string("peers", ".venv-peers/bin/python", "the Python that has RecTools")

ROOT = pathlib.Path(__file__).parents[1]
K = 10
GLOBO_USERS = 40_000
HISTORIES = (1, 2, 5, 10, 20, 50, 100)  # actions that co-occurrence may look at
WEIGHTS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # of log recent popularity, beside logits
RECENT = (1, 3, 6, 12, 24, 72, 168, 672, 2_184, 4_368, 8_736)  # hours that popularity may count


@dataclasses.dataclass(frozen=True)
class Exam:
    """The questions of a split at all moments, one query for each user and moment.

    Attributes:
      users: own id of each query's user.
      moment: int (queries,), row of `index` and of the counts.
      index: bool (moments, items), what may be an answer.
      ever: int (moments, items), positive actions of the training users by the moment.
      recent: by hours, the same in so many hours before the moment.
      histories: what PinnerFormer sees of each query.
      seen: int (actions, 2), query and item of all that users had done, in order.
      label_query: int (labels,).
      label_item: int (labels,).
    """

    users: np.ndarray
    moment: np.ndarray
    index: np.ndarray
    ever: np.ndarray
    recent: dict[int, np.ndarray]
    histories: dict[str, np.ndarray]
    seen: np.ndarray
    label_query: np.ndarray
    label_item: np.ndarray

    @classmethod
    def of(cls, source: held_out.HeldOut, split: str, starts: tuple[int, ...]) -> "Exam":
        moments = source.moments(starts)
        parts = [source.questions(split, moment) for moment in moments]

        def recent(hours: int) -> np.ndarray:
            counted = dataclasses.replace(source, window=hours * 3600)
            return np.stack([counted.counts(moment).lately for moment in moments])

        sizes = [len(part.users) for part in parts]
        numbered = list(zip(parts, np.cumsum([0, *sizes]), strict=False))
        return cls(
            users=np.concatenate([part.users for part in parts]),
            moment=np.repeat(np.arange(len(moments)), sizes),
            index=np.stack([source.index(moment) for moment in moments]),
            ever=np.stack([source.counts(moment).ever for moment in moments]),
            recent={hours: recent(hours) for hours in RECENT},
            histories={
                name: np.concatenate([part.histories[name] for part in parts])
                for name in parts[0].histories
            },
            seen=np.concatenate([part.seen + np.array([first, 0]) for part, first in numbered]),
            label_query=np.concatenate([part.label_query + first for part, first in numbered]),
            label_item=np.concatenate([part.label_item for part in parts]),
        )

    def answers(self, score: Callable[[slice], np.ndarray]) -> np.ndarray:
        """The K best answers to every query, int (queries, K), equals in a random order.

        Args:
          score: from a slice of the queries to their scores, (queries, items).
        """
        parts = []
        order = np.random.default_rng(0).permutation(self.index.shape[1])
        for start in range(0, len(self.users), 256):
            queries = slice(start, min(start + 256, len(self.users)))
            scores = np.where(self.index[self.moment[queries]], score(queries), -np.inf)
            first, last = np.searchsorted(self.seen[:, 0], [queries.start, queries.stop])
            query, item = self.seen[first:last].T
            scores[query - start, item] = -np.inf
            best = np.argsort(-scores[:, order], axis=1, kind="stable")[:, :K]
            parts.append(order[best])
        return np.concatenate(parts)

    def popularity_answers(self, counts: np.ndarray) -> np.ndarray:
        """By counts, int (moments, items)."""
        return self.answers(lambda queries: counts[self.moment[queries]])

    def judge(self, answers: np.ndarray) -> dict[str, metrics.Estimate]:
        """Metrics of answers, int (queries, K), best first, -1 where there are fewer."""
        falling = np.broadcast_to(-np.arange(K, dtype=np.float32), answers.shape)
        unlisted = np.full(len(self.label_item), -np.inf, np.float32)
        ranks = metrics.label_ranks(answers, falling, self.label_query, self.label_item, unlisted)
        _, user = np.unique(self.users, return_inverse=True)

        def estimate(metric) -> metrics.Estimate:
            return metrics.estimate(metric(ranks, self.label_query, len(self.users), K), user)

        return {
            "R@10": estimate(metrics.recall),
            "HR@10": estimate(metrics.hit_rate),
            "NDCG@10": estimate(metrics.ndcg),
        }


def prepare(log: str, raw: pathlib.Path, workdir: pathlib.Path) -> dataset_lib.Dataset:
    """The data set of a log."""
    if log != "globo":
        return real_sets.prepare(log, raw, workdir)
    part = workdir / "clicks.parquet"
    _part_of_users(raw / log / "clicks.parquet", part)
    return real_sets.prepare(log, raw, workdir, "--config.split.test=0.3", part=str(part))


def _part_of_users(source: pathlib.Path, target: pathlib.Path) -> None:
    clicks = pq.read_table(source)
    users = np.unique(clicks["user_id"].to_numpy())
    part = np.random.default_rng(0).choice(users, GLOBO_USERS, replace=False)
    pq.write_table(clicks.filter(pc.is_in(clicks["user_id"], pa.array(part))), target)


def train(log: str, directory: epath.Path, workdir: pathlib.Path) -> float:
    """Trains PinnerFormer by its command; the seconds until its own table is printed."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "pinjax.train", f"--config=configs/pinnerformer.py:{log}"]
    command += [f"--config.data.name={directory}", f"--workdir={workdir}"]
    subprocess.run(command, check=True, cwd=ROOT)
    return time.perf_counter() - started


def trained_embeddings(
    exams: Sequence[Exam],
    moments: Sequence[int],
    dataset: dataset_lib.Dataset,
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
) -> tuple[list[np.ndarray], np.ndarray]:
    """Of the checkpoint that the run in `workdir` serves; dot products are logits.

    Returns:
      users of each exam, (queries, dim); all items at all moments, (moments, items, dim).
    """
    mesh = sharding.make_mesh()
    system = registry.create(config, mesh)
    params = checkpoint.load_chosen(workdir, config, system, mesh).params
    table = item_table.ItemTable.create(config, mesh, dataset.spec)
    towers_at = pinnerformer.make_towers(system.trainable, table, dataset, system.constants)
    users, items = [[] for _ in exams], []
    for row, moment in enumerate(moments):
        towers = towers_at(params, moment)
        items.append(towers.items(np.arange(len(dataset.catalogue))))
        for exam, embedded in zip(exams, users, strict=True):
            asked = {name: x[exam.moment == row] for name, x in exam.histories.items()}
            if len(asked["item"]):
                embedded.append(batching.in_batches(towers.users, asked, config.evaluate.batch))
    model = pinnerformer.make_model(config, dataset.spec, mesh)
    scale = float(model.apply(params, method="scale"))
    return [np.concatenate(embedded) for embedded in users], np.stack(items) * scale


def training_actions(dataset: dataset_lib.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """What there is to learn from: row of the user, and `timelines.ACTION`, each (actions,)."""
    chunk = dataset.chunk("train", 0, len(dataset.timelines("train")))
    user = np.repeat(np.arange(len(chunk.users)), np.diff(chunk.offsets))
    past = chunk.records["time"] <= dataset.spec.train_end
    return user[past], chunk.records[past]


def cosine_neighbours(user: np.ndarray, item: np.ndarray, items: int) -> scipy.sparse.csr_array:
    """How much the users of two items overlap, |U ∩ V| / sqrt(|U| |V|), 0 of an item with itself.

    Args:
      user: int (actions,), rows.
      item: int (actions,), rows; a user who acted on an item twice counts once.
      items: how many there are.
    """
    user, item = np.unique(np.stack([user, item]), axis=1)
    shape = (user.max(initial=-1) + 1, items)
    matrix = scipy.sparse.csr_array((np.ones(len(user)), (user, item)), shape)
    matrix /= np.sqrt(np.maximum(matrix.sum(axis=0), 1))
    overlap = (matrix.T @ matrix).tocsr()
    overlap.setdiag(0)
    return overlap


def co_occurrence_answers(
    exam: Exam, neighbours: scipy.sparse.csr_array, popularity: np.ndarray, length: int
) -> np.ndarray:
    """By the neighbours of the newest `length` actions, summed; ties go to the more popular."""
    query = exam.seen[:, 0]
    recent = np.searchsorted(query, query, "right") - np.arange(len(query)) <= length
    shape = (len(exam.users), len(popularity))
    profiles = scipy.sparse.csr_array((np.ones(recent.sum()), exam.seen[recent].T), shape)
    tie = 1e-6 * popularity / popularity.max()
    return exam.answers(lambda queries: (profiles[queries] @ neighbours).toarray() + tie)


def sasrec_answers(
    exam: Exam, user: np.ndarray, actions: np.ndarray, out: pathlib.Path
) -> tuple[np.ndarray, float]:
    """RecTools' answers and the seconds of its training, in the environment of the peers."""
    questions, answers = out / "sasrec_questions.npz", out / "sasrec_answers.npz"
    np.savez(
        questions,
        user=user,
        item=actions["item"],
        time=actions["time"],
        moment=exam.moment,
        index=exam.index,
        length=exam.histories["item"].shape[1],
        history_query=exam.seen[:, 0],
        history_item=exam.seen[:, 1],
    )
    script = pathlib.Path(__file__).with_name("rectools_sasrec.py")
    subprocess.run([_PEERS.value, script, questions, answers], check=True)
    with np.load(answers) as file:
        return file["rows"], float(file["seconds"])


def measure(log: str, raw: pathlib.Path, out: pathlib.Path) -> None:
    """Trains everything on a log and prints the table."""
    out.mkdir(parents=True, exist_ok=True)
    dataset, workdir = prepare(log, raw, out), out / f"pinnerformer-{log}"
    config = runpy.run_path(str(ROOT / "configs/pinnerformer.py"))["get_config"](log)
    config.data.name = str(dataset.directory)
    seconds = {"PinnerFormer": train(log, dataset.directory, workdir)}

    positives = windows.Positives.create(dataset.spec, config.data.positives, config.data.surfaces)
    source = held_out.HeldOut(
        dataset,
        positives,
        config.data.length,
        window=config.evaluate.window,
        max_users=config.evaluate.users,
        index_size=config.evaluate.index_size,
        filter_seen=True,
    )
    valid, test = (
        Exam.of(source, split, config.evaluate.window_starts) for split in ("valid", "test")
    )
    popularity = dataset.catalogue.counts
    by_hours = {
        hours: valid.judge(valid.popularity_answers(valid.recent[hours]))["R@10"]
        for hours in RECENT
    }
    hours = max(by_hours, key=by_hours.get)
    answers = {
        "popularity, ever": test.popularity_answers(test.ever),
        "popularity, recent": test.popularity_answers(test.recent[hours]),
    }

    user, actions = training_actions(dataset)
    started = time.perf_counter()
    positive = positives(actions)
    neighbours = cosine_neighbours(user[positive], actions["item"][positive], len(popularity))
    seconds["co-occurrence"] = time.perf_counter() - started
    by_length = {
        length: valid.judge(co_occurrence_answers(valid, neighbours, popularity, length))["R@10"]
        for length in HISTORIES
    }
    length = max(by_length, key=by_length.get)
    answers["co-occurrence"] = co_occurrence_answers(test, neighbours, popularity, length)
    answers["SASRec"], seconds["SASRec"] = sasrec_answers(test, user, actions, out)
    moments = source.moments(config.evaluate.window_starts)
    users, items = trained_embeddings((valid, test), moments, dataset, config, workdir)

    def with_recent(exam: Exam, users: np.ndarray, weight: float) -> np.ndarray:
        def score(queries: slice) -> np.ndarray:
            parts = []
            for moment in np.unique(exam.moment[queries]):  # by which queries are sorted
                of_moment = users[queries][exam.moment[queries] == moment]
                log_prior = weight * np.log1p(exam.recent[hours][moment])
                parts.append(of_moment @ items[moment].T + log_prior)
            return np.concatenate(parts)

        return exam.answers(score)

    answers["PinnerFormer"] = with_recent(test, users[1], 0.0)

    by_weight = {w: valid.judge(with_recent(valid, users[0], w))["R@10"] for w in WEIGHTS}
    weight = max(by_weight, key=by_weight.get)
    answers["PinnerFormer and recent"] = with_recent(test, users[1], weight)

    rows = [(name, test.judge(lists)) for name, lists in answers.items()]
    for name, cells in rows:
        cells["train, s"] = metrics.Estimate(seconds.get(name, float("nan")))
    recall = {name: cells["R@10"][0] for name, cells in rows}
    print(f"\n{log}: {len(test.users):,} queries, {len(test.label_item):,} labels, ", end="")
    print(f"{os.cpu_count()} cores")
    print(f"recent: {hours} hours, its logarithm {weight:g} times beside logits; ", end="")
    print(f"co-occurrence: of the newest {length} actions")
    print(table.format_table(rows))
    for name in list(answers)[:-2]:
        print(f"PinnerFormer / {name:<18} {recall['PinnerFormer'] / recall[name]:.2f}")


def main(_):
    logging.set_verbosity(logging.ERROR)
    for log in _LOGS.value:
        measure(log, pathlib.Path(_DATA.value).absolute(), pathlib.Path(_WORKDIR.value).absolute())


if __name__ == "__main__":
    app.run(main)
