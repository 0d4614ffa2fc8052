"""The rows of users in a directory of embeddings, against a dictionary."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from etils import epath

from pinjax import checksums
from pinjax.data import embeddings, kept
from pinjax.errors import InputError


def write(directory, users, ids, vectors, times):
    """A directory with the users in several files, each with several rows."""
    files = embeddings.file_names("users", len(users))
    for file, some in zip(files, users, strict=True):
        rows = np.concatenate([np.flatnonzero(ids == user) for user in some])
        table = embeddings.to_arrow(ids[rows], vectors[rows], times[rows], "float32")
        pq.write_table(table, directory / file)
    written = {file: checksums.of_file(epath.Path(directory / file)) for file in files}
    manifest = {"checkpoint": "x", "as_of": "2025-01-02T00:00:00+00:00", "files": written}
    (directory / embeddings.MANIFEST).write_text(checksums.dump(manifest))
    return embeddings.open_directory(epath.Path(directory), epath.Path(directory), verify=True)


@pytest.mark.parametrize("text", [False, True])
def test_rows_are_those_of_the_directory(tmp_path, rng, text):
    user = np.sort(rng.integers(-20, 40, 100)) * 3_000_000_019  # no user at some numbers
    ids = np.array([f"ü{x}" for x in user], object) if text else user
    vectors = rng.normal(size=(100, 3)).astype(np.float32)
    times = rng.integers(0, 2**31, 100)
    known = np.unique(ids)
    users = np.array_split(rng.permutation(known), 7)
    found = kept.Kept(write(tmp_path, users, ids, vectors, times))
    assert found.as_of == 1_735_776_000
    assert found.dim == 3

    new = np.array(["new", "ü"], object) if text else np.array([7, -1])
    asked = rng.permutation(np.concatenate([known, new]))
    counts = [int(np.sum(ids == own)) for own in asked]
    assert max(counts) > 2
    rows = np.concatenate([np.flatnonzero(ids == own) for own in asked]).astype(int)
    np.testing.assert_array_equal(found.counts(asked), counts)
    result = found.rows(asked)
    np.testing.assert_array_equal(result.counts, counts)
    np.testing.assert_array_equal(result.vectors, vectors[rows])
    np.testing.assert_array_equal(result.as_of, times[rows])
    assert len(found.rows(new).vectors) == 0
    other = np.arange(3) if text else np.array(["0"], object)
    with pytest.raises(InputError, match="users have ids that are"):
        found.counts(other)
