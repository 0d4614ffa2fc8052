"""A system without its data is the same as with it."""

import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import pytest

from pinjax.distributed import sharding
from pinjax.errors import InputError
from pinjax.systems import registry

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def get_config(system, data_dir):
    config = runpy.run_path(str(CONFIGS / f"{system}.py"))["get_config"]("test")
    config.data.dir = str(data_dir)
    return config


def kinds(tree):
    """Names, types and numbers of axes: what texts a world draws is not known before."""
    return jax.tree.map(lambda x: (x.dtype, x.ndim), tree)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        *((name, {}) for name in registry.SYSTEMS),
        ("searchsage", {"model": {"residual": True}}),
        ("pinnerformer", {"data": {"pca_dim": 8, "popularity_window": 20 * 86_400}}),
        ("pinnerformer", {"data": {"popularity_window": 20 * 86_400, "popularity_times": 3}}),
    ],
)
def test_outline_is_that_of_the_system(name, changes, data_dir, mesh):
    config = get_config(name, data_dir)
    config.update(changes)
    outline = registry.create_outline(config, mesh, None)
    real = registry.create(config, mesh)
    batch = next(real.batches(0))
    expected = jax.eval_shape(lambda: (real.frozen, batch))
    key = jax.random.key(0)
    made, real_made = (jax.eval_shape(s.init, key) for s in (outline, real))
    assert kinds((outline.frozen, outline.batch)) == kinds(expected)
    if name == "pinnerformer":  # all of whose sizes are known
        shapes = functools.partial(jax.tree.map, lambda x: x.shape)
        assert shapes((outline.frozen.content, outline.batch)) == shapes(
            (expected[0].content, expected[1])
        )
        assert shapes(made) == shapes(real_made)
    assert kinds(made) == kinds(real_made)
    value, _ = jax.eval_shape(
        outline.loss, made[0], outline.frozen, made[1], outline.batch, jax.random.key(0)
    )
    assert value.shape == ()
    for function, arguments in (*outline.embed(made[0]).values(), outline.search):
        jax.eval_shape(function, *arguments.values())


def test_a_directory_tells_its_own_sizes(data_dir, mesh):
    config = get_config("itemsage", data_dir)
    real = registry.create(config, mesh)
    (directory,) = (data_dir / "pinworld" / "tiny").iterdir()
    config.data.name = str(directory)
    outline = registry.create_outline(config, mesh, None)
    key = jax.random.key(0)
    for made, expected in (
        (outline.frozen, real.frozen),
        (jax.eval_shape(outline.init, key), jax.eval_shape(real.init, key)),
    ):
        assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, expected)


@pytest.mark.parametrize("name", registry.SYSTEMS)
def test_another_number_of_items(name, data_dir, mesh):
    outline = registry.create_outline(get_config(name, data_dir), mesh, 12_345)
    assert 12_345 in {
        axis for leaf in jax.tree.leaves(outline.search) for axis in getattr(leaf, "shape", ())
    }


@pytest.mark.parametrize("name", registry.SYSTEMS)
def test_data_that_is_not_there_needs_its_size(name, data_dir, mesh):
    config = get_config(name, data_dir)
    config.data.name = "nowhere"
    with pytest.raises(InputError, match="or say how large it is: --items"):
        registry.create_outline(config, mesh, None)
    frozen = registry.create_outline(config, mesh, 100).frozen
    assert 100 in {axis for leaf in jax.tree.leaves(frozen) for axis in leaf.shape}


@pytest.mark.parametrize(
    ("name", "section", "fields", "message"),
    [
        ("pinnerformer", "data", {"users": 12}, "data.users=12 is not divisible by the 8 devices"),
        ("itemsage", "data", {"pairs": 12}, "data.pairs=12 is not divisible by the 8 devices"),
        ("searchsage", "data", {"pairs": 12}, "data.pairs=12 is not divisible by the 8 devices"),
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
    config = get_config(name, data_dir)
    config[section].update(fields)
    with pytest.raises(InputError, match=message):
        registry.create_outline(config, sharding.make_mesh(), None)
