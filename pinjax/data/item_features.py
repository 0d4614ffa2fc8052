"""What is known of an item beside its id: content, images, and how popular it was at some times."""

import functools

import numpy as np

from pinjax.data import timelines
from pinjax.data.dataset import Dataset
from pinjax.errors import InputError

DAY = 24 * 60 * 60

_PRINCIPAL = 100_000  # items, about, by which principal components are found
_CHUNK = 2**16  # items whose images are averaged at a time


def content(dataset: Dataset, components: int) -> np.ndarray:
    """The items' content vectors, or so many principal components of them.

    Axes are those of the items that existed when the training period ended.

    Returns:
      float32 (items, dim). Where content is missing it is zero.
    """
    catalogue = dataset.catalogue
    vectors = np.asarray(catalogue.content, np.float32)
    if not components:
        return vectors
    known = vectors.any(axis=1)
    existed = np.flatnonzero(known & (catalogue.created <= dataset.spec.train_end))
    some = existed[:: 1 + len(existed) // _PRINCIPAL]
    found = principal_components(vectors, vectors[some], components)
    found[~known] = 0
    return found


def item_vectors(dataset: Dataset) -> np.ndarray:
    """A vector of each item: the mean of its images, or its content where a data set has no images.

    Returns:
      float32 (items, dim), of unit length; zeros for an item without images, or without content.

    Raises:
      InputError: where the data set has neither.
    """
    catalogue = dataset.catalogue
    if catalogue.images is not None:
        images, offsets = catalogue.images, catalogue.image_offsets
    elif catalogue.content is not None:
        images, offsets = catalogue.content, np.arange(len(catalogue) + 1)
    else:
        raise InputError(f"data.name: {dataset.spec.name} has neither images nor content vectors")
    found = np.zeros((len(catalogue), images.shape[1]), np.float32)
    for start in range(0, len(found), _CHUNK):
        bounds = offsets[start : start + _CHUNK + 1]
        has = np.flatnonzero(np.diff(bounds))
        vectors = _unit_length(images[bounds[0] : bounds[-1]])
        found[start + has] = _unit_length(np.add.reduceat(vectors, bounds[has] - bounds[0]))
    return found


def _unit_length(vectors: np.ndarray) -> np.ndarray:
    vectors = np.asarray(vectors, np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def principal_components(vectors: np.ndarray, sample: np.ndarray, count: int) -> np.ndarray:
    """Coordinates of vectors (n, dim) along the axes on which those of a sample vary most.

    The sample's mean is 0, and an axis has the sign by which its largest number is positive.

    Args:
      vectors: (n, dim).
      sample: (m, dim).
      count: of axes, at most dim.

    Returns:
      (n, count), the most important last.
    """
    _, axes = np.linalg.eigh(np.cov(sample, rowvar=False))  # in float64
    axes = axes[:, axes.shape[1] - count :]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
    axes = (axes * np.sign(largest)).astype(vectors.dtype)
    return vectors @ axes - sample.mean(axis=0) @ axes


def times_before(moment: int, apart: float, number: int) -> np.ndarray:
    """So many times, some seconds apart, the last of which is the moment: uint32 (number,)."""
    ago = apart * np.arange(number)[::-1]
    return np.maximum(moment - ago, 0).astype(np.uint32)


def log_popularity(dataset: Dataset, window: int, times: np.ndarray) -> np.ndarray:
    """The log of `recent_rates`, of mean 0 and variance 1 over the items that existed at a time.

    It is PinSage's log degree (Ying et al., KDD 2018, §4.1), for the days that an item has existed:
    how popular an item is does not show in its content. That of a time depends on nothing later.

    Returns:
      float32 (items, times).
    """
    popularity = np.log(recent_rates(dataset, window, times))
    for degree, time in zip(popularity.T, times, strict=True):
        existed = dataset.catalogue.created <= time
        if existed.any():
            degree -= degree[existed].mean()
            degree /= max(degree[existed].std(), 0.1)  # of few items it may be 0
    return popularity.astype(np.float32)


def recent_rates(dataset: Dataset, window: int, times: np.ndarray) -> np.ndarray:
    """Training users' actions a day on items in the window up to a time: float64 (items, times).

    They are counted from the day on which the item was created or the log began. Of an item that is
    new little is known, so a rate is the mean that follows from the item's actions where rates are
    distributed exponentially about that of all items.
    """
    created, until = dataset.catalogue.created.astype(np.float64), times.astype(np.int64)
    item, acted = _training_actions(dataset)
    since = until - window
    bounds = np.searchsorted(acted, np.stack([since, until]), "right")
    counts = np.stack([np.bincount(item[a:b], minlength=len(created)) for a, b in bounds.T])
    first = min(until.max(), acted.min(initial=until.max()))
    existed = until[:, None] - np.maximum(created, np.maximum(since, first)[:, None])
    existed = np.maximum(existed / DAY, 0)
    # Where nothing has happened yet, all rates are alike.
    prior = np.maximum(existed.sum(axis=1), 1) / np.maximum(counts.sum(axis=1), 1)
    return ((counts + 1) / (existed + prior[:, None])).T


@functools.lru_cache(maxsize=1)
def _training_actions(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Item and time of the training users' actions, in order of time."""
    chunks = [chunk.records[["item", "time"]] for chunk in dataset.chunks("train")]
    records = np.concatenate([np.zeros(0, timelines.ACTION)[["item", "time"]], *chunks])
    order = np.argsort(records["time"], kind="stable")
    return records["item"][order], records["time"][order].astype(np.int64)
