import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from pinjax.models import importance_pooling as lib

NODES, ROWS, NEIGHBOURS, WIDTH = 9, 13, 12, 4


def problem(rng, neighbours=NEIGHBOURS):
    """Neighbours with repetitions and padding anywhere; the third row and the last have none."""
    rows = rng.integers(-3, NODES, (ROWS, neighbours)).clip(-1).astype(np.int32)
    rows[:, 0] = rng.integers(0, NODES, ROWS)
    rows[[2, -1]] = -1
    weights = np.where(rows >= 0, rng.random(rows.shape), 0)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)
    messages = np.maximum(rng.standard_normal((NODES, WIDTH)), 0)  # with ties, as those of a ReLU
    towards = rng.standard_normal((ROWS, WIDTH))
    messages, weights, towards = (x.astype(np.float32) for x in (messages, weights, towards))
    return messages, rows, weights, towards


def oracle(messages, rows, weights, towards, kind):
    """Row by row in float64, and the gradient of the sum of pooled * towards."""
    messages, weights, towards = (np.asarray(x, np.float64) for x in (messages, weights, towards))
    pooled, gradient = np.zeros(towards.shape), np.zeros(messages.shape)
    for row, (neighbours, weight) in enumerate(zip(rows, weights, strict=True)):
        weight, neighbours = weight[neighbours >= 0], neighbours[neighbours >= 0]
        if not len(neighbours):
            continue
        found = messages[neighbours]
        if kind == "max":
            pooled[row] = found.max(axis=0)
            share = (found == pooled[row]) / (found == pooled[row]).sum(axis=0)
        else:
            share = weight if kind == "importance" else np.full(len(weight), 1 / len(weight))
            share = np.broadcast_to(share[:, None], found.shape)
            pooled[row] = (share * found).sum(axis=0)
        np.add.at(gradient, neighbours, share * towards[row])
    return pooled, gradient


@functools.partial(jax.jit, static_argnums=4)
def pool(messages, rows, weights, towards, kind):
    @functools.partial(jax.grad, has_aux=True)
    def gradient(messages):
        pooled = lib.pool(messages, rows, weights, kind)
        return (pooled * towards).sum(), pooled

    gradient, pooled = gradient(messages)
    return pooled, gradient


@pytest.mark.parametrize("kind", lib.KINDS)
@pytest.mark.parametrize(("neighbours", "edges"), [(NEIGHBOURS, 50), (1, 1024)])
def test_pooled_messages_and_their_gradient(rng, kind, neighbours, edges, monkeypatch):
    monkeypatch.setattr(lib, "_CPU_EDGES", edges)  # blocks of 4 rows, the last not full; of all
    args = problem(rng, neighbours)
    pooled, gradient = pool(*args, kind)
    true_pooled, true_gradient = oracle(*args, kind)
    np.testing.assert_allclose(pooled, true_pooled, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, true_gradient, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(pooled)[[2, -1]], np.zeros((2, WIDTH)))


@pytest.mark.parametrize("kind", lib.KINDS)
def test_bfloat16_sums_in_float32(rng, kind):
    """A node that is everybody's neighbour: in bfloat16 its gradient would stop growing."""
    rows = np.concatenate([np.zeros((1000, 1)), np.full((1000, 1), -1)], axis=1).astype(np.int32)
    weights, towards = (rows >= 0).astype(np.float32), np.ones((1000, WIDTH))
    messages = rng.random((2, WIDTH)).astype(jnp.bfloat16)
    pooled, gradient = pool(messages, rows, weights, towards.astype(jnp.bfloat16), kind)
    assert pooled.dtype == gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(pooled[5], messages[0])
    np.testing.assert_allclose(gradient.astype(np.float32)[:, 0], [1000, 0], rtol=2**-8)


def test_no_gradient_flows_to_weights(rng):
    messages, rows, weights, towards = map(jnp.asarray, problem(rng))
    for kind in lib.KINDS:
        to_weights = jax.jit(
            jax.grad(lambda w, kind=kind: (lib.pool(messages, rows, w, kind) * towards).sum())
        )(weights)
        np.testing.assert_array_equal(to_weights, np.zeros(weights.shape))


@pytest.mark.parametrize("kind", lib.KINDS)
def test_messages_of_all_neighbours_never_exist(kind):
    rows, neighbours, width = 2048, 64, 32
    shapes = {
        "messages": ((64, width), jnp.float32),
        "rows": ((rows, neighbours), jnp.int32),
        "weights": ((rows, neighbours), jnp.float32),
        "towards": ((rows, width), jnp.float32),
    }
    args = [jax.ShapeDtypeStruct(*shape) for shape in shapes.values()]
    memory = pool.lower(*args, kind).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * rows * neighbours * width / 2


@pytest.mark.parametrize("kind", lib.KINDS)
def test_rows_are_pooled_under_shard_map(rng, kind):
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    messages, *args = problem(rng)
    args = [np.concatenate([x, x[:3]]) for x in args]  # 16 rows

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def sharded(messages):
        spec = PartitionSpec("data")
        pooled = jax.shard_map(
            lambda *args: lib.pool(*args, kind),
            mesh=mesh,
            in_specs=(PartitionSpec(), spec, spec),
            out_specs=spec,
            check_vma=False,
        )(messages, *args[:2])
        return (pooled * args[2]).sum(), pooled

    gradient, pooled = sharded(messages)
    true_pooled, true_gradient = oracle(messages, *args, kind)
    np.testing.assert_allclose(pooled, true_pooled, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, true_gradient, rtol=1e-5, atol=1e-5)


def test_an_unknown_kind_is_refused(rng):
    messages, rows, weights, _ = map(jnp.asarray, problem(rng))
    with pytest.raises(ValueError, match="'sum'"):
        lib.pool(messages, rows, weights, "sum")
