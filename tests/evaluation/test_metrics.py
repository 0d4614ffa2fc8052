import itertools
import math

import numpy as np
import pytest
from scipy import stats

from pinjax.evaluation import metrics
from pinjax.retrieval import exact

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


def worst_rank(queries, items, query, row, index=slice(None)):
    """Items of the index that score as high, beside the label itself, in float64."""
    scores = items.astype(np.float64) @ queries[query].astype(np.float64)
    others = np.zeros(len(items), bool)
    others[index] = True
    others[row] = False
    return int(np.sum(scores[others] >= scores[row] - 1e-6))


def test_label_ranks_of_a_full_index(world):
    queries, items, label_query, label_rows, ranks = world
    for query, row, rank in zip(label_query, label_rows, ranks, strict=True):
        # A label that ends the list may have equals that are not listed.
        expected = worst_rank(queries, items, query, row)
        assert rank == expected if expected < 19 else rank >= 19


def test_label_ranks_outside_a_sampled_index(rng):
    queries = rng.standard_normal((8, 4))
    items = rng.standard_normal((40, 4))
    scores, rows = map(
        np.asarray,
        exact.search(queries.astype("f4"), items.astype("f4"), K, valid=np.arange(40) < 25),
    )
    label_query, label_rows = np.divmod(np.arange(8 * 40), 40)
    label_scores = np.einsum("ld,ld->l", queries[label_query], items[label_rows])
    ranks = metrics.label_ranks(rows, scores, label_query, label_rows, label_scores)
    for query, row, rank in zip(label_query, label_rows, ranks, strict=True):
        assert rank == min(worst_rank(queries, items, query, row, slice(25)), K)


@pytest.mark.parametrize("index", ["full", "sampled"])
def test_a_collapsed_model_earns_nothing(rng, index):
    """Wherever its labels are, in the first rows, too."""
    vector = rng.standard_normal(8)
    vector = np.float32(vector / np.linalg.norm(vector))
    valid = np.ones(50, bool) if index == "full" else np.arange(50) < 30
    items = np.tile(vector, (50, 1))
    scores, rows = map(np.asarray, exact.search(vector[None], items, K + 1, valid=valid))
    own = np.full(50, np.sum(vector * vector, dtype=np.float32)) + np.float32(1e-7)
    ranks = metrics.label_ranks(rows, scores, np.zeros(50, int), np.arange(50), own)
    assert (ranks >= K).all()
    assert (metrics.untied_top(rows, scores, K) == -1).all()


@pytest.mark.parametrize("kind", ["inner products", "counts"])
@pytest.mark.parametrize("levels", [1, 3, 40])
def test_the_order_of_rows_changes_nothing(rng, kind, levels):
    """Every metric of scores with many equals, before and after the items change places."""
    items, queries = 90, 25
    vectors = rng.standard_normal((queries, 6)).astype(np.float32)
    distinct = rng.standard_normal((levels, 6)).astype(np.float32)
    distinct /= np.linalg.norm(distinct, axis=1, keepdims=True)
    which = rng.integers(0, levels, items)
    valid, topics = rng.random(items) < 0.7, rng.integers(-1, 5, items)
    label_query, label_item = np.nonzero(rng.random((queries, items)) < 0.1)

    def figures(order):
        """With the item order[i] in row i."""
        row = np.argsort(order)[label_item]
        if kind == "counts":
            counts = np.repeat(which[None, order].astype(np.float32), queries, axis=0)
            scores, rows = exact.best(counts, valid[order], 51)
            own, rounding = counts[label_query, row], 0.0
        else:
            index = distinct[which[order]]
            found = exact.search(vectors, index, 51, valid=valid[order], chunk=16)
            scores, rows = map(np.asarray, found)
            own = np.einsum("ld,ld->l", vectors[label_query], index[row])
            rounding = metrics.ROUNDING
        ranks = metrics.label_ranks(rows, scores, label_query, row, own, rounding)
        top = metrics.untied_top(rows, scores, K, rounding)
        deep = metrics.untied_top(rows, scores, 50, rounding)
        users = label_query, queries, K
        return (
            *(f(ranks, *users) for f in (metrics.recall, metrics.hit_rate, metrics.ndcg)),
            metrics.interest_entropy(deep, topics[order]),
            metrics.coverage(top, items),
            metrics.overlap(top),
        )

    first = figures(np.arange(items))
    for _ in range(5):
        for found, expected in zip(figures(rng.permutation(items)), first, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-12)
    if levels == 1:
        assert np.nanmax(first[0]) == 0
        assert first[-2:] == (0, 1)


