"""The table of pairs, against a loop over engagements."""

import dataclasses
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from pinjax.data import pairs
from pinjax.data.spec import Spec
from pinjax.errors import InputError
from pinjax.evaluation import (
    baselines,
    engagements,
    evaluator,
    pair_source,
    retrievers,
    vector_search,
)

QUERIES, ITEMS, DIM = 12, 130, 4
TASKS = ("image/click", "text/save", "text/checkout")


class Dataset:
    """A data set in memory, whose item order[i] is in row i."""

    def __init__(self, rng, task_scores=None, order=None):
        self.oracle = None
        if task_scores is not None:
            self.oracle = types.SimpleNamespace(task_scores=task_scores)
        self.spec = Spec("shop", ITEMS, train_end=10_000, tasks=TASKS, pairs={"valid": 1})
        row = np.arange(ITEMS) if order is None else np.argsort(order)
        names = np.array([f"item {i}" for i in range(ITEMS)], object)
        self.catalogue = types.SimpleNamespace(ids=names[np.argsort(row)], created=np.zeros(ITEMS))
        # Half of the queries are items themselves, and popular ones.
        itself = np.where(np.arange(QUERIES) % 2, np.arange(QUERIES), -1).astype(np.int32)
        ids = np.array([f"query {i}" for i in range(QUERIES)], object)
        self.queries = pairs.Queries(ids, None, None, itself)
        self._pairs = {}
        for split, number in (("train", 300), ("test", 80)):
            drawn = np.zeros(number, pairs.PAIR)
            drawn["query"] = rng.integers(0, QUERIES, number)
            drawn["item"] = np.minimum(rng.geometric(0.03, number), ITEMS - 1)
            drawn["task"] = rng.integers(0, 3, number)
            drawn["time"] = np.sort(rng.integers(0, 10_000, number)) + 10_000 * (split == "test")
            drawn = drawn[drawn["item"] != itself[drawn["query"]]]
            self._pairs[split] = drawn
        if order is not None:
            self.queries.items[itself >= 0] = row[itself[itself >= 0]]
            for drawn in self._pairs.values():
                drawn["item"] = row[drawn["item"]]
        self._pairs["valid"] = self._pairs["test"][:0]

    def pairs(self, split):
        return self._pairs[split]


def make(dataset, tasks=(0, 1, 2), eligible=None, measured=(), **config):
    config = ConfigDict({"queries": 1_000, "index_size": 1_000} | config)
    eligible = np.ones(ITEMS, bool) if eligible is None else eligible
    source = pair_source.PairSource("ours", dataset, eligible, config, tasks, *measured)
    return evaluator.Evaluator("ours", source)


def queries_of(dataset, split="test", **config):
    (queries,) = make(dataset, **config).source.queries(split).values()
    return queries


def retriever(queries, items):
    return vector_search.of_vectors(queries.__getitem__, items)


