"""Sharded tables against the plain ones, on eight devices."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from pinjax.distributed import sharded_table


@pytest.fixture(scope="module")
def sharded():
    devices = np.array(jax.devices()[:8]).reshape(4, 2)
    return sharded_table.Layout(Mesh(devices, ("data", "model")))


def rows_of(kind, rng, count):
    """Requested rows: from the entire table, popular ones, a single one, consecutive ones."""
    return {
        "uniform": rng.integers(-1, 3000, count),
        "popular": (3000 * rng.random(count) ** 4).astype(int),
        "one": np.full(count, 1234),
        "next to each other": 100 + np.arange(count),
    }[kind]


@pytest.mark.parametrize("kind", ["uniform", "popular", "one", "next to each other"])
def test_rows_and_gradient_equal_those_of_the_replicated_table(sharded, kind):
    rng = np.random.default_rng(0)
    table = rng.standard_normal((3000, 3)).astype(np.float32)
    rows = rows_of(kind, rng, 2 * 601).reshape(2, 601)
    weights = rng.standard_normal((2, 601, 3)).astype(np.float32) * (rows >= 0)[..., None]

    def weighted(table, rows):
        found = jnp.where(rows[..., None] >= 0, sharded.gather(table, rows), 0)
        return (weights * found).sum(), found

    placed = jax.device_put(sharded.lay_out(table), sharded.sharding)
    compiled = jax.jit(jax.value_and_grad(weighted, has_aux=True))
    (_, found), gradient = compiled(placed, rows.astype(np.int32))
    np.testing.assert_array_equal(found, np.where(rows[..., None] >= 0, table[rows], 0))

    expected = np.zeros((3000, 3))
    np.add.at(expected, rows[rows >= 0], weights[rows >= 0].astype(np.float64))
    lies_at = sharded.lies_at(np.arange(3000), len(placed))
    np.testing.assert_allclose(np.asarray(gradient)[lies_at], expected, atol=1e-5)
    assert np.asarray(gradient).any(axis=1).sum() == expected.any(axis=1).sum()


@pytest.mark.parametrize("count", [1, 1024, 5000])
def test_a_table_is_laid_out_in_parts(sharded, rng, count):
    table = rng.standard_normal((count, 2))
    rows = sharded.lay_out(table)
    expected = np.zeros((sharded.num_rows(count), 2))
    expected[sharded.lies_at(np.arange(count), len(expected))] = table
    np.testing.assert_array_equal(rows, expected)
    bounds = [0, 7, 640, len(rows)]
    parts = [sharded.lay_out(table, slice(*part)) for part in itertools.pairwise(bounds)]
    np.testing.assert_array_equal(np.concatenate(parts), rows)


def test_a_device_holds_its_share_wherever_rows_are_popular(sharded):
    rows = sharded.lay_out(np.arange(5000.0)[:, None])
    placed = jax.device_put(rows, sharded.sharding)
    assert placed.shape == (5120, 1)
    shards = [np.asarray(shard.data).ravel() for shard in placed.addressable_shards]
    assert [len(shard) for shard in shards] == [640] * 8
    assert all(40 < np.sum((shard > 0) & (shard < 500)) < 80 for shard in shards)
    np.testing.assert_array_equal(np.unique(np.concatenate(shards)), np.arange(5000))


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.bool_])
def test_rows_that_all_belong_to_one_owner_come_in_rounds(sharded, dtype):
    """8 x 500 of the 1,024 rows of the first device; 500 / 8 are expected from each owner."""
    by_rows = PartitionSpec(sharded.mesh.axis_names)
    rng = np.random.default_rng(0)
    table = rng.integers(0, 2 if dtype == np.bool_ else 99, (8 * 1024, 2)).astype(dtype)
    rows = np.stack([rng.choice(1024, 500, replace=False) for _ in range(8)])
    rows[1:, -50:] = 8 * 1024  # none
    rows.sort(axis=1)
    assert sharded_table.capacity(500, 8) < 500 / 4
    axes = sharded.mesh.axis_names

    def exchange(table, rows):
        return sharded_table.exchange(axes, 8, table, rows)

    exchange = jax.shard_map(
        *(exchange,), mesh=sharded.mesh, in_specs=by_rows, out_specs=by_rows, check_vma=False
    )
    found = np.asarray(jax.jit(exchange)(table, rows.ravel().astype(np.int32)))
    exists = rows.ravel() < len(table)
    np.testing.assert_array_equal(found[exists], table[rows.ravel()[exists]])
    assert not found[~exists].any()
    if dtype != np.float32:
        return
    weights = rng.standard_normal(found.shape).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda table, rows: (weights * exchange(table, rows)).sum()))(
        table, rows.ravel().astype(np.int32)
    )
    expected = np.zeros(table.shape)
    np.add.at(expected, rows.ravel()[exists], weights[exists].astype(np.float64))
    np.testing.assert_allclose(gradient, expected, atol=1e-5)


@pytest.mark.parametrize("mean", [0.05, 0.125, 0.5, 1, 3, 20, 128, 2048])
def test_one_round_is_nearly_always_enough(mean):
    """The chance of a Poisson variable above the capacity, by its probabilities."""
    devices = 256
    size = round(mean * devices)
    above = np.arange(400) + sharded_table.capacity(size, devices) + 1
    rate = size / devices
    log_chances = above * math.log(rate) - [math.lgamma(k + 1) for k in above] - rate
    assert np.logaddexp.reduce(log_chances) < math.log(3e-6)


def test_replicated_tables_are_left_alone():
    replicated = sharded_table.REPLICATED
    table = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    assert replicated.num_rows(7) == 7
    np.testing.assert_array_equal(replicated.lay_out(table), table)
    rows = np.array([[2], [0]])
    found = replicated.gather(jnp.asarray(table), jnp.asarray(rows))
    np.testing.assert_array_equal(found, table[rows])