def test_a_model_that_gives_nan_earns_nothing(rng):
    queries = rng.standard_normal((8, 4), np.float32)
    items = rng.standard_normal((40, 4), np.float32)
    queries[:4] = np.nan
    items[::2] = np.nan
    scores, rows = map(np.asarray, exact.search(queries, items, K + 1))
    label_query, label_rows = np.divmod(np.arange(8 * 40), 40)
    label_scores = np.einsum("ld,ld->l", queries[label_query], items[label_rows])
    ranks = metrics.label_ranks(rows, scores, label_query, label_rows, label_scores)
    assert not (ranks[np.isnan(label_scores)] < K).any()
    assert (metrics.untied_top(rows[:4], scores[:4], K) == -1).all()


def test_lists_shorter_than_k():
    rows = np.array([[3, -1, -1]])
    scores = np.array([[0.5, -np.inf, -np.inf]], np.float32)
    query, labels = np.zeros(4, int), np.array([3, 4, 5, 6])
    own = np.array([0.5, 0.4, 0.6, -np.inf], np.float32)
    ranks = metrics.label_ranks(rows, scores, query, labels, own)
    np.testing.assert_array_equal(ranks, [0, 1, 0, 3])  # the last cannot be found
    np.testing.assert_array_equal(metrics.untied_top(rows, scores, 2), [[3, -1]])


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
        # Labels of one rank, such as the two of a tie, take consecutive positions.
        positions = []
        for rank in sorted(worst_rank(queries, items, query, item) for item in labels):
            positions.append(max([rank, *(position + 1 for position in positions[-1:])]))
        found = [worst_rank(queries, items, query, item) < K for item in labels]
        discounts = [1 / math.log2(position + 2) for position in range(K)]
        expected = (
            sum(found) / len(labels),
            float(any(found)),
            sum(discounts[p] for p in positions if p < K) / sum(discounts[: len(labels)]),
        )
        np.testing.assert_allclose([values[query] for values in measured], expected, rtol=1e-12)


def test_ndcg_of_more_labels_than_a_rank_can_count(rng):
    """Ranks are kept as int16, of which numbers of labels are no part."""
    query = np.repeat(np.arange(400), 100)
    ranks = np.concatenate([rng.choice(500, 100, replace=False) for _ in range(400)])
    gains = np.where(ranks < K, 1 / np.log2(ranks + 2), 0).reshape(400, 100).sum(axis=1)
    expected = gains / np.sum(1 / np.log2(np.arange(K) + 2))
    np.testing.assert_allclose(metrics.ndcg(ranks.astype(np.int16), query, 400, K), expected)


def test_ndcg_of_shared_ranks():
    # Three labels that beat the entire sampled index stand at 0, 1, 2: the best possible list. One
    # of rank 0 and two of rank 1 stand there too; rank 5 stays.
    ranks = np.array([0, 0, 0, 1, 0, 1, 5, 0])
    query = np.array([0, 0, 0, 1, 1, 1, 2, 3])
    expected = [1, 1, 1 / math.log2(7), 1, np.nan]
    np.testing.assert_allclose(metrics.ndcg(ranks, query, 5, K), expected)


def test_ndcg_of_more_labels_than_the_type_of_ranks_counts():
    ranks, query = np.tile(np.int16([0, 3, 51]), 15_000), np.repeat(np.arange(15_000), 3)
    ideal = sum(1 / math.log2(place + 2) for place in range(3))
    found = metrics.ndcg(ranks, query, 15_000, K)
    np.testing.assert_allclose(found, (1 + 1 / math.log2(5)) / ideal)


@pytest.mark.parametrize("subset", [False, True])
def test_scaled_mrr(rng, subset):
    ranks, query = rng.integers(0, 700, 60), rng.integers(0, 8, 60)
    ranks[:4], query[:4] = [0, 99, 100, 2**31 - 1], [8, 9, 10, 11]
    where = rng.random(60) < 0.7 if subset else np.ones(60, bool)
    found = metrics.scaled_mrr(ranks, query, 13, where if subset else None)
    for number, value in enumerate(found):
        own = ranks[(query == number) & where]
        expected = np.mean([1 / math.ceil((rank + 1) / 100) for rank in own]) if len(own) else None
        assert value == pytest.approx(expected) if len(own) else math.isnan(value)
    if not subset:
        np.testing.assert_allclose(found[8:], [1, 1, 1 / 2, 0, np.nan], atol=1e-7)


