"""A user's own system is one module and one config."""

import pathlib
import runpy

import jax
import numpy as np
import pytest

from pinjax.compiler import programs
from pinjax.distributed import sharding
from pinjax.errors import InputError
from pinjax.settings import Choice, Section, Size
from pinjax.systems import embedded, registry
from pinjax.training import checkpoint, loop

HERE = pathlib.Path(__file__).parent


@pytest.fixture
def config(data_dir, monkeypatch):
    """That of the matrix factorisation."""
    monkeypatch.syspath_prepend(str(HERE))
    path = HERE.parents[1] / "configs" / "searchsage.py"
    config = runpy.run_path(str(path))["get_config"]("test")
    config.system = Choice("toys.matrix_factorisation")
    config.model = Section()
    config.model.dim = Size(16)
    config.data.dir = str(data_dir)
    config.train.update(steps=60, learning_rate=0.1, weight_decay=0.0)
    return config


def test_a_matrix_factorisation_trains_evaluates_embeds_and_compiles(config, tmp_path):
    mesh = sharding.make_mesh()
    system = registry.create(config, mesh)
    system.check_training()
    with checkpoint.of_run(tmp_path, config, system) as checkpoints:
        checkpoint.claim(tmp_path, config, system.identity)
        loop.train(system, config.train, mesh, tmp_path, checkpoints)
    params = checkpoint.load_chosen(tmp_path, config, system, mesh).params

    untrained, _ = jax.jit(system.trainable.init)(jax.random.key(0))
    found, before = (
        system.evaluate(p, "valid").rows[0].metrics["R@100"].value for p in (params, untrained)
    )
    assert found > before + 0.1
    for name, shards in embedded.tables(config, system, params, 0).items():
        ((_, vectors, _),) = (shard() for shard in shards)
        np.testing.assert_array_equal(vectors, params[name])

    trainable = registry.build(config, mesh)
    made = [
        programs.train_step(trainable, config.train, mesh),
        *programs.others(trainable, config.train, mesh),
    ]
    assert [p.name for p in made] == ["train step", "embed queries", "embed items", "search"]
    assert programs.measure(made[0], None, "").collectives


def test_a_system_that_is_not_trained_is_evaluated_and_embedded(config, tmp_path):
    config.system = Choice("toys.own_vectors")
    mesh = sharding.make_mesh()
    assert registry.build(config, mesh) is None
    system = registry.create(config, mesh)
    state = checkpoint.load_chosen(tmp_path, config, system, mesh)
    assert (int(state.step), state.params) == (0, None)
    table = system.evaluate(state.params, "test", full=True)
    recall = {row.method: row.metrics["R@100"].value for row in table.rows}
    assert recall["own vectors"] > recall["popularity, all time"]
    items = system.serve(state.params, 0).items
    assert len(items.embed(items.rows)) == len(items.rows) > 200
    with pytest.raises(InputError, match=r"system='toys.own_vectors' is not trained"):
        registry.check_trained(config, system.trainable)
