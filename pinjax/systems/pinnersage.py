"""PinnerSage (Pal et al., KDD 2020): a user is some of the user's own items, one an interest.

Nothing is learned. The items of a user's recent positive actions, vectors v_i of unit length, are
clustered by Ward's method, whose merges stop at a distance: users have as many clusters as they
have interests. A cluster C is represented by its medoid, an actual item, and has an importance:

    medoid(C) = argmin_{m in C} Σ_{i in C} |v_m - v_i|²
    importance(C) = Σ_{i in C} e^{-λ (T_now - T_i)}

Searches are by three medoids, drawn by importance. As a baseline of PinnerFormer (Pancha et al.,
KDD 2022, Table 1) it has an oracle, too: each label is searched for with the nearest one of the
medoids of the user's most important clusters.
"""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.data import item_features, windows
from pinjax.data.dataset import Dataset
from pinjax.data.spec import Spec
from pinjax.distributed import batching
from pinjax.errors import InputError
from pinjax.evaluation import evaluator as evaluator_lib
from pinjax.evaluation import tables, timeline_source, vector_search
from pinjax.systems import system, ward
from pinjax.timestamps import DAY

ORACLE_CLUSTERS = 5, 20  # that the oracle chooses from, in Table 1 of PinnerFormer


class Interests(NamedTuple):
    """The clusters of a user's actions, the most important first.

    Attributes:
      medoids: int64 (clusters,), the action on the item that represents each cluster.
      importances: float64 (clusters,).
    """

    medoids: np.ndarray
    importances: np.ndarray


def interests(vectors: np.ndarray, days: np.ndarray, threshold: float, decay: float) -> Interests:
    """The interests that actions show (§4).

    Args:
      vectors: float32 (actions, dim), of their items, from the oldest action to the latest.
      days: (actions,), since each action.
      threshold: the largest distance of a merge.
      decay: λ, of an action's importance a day.
    """
    cluster = ward.clusters(vectors, threshold)
    importances = np.bincount(cluster, np.exp(-decay * days))
    sizes = np.bincount(cluster)
    starts = np.cumsum(sizes) - sizes
    by_cluster = vectors[np.argsort(cluster, kind="stable")]
    means = np.add.reduceat(by_cluster, starts, dtype=np.float64) / sizes[:, None]
    # Σ_i |v_m - v_i|² = |C| |v_m - mean|² + a constant: the medoid is the nearest to the mean.
    distances = np.sum((vectors - means[cluster]) ** 2, axis=1)
    latest_first = -np.arange(len(vectors))
    medoids = np.lexsort((latest_first, distances, cluster))[starts]
    order = np.argsort(-importances, kind="stable")
    return Interests(medoids[order], importances[order])


def draw(importances: np.ndarray, number: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of at most `number` interests, drawn one after the other by importance, ascending.

    By the Gumbel trick: the largest of log w_i + Gumbel noise is i with a chance w_i / Σ w.
    """
    with np.errstate(divide="ignore"):  # of an interest so old that it is zero
        keys = np.log(importances) + rng.gumbel(size=len(importances))
    return np.sort(np.argsort(-keys)[:number])


@dataclasses.dataclass(frozen=True, eq=False)
class Users:
    """Embeds users by their histories.

    Attributes:
      items: float32 (items, dim), of unit length; zeros for items without content.
      positives: the actions that tell of interests.
      config: of the run.
    """

    items: np.ndarray
    positives: windows.Positives
    config: ConfigDict

    @functools.cached_property
    def known(self) -> np.ndarray:
        """Bool (items,), those with content."""
        return self.items.any(axis=1)

    def drawn(self, history: system.Batch) -> np.ndarray:
        """Float32 (users, vectors, dim): medoids drawn by importance, the most important first.

        A draw depends on the seed and the user's interests alone.
        """
        number, seed = self.config.model.vectors, self.config.model.seed

        def choose(items: np.ndarray, importances: np.ndarray) -> np.ndarray:
            return draw(importances, number, np.random.default_rng([seed, *items]))

        return self._medoids(history, number, choose)

    def most_important(self, number: int, history: system.Batch) -> np.ndarray:
        """Float32 (users, number, dim): the medoids of the most important clusters."""
        return self._medoids(history, number, lambda *found: slice(number))

    def _medoids(self, history: system.Batch, number: int, choose: Callable) -> np.ndarray:
        """Some medoids of each user, zeros where there are fewer than `number`.

        Args:
          history: of `windows.history`.
          number: the most medoids of a user.
          choose: from the items (clusters,) and importances (clusters,) of a user's clusters, the
            most important first, to the rows of those that are returned.
        """
        model = self.config.model
        seconds = history["request_time"][:, -1:].astype(np.int64) - history["time"]
        counts = self.positives(history) & (seconds < self.config.data.recent)
        counts &= (history["item"] >= 0) & self.known[history["item"]]
        found = np.zeros((len(counts), number, self.items.shape[1]), np.float32)

        def embed(user: int) -> None:
            items = history["item"][user, counts[user]]
            if len(items):
                days = seconds[user, counts[user]] / DAY
                medoids, importances = interests(
                    self.items[items], days, model.threshold, model.decay
                )
                chosen = items[medoids][choose(items[medoids], importances)]
                found[user, : len(chosen)] = self.items[chosen]

        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(embed, range(len(counts))))
        return found


def check(config: ConfigDict, mesh: Mesh) -> None:
    """PinnerSage has no field that depends on the mesh or on another field."""


def build(config: ConfigDict, mesh: Mesh, spec: Spec) -> None:
    """Nothing to train, for a data set with timelines and content vectors."""
    spec.need("timelines")
    if spec.leave_one_out:
        raise InputError(f"data.name: {spec.name} has no times, which tell how old an interest is")
    if not spec.content_dim:
        raise InputError(
            f"data.name: {spec.name} has no content vectors, of which interests are made"
        )


def bind(trainable: None, config: ConfigDict, mesh: Mesh, dataset: Dataset) -> system.System:
    """PinnerSage on a data set."""
    spec = dataset.spec
    positives = windows.Positives.create(spec, config.data.positives, config.data.surfaces)
    source = timeline_source.TimelineSource(dataset, positives, config.data.length, config.evaluate)
    evaluator = evaluator_lib.Evaluator("PinnerSage", source)
    items = item_features.unit_length(dataset.catalogue.content)
    users = Users(items, positives, config)

    def in_parts(embed: Callable[[system.Batch], np.ndarray]) -> system.EmbedUsers:
        return functools.partial(batching.over_parts, embed, size=config.evaluate.batch)

    def search(embed: Callable[[system.Batch], np.ndarray]) -> vector_search.VectorSearch:
        of_parts = in_parts(embed)
        return vector_search.VectorSearch.fixed(lambda one: of_parts([one]), items.__getitem__)

    def evaluate(params: None, split: str, full: bool = False) -> tables.Table:
        several = search(functools.partial(users.most_important, max(ORACLE_CLUSTERS)))
        oracles = {
            f"PinnerSage, {number} clusters, oracle": vector_search.NearestVector(several, number)
            for number in ORACLE_CLUSTERS
        }
        return evaluator(search(users.drawn), split, full, oracles)

    def serve(params: None, as_of: int) -> system.Served:
        rows = system.EmbeddedRows(np.flatnonzero(users.known), items.__getitem__)
        return system.Served(rows, users=in_parts(users.drawn))

    return system.System(
        dataset=dataset,
        trainable=trainable,
        constants={},
        batches=None,
        evaluate=evaluate,
        evaluator=evaluator,
        serve=serve,
        check_training=None,
        summary={},
    )