def test_no_labels_at_all():
    none = np.zeros(0, int)
    for metric in (metrics.recall, metrics.hit_rate, metrics.ndcg):
        np.testing.assert_array_equal(metric(none, none, 3, K), [np.nan] * 3)
    np.testing.assert_array_equal(metrics.scaled_mrr(none, none, 3), [np.nan] * 3)


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
    assert metrics.coverage(np.full((2, 10), -1), num_items) == 0


def test_coverage_of_a_share_that_rounds_up():
    assert 0.55 * 100 > 55
    assert metrics.coverage(np.arange(100).reshape(-1, 10), 100, share=0.55) == 0.55


def test_coverage_against_brute_force(rng):
    rows = np.minimum(rng.geometric(0.05, (40, 10)) - 2, 99)
    counts = sorted((int(np.sum(rows == item)) for item in range(100)), reverse=True)
    needed = next(n for n in range(101) if sum(counts[:n]) >= 0.9 * np.sum(rows >= 0))
    assert metrics.coverage(rows, 100) == needed / 100
    of_more = np.where(rows < 0, rows, 7 * rows)  # rows of a catalogue beyond the index
    assert metrics.coverage(of_more, 100) == needed / 100


def test_overlap_against_pairs(rng):
    rows = np.stack([rng.permutation(15)[:6] for _ in range(9)])
    rows[:, 4:] = -1
    shared = [
        len(set(a[:4]) & set(b[:4])) / 4
        for i, a in enumerate(rows.tolist())
        for j, b in enumerate(rows.tolist())
        if i != j
    ]
    assert metrics.overlap(rows) == pytest.approx(np.mean(shared))
    assert metrics.overlap(np.tile(np.arange(5), (3, 1))) == 1
    assert metrics.overlap(np.arange(10).reshape(2, 5)) == 0
    assert metrics.overlap(np.full((3, 5), -1)) == 1
    assert math.isnan(metrics.overlap(rows[:1]))


@pytest.mark.parametrize(("users", "hits"), [(1, 0), (1, 1), (20, 0), (20, 3), (20, 20)])
def test_estimate_of_hits_and_misses_is_jeffreys_interval(users, hits):
    value, low, high = metrics.estimate((np.arange(users) < hits).astype(float))
    posterior = stats.beta(hits + 0.5, users - hits + 0.5)
    assert value == hits / users
    assert low == pytest.approx(posterior.ppf(0.025) if hits else 0)
    assert high == pytest.approx(posterior.ppf(0.975) if hits < users else 1)


def test_estimate_is_the_bayesian_bootstrap_of_users(rng):
    user = np.repeat(np.arange(60), rng.integers(1, 6, 60))
    values = rng.binomial(4, rng.beta(0.4, 1.2, 60)[user]) / 4
    sizes, sums = np.bincount(user), np.bincount(user, values)
    size = sizes.mean()
    weights = rng.gamma(np.append(np.ones(60), [0.5, 0.5]), size=(40_000, 62))
    means = (weights @ np.append(sums, [size, 0])) / (weights @ np.append(sizes, [size, size]))
    value, low, high = metrics.estimate(np.append(values, np.nan), np.append(user, 99))
    assert value == pytest.approx(values.mean())
    np.testing.assert_allclose([low, high], np.quantile(means, [0.025, 0.975]), rtol=0.04)


def test_estimate_of_many_users_is_the_normal_one(rng):
    values = rng.random(5_000)
    value, low, high = metrics.estimate(values)
    half = 1.96 * values.std(ddof=1) / math.sqrt(5_000)
    np.testing.assert_allclose([low, high], [value - half, value + half], rtol=1e-3)
    value, low, high = metrics.estimate(10 * values, share=False)
    np.testing.assert_allclose([low, high], [value - 10 * half, value + 10 * half], rtol=1e-3)


