import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinjax.systems import ragged_features

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
        made = ragged_features.DeviceRagged.create(
            np.concatenate(lists).astype(dtype), offsets, number
        )
        return jax.tree.map(jnp.asarray, made)

    return ragged(images, np.float32, 1), ragged(flat, np.int32, FEATURES), images, texts


def test_images_fill_the_first_slots(rng):
    made, _, images, _ = make(rng)
    rows = rng.integers(0, PRODUCTS, 12)
    found, mask = ragged_features.gather_images(made, jnp.asarray(rows), SLOTS)
    for row, vectors, exists in zip(rows, np.asarray(found), np.asarray(mask), strict=True):
        number = min(len(images[row]), SLOTS)
        np.testing.assert_array_equal(exists, np.arange(SLOTS) < number)
        np.testing.assert_array_equal(vectors[:number], images[row][:number].astype(np.float32))


def test_tokens_are_those_of_the_rows_in_order(rng):
    _, made, _, texts = make(rng)
    gather = jax.jit(functools.partial(ragged_features.gather_tokens, capacity=100))
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
        *_, fits = ragged_features.gather_tokens(made, jnp.asarray(rows), capacity)
        assert bool(fits) == (capacity == total)


@pytest.mark.parametrize("longest", [9, 300])  # of one product; of all others 9
@pytest.mark.parametrize("chance", [1e-3, 1e-18])
def test_capacity_is_exceeded_as_seldom_as_said(rng, longest, chance):
    lengths, weights = rng.integers(0, 10, 500), rng.random(500)
    lengths[7], number = longest, 64
    capacity = ragged_features.token_capacity(lengths, weights, number, chance)
    assert capacity % 128 == 0
    # The distribution of the sum, by doubling.
    of_sum = np.bincount(lengths, weights) / weights.sum()
    for _ in range(6):
        of_sum = np.convolve(of_sum, of_sum)
    above = np.cumsum(of_sum[::-1])[::-1]  # above[c]: so many or more
    assert above[capacity + 1 :].max(initial=0) <= chance
    assert above[capacity - 128 - longest] > chance / 1e3  # and no larger than it has to be


def test_capacity_of_what_cannot_be_more():
    capacity = functools.partial(ragged_features.token_capacity, chance=1e-30)
    assert capacity(np.array([64, 300]), np.array([2.0, 0.0]), 8) == 512
    assert capacity(np.zeros(3, int), np.ones(3), 8) == 0


@pytest.mark.parametrize("capacity", [8, 20, 1_000])
def test_products_are_packed_in_order_and_have_room(rng, capacity):
    lengths = rng.integers(0, 9, 53)
    packed = ragged_features.pack(lengths, 5, capacity)
    assert packed[packed >= 0].tolist() == list(range(53))
    for group, after in itertools.pairwise(packed):
        places = group[group >= 0]
        assert lengths[places].sum() <= capacity
        # No more than there is room for.
        assert len(places) == 5 or lengths[places].sum() + lengths[after[0]] > capacity
        assert (group[len(places) :] == -1).all()
    assert ragged_features.pack(lengths[:0], 5, capacity).shape == (0, 5)
