"""The simulated shop against its own law, and its oracle against sums and against what happened."""

import dataclasses
import itertools

import numpy as np
import pytest

from pinjax.data import pinshop_simulation as pinshop
from pinjax.data import pinworld_simulation as pinworld
from pinjax.data.pinshop_oracle import Oracle

MOMENT = pinworld.TRAIN_END
WINDOW = 14 * pinworld.DAY
TINY = pinshop.SIZES["tiny"]
CLICK, SAVE, CART, CHECKOUT = range(4)


@pytest.fixture(scope="module")
def shop():
    return pinshop.Shop(dataclasses.replace(TINY, engagements=400_000))


@pytest.fixture(scope="module")
def engagements(shop):
    return np.concatenate([pinshop.draw_engagements(shop, i) for i in shop.engagement_chunks])


@pytest.fixture(scope="module")
def wide():
    """A shop of many products."""
    return pinshop.Shop(dataclasses.replace(TINY, products=6_000))


@pytest.fixture(scope="module")
def texts(wide):
    chunks = [pinshop.draw_texts(wide, chunk) for chunk in wide.product_chunks]
    return {
        name: list(itertools.chain(*(chunk[name] for chunk in chunks))) for name in pinshop.FEATURES
    }


@pytest.fixture(scope="module")
def images(wide):
    """Images, float64, and the product of each."""
    vectors = np.concatenate([pinshop.draw_images(wide, chunk) for chunk in wide.product_chunks])
    assert vectors.dtype == np.float16
    return vectors.astype(np.float64), np.repeat(np.arange(len(wide.leaf)), wide.images)


def law(shop, topic: int, style: np.ndarray, kind: int, time: float) -> np.ndarray:
    """p(product | query, kind, time) as the module's docstring states it, float64 (products,)."""
    leaves = np.arange(shop.size.leaves)
    roots = leaves // shop.world.leaves_per_root
    anywhere = np.ones(len(leaves), bool)
    if topic < 24:
        own, near = leaves == topic, roots == roots[topic]
    elif topic < 24 + 6:
        own = near = roots == topic - 24
    else:
        own = near = anywhere
    chance = np.zeros(len(leaves))
    for share, part in ((0.7, own), (0.25, near), (0.05, anywhere)):
        popularity = shop.world.leaf_popularity * part
        chance += share * popularity / popularity.sum()

    value = np.array([0, 0, 0.7, 1.0])[kind] * shop.value.astype(np.float64)
    weight = shop.popularity * np.exp(3 * shop.style.astype(np.float64) @ style + value)
    weight = weight * (shop.created <= time)
    return chance[shop.leaf] * weight / np.bincount(shop.leaf, weight)[shop.leaf]


def over_window(shop, query: int, kind: int, moment: int) -> np.ndarray:
    """The mean of `law` over a window, float64: between creations it is constant."""
    end = moment + WINDOW
    created = shop.created.astype(np.float64)
    within = created[(created > moment) & (created < end)]
    times = np.r_[moment, np.sort(within), end]
    topic, style = shop.queries.topic[query], shop.queries.style[query].astype(np.float64)
    parts = [
        (after - before) * law(shop, topic, style, kind, (before + after) / 2)
        for before, after in itertools.pairwise(times)
    ]
    return np.sum(parts, axis=0) / WINDOW


def assert_drawn_from(counts: np.ndarray, chance: np.ndarray) -> None:
    """Chi-square within five standard deviations; what is rare is one cell."""
    assert (counts[chance == 0] == 0).all()
    expected = counts.sum() * chance / chance.sum()
    rare = expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(counts) - 1
    assert freedom > 2
    squares = ((counts - expected) ** 2 / expected).sum()
    assert abs(squares - freedom) < 5 * np.sqrt(2 * freedom) + 5


def accuracy(scores: np.ndarray, truth: np.ndarray) -> float:
    return (scores.argmax(axis=1) == truth).mean()


# Draws as functions of the seed.


def draw_all(shop, backwards: bool):
    step = -1 if backwards else 1
    drawn = {}
    for draw, chunks in (
        (pinshop.draw_engagements, shop.engagement_chunks),
        (pinshop.draw_texts, shop.product_chunks),
        (pinshop.draw_images, shop.product_chunks),
    ):
        assert len(chunks) > 2
        for chunk in chunks[::step]:
            drawn[draw.__name__, chunk] = draw(shop, chunk)
    return drawn


