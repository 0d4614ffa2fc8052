"""Evaluation queries from pairs of queries and items (ItemSage, §5.1).

Every engagement counts once, so items with more engagements weigh more. A query that is an item
excludes this item from its results. Items without features for the system are not in the index of
any method: every method misses an engagement with one.
"""

import dataclasses
import functools

import numpy as np

from pinjax.data.dataset import Dataset
from pinjax.evaluation import baselines, one_window, oracles, tables
from pinjax.evaluation.engagements import Engagements
from pinjax.evaluation.queries import EvalQueries

# Of PinSage (Ying et al., KDD 2018), §4.2, in an index of 5M: the share of pairs whose item is
# among the best 500, and the scaled MRR. To the latter, what a method that knows no ranks beyond
# its list has not found, as ScaNN, adds nothing.
HITS = 500
OFFLINE_METRICS = ("R@10", f"HR@{HITS}", tables.SCALED_MRR)


@dataclasses.dataclass(frozen=True, eq=False)
class PairSource(one_window.OneWindow):
    """The evaluation queries of a data set's pairs.

    Attributes:
      task_rows: rows of `Spec.tasks` that count.
      main_metrics: names of the main metrics.
      depth: the number of results of a query that count.
    """

    task_rows: tuple[int, ...]
    main_metrics: tuple[str, ...] = ("R@1", "R@10", "R@100")
    depth: int = 100

    averaged_over = "labels"
    may_repeat = True  # a query may lead to the same item again
    few_excluded = True
    context_lengths = baselines.LENGTHS
    described = ("queries", "engagements")
    lacking = "no engagement of the tasks that count"

    @property
    def validates(self) -> bool:
        return self.dataset.spec.pairs.get("valid", 0) > 0

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names by row; "" for tasks that do not count."""
        names = self.dataset.spec.tasks
        return tuple(name if i in self.task_rows else "" for i, name in enumerate(names))

    @functools.cached_property
    def engagements(self) -> Engagements:
        """The engagements of the training queries."""
        pairs = self._pairs("train")
        time = np.minimum(pairs["time"], self.dataset.spec.train_end)
        every = np.ones(len(pairs), bool)
        return Engagements(pairs["query"], pairs["item"], time, every, len(self.eligible))

    def oracle(self, cadence: str) -> oracles.PairOracle | None:
        """The best answers that a simulated world allows."""
        del cadence
        return self.dataset.oracle and oracles.PairOracle(self.dataset.oracle)

    def _queries(self, split: str) -> EvalQueries | None:
        pairs = self._pairs(split)
        rows = np.unique(pairs["query"])
        if len(rows) > self.config.queries:
            rows = np.random.default_rng(0).choice(rows, self.config.queries, replace=False)
            pairs = pairs[np.isin(pairs["query"], rows)]
        if not len(pairs):
            return None
        rows, label_query = np.unique(pairs["query"], return_inverse=True)
        itself = self.dataset.queries.items[rows]
        trained = np.bincount(self._pairs("train")["query"], minlength=int(rows[-1]) + 1)
        is_item = np.flatnonzero(itself >= 0)
        start = self.dataset.spec.train_end
        return EvalQueries(
            users=self.dataset.queries.ids[rows].tolist(),
            query_user=np.arange(len(rows)),
            query_time=np.full(len(rows), start, np.int64),
            features={"query": rows},
            context=self._context(rows, itself),
            history=trained[rows],
            label_query=label_query,
            label_item=pairs["item"],
            label_exists=self.eligible[pairs["item"]],
            label_task=pairs["task"],
            label_time=pairs["time"].astype(np.int64),
            excluded=np.stack([is_item, itself[is_item]], axis=1).astype(np.int64),
            depth=self.depth,
            rank_all=tables.SCALED_MRR in self.main_metrics,
        )

    def _pairs(self, split: str) -> np.ndarray:
        pairs = self.dataset.pairs(split)
        return pairs[np.isin(pairs["task"], self.task_rows)]

    def _context(self, rows: np.ndarray, itself: np.ndarray) -> np.ndarray:
        """Items that queries led to in training, oldest first; then the item that a query is."""
        train = self._pairs("train")
        train = train[np.isin(train["query"], rows)]
        train = train[np.argsort(train["query"], kind="stable")]
        first, last = (np.searchsorted(train["query"], rows, s) for s in ("left", "right"))
        place = last[:, None] - np.arange(max(self.context_lengths), 0, -1)
        led_to = np.append(train["item"], -1)[np.where(place >= first[:, None], place, -1)]
        with_itself = np.concatenate([led_to[:, 1:], itself[:, None]], axis=1)
        return np.where(itself[:, None] >= 0, with_itself, led_to).astype(np.int32)


@functools.lru_cache(maxsize=1)  # it reads every text
def products(dataset: Dataset) -> np.ndarray:
    """Bool (items,): whether an item has a text or an image; other items are in no pair."""
    catalogue = dataset.catalogue
    texts = (catalogue.text(feature).offsets for feature in catalogue.text_features)
    return np.any([np.diff(offsets) > 0 for offsets in (catalogue.image_offsets, *texts)], axis=0)
