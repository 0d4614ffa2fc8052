import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from pinjax.distributed import sharded_table
from pinjax.models import hash_embedding


def murmur3_finaliser(x):
    x ^= x >> 16
    x = x * 0x85EBCA6B & 0xFFFFFFFF
    x ^= x >> 13
    x = x * 0xC2B2AE35 & 0xFFFFFFFF
    return x ^ x >> 16


def test_hashes_against_python_integers():
    ids = np.array([0, 1, 2, 65_536, 2**31 - 1], np.int32)
    salts = [int(salt) for salt in np.random.SeedSequence(0).generate_state(2)]
    expected = [[murmur3_finaliser(int(i) ^ salt) for salt in salts] for i in ids]
    np.testing.assert_array_equal(hash_embedding.hash_ids(jnp.asarray(ids)), expected)


def test_hashes_never_change():
    # With other hashes a trained table is useless.
    expected = [[2448998910, 1508667741], [1963132413, 3575997362]]
    np.testing.assert_array_equal(hash_embedding.hash_ids(jnp.arange(2)), expected)


@pytest.mark.parametrize("stride", [1, 64, 4096])
def test_regular_ids_collide_as_rarely_as_random_ones(stride):
    buckets, number = 512, 4096
    rows = np.asarray(hash_embedding.hash_ids(jnp.arange(number) * stride) % buckets)
    for column in rows.T:
        counts = np.bincount(column, minlength=buckets)
        chi_square = ((counts - number / buckets) ** 2 / (number / buckets)).sum()
        assert abs(chi_square - 511) < 4 * np.sqrt(2 * 511)
    _, both = np.unique(rows @ [buckets, 1], return_counts=True)
    pairs = (both * (both - 1) // 2).sum()
    expected = number * (number - 1) / 2 / buckets**2
    assert abs(pairs - expected) < 4 * np.sqrt(expected)


@pytest.mark.parametrize("num_buckets", [0, 10, 50])
def test_bag_against_a_dense_computation(rng, num_buckets, monkeypatch):
    monkeypatch.setattr(hash_embedding, "BLOCK_SIZE", 4)  # three blocks, the last not full
    segments = np.array([0, 0, 2, 2, 2, 2, 2, 3, 5, 6, 6], np.int32)  # of 6, so that 6 is padding
    tokens = rng.integers(0, 50, len(segments)).astype(np.int32)
    tokens[:3] = tokens[3]
    module = hash_embedding.HashEmbeddingBag(num_tokens=50, num_buckets=num_buckets, dim=4)
    init = functools.partial(module.init, num_segments=6)
    shapes = jax.eval_shape(init, jax.random.key(0), tokens, segments)["params"]
    params = {name: rng.standard_normal(x.shape).astype(np.float32) for name, x in shapes.items()}
    weights = rng.standard_normal((6, 4)).astype(np.float32)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def sparse(params, tokens, segments):
        sums = module.apply({"params": params}, tokens, segments, 6)
        return (sums * weights).sum(), sums

    gradient, sums = sparse(params, tokens, segments)

    # One-hot matrices: t tokens, s segments, i ids, h hashes, r rows, d numbers.
    segment_of = np.eye(7)[segments, :6]
    id_of = np.eye(50)[tokens]
    if num_buckets == 10:
        row_of = np.eye(10)[hash_embedding.hash_ids(jnp.asarray(tokens)) % 10]
    else:
        row_of = np.eye(50)[tokens][:, None]
    importance = params.get("importance", np.ones((50, 1)))
    scale = 4**0.5
    by_row = scale * np.einsum("ts,ti,ih,thr->sr", segment_of, id_of, importance, row_of)
    expected = {"embedding": by_row.T @ weights}
    if "importance" in params:
        expected["importance"] = np.einsum(
            *("ts,ti,thr,rd,sd->ih", segment_of, id_of, row_of),
            *(scale * params["embedding"], weights),
        )
    np.testing.assert_allclose(sums, by_row @ params["embedding"], rtol=1e-5, atol=1e-5)
    assert (np.asarray(sums)[[1, 4]] == 0).all()
    assert gradient.keys() == expected.keys()
    for name in gradient:
        np.testing.assert_allclose(gradient[name], expected[name], rtol=1e-5, atol=1e-5)


def test_importance_starts_at_one():
    bag = hash_embedding.HashEmbeddingBag(num_tokens=50, num_buckets=10, dim=4)
    init = jax.jit(bag.init, static_argnums=3)
    params = init(jax.random.key(0), jnp.arange(4), jnp.arange(4), 4)
    assert (params["params"]["importance"] == 1).all()


@pytest.mark.parametrize("num_buckets", [0, 20])
def test_a_bag_of_a_sharded_table_equals_the_replicated_one(rng, num_buckets):
    """Eight devices with texts of their own; a row that one of them requests twice counts twice."""
    devices, tokens_each, segments_each = 8, 40, 6
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    layout = sharded_table.Layout(mesh)
    replicated = hash_embedding.HashEmbeddingBag(num_tokens=50, num_buckets=num_buckets, dim=4)
    on_device = replicated.clone(table_layout=layout.on_device())
    tokens = (50 * rng.random(devices * tokens_each) ** 3).astype(np.int32)
    segments = np.sort(rng.integers(0, segments_each + 1, (devices, tokens_each))).astype(np.int32)
    weights = rng.standard_normal((devices * segments_each, 4)).astype(np.float32)
    shapes = jax.eval_shape(
        functools.partial(replicated.init, num_segments=1),
        jax.random.key(0),
        tokens,
        segments.ravel(),
    )["params"]
    params = {name: rng.standard_normal(x.shape).astype(np.float32) for name, x in shapes.items()}

    def expected(params):
        first = segments_each * np.arange(devices)[:, None]
        flat = np.where(segments < segments_each, segments + first, 10**6).ravel()
        order = np.argsort(flat, kind="stable")
        ordered = jnp.asarray(tokens[order]), jnp.asarray(flat[order])
        sums = replicated.apply({"params": params}, *ordered, len(weights))
        return (sums * weights).sum(), sums

    def found(params):
        def of_device(params, tokens, segments):
            return on_device.apply({"params": params}, tokens, segments, segments_each)

        spec = layout.spec
        sums = jax.shard_map(
            of_device, mesh=mesh, in_specs=(spec, spec, spec), out_specs=spec, check_vma=False
        )(params, tokens, segments.ravel())
        return (sums * weights).sum(), sums

    placed = {
        name: jax.device_put(layout.lay_out(x), layout.sharding) for name, x in params.items()
    }
    gradient, sums = jax.jit(jax.grad(found, has_aux=True))(placed)
    expected_gradient, expected_sums = jax.jit(jax.grad(expected, has_aux=True))(params)
    np.testing.assert_allclose(sums, expected_sums, rtol=1e-5, atol=1e-5)
    for name, rows in expected_gradient.items():
        lies_at = layout.lies_at(np.arange(len(rows)), len(gradient[name]))
        np.testing.assert_allclose(gradient[name][lies_at], rows, rtol=1e-4, atol=1e-4)


def test_bag_without_tokens():
    bag = hash_embedding.HashEmbeddingBag(num_tokens=50, num_buckets=10, dim=4)
    nothing = jnp.zeros(0, jnp.int32)
    init = jax.jit(bag.init_with_output, static_argnums=3)
    sums, _ = init(jax.random.key(0), nothing, nothing, 3)
    np.testing.assert_array_equal(sums, np.zeros((3, 4)))
