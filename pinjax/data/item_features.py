"""Vectors of items: their content and their images."""

from collections.abc import Iterator

import numpy as np

from pinjax.data import fitted as fitted_lib
from pinjax.data.dataset import Dataset
from pinjax.data.spec import Spec
from pinjax.errors import InputError
from pinjax.graph import csr

_PRINCIPAL = 100_000  # items, about, in the sample for principal components
_CHUNK = 2**16  # items whose images are averaged at a time


def content_dim(spec: Spec, components: int) -> int:
    """The dimension of `content`.

    Raises:
      InputError: if the data set has no content vectors, or shorter ones.
    """
    if not spec.content_dim:
        raise InputError(
            f"data.content: {spec.name} has no content vectors; for items that are learned ids set "
            "it to False and model.id_dim above 0, as PinnerFormer's variant own_ids does"
        )
    if components > spec.content_dim:
        raise InputError(
            f"data.pca_dim={components}: expected from 0 to {spec.content_dim}, the numbers of a "
            f"content vector of {spec.name}"
        )
    return components or spec.content_dim


def content(dataset: Dataset, components: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The items' content vectors, or a number of principal components of them.

    The components are fitted on the items that existed when the training period ended.

    Yields:
      (rows, their vectors, float32 (rows, dim)) of some items at a time; zeros for items without
      content, which may also be left out.
    """
    if components:
        axes, origin = _principal_axes(dataset, components)
    for rows, vectors in dataset.catalogue.content_parts():
        vectors = np.asarray(vectors, np.float32)
        if components:
            known = vectors.any(axis=1, keepdims=True)
            vectors = np.where(known, vectors @ axes - origin, 0)
        yield rows, vectors


def log_degree(dataset: Dataset) -> np.ndarray:
    """The logarithm of an item's number of groups (PinSage, §4.1), standardised over the items.

    Returns:
      float32 (items,), with mean 0 and variance 1 over the items that it was fitted on.
    """
    mean, deviation = _mean_log_degree(dataset)
    return ((_log1p_degree(dataset.graph) - mean) / deviation).astype(np.float32)


def fit(dataset: Dataset, components: int) -> dict[str, np.ndarray]:
    """The arrays of `fitted.Fitted` for models that go on from one of this data set.

    Args:
      dataset: what the model was trained on.
      components: of its content vectors; 0: all numbers.
    """
    arrays = {}
    if components:
        arrays["axes"], arrays["origin"] = _principal_axes(dataset, components)
    if "graph" in dataset.spec.parts:
        arrays["log_degree"] = _mean_log_degree(dataset)
    if any(dataset.spec.vocabulary):
        arrays["tokens"] = fitted_lib.pack(dataset.token_names)
    return arrays


def _principal_axes(dataset: Dataset, components: int) -> tuple[np.ndarray, np.ndarray]:
    if dataset.fitted and "axes" in dataset.fitted.arrays:
        return dataset.fitted.arrays["axes"], dataset.fitted.arrays["origin"]
    catalogue = dataset.catalogue
    known = np.zeros(len(catalogue), bool)
    for rows, vectors in catalogue.content_parts():
        known[rows] = vectors.any(axis=1)
    existed = np.flatnonzero(known & (catalogue.created <= dataset.spec.train_end))
    drawn = existed[:: 1 + len(existed) // _PRINCIPAL]
    sample = np.zeros((len(drawn), dataset.spec.content_dim), np.float32)
    place = np.full(len(catalogue), -1)
    place[drawn] = np.arange(len(drawn))
    for rows, vectors in catalogue.content_parts():
        inside = place[rows] >= 0
        sample[place[rows[inside]]] = vectors[inside]
    return principal_axes(sample, components)


def _mean_log_degree(dataset: Dataset) -> np.ndarray:
    """Float64 (2,): mean and standard deviation."""
    if dataset.fitted and "log_degree" in dataset.fitted.arrays:
        return dataset.fitted.arrays["log_degree"]
    degree = _log1p_degree(dataset.graph)
    return np.array([degree.mean(), max(degree.std(), 0.1)])


def _log1p_degree(graph: csr.Graph) -> np.ndarray:
    return np.log1p(np.diff(graph.items.offsets))


def item_vector_dim(spec: Spec) -> int:
    """The dimension of `item_vectors`."""
    return spec.image_dim or spec.content_dim


def item_vectors(dataset: Dataset) -> np.ndarray:
    """A vector of each item: the mean of its images, or its content if the data set has no images.

    Returns:
      float32 (items, dim), of unit length; zeros for an item without images, or without content.

    Raises:
      InputError: if the data set has neither images nor content.
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
        vectors = unit_length(images[bounds[0] : bounds[-1]])
        found[start + has] = unit_length(np.add.reduceat(vectors, bounds[has] - bounds[0]))
    return found


def unit_length(vectors: np.ndarray) -> np.ndarray:
    """Vectors (n, dim) as float32 of unit length; zeros stay."""
    vectors = np.asarray(vectors, np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def principal_axes(sample: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The principal axes of a sample. The largest component of an axis is positive.

    Args:
      sample: float32 (m, dim).
      count: number of axes, at most dim.

    Returns:
      axes (dim, count), that of the largest variance last, and the coordinates of the sample's
      mean (count,), which is the origin: coordinates of vectors are `vectors @ axes - origin`.
    """
    _, axes = np.linalg.eigh(np.cov(sample, rowvar=False))  # in float64
    axes = axes[:, axes.shape[1] - count :]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
    axes = (axes * np.sign(largest)).astype(sample.dtype)
    return axes, sample.mean(axis=0) @ axes
