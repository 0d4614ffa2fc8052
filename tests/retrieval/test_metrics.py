import math

import numpy as np
import pytest

from pinjax.retrieval import exact, metrics

K = 10


@pytest.fixture
def world(rng):
    """Lists of 20 results for 30 queries from 60 items, and labels; some queries have none."""
    queries = rng.standard_normal((30, 4), np.float32)
    items = rng.standard_normal((60, 4), np.float32)
    items[40:] = items[:20]  # equal scores
    labels = [
        (query, item)
        for query in range(30)
        for item in rng.choice(60, rng.integers(0, 14) * (query % 5 > 0), replace=False)
    ]
    label_query, label_rows = np.array(labels).T
    scores, rows = map(np.asarray, exact.search(queries, items, 20))
    label_scores = np.einsum("ld,ld->l", queries[label_query], items[label_rows])
    ranks = metrics.label_ranks(rows, scores, label_query, label_rows, label_scores)
    return queries, items, label_query, label_rows, ranks


def order(queries, items, query):
    return np.argsort(-(items @ queries[query]), kind="stable")


def test_label_ranks_of_a_full_index(world):
    queries, items, label_query, label_rows, ranks = world
    for query, row, rank in zip(label_query, label_rows, ranks, strict=True):
        expected = list(order(queries, items, query)).index(row)
        assert rank == min(expected, 20)


def test_label_ranks_outside_a_sampled_index(rng):
    queries = rng.standard_normal((8, 4))
    items = rng.standard_normal((40, 4))
    sampled = np.zeros(40, bool)
    sampled[:25] = True
    scores, rows = map(
        np.asarray, exact.search(queries.astype("f4"), items.astype("f4"), K, valid=sampled)
    )
    label_query, label_rows = np.divmod(np.arange(8 * 40), 40)
    label_scores = np.einsum("ld,ld->l", queries[label_query], items[label_rows])
    ranks = metrics.label_ranks(rows, scores, label_query, label_rows, label_scores)
    for query, row, rank in zip(label_query, label_rows, ranks, strict=True):
        better = sum(items[i] @ queries[query] > items[row] @ queries[query] for i in range(25))
        assert rank == min(better, K)


def test_a_collapsed_model_earns_nothing(rng):
    vector = rng.standard_normal(8)
    vector = np.float32(vector / np.linalg.norm(vector))
    scores, rows = map(np.asarray, exact.search(vector[None], np.tile(vector, (50, 1)), K))
    labels = np.arange(20, 40)
    own_scores = np.full(20, np.sum(vector * vector, dtype=np.float32)) + np.float32(1e-7)
    ranks = metrics.label_ranks(rows, scores, np.zeros(20, int), labels, own_scores)
    np.testing.assert_array_equal(ranks, K)


def test_lists_shorter_than_k():
    rows = np.array([[3, -1, -1]])
    scores = np.array([[0.5, -np.inf, -np.inf]], np.float32)
    query, labels = np.zeros(3, int), np.array([3, 4, 5])
    own = np.array([0.5, 0.4, 0.6], np.float32)
    ranks = metrics.label_ranks(rows, scores, query, labels, own)
    np.testing.assert_array_equal(ranks, [0, 1, 0])


@pytest.mark.parametrize("subset", [False, True])
def test_recall_hit_rate_ndcg(world, rng, subset):
    queries, items, label_query, label_rows, ranks = world
    where = rng.random(len(ranks)) < 0.5 if subset else None
    measured = [
        metric(ranks, label_query, 30, K, where)
        for metric in (metrics.recall, metrics.hit_rate, metrics.ndcg)
    ]
    for query in range(30):
        counts = (label_query == query) & (True if where is None else where)
        labels = set(label_rows[counts])
        if not labels:
            assert all(np.isnan(values[query]) for values in measured)
            continue
        gains = [item in labels for item in order(queries, items, query)[:K]]
        discounts = [1 / math.log2(position + 2) for position in range(K)]
        expected = (
            sum(gains) / len(labels),
            float(any(gains)),
            np.dot(gains, discounts) / sum(discounts[: len(labels)]),
        )
        np.testing.assert_allclose([values[query] for values in measured], expected, rtol=1e-12)


def test_ndcg_of_shared_ranks():
    # Three labels that beat the whole sampled index stand at 0, 1, 2: the best possible list. One
    # of rank 0 and two of rank 1 stand there too; rank 5 stays.
    ranks = np.array([0, 0, 0, 1, 0, 1, 5, 0])
    query = np.array([0, 0, 0, 1, 1, 1, 2, 3])
    expected = [1, 1, 1 / math.log2(7), 1, np.nan]
    np.testing.assert_allclose(metrics.ndcg(ranks, query, 5, K), expected)


