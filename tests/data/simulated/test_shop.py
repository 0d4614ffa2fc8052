"""Products, texts, images, queries and engagements against how they are said to be drawn."""

import dataclasses
import itertools

import numpy as np
import pytest

from pinjax.data import pairs
from pinjax.data.simulated import pinworld, world
from pinjax.data.simulated import shop as shop_lib
from pinjax.data.simulated import words as words_lib
from pinjax.timestamps import DAY

T = world.TRAIN_END
TINY = pinworld.SIZES["tiny"]
CLICK, SAVE, CART, CHECKOUT = range(4)


@pytest.fixture(scope="module")
def wide():
    """A shop of many products."""
    size = dataclasses.replace(TINY, pins=20_000, products=6_000)
    return pinworld.draw_shop(pinworld.draw_world(size), size)


@pytest.fixture(scope="module")
def texts(wide):
    chunks = [shop_lib.draw_texts(wide, chunk) for chunk in wide.product_chunks]
    return {
        name: list(itertools.chain(*(chunk[name] for chunk in chunks)))
        for name in shop_lib.FEATURES
    }


@pytest.fixture(scope="module")
def images(wide):
    """Images, float64, and the product of each."""
    vectors = np.concatenate([shop_lib.draw_images(wide, chunk) for chunk in wide.product_chunks])
    assert vectors.dtype == np.float16
    return vectors.astype(np.float64), np.repeat(np.arange(len(wide.leaf)), wide.images)


def accuracy(scores: np.ndarray, truth: np.ndarray) -> float:
    return (scores.argmax(axis=1) == truth).mean()


# Draws as functions of the seed.


def draw_all(shop, backwards: bool):
    step = -1 if backwards else 1
    drawn = {}
    for draw, chunks in (
        (shop_lib.draw_engagements, shop.engagement_chunks),
        (shop_lib.draw_texts, shop.product_chunks),
        (shop_lib.draw_images, shop.product_chunks),
    ):
        assert len(chunks) > 2
        for chunk in chunks[::step]:
            drawn[draw.__name__, chunk] = draw(shop, chunk)
    return drawn


def test_draws_depend_on_the_seed_and_not_on_each_other(monkeypatch):
    monkeypatch.setattr(shop_lib, "CHUNK", 128)
    monkeypatch.setattr(shop_lib, "ENGAGEMENT_CHUNK", 2048)
    first, second = (pinworld.draw_shop(pinworld.draw_world(TINY), TINY) for _ in range(2))
    size = dataclasses.replace(TINY, seed=1)
    other = pinworld.draw_shop(pinworld.draw_world(size), size)
    forwards, backwards = draw_all(first, backwards=False), draw_all(second, backwards=True)
    others = draw_all(other, backwards=False)
    assert forwards.keys() == backwards.keys() == others.keys()
    for key, value in forwards.items():
        np.testing.assert_equal(value, backwards[key])
        assert not np.array_equal(value, others[key]), key

    images, titles, count = 0, 0, 0
    for (name, _), value in forwards.items():
        images += len(value) if name == "draw_images" else 0
        titles += len(value["title"]) if name == "draw_texts" else 0
        count += len(value) if name == "draw_engagements" else 0
    assert (images, titles) == (first.images.sum(), 300)
    assert 4_500 < count < 5_000  # some lead to themselves


def test_suggested_sizes_fit_together():
    for size in pinworld.SIZES.values():
        assert size.leaves % size.roots == 0
        assert size.leaves <= size.products <= size.pins
        assert size.image_queries < (1 - world.NEW_PINS - 0.03) * size.pins


# Products.


