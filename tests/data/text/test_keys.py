"""Ids of keys against a dictionary."""

import numpy as np
import pytest

from pinjax.data.text import keys as keys_lib


@pytest.mark.parametrize("crowded", [False, True])
def test_lookup_is_that_of_a_dict(rng, monkeypatch, crowded):
    if crowded:  # all keys in one slot, and beyond the end of the table
        monkeypatch.setattr(keys_lib, "mix", lambda keys: keys | np.uint64(2**64 - 2**32))
    keys = rng.permutation(2000).astype(np.uint64)
    lookup = keys_lib.Lookup(keys[:500], 7)
    ids = {int(key): 7 + i for i, key in enumerate(keys[:500])}
    assert lookup(keys).tolist() == [ids.get(int(key), -1) for key in keys]
