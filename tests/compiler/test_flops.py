"""Model FLOPs against formulas."""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from pinjax.compiler import flops, programs
from pinjax.distributed import sharding
from pinjax.systems import registry

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
X, W = jax.ShapeDtypeStruct((8, 16), jnp.float32), jax.ShapeDtypeStruct((16, 16), jnp.float32)
ONE = 2 * 8 * 16 * 16


def scanned(x, w):
    return lax.scan(lambda x, _: (x @ w, None), x, None, length=5)[0]


def branching(x, w):
    return lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (jnp.matmul, ONE),
        (scanned, 5 * ONE),
        (branching, 2 * ONE),
        (jax.checkpoint(jnp.matmul), ONE),
        (lambda x, w: jnp.einsum("bi,io->ob", x, w), ONE),
    ],
)
def test_products_count_as_often_as_they_run(function, expected):
    assert flops.of_matmuls(function, X, W) == expected


def test_what_each_device_does_for_itself_counts_on_each():
    mesh = sharding.make_mesh()
    mapped = jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
    assert flops.of_matmuls(mapped, X, W, devices=8) == ONE
    assert flops.of_matmuls(mapped, X, W) == ONE / 8


def test_a_loop_of_unknown_length_is_refused():
    def function(x, w):
        return lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ w, x)

    with pytest.raises(ValueError, match="a loop of unknown length"):
        flops.of_matmuls(function, X, W)


def test_pinnerformer_of_published_size():
    """By hand: 128 users on each of 8 devices."""
    config = runpy.run_path(str(CONFIGS / "pinnerformer.py"))["get_config"]("paper")
    config.data.users = 128 * 8
    mesh = sharding.make_mesh()
    trainable = registry.build(config, mesh)
    step = programs.train_step(trainable, config.train, mesh)

    width, length, dim, hidden, layers, labels = 768, 256, 256, 1024, 6, 32
    # Content, action, surface, duration; the time of the day, the age and the gap.
    features = 256 + 16 + 16 + 1 + (2 * 11 + 1) + 2 * (2 * 32 + 1)
    blocks = layers * (12 * width**2 + 2 * length * width)
    position = features * width + length * width + blocks  # learned positions by a product
    head = width**2 + width * dim  # where there is a label
    item = 256 * hidden + hidden * dim
    packed = trainable.batch["item"].shape[0] // 8
    assert 32 <= packed <= 36  # of 128 users with a quarter of the longest history in the mean
    negatives, rows = 5_000 + 8_192, 128 * labels
    blocked = 13 * 1024 * rows * dim  # the last block of 1,024 negatives overlaps the one before
    shared = negatives * item / 8  # one device's share of work that all of them do
    products = packed * length * position + rows * (head + item) + shared + blocked
    assert step.flops == pytest.approx(3 * 2 * products, rel=1e-3)
