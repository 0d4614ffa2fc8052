"""The texts of pinworld's searches: words of a topic and of looks."""

import numpy as np

from pinjax.data.simulated.words import Words, draw_rank
from pinjax.data.simulated.world import World

QUERY_TOPICS = (0.75, 0.15, 0.1)  # share of text queries about a leaf, a root, everything
QUERY_STYLES = (0.45, 0.4, 0.15)  # share with 0, 1, 2 words of style; about everything: at least 1
SECOND_TOPIC_WORD = 0.4  # share of text queries with two words of their topic


def draw(world: World, words: Words, rng: np.random.Generator, searches: int) -> np.ndarray:
    """Draws distinct searches, in the order of their first draw: likely ones early.

    Returns:
      int64 (searches, 4), padded with 0.
    """
    leaf_popularity = world.leaf_popularity
    styles = np.arange(words.looks["colours"], words.common)
    found = np.empty((0, 4), np.int64)
    while len(found) < searches:
        count = 2 * searches
        about = rng.choice(3, size=count, p=QUERY_TOPICS)
        leaf = rng.choice(len(leaf_popularity), size=count, p=leaf_popularity)
        root = leaf // world.leaves_per_root
        drawn = np.empty((count, 4), np.int64)
        drawn[:, :2] = styles[draw_rank(rng, len(styles), (count, 2))]
        number = np.maximum(rng.choice(3, size=count, p=QUERY_STYLES), about == 2)
        drawn[:, :2][np.arange(2) >= number[:, None]] = 0
        drawn[:, 2] = np.where(about == 0, words.of_leaf(rng, leaf), words.of_root(rng, root))
        of_leaf = (about == 0) & (rng.random(count) < 0.5)
        drawn[:, 3] = np.where(of_leaf, words.of_leaf(rng, leaf), words.of_root(rng, root))
        drawn[rng.random(count) >= SECOND_TOPIC_WORD, 3] = 0
        drawn[about == 2, 2:] = 0
        for first, second in ((0, 1), (2, 3)):
            drawn[drawn[:, first] == drawn[:, second], second] = 0
        found = np.concatenate([found, drawn])
        found = found[np.sort(np.unique(found, axis=0, return_index=True)[1])]
    return found[:searches]
