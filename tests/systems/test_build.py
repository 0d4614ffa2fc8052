"""A system that is built without data equals the one that runs with data."""

import dataclasses
import pathlib
import runpy

import jax
import jax.numpy as jnp
import pytest

from pinjax.data import dataset as dataset_lib
from pinjax.distributed import sharding
from pinjax.errors import InputError
from pinjax.systems import registry
from pinjax.timestamps import DAY

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
SYSTEMS = ("pinnerformer", "itemsage", "searchsage", "pinsage")


def get_config(system, data_dir, changes=None):
    config = runpy.run_path(str(CONFIGS / f"{system}.py"))["get_config"]("test")
    config.data.dir = str(data_dir)
    config.update(changes or {})
    return config


def assert_same(shapes, arrays, largest=False):
    """The same shapes, types and places; or the shapes of the largest arrays that there may be."""

    def same(shape, array):
        assert shape.dtype == array.dtype
        assert shape.sharding.is_equivalent_to(array.sharding, array.ndim)
        if largest:
            assert all(a >= b for a, b in zip(shape.shape, array.shape, strict=True))
        else:
            assert shape.shape == array.shape

    jax.tree.map(same, shapes, arrays)


@pytest.mark.parametrize("shard_tables", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in SYSTEMS),
        ("itemsage", {"model": {"texts": (("title", "a"), ("brand", "b"))}}),
        ("itemsage", {"model": {"image_slots": 0}}),
        ("searchsage", {"model": {"residual": True}}),
        ("searchsage", {"model": {"encoder": "bert"}}),
        ("pinsage", {"model": {"texts": ("title",), "id_dim": 8, "layers": 1}}),
        ("pinnerformer", {"data": {"pca_dim": 8, "popularity_window": 20 * DAY}}),
        ("pinnerformer", {"data": {"content": False, "users": 512}}),
        ("pinnerformer", {"objective": {"name": "sasrec"}}),
    ],
)
def test_what_is_built_is_what_is_bound(name, changes, shard_tables, data_dir):
    config = get_config(name, data_dir, changes)
    config.train.shard_tables = shard_tables
    mesh = sharding.make_mesh()
    system = registry.create(config, mesh)
    trainable = system.trainable
    assert_same(trainable.constants, system.constants)
    batch = next(system.batches(0))
    of_graph = name == "pinsage"  # whose subgraphs are smaller than they might be
    for field in {"excluded", "group_excluded"} & batch.keys() if of_graph else ():
        assumed = trainable.batch[field].shape[1]  # as wide as a query of the batch needs
        batch[field] = batch[field][:, :assumed]
    assert_same(trainable.batch, sharding.place_batch(mesh, batch), largest=of_graph)
    params, sketches = jax.eval_shape(trainable.init, jax.random.key(0))
    arguments = trainable.constants, sketches, trainable.batch, jax.random.key(0)
    value, (_, after) = jax.eval_shape(trainable.loss, params, *arguments)
    assert value.shape == ()
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, sketches)
    counted = jax.eval_shape(trainable.sketched_ids, trainable.batch)
    one_each = jax.tree.map(lambda _: 0, sketches, is_leaf=lambda node: hasattr(node, "table"))
    assert jax.tree.structure(counted) == jax.tree.structure(one_each)
    for part, embedder in trainable.embedders.items():
        (vectors,) = {
            jax.eval_shape(embedder, params, constants, embedder.batch)
            for constants in (trainable.constants, system.constants)
        }
        rows, dim = len(jax.tree.leaves(embedder.batch)[0]), trainable.search.dim
        if part.startswith("layer"):  # whose states have more than an embedding
            dim = vectors.shape[1]
        assert vectors.shape == (rows, dim)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_directory_tells_its_own_sizes(name, data_dir):
    config, mesh = get_config(name, data_dir), sharding.make_mesh()
    dataset = dataset_lib.load(config.data.name, config.data.dir)
    expected = registry.create(config, mesh).trainable
    config.data.name = str(dataset.directory)
    found = registry.build(config, mesh)
    for field in ("constants", "batch", "search"):
        assert getattr(found, field) == getattr(expected, field)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_world_that_is_not_simulated_is_alike(name, data_dir):
    """Everything but the lengths of its texts is known beforehand."""
    config, mesh = get_config(name, data_dir), sharding.make_mesh()
    found, expected = registry.build(config, mesh), registry.create(config, mesh).trainable

    def kinds(tree):
        return jax.tree.map(lambda x: (x.dtype, x.ndim, x.sharding), tree)

    assert kinds(found.constants) == kinds(expected.constants)
    assert kinds(found.batch) == kinds(expected.batch)
    assert found.search == expected.search