@pytest.mark.parametrize("share", [True, False])
def test_estimate_does_not_believe_repeated_queries(rng, share):
    values, user = rng.random(50), rng.permutation(50)
    once = metrics.estimate(values, user, share=share)
    again = metrics.estimate(np.repeat(values, 4), np.repeat(user, 4), share=share)
    np.testing.assert_allclose(again, once)
    believed = metrics.estimate(np.repeat(values, 4), share=share)
    assert believed.high - believed.low < 0.6 * (once.high - once.low)


def test_estimate_covers_the_truth_where_few_users_hit_little(rng):
    """Users of unequal activity, whose labels share the user's own chance."""
    covered = []
    for users, chance, spread in itertools.product((5, 20, 80), (0.005, 0.02, 0.1), (0.5, 5.0)):
        hits = []
        for _ in range(200):
            chances = rng.beta(chance * spread, (1 - chance) * spread, users)
            user = np.repeat(np.arange(users), rng.integers(1, 4, users))
            labels = rng.integers(1, 9, len(user))
            values = rng.binomial(labels, chances[user]) / labels
            _, low, high = metrics.estimate(values, user)
            hits.append(low <= chance <= high)
        covered.append(np.mean(hits))
    assert np.mean(covered) > 0.93
    assert min(covered) > 0.88  # hits are integers: with 200 draws and a few users it jumps


def test_estimate_of_other_numbers_covers_the_truth(rng):
    covered = 0
    for _ in range(400):
        user = np.repeat(np.arange(10), rng.integers(1, 6, 10))
        values = rng.standard_normal(10)[user] + rng.standard_normal(len(user))
        _, low, high = metrics.estimate(values, user, share=False)
        covered += low < 0 < high
    assert 0.92 < covered / 400 < 0.98


def test_estimate_of_too_few():
    assert np.isnan(metrics.estimate(np.array([np.nan]))).all()
    value, low, high = metrics.estimate(np.array([1.0, 2.0]), np.array([7, 7]), share=False)
    assert value == 1.5
    assert math.isnan(low)
    assert math.isnan(high)


def test_paired_difference_is_the_bayesian_bootstrap_of_users(rng):
    """Each user's weight is the same for both methods; half a user always gains, half loses."""
    user = np.repeat(np.arange(50), rng.integers(1, 6, 50))
    ours, theirs = rng.binomial(1, 0.4, len(user)), rng.binomial(1, 0.3, len(user))
    differences = (ours - theirs).astype(float)
    sizes, sums = np.bincount(user), np.bincount(user, differences)
    size = sizes.mean()
    weights = rng.gamma(np.append(np.ones(50), [0.5, 0.5]), size=(40_000, 52))
    means = (weights @ np.append(sums, [size, -size])) / (weights @ np.append(sizes, [size, size]))
    value, low, high = metrics.paired_difference(
        np.append(ours, np.nan), np.append(theirs, 1.0), np.append(user, 99)
    )
    assert value == pytest.approx(differences.mean())
    np.testing.assert_allclose([low, high], np.quantile(means, [0.025, 0.975]), atol=0.01)


def test_paired_difference_covers_the_truth(rng):
    """Users whose chances differ, with labels of their own, and two methods that go together."""
    covered, widths = [], []
    for users, chance, above in itertools.product((20, 100), (0.02, 0.2), (0.0, 0.05)):
        hits = []
        for _ in range(200):
            user = np.repeat(np.arange(users), rng.integers(1, 4, users))
            own = rng.beta(chance, 1 - chance, users)[user]
            uniform = rng.random((len(user), 5))
            theirs = (uniform < own[:, None]).mean(axis=1)
            ours = (uniform < own[:, None] + above * (1 - own[:, None])).mean(axis=1)
            truth = above * (1 - chance)
            _, low, high = metrics.paired_difference(ours, theirs, user)
            hits.append(low <= truth <= high)
            widths.append((high - low) / np.ptp(metrics.estimate(ours, user)[1:]))
        covered.append(np.mean(hits))
    assert 0.93 < np.mean(covered) <= 1
    assert min(covered) > 0.88
    assert np.median(widths) < 1  # what both have in common is no part of it


def test_paired_difference_has_a_width_where_none_was_seen():
    value, low, high = metrics.paired_difference(np.zeros(20), np.zeros(20))
    assert value == 0
    assert low == pytest.approx(-high)
    assert 0.01 < high < 0.2
    assert np.isnan(metrics.paired_difference(np.array([np.nan]), np.array([np.nan]))).all()


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
