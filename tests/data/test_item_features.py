"""Item features against loops over single actions."""

import itertools
import types

import numpy as np
import pytest

from pinjax.data import catalogue, item_features, popularity
from pinjax.data import dataset as dataset_lib
from pinjax.data.spec import Spec
from pinjax.errors import InputError
from pinjax.timestamps import DAY


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return dataset_lib.load("pinworld/tiny", str(tmp_path_factory.mktemp("data")))


def log_popularity(dataset, window, as_of):
    """One action after the other, of mean 0 and variance 1, and the counts that they come from."""
    created = dataset.catalogue.created.astype(np.float64)
    times = [chunk.records["time"].astype(int) for chunk in dataset.chunks("train")]
    start = max(as_of - window, min(time.min() for time in times))
    existed = np.maximum(as_of - np.maximum(created, start), 0) / 86_400
    assert (existed == 0).any()
    count = np.zeros(len(created))
    for chunk, time in zip(dataset.chunks("train"), times, strict=True):
        for item, acted in zip(chunk.records["item"], time, strict=True):
            count[item] += as_of - window < acted <= as_of
    # A gamma prior of shape 1 whose mean is the rate of all items together.
    degree = np.log((1 + count) / (existed.sum() / count.sum() + existed))
    there = created <= as_of
    return (degree - degree[there].mean()) / degree[there].std(), count


@pytest.mark.parametrize("window", [20 * DAY, 10_000 * DAY])
def test_degrees_are_those_of_their_times(dataset, window):
    end = dataset.spec.train_end
    times = end - 86_400 * np.array([40, 11, 0])
    found = popularity.log_popularity(dataset, window, times)
    for degrees, time in zip(found.T, times, strict=True):
        expected, count = log_popularity(dataset, window, time)
        np.testing.assert_allclose(degrees, expected, rtol=1e-5, atol=1e-6)
    if window > 1_000 * DAY:
        np.testing.assert_array_equal(count, dataset.catalogue.counts)


def test_before_the_log_began_all_items_are_alike(dataset):
    found = popularity.log_popularity(dataset, 20 * DAY, np.array([9, dataset.spec.train_end]))
    assert not found[:, 0].any()
    assert found[:, 1].std() > 0.5


@pytest.mark.parametrize("days", [-30, 0, 5])
def test_as_many_actions_lie_between_any_two_counts(dataset, days):
    as_of = dataset.spec.train_end + days * DAY
    times, found = popularity.Popularity(20 * DAY, 7).counted(dataset, as_of)
    acted = np.concatenate([chunk.records["time"] for chunk in dataset.chunks("train")])
    assert (times.dtype, times[0], times[-1]) == (np.uint32, acted.min(), as_of)
    between, _ = np.histogram(acted, times)
    assert between.min() > 50
    assert np.ptp(between) <= 2  # ties and the end
    np.testing.assert_array_equal(found, popularity.log_popularity(dataset, 20 * DAY, times))


def test_before_the_log_began_all_counts_are_at_that_time(dataset):
    times, found = popularity.Popularity(20 * DAY, 3).counted(dataset, 9)
    assert times.tolist() == [9, 9, 9]
    assert not found.any()


def test_rates_tell_popularity_whenever_an_item_was_created(dataset):
    rates = popularity.recent_rates(dataset, 365 * DAY, dataset.spec.train_end)
    # An item of pinworld is as popular on its first day as on any other.
    oracle = dataset.oracle
    appeal = oracle.popularity * np.exp(oracle.tastes @ oracle.style.T).mean(axis=0)
    topic = np.bincount(oracle.leaf, rates) / np.bincount(oracle.leaf, appeal)
    error = np.log(rates / (topic[oracle.leaf] * appeal))
    age = (dataset.spec.train_end - oracle.created.astype(np.float64)) / 86_400
    new, old = error[(age > 5) & (age < 60)], error[age > 91]
    assert len(new) > 50
    assert abs(new.mean() - old.mean()) < 0.2


def test_components_are_those_along_which_items_of_the_training_period_vary_most(dataset):
    found = joined(item_features.content(dataset, 3), len(dataset.catalogue))
    content = np.asarray(dataset.catalogue.content, np.float64)
    existed = dataset.catalogue.created <= dataset.spec.train_end
    assert not existed.all()
    centred = content - content[existed].mean(axis=0)
    _, _, axes = np.linalg.svd(centred[existed], full_matrices=False)
    axes = axes[2::-1]
    axes *= np.where(axes.max(axis=1) > -axes.min(axis=1), 1, -1)[:, None]
    np.testing.assert_allclose(found, centred @ axes.T, rtol=1e-4, atol=1e-5)


