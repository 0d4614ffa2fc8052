"""The table of product retrieval, against a loop over engagements."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from pinjax.data import pairs
from pinjax.data.spec import Spec
from pinjax.errors import InputError
from pinjax.evaluation import product_retrieval

QUERIES, ITEMS, DIM = 12, 130, 4
TASKS = ("image/click", "text/save", "text/checkout")


class Dataset:
    """A data set in memory, whose item order[i] is in row i."""

    def __init__(self, rng, task_scores=None, order=None):
        self.oracle = None
        if task_scores is not None:
            self.oracle = types.SimpleNamespace(task_scores=task_scores)
        self.spec = Spec("shop", ITEMS, tasks=TASKS)
        # Half of the queries are items themselves, and popular ones.
        itself = np.where(np.arange(QUERIES) % 2, np.arange(QUERIES), -1).astype(np.int32)
        self.queries = pairs.Queries(np.arange(QUERIES), None, None, itself)
        self._pairs = {}
        for split, number in (("train", 300), ("test", 80)):
            drawn = np.zeros(number, pairs.PAIR)
            drawn["query"] = rng.integers(0, QUERIES, number)
            drawn["item"] = np.minimum(rng.geometric(0.03, number), ITEMS - 1)
            drawn["task"] = rng.integers(0, 3, number)
            drawn = drawn[drawn["item"] != itself[drawn["query"]]]
            self._pairs[split] = drawn
        if order is not None:
            row = np.argsort(order)
            self.queries.items[itself >= 0] = row[itself[itself >= 0]]
            for drawn in self._pairs.values():
                drawn["item"] = row[drawn["item"]]
        self._pairs["valid"] = self._pairs["test"][:0]

    def pairs(self, split):
        return self._pairs[split]


def judge(dataset, tasks=(0, 1, 2), findable=None, **config):
    config = ConfigDict({"queries": 1_000, "index_size": 1_000} | config)
    findable = np.ones(ITEMS, bool) if findable is None else findable
    return product_retrieval.ProductRetrieval("ours", dataset, tasks, findable, config)


def unit(rng, *shape):
    vectors = rng.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_table_is_what_a_loop_counts(rng, share):
    """Also where a part of the items can be found by nobody."""
    findable = rng.random(ITEMS) < share
    likelihood = rng.random((3, QUERIES, ITEMS)).astype(np.float32)
    dataset = Dataset(rng, lambda queries, task: likelihood[task][queries])
    queries, items = unit(rng, QUERIES, DIM), unit(rng, ITEMS, DIM)
    judged = judge(dataset, findable=findable)
    rows = judged(lambda rows: queries[rows], jnp.asarray(items), "test", full=True).rows
    found = {row.method: row.metrics for row in rows}
    counts = np.bincount(dataset.pairs("train")["item"], minlength=ITEMS)
    missing = dataset.pairs("test")["item"][~findable[dataset.pairs("test")["item"]]]
    assert len(missing) == 0 if share == 1 else len(missing) > 10

    itself = dataset.queries.items

    def recall(score, k, keep):
        hits = []
        for pair in dataset.pairs("test"):
            scores = score(pair).astype(float)
            if itself[pair["query"]] >= 0:
                scores[itself[pair["query"]]] = -np.inf
            scores[~findable] = -np.inf
            # Equals count against an item, but for itself.
            if keep(pair):
                rank = (scores >= scores[pair["item"]]).sum() - 1
                hits.append(findable[pair["item"]] and rank < k)
        return np.mean(hits)

    scores = {
        "ours": lambda pair: items @ queries[pair["query"]],
        "popularity": lambda pair: counts,
        "oracle": lambda pair: likelihood[pair["task"], pair["query"]],
    }
    for name, score in scores.items():
        for k in (1, 10, 100):
            assert found[name][f"R@{k}"].value == pytest.approx(recall(score, k, lambda pair: True))
            for task, label in enumerate(TASKS):
                of_task = recall(score, k, lambda pair, task=task: pair["task"] == task)
                assert found[f"{name}, {label}"][f"R@{k}"].value == pytest.approx(of_task)
        cold = recall(score, 10, lambda pair: counts[pair["item"]] == 0)
        np.testing.assert_allclose(found[name]["R@10 cold"].value, cold)
    for name in ("ours", "ours, text/save"):
        share = found[name]["R@10"].value / found[name.replace("ours", "oracle")]["R@10"].value
        assert found[name]["of oracle"].value == pytest.approx(share)


def test_the_order_of_items_changes_nothing(rng):
    likelihood = rng.integers(1, 9, (3, QUERIES, ITEMS)).astype(np.float32)
    queries, items = unit(rng, QUERIES, DIM), unit(rng, 9, DIM)[rng.integers(0, 9, ITEMS)]

    def tables(order):
        def oracle(queries, task):
            return likelihood[task][queries][:, order]

        dataset = Dataset(np.random.default_rng(3), oracle, order)
        for vectors in (items, np.tile(items[:1], (ITEMS, 1))):
            yield judge(dataset)(
                lambda rows: queries[rows], jnp.asarray(vectors[order]), "test", True
            )

    first = list(tables(np.arange(ITEMS)))
    for _ in range(3):
        for found, expected in zip(tables(rng.permutation(ITEMS)), first, strict=True):
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
    queries, items = unit(rng, QUERIES, DIM), jnp.asarray(unit(rng, ITEMS, DIM))
    judged = judge(dataset)
    table = judged(lambda rows: queries[rows], items, "test", full=False)
    number, engagements = len(judged.queries("test")), len(dataset.pairs("test"))
    assert judged.asked("test") == f"{number} queries, {engagements} engagements"
    assert table.notes == [
        judged.asked("test"),
        f"{number} queries are too few to tell methods apart; for more, raise split.test or "
        "split.test_days of pinjax.prepare",
    ]
    assert judge(dataset, queries=5)._rests_on("test")[1].endswith("raise evaluate.queries")
    assert table.rows[0].metrics.keys() == judged.metrics.keys()
    top = np.argsort(-(queries @ np.asarray(items).T), axis=1)
    for query, own in enumerate(dataset.queries.items):
        top[query, :-1] = [item for item in top[query] if item != own][: ITEMS - 1]
    shown = np.sort(np.bincount(top[judged.queries("test"), :10].ravel()))[::-1]
    share = (np.searchsorted(np.cumsum(shown), 0.9 * shown.sum()) + 1) / ITEMS
    assert table.rows[0].metrics["P90 cov@10"].value == pytest.approx(share)


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_answers_of_another_method_are_judged_alike(rng, share):
    """What nobody can find is no answer, and the next one takes its place."""
    dataset, findable = Dataset(rng), rng.random(ITEMS) < share
    judged = judge(dataset, findable=findable, queries=8)
    asked = judged.queries("test")
    answers = np.stack([rng.permutation(ITEMS)[:120] for _ in asked])
    answers[:, 115:] = -1
    found = {row.method: row.metrics for row in judged.of_answers("other", answers, "test")}
    counts = np.bincount(dataset.pairs("train")["item"], minlength=ITEMS)
    engaged = [pair for pair in dataset.pairs("test") if pair["query"] in asked]

    def recall(k, keep):
        found = [row[(row >= 0) & findable[row]][:k] for row in answers]
        lists = dict(zip(asked, found, strict=True))
        return np.mean([p["item"] in lists[p["query"]] for p in engaged if keep(p)])

    for k in (1, 10, 100):
        assert found["other"][f"R@{k}"].value == pytest.approx(recall(k, lambda pair: True))
        for task, label in enumerate(TASKS):
            of_task = recall(k, lambda pair, task=task: pair["task"] == task)
            assert found[f"other, {label}"][f"R@{k}"].value == pytest.approx(of_task)
    cold = recall(10, lambda pair: counts[pair["item"]] == 0)
    np.testing.assert_allclose(found["other"]["R@10 cold"].value, cold)


def test_tiers_have_a_third_of_training_each(rng):
    dataset = Dataset(rng)
    tiers = judge(dataset)._tiers
    counts = np.bincount(dataset.pairs("train")["item"], minlength=ITEMS)
    assert (tiers[counts == 0] == product_retrieval.TIERS.index("cold")).all()
    largest = np.bincount(counts, counts).max() / counts.sum()  # of those of one popularity
    for tier in range(3):
        share = counts[tiers == tier].sum() / counts.sum()
        assert abs(share - 1 / 3) < largest
        if tier:
            assert counts[tiers == tier].max() < counts[tiers == tier - 1].min()


def test_a_sampled_index_and_sampled_queries(rng):
    dataset = Dataset(rng)
    queries, items = unit(rng, QUERIES, DIM), unit(rng, ITEMS, DIM)
    findable = rng.random(ITEMS) < 0.5
    assert (judge(dataset, findable=findable)._index == findable).all()
    judged = judge(dataset, findable=findable, queries=5, index_size=20)
    assert judged._index.sum() == 20
    assert not judged._index[~findable].any()
    assert len(np.unique(judged._asked("test")["query"])) == 5
    (row,) = judged(lambda rows: queries[rows], jnp.asarray(items), "test", full=False).rows
    index = judged._index
    index = index[None] & (np.arange(ITEMS) != dataset.queries.items[:, None])
    hits = [
        findable[p] and (index[q] & (items @ queries[q] > (items @ queries[q])[p])).sum() < 10
        for q, p in judged._asked("test")[["query", "item"]].tolist()
    ]
    assert row.metrics["R@10"].value == pytest.approx(np.mean(hits))


def test_nothing_to_judge_is_refused(rng):
    with pytest.raises(InputError, match="shop, split valid: no engagement of the tasks"):
        judge(Dataset(rng))(lambda rows: rows, jnp.zeros((ITEMS, DIM)), "valid", full=False)
    with pytest.raises(InputError, match="no item of shop has features that ours uses"):
        judge(Dataset(rng), findable=np.zeros(ITEMS, bool))
