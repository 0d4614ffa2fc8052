"""What is served: the same in evaluation, in several parts, and without what is for training."""

import jax
import numpy as np
import pytest

from pinjax.data import dataset as dataset_lib
from pinjax.evaluation import evaluator as evaluator_lib
from pinjax.systems import embedded, histories, layerwise, registry
from tests.systems import test_embedded
from tests.systems.test_build import SYSTEMS, get_config


@pytest.fixture
def create(mesh, data_dir):
    """(name, changes) -> a system, as small as it gets."""
    return lambda *args: registry.create(get_config(args[0], data_dir, *args[1:]), mesh)


def init(made):
    return jax.jit(made.trainable.init)(jax.random.key(1))


@pytest.mark.parametrize("several", [False, True])
def test_users_in_several_files_and_reads_are_the_same(data_dir, monkeypatch, several):
    directory = dataset_lib.ensure("pinworld/tiny", str(data_dir))
    made = test_embedded.Histories(directory, several)
    as_of = made.dataset.spec.train_end
    expected = test_embedded.rows_of(test_embedded.embed(made, as_of))
    monkeypatch.setattr(embedded, "SHARD", 20)
    monkeypatch.setattr(embedded, "_READ", 7)
    parts = test_embedded.embed(made, as_of)
    assert len(parts) > 4
    assert test_embedded.rows_of(parts) == expected


def test_items_of_a_graph_in_several_passes_are_the_same(create, monkeypatch):
    """Groups, too."""
    at_once = create("pinsage")
    params, _ = init(at_once)
    expected = at_once.serve(params, at_once.dataset.spec.train_end)
    monkeypatch.setattr(layerwise, "_ROWS", 300)
    found = create("pinsage").serve(params, at_once.dataset.spec.train_end)
    for a, b in ((found.items, expected.items), (found.groups, expected.groups)):
        assert len(a.rows) > 300
        np.testing.assert_array_equal(a.rows, b.rows)
        np.testing.assert_allclose(a.embed(a.rows), b.embed(b.rows), atol=1e-6)


@pytest.mark.slow
def test_dropout_is_of_training_alone(create):
    losses, users = [], []
    systems = [create("pinnerformer", {"model": {"dropout": rate}}) for rate in (0.0, 0.5)]
    params, sketch = init(systems[0])
    for made in systems:
        arguments = params, made.constants, sketch, next(made.batches(0)), jax.random.key(2)
        losses.append(float(jax.jit(made.trainable.loss)(*arguments)[0]))
        chunk = made.dataset.chunk("valid", 0, 9)
        history = histories.until(chunk, made.dataset.spec.train_end, 16)[2]
        users.append(made.serve(params, made.dataset.spec.train_end).users([history]))
    assert losses[0] != losses[1]
    np.testing.assert_array_equal(*users)


@pytest.mark.parametrize("name", SYSTEMS)
def test_what_is_evaluated_is_what_is_served(name, create, monkeypatch):
    made = create(name)
    params, _ = init(made)
    given = []
    monkeypatch.setattr(evaluator_lib.Evaluator, "__call__", lambda *args: given.append(args))
    made.evaluate(params, "test")
    ((evaluator, retriever, split, full),) = given
    assert (split, full) == ("test", False)
    start, queries = next(iter(evaluator.source.queries("test").items()))
    candidates = evaluator.source.candidates(start)
    vectors, items = retriever.embed(queries, candidates)
    served = made.serve(params, start)
    rows = np.flatnonzero(candidates.included)
    assert np.isin(rows, served.items.rows).all()
    np.testing.assert_allclose(items.of(rows), served.items.embed(rows), atol=1e-6)
    if name == "pinnerformer":
        own = {}
        for chunk in made.dataset.chunks("test"):
            some, _, history = histories.until(chunk, start, 16)
            found = served.users([history])
            own |= {chunk.users[row]: vector for row, vector in zip(some, found, strict=True)}
        expected = [own[queries.users[user]] for user in queries.query_user]
    elif name == "pinsage":  # whose queries are items
        expected = served.items.embed(made.dataset.queries.items[queries.features["query"]])
    else:
        expected = served.queries.embed(queries.features["query"])
    np.testing.assert_allclose(vectors, expected, atol=1e-6)