def test_products_are_pins_among_them_the_most_popular_of_each_leaf(wide):
    pins = wide.world
    assert len(wide.pin) == 6_000
    assert (np.diff(wide.pin) > 0).all()
    np.testing.assert_array_equal(wide.leaf, pins.leaf[wide.pin])
    style = pins.style[wide.pin] / np.linalg.norm(pins.style[wide.pin], axis=1, keepdims=True)
    np.testing.assert_allclose(wide.style, style, rtol=1e-6)
    rest = np.ones(len(pins.leaf), bool)
    for leaf in range(24):
        own = np.flatnonzero(pins.leaf == leaf)
        top = own[pins.popularity[own].argmax()]
        assert top in wide.pin
        assert pins.created[top] < world.START
        rest[top] = False
    others = np.isin(np.flatnonzero(rest), wide.pin)
    popularity = pins.popularity[rest]
    assert others.mean() == pytest.approx(0.3, abs=0.01)
    assert others[popularity > np.median(popularity)].mean() == pytest.approx(0.3, abs=0.03)


def test_some_products_are_new_and_some_are_cold(wide):
    created = wide.world.created[wide.pin]
    within = (created >= world.START) & (created < world.END)
    assert within.mean() == pytest.approx(0.15, abs=0.02)
    assert 0.01 < (created > T).mean() < 0.05
    assert (created < world.END).all()


def test_images_and_text_features_are_missing_as_often_as_stated(wide, texts, assert_drawn_from):
    counts = np.bincount(wide.images, minlength=21)
    assert len(counts) == 21
    assert_drawn_from(counts, shop_lib.IMAGES)
    assert shop_lib.IMAGES.sum() == pytest.approx(1)
    sized = wide.leaf // wide.world.leaves_per_root % 2 == 0
    for name, share in shop_lib.FEATURES.items():
        there = np.array([bool(text) for text in texts[name]])
        if name in ("size", "size_type"):
            assert not there[~sized].any()
            there = there[sized]
        assert there.mean() == pytest.approx(share, abs=0.04), name
    assert all(texts["title"])


def test_texts_look_like_those_of_products(wide, texts):
    for name, low, high in (("title", 4, 10), ("description", 10, 30), ("colours", 1, 2)):
        lengths = {len(text.split()) for text in texts[name] if text}
        assert lengths == set(range(low, high + 1)), name
    for title, domain, link, number in zip(
        texts["title"],
        texts["merchant_domain"],
        texts["link"],
        wide.world.ids[wide.pin].tolist(),
        strict=True,
    ):
        if domain and link:
            slug = "-".join(title.split()[:3])
            assert link == f"https://{domain}/{slug}-{number}"
    assert {len(text.split(" > ")) for text in texts["category"] if text} == {1, 2}
    words = wide.words
    names = [*words.text[1:], *words.brands.name, *words.merchants.name]
    assert len(set(names)) == len(names)


