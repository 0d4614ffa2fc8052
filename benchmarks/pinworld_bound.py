"""How much of its oracle's recall pinworld's log allows, at the least.

    python -m benchmarks.pinworld_bound

The oracle knows what each test user cares about. Here somebody knows how pinworld is drawn and all
about its pins, topic, style and popularity, but of the users only what they did: an interest weighs
the days on which a user acted on its topic, and a taste what is likely by the pins that the user
chose.
"""

import pathlib
import runpy

import numpy as np
from absl import app, flags, logging

from pinjax.data import dataset as dataset_lib
from pinjax.data import windows
from pinjax.data.simulated.oracle import Oracle
from pinjax.data.simulated.world import DAY
from pinjax.evaluation import held_out, metrics, table
from pinjax.retrieval import exact

_SIZE = flags.DEFINE_string("size", "small", "of pinworld")
_DATA_DIR = flags.DEFINE_string("data_dir", "~/.cache/pinjax", "where it is kept")

ROOT = pathlib.Path(__file__).parents[1]
WINDOW = 14 * DAY
K = 10
PRIOR_DAYS = 5  # with which every user begins, spread over the topics by their popularity


def expected(oracle: Oracle, choice: np.ndarray, wanted: np.ndarray, moment: int) -> np.ndarray:
    """Expected engagements of one user with every pin, up to a factor, from what the user did.

    Args:
      oracle: whose topics are known.
      choice: p(pin | topic, taste), (tastes, pins).
      wanted: `timelines.ACTION` (n,), what the user did by `moment` with pins that were wanted.
      moment: unix seconds.
    """
    leaves = len(oracle.leaf_popularity)
    leaf = oracle.leaf[wanted["item"]]
    on = np.unique(np.stack([leaf, (moment - wanted["time"].astype(np.int64)) // DAY]), axis=1)[0]
    interest = PRIOR_DAYS * oracle.leaf_popularity + np.bincount(on, minlength=leaves)

    likely = np.log(np.maximum(choice[:, wanted["item"]], 1e-30)).sum(axis=1)
    taste = np.exp(likely - likely.max())
    return interest[oracle.leaf] * (taste / taste.sum() @ choice)


def main(_):
    logging.set_verbosity(logging.ERROR)
    dataset = dataset_lib.load(f"pinworld/{_SIZE.value}", _DATA_DIR.value)
    data = runpy.run_path(str(ROOT / "configs/pinnerformer.py"))["get_config"]().data
    positives = windows.Positives.create(dataset.spec, data.positives, data.surfaces)
    anywhere = windows.Positives.create(dataset.spec, data.positives, "")
    source = held_out.HeldOut(dataset, positives, 1, WINDOW, 10**9, 10**9, filter_seen=False)
    (moment,) = source.moments((0,))
    asked, index = source.questions("test", moment), source.index(moment)
    past = {}
    for chunk in dataset.chunks("test"):
        for user, records in zip(
            chunk.users, np.split(chunk.records, chunk.offsets[1:-1]), strict=True
        ):
            past[user] = records[anywhere(records) & (records["time"] <= moment)]

    def recall(scores: np.ndarray) -> metrics.Estimate:
        own = np.where(asked.label_exists, scores[asked.label_user, asked.label_item], -np.inf)
        scores, rows = exact.best(scores, index, K + 1)
        labels = asked.label_user, asked.label_item, own
        ranks = metrics.label_ranks(rows, scores, *labels, rounding=0.0)
        return metrics.estimate(metrics.recall(ranks, asked.label_user, len(asked.users), K))

    oracle = dataset.oracle
    choice = oracle.choice(moment, WINDOW)
    best = recall(oracle.scores(asked.users, moment, WINDOW))
    known = recall(np.stack([expected(oracle, choice, past[user], moment) for user in asked.users]))
    print(f"{len(asked.users):,} users, Recall@{K} of the {WINDOW // DAY} days after training")
    print(table.format_table([("oracle", {"R@10": best}), ("from the log", {"R@10": known})]))
    print(f"from the log / oracle  {known.value / best.value:.2f}")


if __name__ == "__main__":
    app.run(main)
