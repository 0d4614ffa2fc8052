"""The table of product retrieval, against a loop over engagements."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from pinjax.data import pairs, text
from pinjax.errors import InputError
from pinjax.systems import product_retrieval

QUERIES, PRODUCTS, DIM = 12, 130, 4
TASKS = ("image/click", "text/save", "text/checkout")


class Dataset:
    """A `PairSet` in memory, whose product order[i] is in row i."""

    def __init__(self, rng, oracle=None, order=None):
        self.oracle = oracle
        self.metadata = pairs.Metadata("shop", TASKS, 0, "")
        self.products = pairs.Products(
            *(np.arange(PRODUCTS), np.zeros(PRODUCTS, np.int32), np.zeros(PRODUCTS, np.uint32)),
            *(np.zeros((0, DIM), np.float16), np.zeros(PRODUCTS + 1, int)),
            {"title": text.Ragged(np.zeros(0, np.int32), np.zeros(PRODUCTS + 1, int))},
        )
        # Half of the queries are products themselves, and popular ones.
        itself = np.where(np.arange(QUERIES) % 2, np.arange(QUERIES), -1).astype(np.int32)
        self.queries = pairs.Queries(np.arange(QUERIES), None, None, itself)
        self._pairs = {}
        for split, number in (("train", 300), ("test", 80)):
            drawn = np.zeros(number, pairs.PAIR)
            drawn["query"] = rng.integers(0, QUERIES, number)
            drawn["product"] = np.minimum(rng.geometric(0.03, number), PRODUCTS - 1)
            drawn["task"] = rng.integers(0, 3, number)
            drawn = drawn[drawn["product"] != itself[drawn["query"]]]
            self._pairs[split] = drawn
        if order is not None:
            row = np.argsort(order)
            self.queries.products[itself >= 0] = row[itself[itself >= 0]]
            for drawn in self._pairs.values():
                drawn["product"] = row[drawn["product"]]
        self._pairs["valid"] = self._pairs["test"][:0]

    def pairs(self, split):
        return self._pairs[split]


def judge(dataset, tasks=(0, 1, 2), **config):
    config = ConfigDict({"queries": 1_000, "index_size": 1_000} | config)
    return product_retrieval.ProductRetrieval("ours", dataset, tasks, config)


def unit(rng, *shape):
    vectors = rng.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_table_is_what_a_loop_counts(rng):
    likelihood = rng.random((3, QUERIES, PRODUCTS)).astype(np.float32)
    dataset = Dataset(rng, oracle=lambda queries, task: likelihood[task][queries])
    queries, products = unit(rng, QUERIES, DIM), unit(rng, PRODUCTS, DIM)
    rows = judge(dataset)(lambda rows: queries[rows], jnp.asarray(products), "test", full=True).rows
    found = {row.method: row.metrics for row in rows}
    counts = np.bincount(dataset.pairs("train")["product"], minlength=PRODUCTS)

    itself = dataset.queries.products

    def recall(score, k, keep):
        hits = []
        for pair in dataset.pairs("test"):
            scores = score(pair).astype(float)
            if itself[pair["query"]] >= 0:
                scores[itself[pair["query"]]] = -np.inf
            # Equals count against a product, but for itself.
            if keep(pair):
                hits.append((scores >= scores[pair["product"]]).sum() - 1 < k)
        return np.mean(hits)

    scores = {
        "ours": lambda pair: products @ queries[pair["query"]],
        "popularity": lambda pair: counts,
        "oracle": lambda pair: likelihood[pair["task"], pair["query"]],
    }
    for name, score in scores.items():
        for k in (1, 10, 100):
            assert found[name][f"R@{k}"].value == pytest.approx(recall(score, k, lambda pair: True))
            for task, label in enumerate(TASKS):
                of_task = recall(score, k, lambda pair, task=task: pair["task"] == task)
                assert found[f"{name}, {label}"][f"R@{k}"].value == pytest.approx(of_task)
        cold = recall(score, 10, lambda pair: counts[pair["product"]] == 0)
        np.testing.assert_allclose(found[name]["R@10 cold"].value, cold)
    for name in ("ours", "ours, text/save"):
        share = found[name]["R@10"].value / found[name.replace("ours", "oracle")]["R@10"].value
        assert found[name]["of oracle"].value == pytest.approx(share)


def test_the_order_of_products_changes_nothing(rng):
    likelihood = rng.integers(1, 9, (3, QUERIES, PRODUCTS)).astype(np.float32)
    queries, products = unit(rng, QUERIES, DIM), unit(rng, 9, DIM)[rng.integers(0, 9, PRODUCTS)]

    def tables(order):
        def oracle(queries, task):
            return likelihood[task][queries][:, order]

        dataset = Dataset(np.random.default_rng(3), oracle, order)
        for vectors in (products, np.tile(products[:1], (PRODUCTS, 1))):
            yield judge(dataset)(
                lambda rows: queries[rows], jnp.asarray(vectors[order]), "test", True
            )

    first = list(tables(np.arange(PRODUCTS)))
    for _ in range(3):
        for found, expected in zip(tables(rng.permutation(PRODUCTS)), first, strict=True):
            assert found.notes == expected.notes
            for a, b in zip(found.rows, expected.rows, strict=True):
                np.testing.assert_allclose([*a.metrics.values()], [*b.metrics.values()])
    several, constant = first
    assert several.rows[0].metrics["R@100"].value > 0
    assert constant.rows[0].metrics["R@100"].value == 0
    assert constant.rows[0].metrics["P90 cov@10"].value == 0
    assert any(note.startswith("ours has collapsed: its P90 cov@10 is") for note in constant.notes)


def test_a_table_says_what_it_rests_on(rng):
    dataset = Dataset(rng)
    queries, products = unit(rng, QUERIES, DIM), jnp.asarray(unit(rng, PRODUCTS, DIM))
    judged = judge(dataset)
    table = judged(lambda rows: queries[rows], products, "test", full=False)
    number, engagements = len(judged.queries("test")), len(dataset.pairs("test"))
    assert judged.asked("test") == f"{number} queries, {engagements} engagements"
    assert table.notes == [
        judged.asked("test"),
        f"{number} queries are too few to tell methods apart; for more, raise split.test or "
        "split.test_days of pinjax.prepare",
    ]
    assert judge(dataset, queries=5)._rests_on("test")[1].endswith("raise evaluate.queries")
    assert table.rows[0].metrics.keys() == judged.metrics.keys()
    top = np.argsort(-(queries @ np.asarray(products).T), axis=1)
    for query, own in enumerate(dataset.queries.products):
        top[query, :-1] = [product for product in top[query] if product != own][: PRODUCTS - 1]
    shown = np.sort(np.bincount(top[judged.queries("test"), :10].ravel()))[::-1]
    share = (np.searchsorted(np.cumsum(shown), 0.9 * shown.sum()) + 1) / PRODUCTS
    assert table.rows[0].metrics["P90 cov@10"].value == pytest.approx(share)


def test_answers_of_another_method_are_judged_alike(rng):
    dataset = Dataset(rng)
    judged = judge(dataset, queries=8)
    asked = judged.queries("test")
    answers = np.stack([rng.permutation(PRODUCTS)[:20] for _ in asked])
    answers[:, 15:] = -1
    found = {row.method: row.metrics for row in judged.of_answers("other", answers, "test")}
    counts = np.bincount(dataset.pairs("train")["product"], minlength=PRODUCTS)
    engaged = [pair for pair in dataset.pairs("test") if pair["query"] in asked]

    def recall(k, keep):
        lists = dict(zip(asked, answers.tolist(), strict=True))
        return np.mean([p["product"] in lists[p["query"]][:k] for p in engaged if keep(p)])

    for k in (1, 10, 100):
        assert found["other"][f"R@{k}"].value == pytest.approx(recall(k, lambda pair: True))
        for task, label in enumerate(TASKS):
            of_task = recall(k, lambda pair, task=task: pair["task"] == task)
            assert found[f"other, {label}"][f"R@{k}"].value == pytest.approx(of_task)
    cold = recall(10, lambda pair: counts[pair["product"]] == 0)
    np.testing.assert_allclose(found["other"]["R@10 cold"].value, cold)


def test_tiers_have_a_third_of_training_each(rng):
    dataset = Dataset(rng)
    tiers = judge(dataset)._tiers
    counts = np.bincount(dataset.pairs("train")["product"], minlength=PRODUCTS)
    assert (tiers[counts == 0] == product_retrieval.TIERS.index("cold")).all()
    largest = np.bincount(counts, counts).max() / counts.sum()  # of those of one popularity
    for tier in range(3):
        share = counts[tiers == tier].sum() / counts.sum()
        assert abs(share - 1 / 3) < largest
        if tier:
            assert counts[tiers == tier].max() < counts[tiers == tier - 1].min()


def test_a_sampled_index_and_sampled_queries(rng):
    dataset = Dataset(rng)
    queries, products = unit(rng, QUERIES, DIM), unit(rng, PRODUCTS, DIM)
    judged = judge(dataset, queries=5, index_size=20)
    assert judged._index.sum() == 20
    assert len(np.unique(judged._asked("test")["query"])) == 5
    (row,) = judged(lambda rows: queries[rows], jnp.asarray(products), "test", full=False).rows
    index = judged._index
    index = index[None] & (np.arange(PRODUCTS) != dataset.queries.products[:, None])
    hits = [
        (index[q] & (products @ queries[q] > (products @ queries[q])[p])).sum() < 10
        for q, p in judged._asked("test")[["query", "product"]].tolist()
    ]
    assert row.metrics["R@10"].value == pytest.approx(np.mean(hits))


def test_nothing_to_judge_is_refused(rng):
    with pytest.raises(InputError, match="shop, split valid: no engagement of the tasks"):
        judge(Dataset(rng))(lambda rows: rows, jnp.zeros((PRODUCTS, DIM)), "valid", full=False)