def test_draws_depend_on_the_seed_and_not_on_each_other(monkeypatch):
    monkeypatch.setattr(pinshop, "CHUNK", 128)
    monkeypatch.setattr(pinshop, "ENGAGEMENT_CHUNK", 2048)
    forwards = draw_all(pinshop.Shop(TINY), backwards=False)
    backwards = draw_all(pinshop.Shop(TINY), backwards=True)
    others = draw_all(pinshop.Shop(TINY, seed=1), backwards=False)
    assert forwards.keys() == backwards.keys() == others.keys()
    for key, value in forwards.items():
        np.testing.assert_equal(value, backwards[key])
        assert not np.array_equal(value, others[key]), key

    images, titles, count = 0, 0, 0
    for (name, _), value in forwards.items():
        images += len(value) if name == "draw_images" else 0
        titles += len(value["title"]) if name == "draw_texts" else 0
        count += len(value) if name == "draw_engagements" else 0
    assert (images, titles, count) == (pinshop.Shop(TINY).images.sum(), 300, 5_000)


def test_the_world_is_that_of_pinworld():
    world = pinworld.World(np.random.default_rng([0, 0, 0]), TINY.pins, TINY.roots, TINY.leaves)
    np.testing.assert_array_equal(pinshop.Shop(TINY).world.content, world.content)


def test_suggested_sizes_fit_together():
    for size in pinshop.SIZES.values():
        assert size.leaves % size.roots == 0
        assert size.products >= size.leaves
        assert size.queries < (1 - pinworld.NEW_PINS - 0.03) * size.pins


# Products.


def test_some_products_are_new_and_some_are_cold(wide):
    within = (wide.created >= pinworld.START) & (wide.created < pinworld.END)
    assert within.mean() == pytest.approx(0.15, abs=0.02)
    assert 0.01 < (wide.created > MOMENT).mean() < 0.05
    assert (wide.created < pinworld.END).all()
    assert len(set(wide.ids.tolist())) == len(wide.ids)


def test_images_and_text_features_are_missing_as_often_as_stated(wide, texts):
    counts = np.bincount(wide.images, minlength=21)
    assert len(counts) == 21
    assert_drawn_from(counts, pinshop.IMAGES)
    assert pinshop.IMAGES.sum() == pytest.approx(1)
    sized = wide.leaf // wide.world.leaves_per_root % 2 == 0
    for name, share in pinshop.FEATURES.items():
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
        texts["title"], texts["merchant_domain"], texts["link"], wide.ids.tolist(), strict=True
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
    of_leaf = counts[:, words.leaf : words.root].reshape(-1, 24, pinshop.LEAF_WORDS).sum(axis=2)
    assert accuracy(of_leaf, wide.leaf) > 0.9
    of_root = counts[:, words.root : words.looks["colours"]]
    of_root = of_root.reshape(-1, 6, pinshop.ROOT_WORDS).sum(axis=2)
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
    for name in pinshop.STYLE_WORDS:
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
    queries, world = shop.queries, shop.world
    pin = queries.pin[:200]
    assert len(set(pin.tolist())) == 200
    assert (world.created[pin] < pinworld.START).all()
    np.testing.assert_array_equal(queries.vector[:200], world.content[pin])
    np.testing.assert_array_equal(queries.topic[:200], world.leaf[pin])
    likeness = (queries.style[:200] * world.style[pin]).sum(axis=1)
    np.testing.assert_allclose(likeness, np.linalg.norm(world.style[pin], axis=1), rtol=1e-5)
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
    queries, world = shop.queries, shop.world
    vectors = queries.vector.astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=2e-3)
    about = np.arange(400)[200:][queries.topic[200:] < 24]
    topics = world.topic / np.linalg.norm(world.topic, axis=1, keepdims=True)
    assert accuracy(vectors[about] @ topics.T, queries.topic[about]) > 0.9
    styled = np.arange(400)[200:][queries.style[200:].any(axis=1)]
    told = vectors[styled] @ world.look.T.astype(np.float64)
    cosine = (told * queries.style[styled]).sum(axis=1) / np.linalg.norm(told, axis=1)
    assert cosine.mean() > 0.7


def test_few_queries_are_asked_often(shop):
    popularity = shop.queries.popularity
    assert popularity.sum() == pytest.approx(1)
    assert popularity[:200].sum() == pytest.approx(pinshop.IMAGE_SHARE)
    for part in (popularity[:200], popularity[200:]):
        ranked = np.sort(part)[::-1]
        assert ranked[:20].sum() > 0.25 * ranked.sum()
        assert ranked[100:].sum() > 0.05 * ranked.sum()


# Engagements.


def test_engagements_come_in_order_of_time_and_after_their_product(shop, engagements):
    assert len(engagements) == shop.size.engagements
    assert engagements.dtype == pinshop.ENGAGEMENT
    assert (np.diff(engagements["time"].astype(np.int64)) >= 0).all()
    assert engagements["time"].min() >= pinworld.START
    assert engagements["time"].max() < pinworld.END
    assert (engagements["time"] >= shop.created[engagements["product"]]).all()
    cold = np.flatnonzero(shop.created > MOMENT)
    assert np.isin(cold, engagements["product"]).any()
    days = (engagements["time"] - pinworld.START) // pinworld.DAY
    assert_drawn_from(np.bincount(days), np.ones(112))


