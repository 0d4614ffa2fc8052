"""The table of groups, against a loop over their held-out edges."""

import numpy as np
import pyarrow as pa
import pytest
from ml_collections import ConfigDict

from pinjax import files
from pinjax.data import catalogue, dataset, parquet, spec
from pinjax.data.text import tokens
from pinjax.errors import InputError
from pinjax.evaluation import evaluator, graph_source, retrievers, vector_search
from pinjax.graph import csr

GROUPS, ITEMS, DIM = 40, 90, 4


@pytest.fixture
def boards(rng, tmp_path):
    """(order, **splits) -> a data set whose item order[i] is in row i, with random edges.

    The last ten items have no training edge, the first three groups no edge at all, and the fourth
    has held-out edges alone.
    """
    edge = rng.random((GROUPS, ITEMS)) < rng.random(ITEMS) / 2
    edge[:3] = False
    split = np.where(edge, rng.choice([0, 1, 2], edge.shape, p=[0.7, 0.1, 0.2]), -1)
    split[3, edge[3]] = 2
    split[:, -10:] = np.where(edge[:, -10:], 2, -1)

    def make(order=None, valid=True):
        order = np.arange(ITEMS) if order is None else order
        here = split[:, order] if valid else np.where(split == 1, 0, split)[:, order]
        path = tmp_path / f"boards {len(list(tmp_path.iterdir()))}"
        with files.new_directory(path) as made:
            nothing = np.zeros(ITEMS, np.int64)
            with catalogue.writer(made / catalogue.FILE) as write:
                write(catalogue.Items(1_000 + order, nothing - 1, nothing, nothing))
            ids = catalogue.id_array(np.array([f"board {i}" for i in range(GROUPS)], object))
            named = pa.table({"id": ids})
            parquet.write(made / spec.GROUPS_FILE, named.schema, [named])
            csr.write(made / "graph", np.argwhere(here == 0)[:, ::-1], ITEMS, GROUPS)
            schema = pa.schema([("group", pa.int32()), ("item", pa.int32())])
            counts = {name: int((here == i).sum()) for i, name in enumerate(spec.SPLITS)}
            for i, name in enumerate(spec.SPLITS[1:], start=1):
                if counts[name]:
                    held_out = pa.table(np.argwhere(here == i).T.tolist(), schema=schema)
                    parquet.write(made / "graph" / f"{name}.parquet", schema, [held_out])
            spec.write(made, spec.Spec("boards", ITEMS, edges=counts, num_groups=GROUPS))
        opened = dataset.open_directory(path)
        return opened, here

    return make


def make(opened, eligible=None, **config):
    config = ConfigDict({"queries": 1_000, "index_size": 1_000} | config)
    eligible = graph_source.known_items(opened) if eligible is None else eligible
    source = graph_source.GraphSource("ours", opened, eligible, config)
    return evaluator.Evaluator("ours", source)


def search(groups, items):
    towers = vector_search.Towers(lambda features: groups[features["group"]], items.__getitem__)
    return vector_search.VectorSearch(lambda time: towers)


def vectors(rng):
    return (rng.standard_normal((n, DIM)).astype(np.float32) for n in (GROUPS, ITEMS))


def expected(scores, split, eligible, tested=2):
    """R@10, R@20 and NDCG@20 of scores (groups, items) by LightGCN's protocol, group by group."""
    found = []
    for group in np.flatnonzero((split == tested).any(axis=1) & (split == 0).any(axis=1)):
        known = (split[group] == 0) | ((split[group] == 1) & (tested == 2))
        allowed = np.where(eligible & ~known, scores[group], -np.inf)
        labels = np.flatnonzero(split[group] == tested)
        ranks = np.array(
            [(allowed >= allowed[item]).sum() - 1 if eligible[item] else 999 for item in labels]
        )
        places = []  # equals that are all labels take one place after the other
        for rank in np.sort(ranks):
            places.append(max(rank, places[-1] + 1) if places else rank)
        gain = sum(1 / np.log2(place + 2) for place in places if place < 20)
        best = (1 / np.log2(np.arange(min(len(labels), 20)) + 2)).sum()
        found.append([np.mean(ranks < 10), np.mean(ranks < 20), gain / best])
    return np.mean(found, axis=0), len(found)


def values(metrics):
    return [metrics[name].value for name in ("R@10", "R@20", "NDCG@20")]


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_the_table_is_what_a_loop_counts(rng, boards, share):
    """Of trained vectors, popularity and co-occurrence over all items of a group."""
    opened, split = boards()
    eligible = graph_source.known_items(opened) & (rng.random(ITEMS) < share)
    assert (graph_source.known_items(opened) == (split == 0).any(axis=0)).all()
    groups, items = vectors(rng)
    table = make(opened, eligible)(search(groups, items), "test", full=True)
    found = {row.name: row.metrics for row in table.rows}
    engaged = (split == 0).astype(float)
    counts = engaged.sum(axis=0)
    degree = np.maximum(counts, 1)
    cosine = engaged.T @ engaged / np.sqrt(np.outer(degree, degree))
    tie = 1e-8 * counts / (1 + counts.max())
    scores = {
        "ours": groups @ items.T,
        "popularity, all time": np.tile(counts, (GROUPS, 1)),
        "co-occurrence": (engaged @ cosine).round(7) + tie,
    }
    assert list(found) == list(scores)
    for name, of_method in scores.items():
        of_loop, number = expected(of_method, split, eligible)
        np.testing.assert_allclose(values(found[name]), of_loop)
    labels = (split[(split == 0).any(axis=1)] == 2).sum()
    missed = (~eligible & (split[(split == 0).any(axis=1)] == 2)).sum()
    why = f", {missed} of which every method misses: ours does not embed the item"
    assert table.notes[0] == f"{number} groups, {labels} held-out edges{why}"
    assert 0.05 < found["co-occurrence"]["R@10"].value < 0.95


