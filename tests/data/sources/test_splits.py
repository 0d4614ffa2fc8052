"""Splits of ids by a hash."""

import numpy as np
import pytest

from pinjax.data.sources import splits


def test_split_shares_and_seeds():
    first = [splits.split_of(user, 0, 0.1, 0.3) for user in range(4000)]
    shares = [first.count(split) / 4000 for split in range(3)]
    assert shares == pytest.approx([0.6, 0.1, 0.3], abs=0.03)
    second = [splits.split_of(user, 1, 0.1, 0.3) for user in range(4000)]
    same = np.mean([a == b for a, b in zip(first, second, strict=True)])
    assert same == pytest.approx(0.36 + 0.01 + 0.09, abs=0.03)  # independent