def test_queries_and_kinds_come_by_their_shares(shop, engagements):
    kinds = np.bincount(engagements["kind"])
    assert_drawn_from(kinds, np.array([100, 35, 6, 2]))
    for kind in range(4):
        query = engagements["query"][engagements["kind"] == kind]
        assert_drawn_from(np.bincount(query, minlength=400), shop.queries.popularity)


def test_products_are_chosen_by_the_law(shop, rng):
    moment, draws = (pinworld.START + pinworld.END) // 2, 20_000
    assert ((shop.created > moment).sum()) > 10
    style = rng.standard_normal(8).astype(np.float32)
    style /= np.linalg.norm(style)
    for topic, look, kind in [
        (3, style, CLICK),
        (23, -style, CHECKOUT),
        (7, 0 * style, CART),  # of any style
        (24 + 2, style, SAVE),  # about a root
        (24 + 6, style, CART),  # about everything
    ]:
        products = shop.choose(
            rng,
            np.full(draws, topic),
            np.tile(look, (draws, 1)),
            np.full(draws, kind),
            np.full(draws, moment),
        )
        counts = np.bincount(products, minlength=300)
        assert_drawn_from(counts, law(shop, topic, look.astype(np.float64), kind, moment))


def test_rare_kinds_are_of_better_products(shop, engagements):
    value = [shop.value[engagements["product"][engagements["kind"] == k]].mean() for k in range(4)]
    assert abs(value[CLICK] - value[SAVE]) < 0.02
    assert value[CART] > value[CLICK] + 0.3
    assert value[CHECKOUT] > value[CART]


# The oracle.


@pytest.fixture(scope="module")
def oracle(shop):
    return pinshop.make_oracle(shop)


def test_the_closed_form_is_the_sum(shop, oracle, rng):
    moment = MOMENT - 28 * pinworld.DAY  # more is created after it
    end = moment + WINDOW
    assert ((shop.created > moment) & (shop.created < end)).sum() > 3
    late = shop.created >= end
    assert late.sum() > 3
    everything = np.flatnonzero(shop.queries.topic == 24 + 6)[:2]
    queries = np.r_[rng.choice(400, 20, replace=False), everything]
    for kind in range(4):
        scores = oracle.scores(queries, kind, moment, WINDOW)
        assert scores.dtype == np.float32
        expected = np.stack([over_window(shop, query, kind, moment) for query in queries])
        np.testing.assert_allclose(scores, expected, rtol=2e-5)
        np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)
        assert (scores[:, late] == 0).all()

        found = np.sort(expected, axis=1)[:, -10:].sum(axis=1)
        recall = np.average(found, weights=shop.queries.popularity[queries])
        measured = oracle.expected_recall(queries, kind, moment, WINDOW)
        assert measured == pytest.approx(recall, rel=1e-5)


@pytest.fixture(scope="module")
def future(engagements):
    time = engagements["time"]
    return engagements[(time >= MOMENT) & (time < MOMENT + WINDOW)]


def test_what_happens_is_what_the_oracle_expects(shop, oracle, future):
    popularity = shop.queries.popularity
    for kind in range(4):
        scores = oracle.scores(np.arange(400), kind, MOMENT, WINDOW)
        drawn = future[future["kind"] == kind]
        assert_drawn_from(np.bincount(drawn["product"], minlength=300), popularity @ scores)

        # For the most popular query alone, too.
        head = np.argmax(popularity)
        drawn = drawn["product"][drawn["query"] == head]
        if len(drawn) > 500:
            assert_drawn_from(np.bincount(drawn, minlength=300), scores[head])


def test_expected_recall_is_what_is_measured_and_beats_popularity(oracle, future):
    queries = np.arange(400)
    for kind in range(4):
        drawn = future[future["kind"] == kind]
        scores = oracle.scores(queries, kind, MOMENT, WINDOW)
        top = np.argsort(-scores, axis=1)[:, :10]
        hits = (top[drawn["query"]] == drawn["product"][:, None]).any(axis=1)
        expected = oracle.expected_recall(queries, kind, MOMENT, WINDOW)
        assert abs(hits.mean() - expected) < 3.3 * hits.std() / np.sqrt(len(hits))
        popular = np.argsort(-np.bincount(future["product"], minlength=300))[:10]
        assert hits.mean() > 2 * np.isin(drawn["product"], popular).mean()


def test_the_oracle_comes_back_from_its_file(oracle, tmp_path):
    oracle.save(tmp_path)
    loaded = Oracle.load(tmp_path)
    queries = np.array([399, 3, 3])
    np.testing.assert_array_equal(
        loaded.scores(queries, CART, MOMENT, WINDOW), oracle.scores(queries, CART, MOMENT, WINDOW)
    )