def test_counting_the_words_of_each_leaf_tells_the_leaf(wide, texts):
    words = wide.words
    row = {word: i for i, word in enumerate(words.text)}
    counts = np.zeros((len(wide.leaf), len(words.text)))
    for name in ("title", "description"):
        for product, text in enumerate(texts[name]):
            np.add.at(counts[product], [row[word] for word in text.split()], 1)
    of_leaf = counts[:, words.leaf : words.root].reshape(-1, 24, words_lib.LEAF_WORDS).sum(axis=2)
    assert accuracy(of_leaf, wide.leaf) > 0.9
    of_root = counts[:, words.root : words.looks["colours"]]
    of_root = of_root.reshape(-1, 6, words_lib.ROOT_WORDS).sum(axis=2)
    assert accuracy(of_root, wide.leaf // wide.world.leaves_per_root) > 0.8
    assert (counts[:, words.common :].sum(axis=1) > 0).mean() > 0.9


def test_images_tell_the_leaf_noisily(wide, images):
    vectors, product = images
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)
    leaf = wide.leaf[product]
    centres = np.stack([vectors[leaf == k].mean(axis=0) for k in range(24)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    cosines = vectors @ centres.T
    means = np.stack([cosines[leaf == k].mean(axis=0) for k in range(24)])
    np.testing.assert_array_equal(means.argmax(axis=1), np.arange(24))
    assert 0.4 < accuracy(cosines, leaf) < 0.85

    # They lie where pins lie.
    pins = np.stack([wide.world.content[wide.world.leaf == k].mean(axis=0) for k in range(24)])
    assert accuracy(vectors @ pins.T, leaf) > 0.4


def test_images_tell_the_style_better_than_words_do(wide, texts, images):
    vectors, product = images
    style = wide.style[product].astype(np.float64)
    half = len(vectors) // 2
    told = vectors[half:] @ np.linalg.lstsq(vectors[:half], style[:half], rcond=None)[0]
    cosine = (told * style[half:]).sum(axis=1) / np.linalg.norm(told, axis=1)
    assert cosine.mean() > 0.85

    row = {word: i for i, word in enumerate(wide.words.text)}
    for name in words_lib.STYLE_WORDS:
        told = [
            wide.words.style[row[text.split()[0]]] @ style
            for text, style in zip(texts[name], wide.style, strict=True)
            if text
        ]
        assert 0.15 < np.mean(told) < 0.35, name


def test_brand_and_merchant_tell_a_little_of_everything(wide, texts):
    root = wide.leaf // wide.world.leaves_per_root
    for name, makers in (("brand", wide.words.brands), ("merchant_domain", wide.words.merchants)):
        row = {maker: i for i, maker in enumerate(makers.name)}
        there = np.flatnonzero([bool(text) for text in texts[name]])
        maker = np.array([row[texts[name][i].removesuffix(".com")] for i in there])
        assert 0.4 < (makers.root[maker] == root[there]).mean() < 0.95
        assert 0.03 < (makers.style[maker] * wide.style[there]).sum(axis=1).mean() < 0.3
        assert 0.1 < np.corrcoef(makers.level[maker], wide.value[there])[0, 1] < 0.5


# Queries.


def test_image_queries_are_pins(shop):
    queries, pins = shop.queries, shop.world
    pin = queries.pin[:200]
    assert not np.isin(pin, shop.pin).all()
    assert len(set(pin.tolist())) == 200
    assert (pins.created[pin] < world.START).all()
    np.testing.assert_array_equal(queries.vector[:200], pins.content[pin])
    np.testing.assert_array_equal(queries.topic[:200], pins.leaf[pin])
    likeness = (queries.style[:200] * pins.style[pin]).sum(axis=1)
    np.testing.assert_allclose(likeness, np.linalg.norm(pins.style[pin], axis=1), rtol=1e-5)
    assert (queries.text[:200] == "").all()


def test_what_a_text_query_means_follows_from_its_text(shop):
    queries, words = shop.queries, shop.words
    assert (queries.pin[200:] == -1).all()
    texts = queries.text[200:].tolist()
    assert len(set(texts)) == 200
    row = {word: i for i, word in enumerate(words.text)}
    for i, text in enumerate(texts):
        known = [row[word] for word in text.split()]
        assert 1 <= len(known) <= 4
        assert len(set(known)) == len(known)
        assert queries.topic[200 + i] == min(words.topic[word] for word in known)
        style = sum(words.style[word].astype(np.float64) for word in known)
        length = np.linalg.norm(style)
        style = style / length if length else style
        np.testing.assert_allclose(queries.style[200 + i], style, atol=1e-6)
    about = np.digitize(queries.topic[200:], [24, 30])
    assert (np.bincount(about) > 10).all()
    assert 0.2 < queries.style[200:].any(axis=1).mean() < 0.8


def test_a_text_querys_vector_says_what_it_means(shop):
    queries, pins = shop.queries, shop.world
    vectors = queries.vector.astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)
    about = np.arange(400)[200:][queries.topic[200:] < 24]
    topics = pins.topic / np.linalg.norm(pins.topic, axis=1, keepdims=True)
    assert accuracy(vectors[about] @ topics.T, queries.topic[about]) > 0.9
    styled = np.arange(400)[200:][queries.style[200:].any(axis=1)]
    told = vectors[styled] @ pins.look.T.astype(np.float64)
    cosine = (told * queries.style[styled]).sum(axis=1) / np.linalg.norm(told, axis=1)
    assert cosine.mean() > 0.7


def test_few_queries_are_asked_often(shop):
    popularity = shop.queries.popularity
    assert popularity.sum() == pytest.approx(1)
    assert popularity[:200].sum() == pytest.approx(shop_lib.IMAGE_SHARE)
    for part in (popularity[:200], popularity[200:]):
        ranked = np.sort(part)[::-1]
        assert ranked[:20].sum() > 0.25 * ranked.sum()
        assert ranked[100:].sum() > 0.05 * ranked.sum()


# Engagements.


def test_engagements_come_in_order_of_time_and_after_their_product(
    shop, engagements, assert_drawn_from
):
    assert engagements.dtype == pairs.PAIR
    time = engagements["time"].astype(np.int64)
    assert (np.diff(time) >= 0).all()
    assert time.min() >= world.START
    assert time.max() < world.END
    assert np.isin(engagements["item"], shop.pin).all()
    assert (time >= shop.world.created[engagements["item"]]).all()
    cold = np.flatnonzero(shop.world.created > T)
    assert np.isin(cold, engagements["item"]).any()
    assert_drawn_from(np.bincount((time - world.START) // DAY), np.ones(112))


def test_no_pin_leads_to_itself(shop, engagements):
    pin = shop.queries.pin
    assert np.isin(pin, shop.pin).sum() > 50
    assert (engagements["item"] != pin[engagements["query"]]).all()
    assert 0.9 < len(engagements) / shop.engagements < 0.95


def test_queries_and_kinds_come_by_their_shares(shop, engagements, assert_drawn_from):
    # Of queries that lead to themselves the more are left out, the likelier that is.
    plain = ~np.isin(shop.queries.pin, shop.pin)
    plain_ones = engagements[plain[engagements["query"]]]
    task, is_text = plain_ones["task"], shop.queries.pin[plain_ones["query"]] < 0
    np.testing.assert_array_equal(is_text, task >= 4)
    assert shop_lib.TASKS[0] == "image/click"
    assert shop_lib.TASKS[7] == "text/checkout"
    assert_drawn_from(np.bincount(task % 4), np.array([100, 35, 6, 2]))
    popularity = shop.queries.popularity
    for kind in range(4):
        query = plain_ones["query"][task % 4 == kind]
        assert_drawn_from(np.bincount(query, minlength=400), popularity * plain)


def test_products_are_chosen_as_stated(shop, rng, product_chance, assert_drawn_from):
    time, draws = (world.START + world.END) // 2, 20_000
    assert (shop.world.created[shop.pin] > time).sum() > 10
    style = rng.standard_normal(8).astype(np.float32)
    style /= np.linalg.norm(style)
    for topic, look, kind in [
        (3, style, CLICK),
        (23, -style, CHECKOUT),
        (7, 0 * style, CART),  # of any style
        (24 + 2, style, SAVE),  # about a root
        (24 + 6, style, CART),  # about everything
    ]:
        items = shop.choose(
            rng,
            np.full(draws, topic),
            np.tile(look, (draws, 1)),
            np.full(draws, kind),
            np.full(draws, time),
        )
        counts = np.bincount(items, minlength=1_000)
        assert_drawn_from(counts, product_chance(topic, look, kind, time))


def test_rare_kinds_are_of_better_products(shop, engagements):
    value = np.full(1_000, np.nan)
    value[shop.pin] = shop.value
    value = [
        value[engagements["item"][engagements["task"] % 4 == kind]].mean() for kind in range(4)
    ]
    assert abs(value[CLICK] - value[SAVE]) < 0.02
    assert value[CART] > value[CLICK] + 0.3
    assert value[CHECKOUT] > value[CART]
