"""Sharded tables against the plain ones, on eight devices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from pinjax.models import tables


@pytest.fixture(scope="module")
def sharded():
    devices = np.array(jax.devices()[:8]).reshape(4, 2)
    return tables.Tables(Mesh(devices, ("data", "model")))


def rows_of(kind, rng, count):
    """Rows that are wanted: of all the table, popular ones, one alone, those that follow."""
    return {
        "uniform": rng.integers(-1, 3000, count),
        "popular": (3000 * rng.random(count) ** 4).astype(int),
        "one": np.full(count, 1234),
        "next to each other": 100 + np.arange(count),
    }[kind]


@pytest.mark.parametrize("kind", ["uniform", "popular", "one", "next to each other"])
def test_rows_and_gradient_are_those_of_the_whole_table(sharded, kind):
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


def test_a_device_holds_its_share_wherever_rows_are_popular(sharded):
    rows = sharded.lay_out(np.arange(5000.0)[:, None])
    placed = jax.device_put(rows, sharded.sharding)
    assert placed.shape == (5120, 1)
    shards = [np.asarray(shard.data).ravel() for shard in placed.addressable_shards]
    assert [len(shard) for shard in shards] == [640] * 8
    assert all(40 < np.sum((shard > 0) & (shard < 500)) < 80 for shard in shards)
    np.testing.assert_array_equal(np.unique(np.concatenate(shards)), np.arange(5000))


def test_what_an_owner_cannot_send_is_nan(sharded):
    """4,096 rows that all belong to one device, whose share would be 512."""
    shared = PartitionSpec(sharded.mesh.axis_names)
    table = jnp.arange(8.0 * 8192)[:, None]
    places = jnp.concatenate([jnp.arange(4096), jnp.full(7 * 4096, -1)]).astype(jnp.int32)

    def get(shard, places):
        rows, lies_at = tables.exchange(shard, places, sharded.mesh.axis_names, 8)
        return rows.at[lies_at].get(mode="fill")

    found = jax.jit(jax.shard_map(get, mesh=sharded.mesh, in_specs=shared, out_specs=shared))(
        table, places
    )
    found = np.asarray(found)[:4096, 0]
    capacity = int(np.ceil(512 + 8 * np.sqrt(512) + 63 / 6))
    assert capacity == tables.capacity(4096, 8)
    np.testing.assert_array_equal(found[:capacity], np.arange(capacity))
    assert np.isnan(found[capacity:]).all()


@pytest.mark.parametrize("mean", [0.05, 0.125, 0.5, 1, 3, 20, 128, 2048])
def test_hardly_ever_is_an_owner_asked_for_too_much(mean):
    """The chance of a Poisson variable above the capacity, by its probabilities."""
    devices = 256
    size = round(mean * devices)
    above = np.arange(400) + tables.capacity(size, devices) + 1
    rate = size / devices
    log_chances = above * math.log(rate) - [math.lgamma(k + 1) for k in above] - rate
    assert np.logaddexp.reduce(log_chances) < math.log(1e-14)


def test_whole_tables_are_left_alone():
    whole = tables.WHOLE
    table = np.arange(12.0, dtype=np.float32).reshape(4, 3)
    assert whole.num_rows(7) == 7
    np.testing.assert_array_equal(whole.lay_out(table), table)
    rows = np.array([[2], [0]])
    found = whole.gather(jnp.asarray(table), jnp.asarray(rows))
    np.testing.assert_array_equal(found, table[rows])
