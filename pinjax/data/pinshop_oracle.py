"""The best possible ranking of products for a query, from the latent state of `pinshop_simulation`.

The oracle knows what each query means, each product's style, popularity and value, and the law by
which products are chosen, not what will be chosen. No ranking can be expected to beat it.
"""

import dataclasses

import numpy as np
from etils import epath

ORACLE_FILE = "shop_oracle.npz"


@dataclasses.dataclass(frozen=True)
class Oracle:
    """Latent state of products and queries; `pinshop_simulation` says what it means.

    Attributes:
      leaf: int32 (products,), the topic of a product.
      created: uint32 (products,), unix seconds.
      popularity: float32 (products,), within the product's leaf, up to a factor.
      style: float32 (products, style), of norm 1.
      value: float32 (products,).
      query_topic: int32 (queries,), row of `leaf_chance`.
      query_style: float32 (queries, style), of norm 1, or zeros where any will do.
      query_popularity: float64 (queries,), sums to 1.
      leaf_chance: float64 (topics, leaves), where a query about a topic leads to.
      style_strength: weight of the likeness of styles in log appeal.
      value_strength: float64 (kinds,), weight of value in log appeal, by kind of engagement.
    """

    leaf: np.ndarray
    created: np.ndarray
    popularity: np.ndarray
    style: np.ndarray
    value: np.ndarray
    query_topic: np.ndarray
    query_style: np.ndarray
    query_popularity: np.ndarray
    leaf_chance: np.ndarray
    style_strength: float
    value_strength: np.ndarray

    def save(self, directory: epath.PathLike) -> None:
        with (epath.Path(directory) / ORACLE_FILE).open("wb") as file:
            np.savez(file, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

    @classmethod
    def load(cls, directory: epath.PathLike) -> "Oracle":
        with (epath.Path(directory) / ORACLE_FILE).open("rb") as file, np.load(file) as arrays:
            return cls(**{f.name: arrays[f.name][()] for f in dataclasses.fields(cls)})

    def scores(
        self, queries: np.ndarray, kind: int, moment: int, horizon_seconds: int
    ) -> np.ndarray:
        """p(product | query, kind) of an engagement at a random time in [moment, moment + horizon).

        Exact: within a leaf, what all chances are divided by is constant from one product's
        creation to the next.

        Args:
          queries: int (n,), rows of queries.
          kind: row of `pinshop_simulation.KINDS`.
          moment: unix seconds.
          horizon_seconds: length of the window.

        Returns:
          float32 (n, products), rows that sum to 1; 0 for a product created after the window.
        """
        order = np.lexsort((self.created, self.leaf))
        leaf, created = self.leaf[order], self.created[order].astype(np.float64)
        end = moment + horizon_seconds

        # A product is the newest of its leaf from its creation until the next one's. Those that
        # ever are within the window end a step; all up to them share a step's chances.
        last = np.append(leaf[1:] != leaf[:-1], True)
        start = np.clip(created, moment, end)
        newest = np.where(last, end, np.append(start[1:], end)) - start
        steps = np.flatnonzero(newest)
        step_leaf = leaf[steps]
        step = np.minimum(np.searchsorted(steps, np.arange(len(leaf))), len(steps) - 1)

        base = np.log(self.popularity) + float(self.value_strength[kind]) * self.value
        base = np.where(created < end, base[order], -np.inf)
        affinity = self.query_style[queries] @ (float(self.style_strength) * self.style[order].T)
        weight = np.exp(affinity + base)
        sums = _cumulative(weight)
        total = sums[:, steps + 1] - sums[:, np.searchsorted(leaf, step_leaf)]
        sums = _cumulative(newest[steps] / total)
        after = np.searchsorted(step_leaf, step_leaf, side="right")
        chance = (sums[:, after] - sums[:, :-1]) / horizon_seconds  # for each unit of weight
        chance *= self.leaf_chance[self.query_topic[queries]][:, step_leaf]

        scores = np.empty(weight.shape, np.float32)
        scores[:, order] = weight * np.take(chance.astype(np.float32), step, axis=1)
        return scores

    def expected_recall(
        self, queries: np.ndarray, kind: int, moment: int, horizon_seconds: int, k: int = 10
    ) -> float:
        """The chance that an engagement's product is in the oracle's own top k, on average.

        The index is the whole catalogue, products created within the window included; queries
        weigh by their popularity. The arguments are those of `scores`.
        """
        found = np.empty(len(queries))
        chunk = max(1, 2**21 // len(self.leaf))
        for begin in range(0, len(queries), chunk):
            rows = slice(begin, begin + chunk)
            scores = self.scores(queries[rows], kind, moment, horizon_seconds)
            found[rows] = np.partition(scores, -k, axis=1)[:, -k:].sum(axis=1)
        return float(np.average(found, weights=self.query_popularity[queries]))


def _cumulative(values: np.ndarray) -> np.ndarray:
    """Sums of what comes before each column, and of all: float64 (rows, columns + 1)."""
    sums = np.zeros((len(values), values.shape[1] + 1))
    np.cumsum(values, axis=1, dtype=np.float64, out=sums[:, 1:])
    return sums
