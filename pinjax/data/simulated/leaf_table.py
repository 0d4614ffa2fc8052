"""Draws of pins and products within a leaf, for many millions of items."""

import numpy as np


class LeafTable:
    """Draws items of a leaf by their chances, for several variants of chances.

    One sorted table holds all variants and leaves. Its entry for a variant and the item order[j]
    is variant * leaves + leaf + the cumulative share of the leaf's chances up to this item.
    """

    def __init__(self, chance: np.ndarray, leaf: np.ndarray, order: np.ndarray):
        """Builds the table.

        Args:
          chance: (variants, items), up to a factor.
          leaf: int (items,); each leaf has an item.
          order: int (items,), the items sorted by leaf.
        """
        self._order = order
        leaf = leaf[order]
        self._leaves = leaf[-1] + 1
        first = np.searchsorted(leaf, np.arange(self._leaves))
        chance = np.take(chance, order, axis=1)
        total = np.add.reduceat(chance, first, axis=1, dtype=np.float64)
        chance = chance / np.take(total, leaf, axis=1)
        cumulative = np.cumsum(chance, axis=1) + np.arange(len(chance))[:, None] * self._leaves
        self._cumulative = cumulative.ravel()

    def draw(self, rng: np.random.Generator, variant: np.ndarray, leaf: np.ndarray) -> np.ndarray:
        """Draws an item for each variant and leaf, int64 (n,)."""
        place = variant * self._leaves + leaf + rng.random(len(leaf))
        column = np.searchsorted(self._cumulative[:-1], place, side="right")
        return self._order[column % len(self._order)]
