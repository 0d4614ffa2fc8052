"""A shop that is drawn once, and the formulas that tests compare draws with."""

import dataclasses

import numpy as np
import pytest

from pinjax.data.simulated import pinworld, world
from pinjax.data.simulated import shop as shop_lib


@pytest.fixture(scope="session")
def shop():
    """The shop of pinworld/tiny with many engagements."""
    size = dataclasses.replace(pinworld.SIZES["tiny"], engagements=400_000)
    return pinworld.draw_shop(pinworld.draw_world(size), size)


@pytest.fixture(scope="session")
def engagements(shop):
    drawn = [shop_lib.draw_engagements(shop, i) for i in shop.engagement_chunks]
    return np.concatenate(drawn)


@pytest.fixture(scope="session")
def positives():
    """The actions that show interest, on the home surface."""

    def of(actions: np.ndarray) -> np.ndarray:
        save, closeup, click = (world.ACTIONS.index(n) for n in ("save", "closeup", "click"))
        engaged = np.isin(actions["action"], [closeup, click]) & (actions["duration"] >= 10)
        home = actions["surface"] == world.SURFACES.index("home")
        return actions[home & (engaged | (actions["action"] == save))]

    return of


@pytest.fixture(scope="session")
def product_chance(shop):
    """p(item | query, kind, time) as the docstring of `shop` states it, float64 (items,)."""
    pins, leaves = shop.world, np.arange(24)
    value = np.full(len(pins.leaf), -np.inf)
    value[shop.pin] = shop.value
    norm = np.linalg.norm(pins.style.astype(np.float64), axis=1, keepdims=True)
    styles, roots = pins.style / norm, leaves // pins.leaves_per_root

    def chance(topic: int, style: np.ndarray, kind: int, time: float) -> np.ndarray:
        anywhere = np.ones(len(leaves), bool)
        if topic < 24:
            own, near = leaves == topic, roots == roots[topic]
        elif topic < 24 + 6:
            own = near = roots == topic - 24
        else:
            own = near = anywhere
        of_leaf = np.zeros(len(leaves))
        for share, part in ((0.7, own), (0.25, near), (0.05, anywhere)):
            popularity = pins.leaf_popularity * part
            of_leaf += share * popularity / popularity.sum()

        strength = np.array([0, 0, 0.7, 1.0])[kind]
        weight = pins.popularity * np.exp(3 * styles @ style.astype(np.float64))
        weight = weight * np.exp(strength * np.where(value > -np.inf, value, 0))
        weight = weight * (value > -np.inf) * (pins.created <= time)
        return of_leaf[pins.leaf] * weight / np.bincount(pins.leaf, weight)[pins.leaf]

    return chance


@pytest.fixture(scope="session")
def assert_drawn_from():
    """Chi-square within five standard deviations; rare outcomes share one cell."""

    def assert_it(counts: np.ndarray, chance: np.ndarray) -> None:
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

    return assert_it
