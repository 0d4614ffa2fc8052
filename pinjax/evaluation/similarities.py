"""How the similarities of items are distributed."""

import math

import numpy as np
from jaxtyping import Float

_EQUAL = 1e-6  # the standard deviation of similarities that are equal but for rounding


def kurtosis(vectors: Float[np.ndarray, "items dim"], seed: int = 0, pairs: int = 100_000) -> float:
    """The kurtosis of the cosine similarities of random pairs of items.

    PinSage (Ying et al., KDD 2018), §4.2, prefers low values, where similarities are spread out.
    This is the excess kurtosis (Fisher's), the fourth standardised moment less 3: the paper's 0.43
    can be no other, since Pearson's is never below 1.

    Args:
      vectors: of items, of any lengths; zeros are left out.
      seed: of the pairs.
      pairs: drawn with replacement, each of two different items.

    Returns:
      The kurtosis; NaN with fewer than two items, or if all similarities are equal.
    """
    norms = np.linalg.norm(vectors.astype(np.float64), axis=1)
    rows = np.flatnonzero(norms > 0)
    if len(rows) < 2:
        return math.nan
    rng = np.random.default_rng(seed)
    first = rng.integers(0, len(rows), pairs)
    second = (first + rng.integers(1, len(rows), pairs)) % len(rows)
    first, second = rows[first], rows[second]
    similarity = np.einsum("pd,pd->p", vectors[first], vectors[second], dtype=np.float64)
    similarity /= norms[first] * norms[second]
    centred = similarity - similarity.mean()
    variance = np.mean(centred**2)
    return float(np.mean(centred**4) / variance**2 - 3) if variance > _EQUAL**2 else math.nan
