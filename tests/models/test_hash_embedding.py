import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinjax.models import hash_embedding

IDS = np.array([[3, -1, 0], [49, 3, 7]], np.int32)


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
    np.testing.assert_array_equal(hash_embedding.hash_ids(jnp.asarray(ids), 2), expected)


def test_hashes_never_change():
    # A trained table is worth nothing under other hashes.
    expected = [[2448998910, 1508667741], [1963132413, 3575997362]]
    np.testing.assert_array_equal(hash_embedding.hash_ids(jnp.arange(2), 2), expected)


@pytest.mark.parametrize("stride", [1, 64, 4096])
def test_regular_ids_collide_as_rarely_as_random_ones(stride):
    buckets, number = 512, 4096
    rows = np.asarray(hash_embedding.hash_ids(jnp.arange(number) * stride, 2) % buckets)
    for column in rows.T:
        counts = np.bincount(column, minlength=buckets)
        chi_square = ((counts - number / buckets) ** 2 / (number / buckets)).sum()
        assert abs(chi_square - 511) < 4 * np.sqrt(2 * 511)
    _, both = np.unique(rows @ [buckets, 1], return_counts=True)
    pairs = (both * (both - 1) // 2).sum()
    expected = number * (number - 1) / 2 / buckets**2
    assert abs(pairs - expected) < 4 * np.sqrt(expected)


@pytest.mark.parametrize("num_buckets", [0, 10, 50])
def test_against_a_dense_computation(rng, num_buckets):
    module = hash_embedding.HashEmbedding(num_ids=50, dim=4, num_buckets=num_buckets)
    shapes = jax.eval_shape(module.init, jax.random.key(0), IDS)["params"]
    params = {name: rng.standard_normal(x.shape).astype(np.float32) for name, x in shapes.items()}
    weights = rng.standard_normal((*IDS.shape, 4)).astype(np.float32)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def sparse(params, ids):
        embedded = module.apply({"params": params}, ids)
        return (embedded * weights).sum(), embedded

    gradient, embedded = sparse(params, IDS)

    # One-hot matrices: (a, b) are the axes of IDS, i ids, h hashes, r rows, d numbers.
    id_of = np.eye(50)[IDS] * (IDS >= 0)[..., None]
    if num_buckets == 10:
        row_of = np.eye(10)[hash_embedding.hash_ids(jnp.asarray(IDS), 2) % 10]
    else:
        row_of = np.eye(50)[IDS][:, :, None]
    importance = params.get("importance", np.ones((50, 1)))
    scale = 4**0.5
    by_row = scale * np.einsum("abi,ih,abhr->abr", id_of, importance, row_of)
    expected = {"embedding": np.einsum("abr,abd->rd", by_row, weights)}
    if "importance" in params:
        expected["importance"] = np.einsum(
            "abi,abhr,rd,abd->ih", id_of, row_of, scale * params["embedding"], weights
        )
    np.testing.assert_allclose(embedded, by_row @ params["embedding"], rtol=1e-5, atol=1e-5)
    assert (np.asarray(embedded)[0, 1] == 0).all()
    assert gradient.keys() == expected.keys()
    for name in gradient:
        np.testing.assert_allclose(gradient[name], expected[name], rtol=1e-5, atol=1e-5)
