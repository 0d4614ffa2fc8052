"""The sketches of a run: what a loss reads of them, and whether they are wide enough."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from pinjax.data import batches
from pinjax.data.spec import Spec
from pinjax.distributed import sharding
from pinjax.errors import InputError
from pinjax.losses import count_min_sketch, sampled_softmax


def sketch(key: jax.Array, config: ConfigDict, width: int) -> count_min_sketch.CountMinSketch:
    """A sketch of `width`, configured by the section `loss` of a run's config."""
    return count_min_sketch.init(key, count_min_sketch.DEPTH, width, config.sketch_decay)


def add(
    mesh: Mesh,
    sketch: count_min_sketch.CountMinSketch,
    ids: jax.Array,
    where: jax.Array | None = None,
) -> count_min_sketch.CountMinSketch:
    """`count_min_sketch.add` of replicated ids, by each device for itself."""
    return sharding.run_replicated(mesh, count_min_sketch.add)(sketch, ids, where)


def log_q(
    sketch: count_min_sketch.CountMinSketch,
    ids: jax.Array,
    num_batch: ArrayLike,
    num_random: ArrayLike,
    num_items: ArrayLike,
    *,
    enabled: bool,
) -> jax.Array:
    """`sampled_softmax.log_expected_count` of items; 0 for id -1, and for all if not enabled."""
    expected = sampled_softmax.log_expected_count(
        count_min_sketch.log_probability(sketch, ids), num_batch, num_random, num_items
    )
    return jnp.where(enabled & (ids >= 0), expected, 0.0)


class Counted(NamedTuple):
    """A stream of ids that a run counts in a sketch.

    Attributes:
      width: of the sketch.
      counts: (ids,), counts of the distinct ids, up to a factor.
      batch: ids in a batch.
    """

    width: int
    counts: np.ndarray
    batch: int

    def accuracy(self, config: ConfigDict) -> count_min_sketch.Accuracy:
        """The accuracy of the sketch at the end of a run."""
        return count_min_sketch.accuracy(
            self.width, config.loss.sketch_decay, self.batch, config.train.steps, self.counts
        )


def summary(config: ConfigDict, streams: dict[str, Counted]) -> dict[str, str]:
    """A line about the accuracy of sketches at the end of a run; none if nothing is counted."""
    found = {name: stream.accuracy(config) for name, stream in streams.items()}
    parts = [
        f"{name}: mean count {x.mean:,.1f}, a label's median {x.median:,.1f}, "
        f"too high by at most {x.error:,.1f}"
        for name, x in found.items()
    ]
    return {"sketches": "; ".join(parts)} if parts else {}


def check(config: ConfigDict, streams: dict[str, Counted]) -> None:
    """Rejects sketches whose error exceeds the median count that the loss looks up."""
    for name, stream in streams.items():
        found = stream.accuracy(config)
        if not config.loss.log_q or found.error <= found.median:
            continue
        least = f"at least {found.least_width}"
        if found.least_width > count_min_sketch.MAX_WIDTH:
            least = "loss.sketch_decay below 1, so that fewer are remembered, or loss.log_q=False"
        raise InputError(
            f"loss.sketch_width: with {stream.width} counters a row, the counts of "
            f"{len(stream.counts):,} {name}, whose median is {found.median:,.1f}, may be too high "
            f"by {found.error:,.1f}; expected {least}"
        )


def widths_of_pairs(config: ConfigDict, spec: Spec) -> dict[str, int]:
    """Widths of the sketches of `count_pairs`: about four counters per id are enough."""

    def width(distinct: int) -> int:
        return min(config.sketch_width, 2 ** math.ceil(math.log2(4 * distinct)))

    products, queries = width(spec.num_engaged), width(spec.num_queries)
    return {"products": products, "queries": queries, "pairs": config.sketch_width}


def of_pairs(width: int, ids: np.ndarray, made: batches.PairBatches) -> Counted:
    """The stream of one id per training pair.

    Args:
      width: of the sketch.
      ids: int (pairs,), of each of `made.pairs`, not negative; memory grows with the largest.
      made: the batches, which have pairs of some tasks more often, and leave out those above a cap.
    """
    counts = np.bincount(ids, made.visits)
    return Counted(width, counts[counts > 0], made.size)


def count_pairs(widths: dict[str, int], made: batches.PairBatches) -> dict[str, Counted]:
    """The streams of products, of queries, and of their pairs.

    Args:
      widths: of the sketches.
      made: the batches.
    """
    train = made.pairs
    ids = {"products": train["item"], "queries": train["query"]}
    pairs = (train["query"].astype(np.int64) << 32) + train["item"]
    ids["pairs"] = np.unique(pairs, return_inverse=True)[1]
    return {name: of_pairs(width, ids[name], made) for name, width in widths.items()}
