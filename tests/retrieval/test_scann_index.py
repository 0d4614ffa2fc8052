import subprocess
import sys

import numpy as np
import pytest

from pinjax.errors import InputError
from pinjax.retrieval import exact, scann_index

pytest.importorskip("scann")


def unit_vectors(rng, items, dim=16, topics=50):
    """Vectors around topic centres, as embeddings are."""
    centres = rng.standard_normal((topics, dim))
    vectors = centres[rng.integers(topics, size=items)] + 0.5 * rng.standard_normal((items, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_small_index_is_exact(rng):
    index, queries = unit_vectors(rng, 500), unit_vectors(rng, 20)
    scores, rows = scann_index.search(scann_index.build(index, 10), queries, 10)
    expected_scores, expected_rows = exact.search(queries, index, 10)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)


def test_more_results_than_items(rng):
    index = unit_vectors(rng, 3)
    scores, rows = scann_index.search(scann_index.build(index, 5), index, 5)
    np.testing.assert_array_equal(rows[:, 0], [0, 1, 2])
    np.testing.assert_array_equal(rows[:, 3:], -1)
    np.testing.assert_array_equal(scores[:, 3:], -np.inf)


def test_large_index_is_measured_saved_and_moved(rng, tmp_path, capfd):
    vectors = unit_vectors(rng, 25_300)
    index, queries = vectors[:25_000], vectors[25_000:]
    searcher = scann_index.build(index, 10)
    comparison = scann_index.recall_against_exact(searcher, index, queries, 10)
    scores, rows = scann_index.search(searcher, queries, 10)

    true_scores = np.take_along_axis(queries @ index.T, rows, axis=1)
    np.testing.assert_allclose(scores, true_scores, atol=1e-5)
    kth = np.sort(queries @ index.T, axis=1)[:, -10:][:, :1]
    assert comparison.recall == pytest.approx(np.mean(true_scores >= kth - 1e-5), abs=1e-3)
    assert comparison.recall > 0.95
    assert comparison.queries_per_second > 0
    assert comparison.exact_queries_per_second > 0

    scann_index.save(searcher, tmp_path / "index")
    scann_index.save(searcher, tmp_path / "index")  # over the first
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    (tmp_path / "index").rename(tmp_path / "moved")
    loaded_scores, loaded_rows = scann_index.search(
        scann_index.load(tmp_path / "moved"), queries, 10
    )
    np.testing.assert_array_equal(loaded_rows, rows)
    np.testing.assert_array_equal(loaded_scores, scores)
    assert capfd.readouterr().err == ""


def test_failed_save_keeps_the_old_index(rng, tmp_path):
    class Broken:
        def serialize(self, directory, relative_path):
            raise OSError("disk full")

    index = unit_vectors(rng, 10)
    scann_index.save(scann_index.build(index, 2), tmp_path / "index")
    with pytest.raises(OSError, match="disk full"):
        scann_index.save(Broken(), tmp_path / "index")
    _, rows = scann_index.search(scann_index.load(tmp_path / "index"), index, 1)
    np.testing.assert_array_equal(rows[:, 0], np.arange(10))


def test_bad_input(rng, tmp_path):
    index = unit_vectors(rng, 10)
    index[7, 1] = np.nan
    with pytest.raises(InputError, match="row 7"):
        scann_index.build(index, 2)
    with pytest.raises(InputError, match="no rows"):
        scann_index.build(index[:0], 2)
    with pytest.raises(InputError, match="no ScaNN index"):
        scann_index.load(tmp_path)


def test_without_scann(rng, monkeypatch):
    monkeypatch.setitem(sys.modules, "scann", None)
    with pytest.raises(InputError, match="use the exact search"):
        scann_index.build(unit_vectors(rng, 10), 2)


def test_a_tensorflow_of_another_version_is_left_alone(tmp_path):
    package = tmp_path / "tensorflow"
    package.mkdir()
    (package / "__init__.py").write_text("LOADED = True\n")
    code = """
import sys
import numpy as np
from pinjax.retrieval import scann_index
scann_index.build(np.eye(4, dtype=np.float32), 2)
assert "tensorflow" not in sys.modules
import tensorflow
assert tensorflow.LOADED
"""
    environment = {"PYTHONPATH": f"{tmp_path}:.", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
