import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinjax.retrieval import exact


def brute_force(queries, index, k, valid=None):
    """Float64, one query at a time, equal scores by lower row."""
    rows = np.full((len(queries), k), -1)
    scores = np.full((len(queries), k), -np.inf)
    eligible = np.arange(len(index)) if valid is None else np.nonzero(valid)[0]
    for q, query in enumerate(np.asarray(queries, np.float64)):
        all_scores = np.asarray(index, np.float64)[eligible] @ query
        order = np.argsort(-all_scores, kind="stable")[:k]
        rows[q, : len(order)] = eligible[order]
        scores[q, : len(order)] = all_scores[order]
    return scores, rows


@pytest.mark.parametrize(("items", "chunk"), [(61, 16), (64, 16), (10, 64), (1, 16)])
def test_brute_force(rng, items, chunk):
    queries = rng.standard_normal((7, 5), np.float32)
    index = rng.standard_normal((items, 5), np.float32)
    scores, rows = exact.search(queries, index, 6, chunk=chunk)
    expected_scores, expected_rows = brute_force(queries, index, 6)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-5)
    assert scores.dtype == jnp.float32
    assert rows.dtype == jnp.int32


@pytest.mark.parametrize("share_valid", [0.0, 0.1, 0.7])
def test_ties_and_validity(rng, share_valid):
    # Small integers: exact in every precision, with many equal scores within and across
    # chunks.
    queries = rng.integers(-1, 2, (20, 3)).astype(np.float32)
    index = rng.integers(-1, 2, (50, 3)).astype(np.float32)
    valid = rng.random(50) < share_valid
    scores, rows = exact.search(queries, index, 12, valid=valid, chunk=8)
    expected_scores, expected_rows = brute_force(queries, index, 12, valid)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize(("items", "chunk"), [(61, 16), (64, 16), (10, 64)])
def test_excluded_pairs_are_never_results(rng, items, chunk):
    """Nor are they counted; of rows of either chunk where the last two overlap, too."""
    queries = rng.integers(-1, 2, (7, 3)).astype(np.float32)
    index = rng.integers(-1, 2, (items, 3)).astype(np.float32)
    valid, out = rng.random(items) < 0.8, rng.random((7, items)) < 0.3
    pairs = np.argwhere(out)[rng.permutation(out.sum())]
    padding = np.full((5, 2), len(queries))
    excluded = np.concatenate([pairs, padding]).astype(np.int32)
    arguments = {"valid": valid, "excluded": excluded, "chunk": chunk}
    scores, rows = exact.search(queries, index, 6, **arguments)
    least = rng.integers(-2, 3, 7).astype(np.float32)
    counts = exact.count(queries, index, least, **arguments)
    for query in range(7):
        own = brute_force(queries[query : query + 1], index, 6, valid & ~out[query])
        np.testing.assert_array_equal(rows[query], own[1][0])
        np.testing.assert_array_equal(scores[query], own[0][0])
        above = index[valid & ~out[query]] @ queries[query] >= least[query]
        assert counts[query] == above.sum()


def test_counts_of_nothing_and_of_nan(rng):
    queries = rng.standard_normal((2, 4), np.float32)
    nothing = exact.count(queries, np.zeros((0, 4), np.float32), np.zeros(2, np.float32))
    assert np.asarray(nothing).tolist() == [0, 0]
    index = rng.standard_normal((9, 4), np.float32)
    index[:3] = np.nan
    found = exact.count(queries, index, np.full(2, 99, np.float32), chunk=4)
    assert np.asarray(found).tolist() == [3, 3]


def test_more_results_than_items_or_than_a_chunk(rng):
    queries = rng.standard_normal((3, 4), np.float32)
    index = rng.standard_normal((9, 4), np.float32)
    scores, rows = exact.search(queries, index, 11, chunk=4)
    expected_scores, expected_rows = brute_force(queries, index, 11)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-5)


def test_empty_index(rng):
    scores, rows = exact.search(rng.standard_normal((2, 4), np.float32), np.zeros((0, 4)), 3)
    assert np.all(np.asarray(rows) == -1)
    assert np.all(np.asarray(scores) == -np.inf)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("query_dtype", [jnp.float32, None])
def test_narrow_index_sums_in_float32(rng, dtype, query_dtype):
    index = jnp.asarray(rng.standard_normal((40, 256)), dtype)
    queries = jnp.asarray(rng.standard_normal((5, 256)), query_dtype or dtype)
    scores, rows = exact.search(queries, index, 5, chunk=16)
    expected_scores, expected_rows = brute_force(queries, index, 5)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
    np.testing.assert_array_equal(rows, expected_rows)


def test_temporaries_do_not_grow_with_the_index():
    def temporaries(items):
        shapes = jax.ShapeDtypeStruct((16, 8), np.float32), jax.ShapeDtypeStruct((items, 8), "f4")
        compiled = exact.search.lower(*shapes, k=10, chunk=128).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(100_001) < 1.1 * temporaries(1_001) + 10_000


@pytest.mark.parametrize("k", [1, 12, 70])
def test_best_of_scores_that_are_there(rng, k):
    scores = rng.standard_normal((20, 50)).astype(np.float32)
    valid = rng.random(50) < 0.5
    found, rows = exact.best(scores, valid, k)
    expected_scores, expected_rows = brute_force(np.eye(20), scores.T, k, valid)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(found, expected_scores.astype(np.float32))
