"""The file of what features were fitted to."""

import numpy as np
import pytest
from etils import epath

from pinjax.data import fitted
from pinjax.errors import InputError


def test_it_comes_back_and_damage_is_found(rng, tmp_path):
    directory = epath.Path(tmp_path)
    assert fitted.Fitted.load(directory) is None
    made = fitted.Fitted({"axes": rng.standard_normal((3, 2))}, "a hash")
    made.save(directory)
    found = fitted.Fitted.load(directory)
    np.testing.assert_array_equal(found.arrays["axes"], made.arrays["axes"])
    assert found.identity == made.identity
    whole = (tmp_path / fitted.FILE).read_bytes()
    flipped = whole.replace(whole[200:208], bytes(8))
    for damaged in (b"", b"text", whole[:-9], whole[: len(whole) // 2], flipped):
        (tmp_path / fitted.FILE).write_bytes(damaged)
        with pytest.raises(InputError, match=r"fitted\.npz: damaged: "):
            fitted.Fitted.load(directory)


def test_the_identity_tells_arrays_and_former_parameters_apart(rng):
    axes = rng.standard_normal((3, 2))
    other = axes.copy()
    other[0, 0] += 1
    made = [
        fitted.Fitted({"axes": axes}, "a hash"),
        fitted.Fitted({"axes": other}, "a hash"),
        fitted.Fitted({"axes": axes.reshape(2, 3)}, "a hash"),
        fitted.Fitted({"origin": axes}, "a hash"),
        fitted.Fitted({"axes": axes}, "another"),
    ]
    assert len({tuple(one.identity.items()) for one in made}) == 5
    assert fitted.Fitted({"axes": axes.copy()}, "a hash").identity == made[0].identity