@pytest.mark.parametrize("of_directory", [False, True])
@pytest.mark.parametrize("name", SYSTEMS)
def test_another_number_of_items(name, of_directory, data_dir):
    config, mesh = get_config(name, data_dir), sharding.make_mesh()
    if of_directory:
        config.data.name = str(dataset_lib.ensure(config.data.name, config.data.dir))
    trainable = registry.build(config, mesh, 12_345)
    assert trainable.search.items == 12_345
    table = {"itemsage": "products", "pinsage": "content"}.get(name, "items")
    assert {len(x) for x in jax.tree.leaves(trainable.constants[table])} >= {12_345}


@pytest.mark.parametrize("name", SYSTEMS)
def test_data_that_is_not_there_needs_its_size(name, data_dir, mesh):
    config = get_config(name, data_dir, {"data": {"name": "nowhere"}})
    with pytest.raises(InputError, match="or say how large it is: --items"):
        registry.build(config, mesh)
    assert registry.build(config, mesh, 100).search.items == 100


@pytest.mark.parametrize(
    ("name", "section", "fields", "message"),
    [
        ("pinnerformer", "data", {"users": 12}, "data.users=12 is not divisible by the 8 devices"),
        ("itemsage", "data", {"pairs": 12}, "data.pairs=12 is not divisible by the 8 devices"),
        ("searchsage", "data", {"pairs": 12}, "data.pairs=12 is not divisible by the 8 devices"),
        ("pinsage", "data", {"groups": 12}, "data.groups=12 is not divisible by the 8 devices"),
        ("pinnerformer", "model", {"heads": 3}, "model.width=16 is not divisible by model.heads=3"),
        ("itemsage", "model", {"heads": 3}, "model.width=16 is not divisible by model.heads=3"),
        (
            "itemsage",
            "model",
            {"embedding_dim": 8},
            "model.embedding_dim=8: query vectors of pinworld/tiny have 256",
        ),
        ("itemsage", "model", {"residual": True, "image_slots": 0}, "model.residual needs images"),
        ("searchsage", "model", {"heads": 3, "encoder": "bert"}, "not divisible by model.heads=3"),
    ],
)
def test_what_does_not_fit_is_refused(data_dir, name, section, fields, message):
    config = get_config(name, data_dir, {section: fields})
    with pytest.raises(InputError, match=message):
        registry.build(config, sharding.make_mesh())


def test_a_function_that_embeds_reads_its_own_constants(data_dir, mesh):
    trainable = registry.build(get_config("itemsage", data_dir), mesh)
    embedder = trainable.embedders["products"]
    assert embedder.reads(trainable.constants).keys() == {"products"}
    assert dataclasses.replace(embedder, constants=()).reads(trainable.constants) == {}


def test_unknown_systems_are_refused(data_dir, mesh):
    config = get_config("itemsage", data_dir).to_dict()
    for name, message in (
        ("itempage", "system='itempage': there is no module pinjax.systems.itempage"),
        ("my.system", "system='my.system': there is no module my.system"),
        ("counts", "system='counts': pinjax.systems.counts is no system: it has no build"),
        ("json.decoder", "system='json.decoder': json.decoder is no system: it has no check"),
    ):
        with pytest.raises(InputError, match=message):
            registry.find(name)
    assert registry.find(config["system"]).__name__ == "pinjax.systems.itemsage"
