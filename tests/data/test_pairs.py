"""Data sets of engagements: what is written comes back, and the simulated one is what was drawn."""

import collections

import numpy as np
import pyarrow.parquet as pq
import pytest

from pinjax.data import datasets, pairs, pinshop, schema, text
from pinjax.data import pinshop_simulation as simulation
from pinjax.data.pinworld_simulation import TRAIN_END
from pinjax.errors import InputError


def ragged(lists):
    offsets = np.cumsum([0, *map(len, lists)])
    return text.Ragged(np.concatenate(lists).astype(np.int32), offsets)


def make(rng):
    products = pairs.Products(
        ids=np.array(["a", "b", "c"], object),
        topics=np.array([1, -1, 0], np.int32),
        created=np.array([0, 5, 2**31], np.uint32),
        images=rng.standard_normal((4, 3)).astype(np.float16),
        image_offsets=np.array([0, 3, 3, 4]),
        texts={"title": ragged([[1, 2], [], [0]]), "brand": ragged([[], [4], []])},
    )
    queries = pairs.Queries(
        ids=np.array(["17", "red chair"], object),
        kinds=np.array(["image", "text"], object),
        vectors=rng.standard_normal((2, 3)).astype(np.float16),
        products=np.array([2, -1], np.int32),
    )
    drawn = np.array([(0, 2, 0, 10), (1, 1, 1, 11), (1, 0, 1, 12)], pairs.PAIR)
    metadata = pairs.Metadata("shop", ("image/click", "text/save"), 10, "abc", {"rows": 3})
    sizes = {"unigrams": 9, "bigrams": 9, "trigrams": 9}
    vocabulary = text.Vocabulary.build(["red chair", "chair"], **sizes)
    return metadata, products, queries, vocabulary, drawn, np.array([0, 2, 1], np.int8)


def test_what_is_written_is_read(rng, tmp_path):
    metadata, products, queries, vocabulary, drawn, splits = made = make(rng)
    pairs.write(tmp_path / "shop", *made)
    found = pairs.read(tmp_path / "shop")
    assert found.metadata == metadata
    for expected, part in ((products, found.products), (queries, found.queries)):
        for name, value in vars(expected).items():
            if name != "texts":
                np.testing.assert_array_equal(getattr(part, name), value)
    assert found.products.texts.keys() == {"title", "brand"}
    for name, expected in products.texts.items():
        np.testing.assert_array_equal(found.products.texts[name].tokens, expected.tokens)
        np.testing.assert_array_equal(found.products.texts[name].offsets, expected.offsets)
    for row, split in enumerate(schema.SPLITS):
        np.testing.assert_array_equal(found.pairs(split), drawn[splits == row])
    assert found.vocabulary.digest == vocabulary.digest


def test_older_queries_are_refused(rng, tmp_path):
    pairs.write(tmp_path / "shop", *make(rng))
    (file,) = (tmp_path / "shop").glob("queries*")
    pq.write_table(pq.read_table(file).drop_columns("product"), file)
    with pytest.raises(InputError, match=r"queries\.parquet: of an older version; prepare"):
        _ = pairs.read(tmp_path / "shop").queries


def test_identity_tells_frozen_tables_apart(rng, tmp_path):
    metadata, products, queries, *rest = make(rng)
    pairs.write(tmp_path / "a", metadata, products, queries, *rest)
    queries.vectors[0, 0] += 1
    pairs.write(tmp_path / "b", metadata, products, queries, *rest)
    a, b = (pairs.read(tmp_path / name).frozen for name in "ab")
    assert {name for name in a if a[name] != b[name]} == {"query vectors"}


def test_a_failure_while_writing_leaves_nothing(rng, tmp_path):
    def fail(directory):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        pairs.write(tmp_path / "shop", *make(rng), fail)
    assert not list(tmp_path.iterdir())


def test_of_two_that_write_at_once_the_first_stays(rng, tmp_path):
    first, second = make(rng), make(rng)
    pairs.write(tmp_path / "shop", *second, lambda _: pairs.write(tmp_path / "shop", *first))
    assert [path.name for path in tmp_path.iterdir()] == ["shop"]
    found = pairs.read(tmp_path / "shop").queries.vectors
    np.testing.assert_array_equal(found, first[2].vectors)


@pytest.mark.parametrize("name", ["nowhere", "pinshop/huge"])
def test_unknown_data_sets_are_refused(tmp_path, name):
    with pytest.raises(InputError, match=name):
        datasets.load_pairs(name, str(tmp_path))


@pytest.mark.parametrize("columns", [1, 3])
def test_interleave_is_thing_by_thing(rng, columns):
    lists = [[rng.integers(0, 9, rng.integers(0, 4)) for _ in range(5)] for _ in range(columns)]
    found = text.interleave([ragged(column) for column in lists])
    expected = ragged([lists[column][thing] for thing in range(5) for column in range(columns)])
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.offsets, expected.offsets)


def test_pinshop_on_disk_is_the_simulation(tmp_path):
    shop = simulation.Shop(simulation.SIZES["tiny"])
    found = datasets.load_pairs("pinshop/tiny", str(tmp_path))
    drawn = np.concatenate([simulation.draw_engagements(shop, c) for c in shop.engagement_chunks])
    expected = collections.Counter(
        (query, product, f"{'image' if shop.queries.pin[query] >= 0 else 'text'}/{kind}", time)
        for query, product, kind, time in (
            (q, p, simulation.KINDS[k], t) for q, p, k, t in drawn.tolist()
        )
    )
    parts = {split: found.pairs(split) for split in schema.SPLITS}
    everything = np.concatenate(list(parts.values())).tolist()
    tasks = found.metadata.tasks
    assert collections.Counter((q, p, tasks[k], t) for q, p, k, t in everything) == expected
    assert parts["train"]["time"].max() <= TRAIN_END < parts["test"]["time"].min()
    assert not set(parts["valid"]["query"]) & set(parts["test"]["query"])

    titles = simulation.draw_texts(shop, 0)["title"]
    tokens = found.vocabulary.rows["token"].to_pylist()
    first = found.products.texts["title"].tokens[: found.products.texts["title"].offsets[1]]
    words = [tokens[t] for t in first if t < found.vocabulary.sizes[0]]
    assert words == titles[0].split()
    assert found.products.image_offsets[-1] == shop.images.sum()
    query = int(np.argmax(shop.queries.pin < 0))
    assert found.queries.ids[query] == shop.queries.text[query]
    np.testing.assert_allclose(found.oracle(np.array([query]), 5).sum(), 1, rtol=1e-4)


def test_a_shop_is_built_once(tmp_path):
    first = pinshop.ensure("tiny", tmp_path)
    before = {path: path.stat() for path in first.iterdir()}
    assert pinshop.ensure("tiny", tmp_path) == first
    assert before == {path: path.stat() for path in first.iterdir()}
