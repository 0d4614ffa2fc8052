"""What is counted of a data set's rows, against counting them one by one."""

import collections

import numpy as np
import pytest

from pinjax.data import dataset as dataset_lib
from pinjax.data import statistics


@pytest.fixture(scope="module")
def dataset(data_dir):
    return dataset_lib.load("pinworld/tiny", data_dir)


def test_sizes_are_those_of_the_rows(dataset):
    spec, catalogue = dataset.spec, dataset.catalogue
    assert spec.num_existing == sum(time <= spec.train_end for time in catalogue.created.tolist())
    assert 0 < spec.num_existing < spec.num_items
    assert spec.num_images == len(catalogue.images)
    tokens = {name: catalogue.text(name) for name in spec.text_features}
    assert spec.num_tokens == {name: len(text.tokens) for name, text in tokens.items()}
    lengths = {name: np.diff(text.offsets) for name, text in tokens.items()}
    lengths[""] = sum(lengths.values())
    assert spec.longest == {name: max(of_items.tolist()) for name, of_items in lengths.items()}
    searches = [
        i for i, k in zip(dataset.queries.ids, dataset.queries.kinds, strict=True) if k == "text"
    ]
    encoded = [len(dataset.vocabulary.encode([search]).tokens) for search in searches]
    assert (spec.num_search_tokens, spec.longest_search) == (sum(encoded), max(encoded))


def test_shares_of_queries_are_those_of_the_pairs(dataset):
    train = dataset.pairs("train")
    assert dataset.spec.num_engaged == len(set(train["item"].tolist()))
    for row, task in enumerate(dataset.spec.tasks):
        queries = train["query"][train["task"] == row].tolist()
        ((_, most),) = collections.Counter(queries).most_common(1)
        assert dataset.spec.largest_query[task] == pytest.approx(most / len(queries))


def test_quantiles_of_lengths_are_those_of_training_users(dataset):
    lengths = []
    for chunk in dataset.chunks("train"):
        trained = chunk.records["time"] <= dataset.spec.train_end
        lengths += [own.sum() for own in np.split(trained, chunk.offsets[1:-1])]
    places = np.ceil((np.arange(128) + 0.5) / 128 * len(lengths) - 1e-9).astype(int) - 1
    assert dataset.spec.length_quantiles == tuple(np.sort(lengths)[places].tolist())


@pytest.mark.parametrize("feature", ["", "title"])
def test_quantiles_bound_how_long_texts_are(dataset, feature):
    spec, train = dataset.spec, dataset.pairs("train")
    names = [feature] if feature else spec.text_features
    lengths = sum(np.diff(dataset.catalogue.text(name).offsets) for name in names)
    drawn = {"": [lengths[np.unique(train["item"])]]}
    for row, task in enumerate(spec.tasks):
        items = train["item"][train["task"] == row]
        drawn[task] = [lengths[items], lengths[np.unique(items)]]
    assert spec.token_quantiles.keys() == drawn.keys()
    for task, either in drawn.items():
        expected = [
            [np.sort(x)[max(np.ceil(level * len(x) - 1e-9).astype(int) - 1, 0)] for x in either]
            for level in statistics.LEVELS
        ]
        assert spec.token_quantiles[task][feature] == np.max(expected, axis=1).tolist()
        np.testing.assert_array_equal(spec.tokens_of_items(task, names), np.max(expected, axis=1))


def test_tokens_of_some_features_are_bounded(dataset):
    spec = dataset.spec
    some = spec.tokens_of_items("", ["title", "brand"])
    apart = [np.array(spec.token_quantiles[""][name]) for name in ("title", "brand")]
    np.testing.assert_array_equal(some, sum(apart))
    lengths = sum(np.diff(dataset.catalogue.text(name).offsets) for name in ("title", "brand"))
    lengths = lengths[np.unique(dataset.pairs("train")["item"])]
    for tilt in (1e-3, 1e-2, 0.1, 1.0):
        assert np.exp(tilt * some) @ statistics.MASSES >= np.exp(tilt * lengths).mean()
    assert spec.longest_item(["title", "brand"]) == spec.longest["title"] + spec.longest["brand"]
    assert spec.tokens_of_items("", []).tolist() == [0] * len(statistics.LEVELS)


def test_a_scaled_spec_has_as_many_more_of_all(dataset):
    spec = dataset.spec.scaled(3_000)
    for field in ("num_items", "num_existing", "num_images", "num_engaged"):
        assert getattr(spec, field) == 3 * getattr(dataset.spec, field)
    assert spec.num_tokens["title"] == 3 * dataset.spec.num_tokens["title"]
    assert spec.num_queries == dataset.spec.num_queries
