"""Metrics of a ranking model against enumerations, and their intervals against a bootstrap."""

import numpy as np
import pytest

from pinjax.evaluation import metrics as evaluation_metrics
from pinjax.ranking import metrics, rows


def area(logits, labels):
    """By all pairs."""
    difference = logits[labels][:, None] - logits[~labels]
    return ((difference > 0) + 0.5 * (difference == 0)).mean()


@pytest.mark.parametrize("ties", [False, True])
def test_the_mean_of_values_is_the_area(rng, ties):
    labels = rng.random(200) < 0.3
    logits = rng.normal(size=200) + labels
    logits = np.round(logits) if ties else logits
    found = metrics.auc_values(logits.astype(np.float32), labels)
    np.testing.assert_allclose(found.mean(), area(logits.astype(np.float32), labels), rtol=1e-12)


def test_without_both_kinds_there_is_no_area():
    assert np.isnan(metrics.auc_values(np.zeros(3), np.ones(3, bool))).all()


def test_log_losses(rng):
    logits, labels = 5 * rng.normal(size=50), rng.random(50) < 0.5
    p = 1 / (1 + np.exp(-logits))
    expected = -np.where(labels, np.log(p), np.log(1 - p))
    np.testing.assert_allclose(metrics.log_losses(logits, labels), expected, rtol=1e-10)
    assert metrics.log_losses(np.float32([1e4]), np.array([True])) == 0


@pytest.mark.parametrize("ties", [False, True])
def test_hits(rng, ties):
    request = np.sort(rng.integers(0, 40, 200))
    request = np.unique(request, return_inverse=True)[1]
    labels = rng.random(200) < 0.3
    logits = rng.integers(0, 4, 200).astype(float) if ties else rng.normal(size=200)
    shuffled = rng.permutation(200)
    found = metrics.hits(logits[shuffled], labels[shuffled], request[shuffled])
    for number in range(request.max() + 1):
        rows = np.flatnonzero(request == number)
        wanted = rows[labels[rows]]
        if len(rows) <= 3 or not len(wanted):
            assert np.isnan(found[number])
            continue
        ranks = [(logits[rows] >= logits[row]).sum() - 1 for row in wanted]
        np.testing.assert_allclose(found[number], np.mean(np.array(ranks) < 3))


def test_the_interval_of_an_area_is_that_of_a_bootstrap_over_users(rng):
    """Of users whose rows depend on each other, and of a paired difference."""
    users, rows = 150, 20
    user = np.repeat(np.arange(users), rows)
    labels = rng.random(users * rows) < np.repeat(rng.uniform(0.1, 0.6, users), rows)
    signal = labels + np.repeat(rng.normal(size=users), rows)
    one = signal + rng.normal(size=len(user))
    other = signal + 2 * rng.normal(size=len(user))
    values = [metrics.auc_values(x, labels) for x in (one, other)]
    found = [
        evaluation_metrics.estimate(x, user, share=False)
        for x in (values[0], values[0] - values[1])
    ]
    drawn = []
    for _ in range(400):
        chosen = np.concatenate([np.arange(rows) + rows * u for u in rng.integers(0, users, users)])
        areas = [metrics.auc_values(x[chosen], labels[chosen]).mean() for x in (one, other)]
        drawn.append((areas[0], areas[0] - areas[1]))
    for estimate, draws in zip(found, np.array(drawn).T, strict=True):
        half = (estimate.high - estimate.low) / 2
        np.testing.assert_allclose(half, 1.96 * draws.std(), rtol=0.15)


def test_each_type_method_and_seed_is_measured_by_itself(rng):
    """On the test rows alone."""
    number, types, seeds = 300, ("any", "save"), 3
    request = np.sort(rng.integers(0, 50, number))
    made = rows.Rows(
        types=types,
        user=request // 3,
        item=rng.integers(0, 9, number),
        time=np.zeros(number, np.int64),
        request=request,
        labels=rng.random((number, 2)) < [0.3, 0.6],
        test=request % 5 > 1,
        sampled=0,
    )
    logits = {
        name: [rng.normal(size=(made.test.sum(), 2)).astype(np.float32) for _ in range(seeds)]
        for name in ("nothing", "ours")
    }
    found = metrics.measure(logits, made)
    own_request, own_labels = request[made.test], made.labels[made.test]
    rows_of = [np.flatnonzero(own_request == one) for one in np.unique(own_request)]

    def hits(values, label):
        shares = []
        for some in rows_of:
            wanted = some[label[some]]
            ranks = [(values[some] > values[row]).sum() for row in wanted]
            shares.append(np.mean(np.array(ranks) < 3) if len(some) > 3 and ranks else np.nan)
        return np.nanmean(shares)

    def log_loss(values, label):
        return np.log1p(np.exp(np.where(label, -values, values))).mean()

    for metric, function in (("AUC", area), ("log loss", log_loss), ("HIT@3", hits)):
        for method, of_method in logits.items():
            expected = [
                [function(x[:, n].astype(float), own_labels[:, n]) for n in range(2)]
                for x in of_method
            ]
            np.testing.assert_allclose(found.seeds[metric][method], expected, rtol=1e-6)
            means = [np.nanmean(values) for values in found.values[metric][method]]
            np.testing.assert_allclose(means, np.mean(expected, axis=0), rtol=1e-6)
    np.testing.assert_array_equal(found.users["AUC"], made.user[made.test])
    of_requests = [made.user[made.test][some[0]] for some in rows_of]
    np.testing.assert_array_equal(found.users["HIT@3"], of_requests)


def test_a_type_that_the_test_lacks_has_no_figure():
    found = metrics._means(np.array([[np.nan, np.nan], [1.0, np.nan]]))
    np.testing.assert_array_equal(found, [np.nan, 1.0])
