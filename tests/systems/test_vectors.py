"""Every system on the embeddings of another one (`data.vectors`)."""

import pathlib
import runpy

import jax
import numpy as np
import pytest

from pinjax.data import dataset as dataset_lib
from pinjax.errors import InputError
from pinjax.settings import Choice
from pinjax.systems import registry
from pinjax.training import checkpoint, workdirs

HERE = pathlib.Path(__file__).parent
DIM = 6


@pytest.fixture
def make_config(data_dir):
    def make(name, vectors):
        path = HERE.parents[1] / "configs" / f"{name}.py"
        config = runpy.run_path(str(path))["get_config"]("test")
        config.data.update(dir=str(data_dir), vectors=vectors)
        if name == "itemsage":
            config.model.embedding_dim = DIM
        return config

    return make


@pytest.fixture
def vectors(data_dir, make_embeddings, rng):
    """(name) -> embeddings of all items and queries."""
    own = dataset_lib.load("pinworld/tiny", data_dir)

    def make(name):
        tables = {
            table: (ids, rng.standard_normal((len(ids), DIM)).astype(np.float32))
            for table, ids in (("items", own.catalogue.ids), ("queries", own.queries.ids))
        }
        return make_embeddings(name, own, tables)

    return make


@pytest.mark.parametrize("name", ["searchsage", "itemsage", "pinnerformer"])
def test_constants_have_the_shapes_that_are_compiled(make_config, vectors, mesh, name):
    config = make_config(name, vectors("x"))
    system = registry.create(config, mesh)
    expected = jax.tree.map(lambda x: (x.shape, x.dtype), system.trainable.constants)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), system.constants) == expected
    assert system.summary["vectors"] == f"{config.data.vectors}, {DIM} numbers"
    # As `compile` does it, by shapes alone; how many images there are is then not known.
    without_data = registry.build(config, mesh)
    assert without_data.search.dim == system.trainable.search.dim


def test_a_run_on_other_vectors_is_refused(make_config, vectors, mesh, tmp_path):
    one, other = vectors("one"), vectors("other")
    config = make_config("searchsage", one)
    identity = registry.create(config, mesh).identity
    run = tmp_path / "run"
    checkpoint.claim(run, config, identity)
    pathlib.Path(one).rename(f"{one}-moved")  # where they are is no matter
    moved = make_config("searchsage", f"{one}-moved")
    workdirs.check(run, moved, registry.create(moved, mesh).identity)
    for vectors_ in (other, f"{one}-moved, {other}", ""):
        config = make_config("searchsage", vectors_)
        with pytest.raises(InputError, match=r"holds a run with .*vectors=.*, this one has"):
            workdirs.check(run, config, registry.create(config, mesh).identity)


def test_a_system_of_the_users_own_takes_them(make_config, vectors, mesh, monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    config = make_config("searchsage", vectors("x"))
    config.system = Choice("toys.own_vectors")
    system = registry.create(config, mesh)
    items = system.serve(None, 0).items
    found = items.embed(items.rows)
    assert found.shape[1] == DIM
    assert "vectors" in system.identity
    assert system.evaluate(None, "test").rows[0].metrics["R@10"].value < 0.2  # they are random