def test_no_labels_at_all():
    none = np.zeros(0, int)
    for metric in (metrics.recall, metrics.hit_rate, metrics.ndcg):
        np.testing.assert_array_equal(metric(none, none, 3, K), [np.nan] * 3)


def test_interest_entropy(rng):
    topics = rng.integers(-1, 4, 40)
    rows = rng.integers(-1, 40, (25, 12))
    rows[3] = -1
    for query, entropy in enumerate(metrics.interest_entropy(rows, topics)):
        found = [topics[row] for row in rows[query] if row >= 0 and topics[row] >= 0]
        if not found:
            assert math.isnan(entropy)
            continue
        shares = [found.count(topic) / len(found) for topic in set(found)]
        assert entropy == pytest.approx(-sum(p * math.log(p) for p in shares), abs=1e-12)


def test_interest_entropy_closed_forms():
    rows = np.array([[0, 1, 2, 3], [0, 0, 0, 0]])
    np.testing.assert_allclose(metrics.interest_entropy(rows, np.arange(4)), [math.log(4), 0])
    assert np.isnan(metrics.interest_entropy(rows, np.full(4, -1))).all()


@pytest.mark.parametrize("num_items", [10, 30, 70, 190, 1000])
def test_coverage_closed_forms(num_items):
    uniform = np.arange(num_items).reshape(-1, 10)
    assert metrics.coverage(uniform, num_items) == pytest.approx(0.9)
    assert metrics.coverage(np.zeros((7, 10), int), num_items) == 1 / num_items
    assert math.isnan(metrics.coverage(np.full((2, 10), -1), num_items))


def test_coverage_of_a_share_that_rounds_up():
    assert 0.55 * 100 > 55
    assert metrics.coverage(np.arange(100).reshape(-1, 10), 100, share=0.55) == 0.55


def test_coverage_against_brute_force(rng):
    rows = np.minimum(rng.geometric(0.05, (40, 10)) - 2, 99)
    counts = sorted((int(np.sum(rows == item)) for item in range(100)), reverse=True)
    needed = next(n for n in range(101) if sum(counts[:n]) >= 0.9 * np.sum(rows >= 0))
    assert metrics.coverage(rows, 100) == needed / 100


def test_estimate_of_independent_users(rng):
    values = rng.random(50)
    mean, half_width = metrics.estimate(np.append(values, np.nan))
    assert mean == pytest.approx(values.mean())
    assert half_width == pytest.approx(1.96 * values.std(ddof=1) / math.sqrt(50), rel=1e-4)


def test_estimate_does_not_believe_repeated_queries(rng):
    values, user = rng.random(50), rng.permutation(50)
    once = metrics.estimate(values, user)
    np.testing.assert_allclose(metrics.estimate(np.repeat(values, 4), np.repeat(user, 4)), once)
    assert metrics.estimate(np.repeat(values, 4)).half_width < 0.6 * once.half_width


def test_estimate_covers_the_truth(rng):
    # Users of unequal activity, whose queries share the user's own level.
    covered = 0
    for _ in range(400):
        user = np.repeat(np.arange(80), rng.integers(1, 6, 80))
        values = rng.standard_normal(80)[user] + rng.standard_normal(len(user))
        mean, half_width = metrics.estimate(values, user)
        covered += abs(mean) < half_width
    assert 0.91 < covered / 400 < 0.98


def test_estimate_of_too_few():
    assert np.isnan(metrics.estimate(np.array([np.nan]))).all()
    mean, half_width = metrics.estimate(np.array([1.0, 2.0]), np.array([7, 7]))
    assert mean == 1.5
    assert math.isnan(half_width)


def test_left_out_results_make_room(rng):
    rows = np.argsort(rng.random((7, 9)), axis=1)
    scores = -np.sort(rng.random((7, 9)).astype(np.float32), axis=1)
    out = rng.random((7, 9)) < 0.4
    left, left_scores = metrics.leave_out(rows, scores, out)
    for query in range(7):
        kept = np.flatnonzero(~out[query])
        missing = 9 - len(kept)
        assert left[query].tolist() == rows[query, kept].tolist() + [-1] * missing
        assert left_scores[query].tolist() == scores[query, kept].tolist() + [-np.inf] * missing