def unit(rng, *shape):
    vectors = rng.standard_normal(shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_table_is_what_a_loop_counts(rng, share):
    """Also if some items are not in the index."""
    eligible = rng.random(ITEMS) < share
    likelihood = rng.random((3, QUERIES, ITEMS)).astype(np.float32)
    dataset = Dataset(rng, lambda queries, task: likelihood[task][queries])
    queries, items = unit(rng, QUERIES, DIM), unit(rng, ITEMS, DIM)
    table = make(dataset, eligible=eligible)(retriever(queries, items), "test", full=True)
    found = {row.name: row.metrics for row in table.rows}
    counts = np.bincount(dataset.pairs("train")["item"], minlength=ITEMS)
    missing = dataset.pairs("test")["item"][~eligible[dataset.pairs("test")["item"]]]
    assert len(missing) == 0 if share == 1 else len(missing) > 10

    itself = dataset.queries.items
    pairs = dataset.pairs("test")
    own = itself[pairs["query"]] == pairs["item"]
    reasons = {
        "ours does not embed the item": ~eligible[pairs["item"]],
        "its query leaves it out": own & eligible[pairs["item"]],
    }
    missed = sum(which.sum() for which in reasons.values())
    why = ", or ".join(reason for reason, which in reasons.items() if which.any())
    if missed:
        assert table.notes[0].endswith(f", {missed} of which every method misses: {why}")
    else:
        assert "misses" not in table.notes[0]

    def recall(score, k, keep):
        hits = []
        for pair in dataset.pairs("test"):
            scores = score(pair).astype(float)
            if itself[pair["query"]] >= 0:
                scores[itself[pair["query"]]] = -np.inf
            scores[~eligible] = -np.inf
            # Equal scores count against an item, except its own.
            if keep(pair):
                rank = (scores >= scores[pair["item"]]).sum() - 1
                hits.append(eligible[pair["item"]] and rank < k)
        return np.mean(hits)

    scores = {
        "ours": lambda pair: items @ queries[pair["query"]],
        "ours, ScaNN": lambda pair: items @ queries[pair["query"]],
        "popularity, all time": lambda pair: counts,
        "oracle": lambda pair: likelihood[pair["task"], pair["query"]],
    }
    if not evaluator._HAS_SCANN:
        del scores["ours, ScaNN"]
    for name, score in scores.items():
        for k in (1, 10, 100):
            assert found[name][f"R@{k}"].value == pytest.approx(recall(score, k, lambda pair: True))
            for task, label in enumerate(TASKS):
                of_task = recall(score, k, lambda pair, task=task: pair["task"] == task)
                assert found[f"{name}, {label}"][f"R@{k}"].value == pytest.approx(of_task)
        cold = recall(score, 10, lambda pair: counts[pair["item"]] == 0)
        np.testing.assert_allclose(found[name]["R@10 cold"].value, cold)
    for name in ("ours", "ours, text/save"):
        oracle = found[name.replace("ours", "oracle")]["R@10"].value or np.nan
        share = found[name]["R@10"].value / oracle
        np.testing.assert_allclose(found[name]["of oracle"].value, share)
    # Without validation pairs, the longest span that is shorter than the log is taken.
    baselines = ("popularity, all time", "popularity, 1 hour", "co-occurrence")
    best = max(baselines, key=lambda name: found[name]["R@10"].value)
    assert any(f"that of {best}, the best baseline of this table" in x for x in table.notes)
    for task in ("", *(f", {task}" for task in TASKS)):
        above = found["ours" + task]["R@10"].value - found[best + task]["R@10"].value
        assert found["ours" + task]["over baseline"].value == pytest.approx(above)
        assert "over baseline" not in found[best + task]


def test_co_occurrence_knows_what_queries_led_to(rng):
    """What a query led to, and what other queries led to beside it, against dense matrices."""
    dataset = Dataset(rng)
    table = make(dataset)(retriever(unit(rng, QUERIES, 2), unit(rng, ITEMS, 2)), "test", full=True)
    train, itself = dataset.pairs("train"), dataset.queries.items
    engaged = np.zeros((QUERIES, ITEMS))
    engaged[train["query"], train["item"]] = 1
    counts = np.bincount(train["item"], minlength=ITEMS)
    queries = queries_of(dataset)
    history = (train["query"] == queries.features["query"][:, None]).sum(axis=1)
    np.testing.assert_array_equal(queries.history, history)
    degree = np.maximum(engaged.sum(axis=0), 1)
    cosine = engaged.T @ engaged / np.sqrt(np.outer(degree, degree))
    hits = []
    for query, item in dataset.pairs("test")[["query", "item"]].tolist():
        context = train["item"][train["query"] == query].tolist()
        context += [itself[query]] if itself[query] >= 0 else []
        scores = cosine[context].sum(axis=0).round(7) + 1e-8 * counts / (1 + counts.max())
        scores[itself[query]] = -np.inf if itself[query] >= 0 else scores[itself[query]]
        hits.append((scores >= scores[item]).sum() - 1 < 10)
    found = {row.name: row.metrics for row in table.rows}
    assert 0.05 < np.mean(hits) < 0.95
    assert found["co-occurrence"]["R@10"].value == pytest.approx(np.mean(hits))


@pytest.mark.parametrize("lengths", [(1, 3), (1, 5, 80)])
def test_a_context_is_the_last_that_a_query_led_to_and_then_itself(rng, monkeypatch, lengths):
    """Oldest first, of the tasks that count, as many as the longest context has."""
    monkeypatch.setattr(pair_source.PairSource, "context_lengths", lengths)
    dataset = Dataset(rng)
    queries = queries_of(dataset, tasks=(0, 2))
    assert len(queries) == QUERIES
    assert queries.context.shape == (QUERIES, max(lengths))
    train = dataset.pairs("train")
    for query, found in zip(queries.features["query"], queries.context.tolist(), strict=True):
        of_query = train[(train["query"] == query) & (train["task"] != 1)]
        expected = of_query["item"].tolist()
        expected += [dataset.queries.items[query]] if dataset.queries.items[query] >= 0 else []
        assert ([-1] * max(lengths) + expected)[-max(lengths) :] == found


def test_the_order_of_items_changes_nothing(rng):
    likelihood = rng.integers(1, 9, (3, QUERIES, ITEMS)).astype(np.float32)
    queries, items = unit(rng, QUERIES, DIM), unit(rng, 9, DIM)[rng.integers(0, 9, ITEMS)]

    def tables(order):
        def oracle(queries, task):
            return likelihood[task][queries][:, order]

        dataset = Dataset(np.random.default_rng(3), oracle, order)
        for vectors in (items, np.tile(items[:1], (ITEMS, 1))):
            yield make(dataset)(retriever(queries, vectors[order]), "test", full=True)

    first = list(tables(np.arange(ITEMS)))
    for _ in range(3):
        for found, expected in zip(tables(rng.permutation(ITEMS)), first, strict=True):
            assert found.notes == expected.notes
            for a, b in zip(found.rows, expected.rows, strict=True):
                assert a.name == b.name
                same = [name for name in a.metrics if "queries/s" not in name]
                np.testing.assert_allclose(
                    [a.metrics[name] for name in same], [b.metrics[name] for name in same]
                )
    several, constant = first
    assert several.rows[0].metrics["R@100"].value > 0
    assert constant.rows[0].metrics["R@100"].value == 0
    assert constant.rows[0].metrics["P90 cov@10"].value == 0
    assert any(
        note.startswith("warning: ours has collapsed: its P90 cov@10 is") for note in constant.notes
    )


def test_a_table_says_what_it_rests_on(rng):
    dataset = Dataset(rng)
    queries, items = unit(rng, QUERIES, DIM), unit(rng, ITEMS, DIM)
    made = make(dataset)
    table = made(retriever(queries, items), "test", full=False)
    rows = np.unique(dataset.pairs("test")["query"])
    number, engagements = len(rows), len(dataset.pairs("test"))
    assert made.source.describe("test") == f"{number} queries, {engagements} engagements"
    assert table.notes == [
        made.source.describe("test"),
        f"warning: {number} queries are too few to tell methods apart; for more, raise "
        "split.test or split.test_days of pinjax.prepare",
    ]
    assert make(dataset, queries=5).source.notes("test")[1].endswith("raise evaluate.queries")
    assert table.rows[0].metrics.keys() == made.metrics.keys()
    top = np.argsort(-(queries @ np.asarray(items).T), axis=1)
    for query, own in enumerate(dataset.queries.items):
        top[query, :-1] = [item for item in top[query] if item != own][: ITEMS - 1]
    shown = np.sort(np.bincount(top[rows, :10].ravel()))[::-1]
    share = (np.searchsorted(np.cumsum(shown), 0.9 * shown.sum()) + 1) / ITEMS
    assert table.rows[0].metrics["P90 cov@10"].value == pytest.approx(share)


def test_pinsages_metrics_know_every_rank(rng):
    """With lists of 20 results of 130 items, and a scale of 100."""
    eligible = rng.random(ITEMS) < 0.9
    likelihood = rng.random((3, QUERIES, ITEMS))
    dataset = Dataset(rng, lambda queries, task: likelihood[task][queries])
    queries, items = unit(rng, QUERIES, DIM), unit(rng, ITEMS, DIM)
    measured = ("R@10", "HR@20", "scaled MRR"), 20
    assert pair_source.OFFLINE_METRICS == ("R@10", "HR@500", "scaled MRR")
    made = make(dataset, eligible=eligible, measured=measured)
    table = made(retriever(queries, items), "test", full=True)
    assert table.rows[0].metrics.keys() >= made.metrics.keys() >= set(measured[0])
    found = {row.name: row.metrics for row in table.rows}
    counts = np.bincount(dataset.pairs("train")["item"], minlength=ITEMS)
    scores = {
        "ours": lambda pair: items @ queries[pair["query"]],
        "popularity, all time": lambda pair: counts.astype(float),
        "oracle": lambda pair: likelihood[pair["task"], pair["query"]].copy(),
    }
    itself = dataset.queries.items
    for name, score in scores.items():
        hits, reciprocal = [], []
        for pair in dataset.pairs("test"):
            allowed = np.where(eligible, score(pair), -np.inf)
            if itself[pair["query"]] >= 0:
                allowed[itself[pair["query"]]] = -np.inf
            rank = (allowed >= allowed[pair["item"]]).sum()  # 1 for the best
            there = eligible[pair["item"]]
            hits.append(there and rank <= 20)
            reciprocal.append(there / -(-rank // 100))
        assert found[name]["HR@20"].value == pytest.approx(np.mean(hits))
        assert found[name]["scaled MRR"].value == pytest.approx(np.mean(reciprocal), abs=1e-6)
        assert 0.5 < np.mean(reciprocal) < 0.99


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_answers_from_outside_are_measured_alike(rng, share):
    """An item that is not in the index is not an answer; the next one takes its place."""
    dataset, eligible = Dataset(rng), rng.random(ITEMS) < share
    rows = queries_of(dataset, queries=8).features["query"]
    answers = np.stack([rng.permutation(ITEMS)[:120] for _ in rows])
    own = dataset.queries.items[rows][:, None]
    answers = np.where((answers == own) & (own >= 0), -1, answers)
    answers[:, 115:] = -1
    ours = retriever(unit(rng, QUERIES, DIM), unit(rng, ITEMS, DIM))
    other = {"other": retrievers.Answers(lambda queries, index: answers)}
    table = make(dataset, eligible=eligible, queries=8)(ours, "test", full=True, others=other)
    found = {row.name: row.metrics for row in table.rows}
    counts = np.bincount(dataset.pairs("train")["item"], minlength=ITEMS)
    engaged = [pair for pair in dataset.pairs("test") if pair["query"] in rows]

    def recall(k, keep):
        found = [row[(row >= 0) & eligible[row]][:k] for row in answers]
        lists = dict(zip(rows, found, strict=True))
        return np.mean([p["item"] in lists[p["query"]] for p in engaged if keep(p)])

    for k in (1, 10, 100):
        assert found["other"][f"R@{k}"].value == pytest.approx(recall(k, lambda pair: True))
        for task, label in enumerate(TASKS):
            of_task = recall(k, lambda pair, task=task: pair["task"] == task)
            assert found[f"other, {label}"][f"R@{k}"].value == pytest.approx(of_task)
    cold = recall(10, lambda pair: counts[pair["item"]] == 0)
    np.testing.assert_allclose(found["other"]["R@10 cold"].value, cold)
    assert np.isfinite(found["other"]["over baseline"]).all()


def test_tiers_have_a_third_of_training_each(rng):
    dataset = Dataset(rng)
    tiers = make(dataset).source.item_tiers(10_000)
    counts = np.bincount(dataset.pairs("train")["item"], minlength=ITEMS)
    assert (tiers[counts == 0] == engagements.TIERS.index("cold")).all()
    largest = np.bincount(counts, counts).max() / counts.sum()  # all items of one popularity
    for tier in range(3):
        share = counts[tiers == tier].sum() / counts.sum()
        assert abs(share - 1 / 3) < largest
        if tier:
            assert counts[tiers == tier].max() < counts[tiers == tier - 1].min()


def test_a_sampled_index_and_sampled_queries(rng):
    dataset = Dataset(rng)
    queries, items = unit(rng, QUERIES, DIM), unit(rng, ITEMS, DIM)
    eligible = rng.random(ITEMS) < 0.5
    assert (make(dataset, eligible=eligible).source.candidates(0).included == eligible).all()
    made = make(dataset, eligible=eligible, queries=5, index_size=20)
    held = made.source.candidates(0).included
    assert held.sum() == 20
    assert not held[~eligible].any()
    (sample,) = made.source.queries("test").values()
    assert len(sample) == 5
    (row,) = made(retriever(queries, items), "test", full=False).rows
    held = held[None] & (np.arange(ITEMS) != dataset.queries.items[:, None])
    labels = zip(sample.features["query"][sample.label_query], sample.label_item, strict=True)
    hits = [
        eligible[p] and (held[q] & (items @ queries[q] > (items @ queries[q])[p])).sum() < 10
        for q, p in labels
    ]
    assert row.metrics["R@10"].value == pytest.approx(np.mean(hits))


def test_queries_by_task_keep_their_labels_and_exclusions(rng):
    dataset = Dataset(rng)
    queries = queries_of(dataset)
    by_task = queries.by_task()
    for name in ("label_item", "label_task", "label_user", "label_time"):
        np.testing.assert_array_equal(getattr(by_task, name), getattr(queries, name))
    np.testing.assert_array_equal(by_task.features["task"][by_task.label_query], queries.label_task)
    expected = {
        (row, dataset.queries.items[query])
        for row, query in enumerate(by_task.features["query"])
        if dataset.queries.items[query] >= 0
    }
    assert len(by_task) > len(queries)
    assert set(map(tuple, by_task.excluded.tolist())) == expected
    assert len(by_task.excluded) == len(expected)


def test_a_split_or_an_index_without_anything_is_refused(rng):
    with pytest.raises(InputError, match="shop, split valid: no engagement of the tasks"):
        make(Dataset(rng))(retriever(np.zeros(0), np.zeros(0)), "valid", full=False)
    with pytest.raises(InputError, match="no item of shop has features that ours uses"):
        make(Dataset(rng), eligible=np.zeros(ITEMS, bool))


def test_all_training_pairs_are_known_at_the_end_of_training(rng):
    """With leave-one-out that is a rank, which times exceed."""
    dataset = Dataset(rng)
    dataset.spec = dataclasses.replace(dataset.spec, train_end=7)
    counts = make(dataset).source.engagements.counts(7)
    expected = np.bincount(dataset.pairs("train")["item"], minlength=ITEMS)
    np.testing.assert_array_equal(counts, expected)


def test_baselines_are_chosen_by_the_labels_of_each_query(rng):
    dataset = Dataset(rng)
    valid = dataset._pairs["valid"] = dataset.pairs("test")
    source = make(dataset).source
    values, cluster = baselines._recalls(source, baselines.Popularity(source.engagements))
    counts, hits = np.bincount(dataset.pairs("train")["item"], minlength=ITEMS), []
    for query, item in valid[["query", "item"]].tolist():
        scores = counts.astype(float)
        if dataset.queries.items[query] >= 0:
            scores[dataset.queries.items[query]] = -np.inf
        hits.append((scores >= scores[item]).sum() - 1 < 10)
    assert values.mean() == pytest.approx(np.mean(hits))
    np.testing.assert_array_equal(
        np.sort(np.bincount(cluster)), np.sort(np.unique_counts(valid["query"]).counts)
    )
