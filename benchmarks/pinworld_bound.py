"""A lower bound on the share of its oracle's recall that pinworld's log allows.

    python -m benchmarks.pinworld_bound

The oracle knows what each test user cares about. This ranking knows how
pinworld is drawn and its pins' topics, styles and popularity, but of the users only what they did:
an interest is estimated by the days on which a user acted on its topic, and a taste by the
likelihood of the pins that the user chose.
"""

import pathlib
import runpy

import numpy as np
from absl import app, flags, logging

from pinjax.data import dataset as dataset_lib
from pinjax.data import windows
from pinjax.data.simulated.oracle import Oracle
from pinjax.evaluation import evaluator, formatting, retrievers, timeline_source
from pinjax.evaluation.queries import Candidates, EvalQueries
from pinjax.retrieval import exact
from pinjax.timestamps import DAY

_SIZE = flags.DEFINE_string("size", "small", "of pinworld")
_DATA_DIR = flags.DEFINE_string("data_dir", "~/.cache/pinjax", "where it is kept")

ROOT = pathlib.Path(__file__).parents[1]
WINDOW = 14 * DAY
PRIOR_DAYS = 5  # a prior for every user, spread over the topics by their popularity


def expected(oracle: Oracle, choice: np.ndarray, wanted: np.ndarray, time: int) -> np.ndarray:
    """Expected engagements of one user with every pin, up to a factor, from what the user did.

    Args:
      oracle: knows the pins' topics.
      choice: p(pin | topic, taste), (tastes, pins).
      wanted: `timelines.ACTION` (n,), what the user did by `time` with pins that were wanted.
      time: unix seconds.
    """
    leaves = len(oracle.leaf_popularity)
    leaf = oracle.leaf[wanted["item"]]
    on = np.unique(np.stack([leaf, (time - wanted["time"].astype(np.int64)) // DAY]), axis=1)[0]
    interest = PRIOR_DAYS * oracle.leaf_popularity + np.bincount(on, minlength=leaves)

    likely = np.log(np.maximum(choice[:, wanted["item"]], 1e-30)).sum(axis=1)
    taste = np.exp(likely - likely.max())
    return interest[oracle.leaf] * (taste / taste.sum() @ choice)


class FromTheLog:
    """Ranks by what users did before the window."""

    def __init__(self, dataset: dataset_lib.Dataset, positives: windows.Positives):
        self._oracle, self._past = dataset.oracle, {}
        for chunk in dataset.chunks("test"):
            timelines = np.split(chunk.records, chunk.offsets[1:-1])
            for user, records in zip(chunk.users, timelines, strict=True):
                self._past[user] = records[positives(records)]

    def answer(self, queries: EvalQueries, candidates: Candidates) -> retrievers.Found:
        choice = self._oracle.choice(candidates.time, WINDOW)
        scores = []
        for user in queries.query_user:
            past = self._past[queries.users[user]]
            past = past[past["time"] <= candidates.time]
            scores.append(expected(self._oracle, choice, past, candidates.time))
        scores = np.stack(scores)
        found, rows = exact.best(
            scores, candidates.included, queries.searched(len(candidates.included))
        )
        own = scores[queries.label_query, queries.label_item]
        return retrievers.Found(rows, found, own, rounding=0.0)


def main(_):
    logging.set_verbosity(logging.ERROR)
    dataset = dataset_lib.load(f"pinworld/{_SIZE.value}", _DATA_DIR.value)
    config = runpy.run_path(str(ROOT / "configs/pinnerformer.py"))["get_config"]()
    config.evaluate.update(window=WINDOW, cadences=("window",), users=10**6, index_size=10**9)
    positives = windows.Positives.create(dataset.spec, config.data.positives, config.data.surfaces)
    anywhere = windows.Positives.create(dataset.spec, config.data.positives, "")
    source = timeline_source.TimelineSource(dataset, positives, 1, config.evaluate)
    methods = {
        "oracle": source.oracle("window"),
        "from the log": FromTheLog(dataset, anywhere),
    }
    rows = {
        name: evaluator.Evaluator(name, source)(method, "test", full=False).rows[0].metrics
        for name, method in methods.items()
    }
    print(f"{source.describe('test')} of the {WINDOW // DAY} days after training")
    print(formatting.format_table(list(rows.items())))
    recall = {name: cells["R@10"].value for name, cells in rows.items()}
    print(f"from the log / oracle  {recall['from the log'] / recall['oracle']:.2f}")


if __name__ == "__main__":
    app.run(main)
