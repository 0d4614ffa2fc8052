"""Lengths of windows that scripts here measure on."""

import numpy as np
from scipy import special

from pinjax.data import batches

# Windows that training draws by configs/pinnerformer.py:ifdb and :globo, with data.length=256, from
# the public logs as `real_sets.prepare` makes them (globo of all users): at the middles of 32 equal
# shares of windows. A user without labels has a window of 1.
LOGS = {
    "ifdb": (
        *(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1),
        *(1, 2, 3, 3, 4, 5, 7, 8, 10, 13, 17, 23, 31, 46, 82, 215),
    ),
    "globo": (
        *(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2),
        *(3, 3, 3, 3, 3, 4, 5, 5, 6, 7, 8, 9, 11, 14, 19, 33),
    ),
}
KINDS = ("full", "quarter", *LOGS)
_MEDIAN = 0.16474  # in windows of M: with it the mean of `quarter` is 0.25, clipped


def draw(kind: str, count: int, users: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """The lengths of the windows of some batches.

    As in training, each batch has a user of each of as many strata as it has users.

    Args:
      kind: full: all of M actions; quarter: log-normal, of deviation 1, with a mean of M / 4;
        ifdb and globo: as in these logs.
      count: of batches.
      users: of a batch.
      length: M, the longest window.
      rng: for the places in the strata.

    Returns:
      int64 (count, users), each from 1 to M, in an order that suits several devices.
    """
    shares = (np.arange(users) + rng.random((count, users))) / users
    if kind == "full":
        lengths = np.full(shares.shape, length)
    elif kind == "quarter":
        lengths = _MEDIAN * length * np.exp(special.ndtri(shares))
    else:
        known = LOGS[kind]
        lengths = np.interp(shares, (np.arange(len(known)) + 0.5) / len(known), known)
    return np.clip(np.rint(lengths), 1, length).astype(np.int64)[:, batches.spread(users)]