def test_the_order_of_items_changes_nothing(rng, boards):
    """Not even where many vectors are the same."""
    groups, items = vectors(rng)
    items = items[rng.integers(0, 9, ITEMS)]

    def table(order):
        opened, _ = boards(order)
        return make(opened)(search(groups, items[order]), "test", full=True)

    first, other = table(np.arange(ITEMS)), table(rng.permutation(ITEMS))
    assert first.notes == other.notes
    for a, b in zip(first.rows, other.rows, strict=True):
        assert a.name == b.name
        np.testing.assert_allclose([*a.metrics.values()], [*b.metrics.values()])
    assert first.rows[0].metrics["R@20"].value > 0


def test_items_of_a_group_are_its_context_and_no_answers(rng, boards, monkeypatch):
    opened, split = boards()
    (queries,) = make(opened).source.queries("test").values()
    trained = split == 0
    assert queries.users == [f"board {group}" for group in queries.features["group"]]
    for group, context in zip(queries.features["group"], queries.context, strict=True):
        np.testing.assert_array_equal(context[context >= 0], np.flatnonzero(trained[group]))
        assert (context[: -trained[group].sum()] == -1).all()
    np.testing.assert_array_equal(queries.history, trained[queries.features["group"]].sum(axis=1))
    known = np.argwhere(np.isin(split, (0, 1))[queries.features["group"]])
    order = np.lexsort(queries.excluded.T[::-1])
    np.testing.assert_array_equal(queries.excluded[order], known)
    assert not queries.label_exists[queries.label_item >= ITEMS - 10].any()

    monkeypatch.setattr(graph_source, "CONTEXT", 5)
    (queries,) = make(opened).source.queries("test").values()
    for group, context in zip(queries.features["group"], queries.context, strict=True):
        some, every = context[context >= 0], np.flatnonzero(trained[group])
        assert len(some) == min(5, len(every))
        assert (np.diff(some) > 0).all()
        assert np.isin(some, every).all()


def test_a_sample_of_groups_keeps_all_their_edges(rng, boards):
    opened, split = boards()
    (queries,) = make(opened, queries=7).source.queries("test").values()
    group = queries.features["group"]
    assert len(group) == 7
    found = np.zeros((GROUPS, ITEMS), bool)
    found[group[queries.label_query], queries.label_item] = True
    np.testing.assert_array_equal(found[group], split[group] == 2)
    groups, items = vectors(rng)
    (row,) = make(opened, queries=7)(search(groups, items), "test", full=False).rows
    only = np.full_like(split, -1)
    only[group] = split[group]
    of_loop, _ = expected(groups @ items.T, only, graph_source.known_items(opened))
    np.testing.assert_allclose(values(row.metrics), of_loop)
    assert make(opened, queries=7).source.notes("test")[1].endswith("raise evaluate.queries")


def test_answers_from_outside_are_measured_alike(rng, boards):
    """Lists in order of scores, with training items among them."""
    opened, split = boards()
    groups, items = vectors(rng)
    scores = groups @ items.T
    answers = retrievers.Answers(
        lambda queries, index: np.argsort(-scores[queries.features["group"]], axis=1)
    )
    table = make(opened)(answers, "test", full=False)
    of_loop, _ = expected(scores, split, graph_source.known_items(opened))
    np.testing.assert_allclose(values(table.rows[0].metrics), of_loop)


def test_a_graph_without_a_validation_split_is_tested_alone(rng, boards):
    opened, split = boards(valid=False)
    made = make(opened)
    groups, items = vectors(rng)
    assert made.metrics == {}
    with pytest.raises(InputError, match="boards, split valid: no group with a training edge has"):
        made.source.describe("valid")
    table = made(search(groups, items), "test", full=True)
    of_loop, _ = expected(groups @ items.T, split, graph_source.known_items(opened))
    np.testing.assert_allclose(values(table.rows[0].metrics), of_loop)

    opened, split = boards()
    made = make(opened)
    table = made(search(groups, items), "valid", full=False)
    assert table.rows[0].metrics.keys() == made.metrics.keys()
    of_loop, _ = expected(groups @ items.T, split, graph_source.known_items(opened), tested=1)
    np.testing.assert_allclose(values(table.rows[0].metrics), of_loop)


def test_whatever_is_known_of_an_item_makes_it_known(rng, boards):
    opened, _ = boards()
    linked = np.diff(opened.graph.items.offsets) > 0
    cold = np.flatnonzero(~linked)[:4]
    nothing, has = np.zeros(ITEMS, np.int64), np.arange(ITEMS)[:, None] == cold
    items = catalogue.Items(
        opened.catalogue.ids,
        nothing,
        nothing,
        nothing,
        content=has[:, :1].astype(np.float16),
        images=np.ones((1, 2), np.float16),
        image_offsets=np.cumsum(np.append(0, has[:, 1])),
        texts={"title": tokens.Ragged(np.zeros(2, np.int32), np.cumsum([0, *has[:, 2]]) * 2)},
    )
    path = opened.directory / catalogue.FILE
    with catalogue.writer(path) as write:
        write(items)
    opened = dataset.open_directory(opened.directory)
    np.testing.assert_array_equal(graph_source.known_items(opened), linked | has[:, :3].any(axis=1))


def test_an_index_of_nothing_is_refused(boards):
    with pytest.raises(InputError, match="no item of boards has features that ours uses"):
        make(boards()[0], eligible=np.zeros(ITEMS, bool))