def joined(parts, count):
    """All rows of some parts."""
    parts = list(parts)
    found = np.full((count, parts[0][1].shape[1]), np.nan, np.float32)
    for rows, vectors in parts:
        found[rows] = vectors
    return found


class InMemory(catalogue.Items):
    """Items whose content is read in parts."""

    def content_parts(self):
        for rows in np.array_split(np.arange(len(self))[::-1], 3):
            yield rows, self.content[rows]


def in_memory(content=None, images=None, offsets=None):
    """A data set of items with no other parts."""
    count = len(content) if images is None else len(offsets) - 1
    nothing = np.zeros(count)
    items = InMemory(nothing, nothing, nothing, nothing, content, images, offsets)
    spec = Spec("log", count, content_dim=0 if content is None else content.shape[1])
    return types.SimpleNamespace(catalogue=items, spec=spec, fitted=None)


@pytest.mark.parametrize("chunk", [2, 2**16])
def test_an_items_vector_is_the_mean_of_its_images_of_unit_length(rng, monkeypatch, chunk):
    monkeypatch.setattr(item_features, "_CHUNK", chunk)
    counts = [0, 3, 0, 1, 2, 0, 0]
    images = rng.standard_normal((6, 5)).astype(np.float16)
    images[3] = 0  # an item's only image is unknown
    offsets = np.cumsum([0, *counts])
    dataset = in_memory(rng.standard_normal((7, 3)).astype(np.float16), images, offsets)
    expected = np.zeros((7, 5))
    for item, (start, end) in enumerate(itertools.pairwise(offsets)):
        for image in images[start:end].astype(np.float64):
            expected[item] += image / max(np.linalg.norm(image), 1e-9)
        expected[item] /= max(np.linalg.norm(expected[item]), 1e-9)
    found = item_features.item_vectors(dataset)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert found.any(axis=1).tolist() == [False, True, False, False, True, False, False]


def test_without_any_images_an_items_vector_is_its_content(rng):
    content = rng.standard_normal((4, 3)).astype(np.float16)
    content[2] = 0
    found = item_features.item_vectors(in_memory(content))
    norms = np.maximum(np.linalg.norm(content.astype(np.float64), axis=1, keepdims=True), 1e-9)
    np.testing.assert_allclose(found, content / norms, atol=1e-6)
    dataset = in_memory(np.zeros((3, 0), np.float16))
    object.__setattr__(dataset.catalogue, "content", None)
    with pytest.raises(InputError, match="log has neither images nor content vectors"):
        item_features.item_vectors(dataset)


@pytest.mark.parametrize("components", [0, 2])
def test_missing_content_stays_missing(rng, components):
    """It stays zero, and does not change the principal axes."""
    vectors = rng.standard_normal((50, 4)).astype(np.float16) + np.float16(3)
    gaps = vectors.copy()
    gaps[::5] = 0

    def made(content):
        return joined(item_features.content(in_memory(content), components), len(content))

    there = np.arange(50) % 5 > 0
    np.testing.assert_allclose(made(gaps)[there], made(vectors[there]), rtol=1e-5)
    assert not made(gaps)[~there].any()


def test_components_are_fitted_to_items_of_the_whole_catalogue(rng, monkeypatch):
    """Of a large one only some are read: not the first ones, which may be alike."""
    monkeypatch.setattr(item_features, "_PRINCIPAL", 20)
    content = rng.standard_normal((400, 2)).astype(np.float16) * np.float16([1, 0.1])
    content[:100, ::-1] = content[:100].copy()
    axes = item_features.fit(in_memory(content), 1)["axes"]
    assert abs(axes[0, 0]) > 0.9


def test_the_first_second_of_a_window_is_before_it(dataset):
    acted = np.concatenate([chunk.records["time"] for chunk in dataset.chunks("train")])
    time = int(np.median(acted)) + 20 * DAY
    assert (acted == time - 20 * DAY).any()
    expected, _ = log_popularity(dataset, 20 * DAY, time)
    found = popularity.log_popularity(dataset, 20 * DAY, np.array([time]))
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-5, atol=1e-6)
