import functools

import jax
import jax.numpy as jnp
import numpy as np

from pinjax.models import product_features

PRODUCTS, FEATURES, SLOTS = 30, 3, 4


def make(rng):
    """Images and texts, and the same as lists."""
    images = [rng.standard_normal((rng.integers(0, 7), 2)) for _ in range(PRODUCTS)]
    texts = [
        [rng.integers(1, 99, rng.integers(0, 6)) for _ in range(FEATURES)] for _ in range(PRODUCTS)
    ]
    flat = [tokens for product in texts for tokens in product]

    def ragged(lists, dtype, number):
        offsets = np.cumsum([0, *map(len, lists)])
        made = product_features.Ragged.create(np.concatenate(lists).astype(dtype), offsets, number)
        return jax.tree.map(jnp.asarray, made)

    return ragged(images, np.float32, 1), ragged(flat, np.int32, FEATURES), images, texts


def test_images_fill_the_first_slots(rng):
    made, _, images, _ = make(rng)
    rows = rng.integers(0, PRODUCTS, 12)
    found, mask = product_features.gather_images(made, jnp.asarray(rows), SLOTS)
    for row, vectors, exists in zip(rows, np.asarray(found), np.asarray(mask), strict=True):
        number = min(len(images[row]), SLOTS)
        np.testing.assert_array_equal(exists, np.arange(SLOTS) < number)
        np.testing.assert_array_equal(vectors[:number], images[row][:number].astype(np.float32))


def test_tokens_are_those_of_the_rows_in_order(rng):
    _, made, _, texts = make(rng)
    gather = jax.jit(functools.partial(product_features.gather_tokens, capacity=100))
    for number in (1, 3, 5):
        rows = rng.integers(0, PRODUCTS, number)
        tokens, segments, fits = map(np.asarray, gather(made, jnp.asarray(rows)))
        expected = [
            (token, i * FEATURES + feature)
            for i, row in enumerate(rows)
            for feature in range(FEATURES)
            for token in texts[row][feature]
        ]
        assert fits == (len(expected) <= 100)
        count = len(expected)
        assert list(zip(tokens[:count], segments[:count], strict=True)) == expected
        assert (segments[count:] == number * FEATURES).all()


def test_what_does_not_fit_is_told(rng):
    _, made, _, texts = make(rng)
    rows = np.arange(PRODUCTS)
    total = sum(len(tokens) for product in texts for tokens in product)
    for capacity in (total - 1, total):
        *_, fits = product_features.gather_tokens(made, jnp.asarray(rows), capacity)
        assert bool(fits) == (capacity == total)


def test_capacity_is_enough_and_not_much_more(rng):
    lengths = rng.geometric(0.05, 1_000)
    weights = rng.random(1_000)
    draws = rng.choice(1_000, (2_000, 256), p=weights / weights.sum())
    totals = lengths[draws].sum(axis=1)
    capacity = product_features.token_capacity(lengths, weights, 256)
    assert totals.max() < capacity < 2 * totals.mean()
    assert capacity % 128 == 0


def test_most_tokens_of_a_catalogue_in_order(rng):
    lengths = rng.integers(0, 9, 23)
    padded = np.append(lengths, [lengths[-1]] * 2)
    assert product_features.most_tokens(lengths, 5) == padded.reshape(5, 5).sum(axis=1).max()
