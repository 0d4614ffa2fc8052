"""All kinds of index against brute force in float64, and what becomes of their files."""

import dataclasses
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from pinjax.errors import InputError
from pinjax.retrieval import index as index_lib

LIBRARIES = {"scann": "scann", "faiss_hnsw": "faiss", "faiss_ivf": "faiss"}
ITEMS, DIM = 3_000, 16


def unit_vectors(rng, number, dim=DIM, topics=50):
    """Vectors around topic centres, as embeddings are."""
    centres = np.random.default_rng(0).standard_normal((topics, dim))
    vectors = centres[rng.integers(topics, size=number)] + 0.5 * rng.standard_normal((number, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def brute_force(queries, items, k, eligible=True):
    """(scores, rows) in float64, -inf and -1 where fewer than k rows are eligible."""
    scores = np.where(eligible, queries.astype(np.float64) @ items.T.astype(np.float64), -np.inf)
    scores = np.pad(scores, ((0, 0), (0, max(0, k - len(items)))), constant_values=-np.inf)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    scores = np.take_along_axis(scores, rows, axis=1)
    return scores, np.where(np.isfinite(scores), rows, -1)


def check(index, queries, k, eligible=True, recall=0.95, **filters):
    """Rows are eligible, with their own scores, in order, as many as there are, mostly right."""
    scores, rows = index.search(queries, k, **filters)
    expected, _ = brute_force(queries, index.vectors, k, eligible)
    assert scores.shape == rows.shape == (len(queries), k)
    there = rows >= 0
    np.testing.assert_array_equal(there, np.isfinite(expected))
    query, place = np.nonzero(there)
    found = rows[query, place]
    assert np.broadcast_to(eligible, (len(queries), len(index)))[query, found].all()
    pairs = np.stack([query, found], axis=1)
    assert len(np.unique(pairs, axis=0)) == len(pairs)
    own = np.einsum("fd,fd->f", queries[query], index.vectors[found], dtype=np.float64)
    np.testing.assert_allclose(scores[query, place], own, atol=1e-5)
    assert (scores[~there] == -np.inf).all()
    assert (scores[:, 1:] <= scores[:, :-1]).all()
    equal = there[:, 1:] & (scores[:, 1:] == scores[:, :-1])
    assert (rows[:, 1:] > rows[:, :-1])[equal].all()
    good = scores[query, place] >= expected.min(axis=1, where=there, initial=np.inf)[query] - 1e-5
    assert good.mean() >= recall if len(good) else True


@pytest.fixture(scope="module", params=index_lib.BACKENDS)
def backend(request):
    if request.param in LIBRARIES:
        pytest.importorskip(LIBRARIES[request.param])
    return request.param


@pytest.fixture(scope="module")
def index(backend):
    vectors = unit_vectors(np.random.default_rng(1), ITEMS)
    made = index_lib.create(pa.array(np.arange(ITEMS) * 7), vectors, backend)
    assert (made.backend is None) == (backend == index_lib.EXACT)
    return made


@pytest.fixture(scope="module")
def saved(index, tmp_path_factory):
    """The directory of the index, which no test may change, and the index as it was saved."""
    directory = tmp_path_factory.mktemp("index") / "made"
    return directory, index.save(directory, {"k": 10})


@pytest.mark.parametrize("k", [1, 10, 100, ITEMS, ITEMS + 3])
def test_the_nearest_are_found(rng, index, k):
    check(index, unit_vectors(rng, 20), k, recall=1 if k >= ITEMS else 0.95)


@pytest.mark.parametrize("share", [0, 0.003, 0.1, 0.8])
def test_filters_leave_what_is_allowed_and_not_excluded(rng, index, share, monkeypatch):
    """Also where that is fewer than k, and where one query excludes most of what is near to it.

    An exact search is of eight queries at a time.
    """
    monkeypatch.setattr(index_lib, "EXACT_QUERIES", 8)
    queries = unit_vectors(rng, 20)
    allowed = rng.random(ITEMS) < share
    out = rng.random((20, ITEMS)) < 0.01
    out[3, np.argsort(-(index.vectors @ queries[3]))[:200]] = True
    excluded = np.argwhere(out)
    rng.shuffle(excluded)
    check(index, queries, 10, allowed[None] & ~out, allowed=allowed, excluded=excluded)
    check(index, queries, 10, ~out, excluded=excluded)


def test_a_list_of_what_is_far_away_is_found(rng, index):
    """What an approximate search returns first is none of it."""
    queries = unit_vectors(rng, 1).repeat(5, axis=0)
    allowed = np.zeros(ITEMS, bool)
    allowed[np.argsort(index.vectors @ queries[0])[: ITEMS - 500]] = True
    check(index, queries, 10, allowed[None], allowed=allowed)


def test_equal_vectors(rng, backend):
    """More of them than k and than a leaf holds; of the exact search the lower rows come first.

    In HNSW's graph copies lead to each other alone, so it finds few others: its measured recall
    tells, and `tune` refuses it.
    """
    vectors = unit_vectors(rng, 8)[rng.integers(8, size=ITEMS)]
    made = index_lib.create(pa.array(np.arange(ITEMS)), vectors, backend)
    for k in (1, 30):
        check(made, vectors[:4], k, recall=0 if backend == "faiss_hnsw" else 0.95)
    exactly = dataclasses.replace(made, backend=None)
    np.testing.assert_array_equal(
        exactly.search(vectors[:4], 30)[1], brute_force(vectors[:4], vectors, 30)[1]
    )


@pytest.mark.parametrize("items", [0, 1, 2])
def test_few_items(rng, backend, items, tmp_path):
    made = index_lib.create(pa.array(np.arange(items)), unit_vectors(rng, items), backend)
    made.save(tmp_path / "index", {})
    for one in (made, index_lib.open_index(tmp_path / "index")):
        check(one, unit_vectors(rng, 3), 2)
        check(one, unit_vectors(rng, 0), 2)
        check(one, unit_vectors(rng, 3), 2, False, allowed=np.zeros(items, bool))


def test_a_saved_index_may_be_moved_and_finds_the_same(rng, index, saved, tmp_path, capfd):
    directory = tmp_path / "moved"
    shutil.copytree(saved[0], directory)
    opened = index_lib.open_index(directory)
    assert isinstance(opened.vectors, np.memmap)
    assert opened.manifest == saved[1].manifest
    assert opened.ids.equals(index.ids)
    np.testing.assert_array_equal(opened.vectors, index.vectors)
    queries = unit_vectors(rng, 20)
    for found, expected in zip(opened.search(queries, 7), index.search(queries, 7), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert capfd.readouterr() == ("", "")


def test_ids_are_the_users_own(rng, tmp_path):
    made = index_lib.create(pa.array(["b", "a", "b"]), unit_vectors(rng, 3), "exact")
    made.save(tmp_path / "index", {})
    opened = index_lib.open_index(tmp_path / "index")
    assert opened.rows_of(pa.array(["a", "x", "b"])).tolist() == [1, -1, 0]
    assert opened.ids_of(np.array([[2, 1], [-1, 0]])).to_pylist() == ["b", "a", None, "b"]
    numbers = dataclasses.replace(opened, ids=pa.array([5, 6, 7]))
    assert numbers.rows_of(pa.array(["6"])).tolist() == [1]
    with pytest.raises(InputError, match="such as x are string; expected int64"):
        numbers.rows_of(pa.array(["x"]))
    with pytest.raises(InputError, match=r"ids such as \[1\] are list<item: int64>; expected"):
        numbers.rows_of(pa.array([[1]]))


def test_damaged_and_foreign_files_are_refused_by_name(rng, saved, backend, tmp_path):
    other = index_lib.create(pa.array(np.arange(ITEMS)), unit_vectors(rng, ITEMS), backend)
    other.save(tmp_path / "other", {})
    for name in sorted(path.name for path in saved[0].iterdir()):
        content = (saved[0] / name).read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        foreign = (tmp_path / "other" / name).read_bytes()
        for damaged in (content[: len(content) // 2], bytes(flipped), foreign, None):
            if damaged == content:  # the same whatever the vectors are
                continue
            directory = tmp_path / "damaged"
            shutil.copytree(saved[0], directory)
            (directory / name).unlink()
            if damaged is not None:
                (directory / name).write_bytes(damaged)
            with pytest.raises(InputError) as error:
                index_lib.open_index(directory)
            named = name
            if damaged is foreign and name == "checksums.json":
                named = "damaged/"  # it is the others that do not agree with it
            assert named in str(error.value)
            shutil.rmtree(directory)


def test_damage_is_an_error_without_checksums_too(saved, backend, tmp_path):
    largest = max(saved[0].iterdir(), key=lambda path: path.stat().st_size).name
    shutil.copytree(saved[0], tmp_path / "damaged")
    path = tmp_path / "damaged" / largest
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises((InputError, ValueError), match=r"damaged|mmap"):
        index_lib.open_index(tmp_path / "damaged", verify=False)


def test_a_failed_save_leaves_nothing(index, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pa.ipc, "new_file", full)
    with pytest.raises(OSError, match="No space left"):
        index.save(tmp_path / "index", {})
    assert list(tmp_path.iterdir()) == []


def test_wrong_vectors(rng, backend, index, tmp_path):
    vectors = unit_vectors(rng, ITEMS)
    vectors[7, 1] = np.nan
    with pytest.raises(InputError, match="row 7 of the items' vectors"):
        index_lib.create(pa.array(np.arange(ITEMS)), vectors, backend)
    with pytest.raises(InputError, match="row 2 of the queries' vectors"):
        index.search(vectors[5:9], 2)
    with pytest.raises(InputError, match="vectors of 3 numbers, expected 16"):
        index.search(np.ones((2, 3), np.float32), 2)
    with pytest.raises(InputError, match="no index by"):
        index_lib.open_index(tmp_path)


@pytest.mark.parametrize("backend", LIBRARIES)
def test_without_its_library_a_backend_is_refused_in_one_line(rng, monkeypatch, backend):
    monkeypatch.setitem(sys.modules, LIBRARIES[backend], None)
    with pytest.raises(InputError, match=r"^(ScaNN|FAISS) cannot be imported .*[a-z]$"):
        index_lib.create(pa.array(np.arange(ITEMS)), unit_vectors(rng, ITEMS), backend)


def test_a_tensorflow_of_another_version_is_left_alone(tmp_path):
    pytest.importorskip("scann")
    package = tmp_path / "tensorflow"
    package.mkdir()
    (package / "__init__.py").write_text("LOADED = True\n")
    code = """
import sys
from pinjax.retrieval import scann_index
scann_index._scann()
assert "tensorflow" not in sys.modules
import tensorflow
assert tensorflow.LOADED
"""
    root = pathlib.Path(__file__).parents[2]
    environment = {"PYTHONPATH": f"{tmp_path}:{root}", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_libraries_are_loaded_when_they_are_used():
    code = """
import sys
from pinjax.retrieval import curves, tuning
print({"faiss", "scann", "plotly"} & {*sys.modules})
"""
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True)
    assert done.stdout == b"set()\n"


@pytest.mark.parametrize("backend", LIBRARIES)
def test_for_more_results_a_setting_searches_more_thoroughly(rng, backend):
    pytest.importorskip(LIBRARIES[backend])
    vectors, queries = unit_vectors(rng, ITEMS), unit_vectors(rng, 50)
    built = index_lib.create(pa.array(np.arange(ITEMS)), vectors, backend).backend
    for_one = built.ladders(1)[-1][0]
    best = brute_force(queries, vectors, 100)[1]
    recalls = [
        np.mean([np.isin(*pair).mean() for pair in zip(best, rows, strict=True)])
        for rows in (built.search(queries, 100, for_one | {"k": k})[1] for k in (100, 1))
    ]
    assert recalls[1] > recalls[0] + 0.1
