import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from pinjax.errors import InputError
from pinjax.retrieval import backends, curves, exact, tuning
from pinjax.retrieval import index as index_lib

ITEMS, QUERIES, K = 2_500, 100, 5


class Coarse(backends.Backend):
    """A backend that scans as many of the first rows as its setting says, or half of these."""

    name = "coarse"

    def __init__(self, vectors):
        self.vectors = vectors

    def ladders(self, k):
        rows = backends.steps(100, ITEMS)
        return [[{"k": k, "rows": n, "each": each} for n in rows] for each in (1, 2)]

    def search(self, queries, k, setting):
        each = setting.get("each", 1)
        scores = queries @ self.vectors[: setting["rows"] : each].T
        found, rows = exact.best(scores, np.ones(scores.shape[1], bool), k)
        return backends.padded(found, rows * each, k)


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    monkeypatch.setattr(tuning, "_ROUNDS", 2)


@pytest.fixture
def index(rng):
    vectors = rng.standard_normal((ITEMS, 8)).astype(np.float32)
    return index_lib.Index(pa.array(np.arange(ITEMS)), vectors, Coarse(vectors))


def recall_of(found, scores):
    """Share of the rows found that are among the exact k nearest, for each query."""
    best = np.argsort(-scores, axis=1)[:, :K]
    return (found[:, :, None] == best[:, None]).any(axis=2).mean(axis=1)


@pytest.mark.parametrize("of_items", [False, True])
def test_recall_is_of_the_exact_results(rng, index, of_items):
    """A query that is an item is no result of its own."""
    own = rng.choice(ITEMS, QUERIES, replace=False) if of_items else None
    vectors = index.vectors[own] if of_items else rng.standard_normal((QUERIES, 8), np.float32)
    queries = tuning.queries(index, vectors, K, own)
    made = dataclasses.replace(index, setting={"k": K, "rows": 900})
    point = tuning.measure(made, queries)
    scores = vectors.astype(np.float64) @ index.vectors.T.astype(np.float64)
    if of_items:
        scores[np.arange(QUERIES), own] = -np.inf
    shares = recall_of(np.argsort(-scores[:, :900], axis=1)[:, :K], scores)
    assert point.recall == pytest.approx(shares.mean(), abs=1e-9)
    assert point.error == pytest.approx(shares.std() / QUERIES**0.5, abs=1e-9)
    assert point.queries_per_second > 0
    assert queries.exact_per_second > 0


def test_the_fastest_setting_that_surely_reaches_a_recall_is_chosen(rng, index):
    queries = tuning.queries(index, rng.standard_normal((QUERIES, 8), np.float32), K)
    chosen = tuning.tune(index, queries, 0.6).setting["rows"]
    below = [n for n in backends.steps(100, ITEMS) if n < chosen][-1]
    for rows, reaches in ((chosen, True), (below, False)):
        point = tuning.measure(dataclasses.replace(index, setting={"k": K, "rows": rows}), queries)
        assert (point.recall - 2 * point.error >= 0.6) == reaches
    with pytest.raises(InputError, match=r"coarse reaches recall@5 1\.0000.*expected 1\.01"):
        tuning.tune(index, queries, 1.01)


def test_a_curve_is_of_settings_that_none_beats(rng, index):
    queries = tuning.queries(index, rng.standard_normal((QUERIES, 8), np.float32), K)
    points = tuning.curve(index, queries)
    speeds, recalls = zip(*((x.queries_per_second, x.recall) for x in points), strict=True)
    assert list(speeds) == sorted(speeds, reverse=True)
    assert list(recalls) == sorted(set(recalls))
    assert recalls[-1] == 1
    text = curves.text(points, K)
    assert len(text.splitlines()) == 1 + len(points)
    assert "rows 2,500" in text
    exactly = tuning.curve(dataclasses.replace(index, backend=None), queries)
    page = curves.html({"coarse": points, "<i>exact": exactly}, "</script><b>")
    assert page.count("</script><b>") == 0
    assert 'src="http' not in page


def test_a_few_items_are_all_found(rng):
    """k is more than there are, and one item is no result for itself."""
    for items in (1, 3):
        vectors = rng.standard_normal((items, 4)).astype(np.float32)
        made = index_lib.create(pa.array(np.arange(items)), vectors, "exact")
        for own in (None, np.arange(items)):
            queries = tuning.queries(made, vectors, 9, own)
            assert tuning.measure(tuning.tune(made, queries, 0.9), queries).recall == 1


@pytest.mark.parametrize("backend", ["scann", "faiss_hnsw", "faiss_ivf"])
def test_every_backend_reaches_a_recall(rng, backend):
    pytest.importorskip(backend.partition("_")[0])
    vectors = rng.standard_normal((ITEMS + 2 * QUERIES, 8)).astype(np.float32)
    made = index_lib.create(pa.array(np.arange(ITEMS)), vectors[:ITEMS], backend)
    tuned, others = (
        tuning.queries(made, some, K) for some in (vectors[ITEMS:][:QUERIES], vectors[-QUERIES:])
    )
    reached = tuning.tune(made, tuned, 0.9)
    assert tuning.measure(reached, others).recall > 0.87


def test_steps():
    assert backends.steps(1, 17) == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 17]
    assert backends.steps(10, 30) == [10, 12, 15, 17, 20, 25, 30]
    assert backends.steps(5, 5) == [5]


def test_of_settings_that_reach_a_recall_the_fastest_is_chosen(rng, index, monkeypatch):
    def timed(index, queries, points):
        return [x._replace(queries_per_second=float(x.setting["each"])) for x in points]

    monkeypatch.setattr(tuning, "_timed", timed)
    queries = tuning.queries(index, rng.standard_normal((QUERIES, 8), np.float32), K)
    assert tuning.tune(index, queries, 0.35).setting["each"] == 2
