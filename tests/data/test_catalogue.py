"""Columns of vectors."""

import numpy as np
import pyarrow as pa
import pytest

from pinjax.data import catalogue
from pinjax.errors import InputError


def test_given_vectors_are_lists_of_any_kind(rng):
    vectors = rng.standard_normal((5, 3)).astype(np.float32)
    fixed = pa.array(vectors.tolist(), pa.list_(pa.float32(), 3))
    for column in (
        pa.chunked_array([fixed]),
        pa.chunked_array([fixed[:2], fixed[2:]]),
        pa.chunked_array([fixed[1:]]).slice(1),
        pa.chunked_array([pa.array(vectors.tolist())]),
        pa.chunked_array([pa.array(vectors.tolist(), pa.large_list(pa.float32()))[2:]]),
    ):
        found = catalogue.given_vectors(column, "")
        np.testing.assert_array_equal(found, vectors[len(vectors) - len(column) :])
    halves = pa.chunked_array(
        [pa.array(vectors.astype(np.float16).tolist(), pa.list_(pa.float16()))]
    )
    np.testing.assert_array_equal(
        catalogue.given_vectors(halves, ""), vectors.astype(np.float16).astype(np.float32)
    )
    assert not len(catalogue.given_vectors(pa.chunked_array([fixed[:0]]), ""))


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1.0, 2.0]),
        pa.array(["x", "y"]),
        pa.array([["x"], ["y"]]),
        pa.array([[1.0], [1.0, 2.0]]),
        pa.array([None, [1.0]]),
        pa.array([[1.0], [None]]),
        pa.array([[1.0], None], pa.list_(pa.float32(), 1)),
        pa.array([[[1.0]], [[2.0]]]),
    ],
    ids=str,
)
def test_given_vectors_refuse_anything_else(column):
    with pytest.raises(InputError, match=r"^vector is .*; expected lists of numbers, all of one"):
        catalogue.given_vectors(pa.chunked_array([column]), "vector")
