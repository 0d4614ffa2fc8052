import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pinjax.losses import count_min_sketch

ANY_INT32 = np.iinfo(np.int32)

init = jax.jit(count_min_sketch.init, static_argnums=(1, 2, 3))
add = jax.jit(count_min_sketch.add)
count = jax.jit(count_min_sketch.count)
log_probability = jax.jit(count_min_sketch.log_probability)


def zipf_ids(rng, size):
    """Skewed ids over all of int32, negative ones too, and how often each occurs."""
    items = rng.integers(ANY_INT32.min, ANY_INT32.max, 5000, endpoint=True, dtype=np.int32)
    ids = rng.choice(items, size, p=(1 / np.arange(1, 5001)) / (1 / np.arange(1, 5001)).sum())
    return ids, *np.unique(ids, return_counts=True)


def test_never_under_counts_and_error_bound_holds(rng):
    ids, distinct, true = zipf_ids(rng, 20_000)
    depth, width = 3, 1024

    @jax.jit
    def excess(key):
        sketch = add(init(key, depth, width), jnp.asarray(ids))
        return count(sketch, jnp.asarray(distinct)).astype(int) - true

    excess = np.stack([excess(key) for key in jax.random.split(jax.random.key(0), 20)])
    assert excess.min() >= 0
    assert excess.max() > 0
    assert (excess > np.e / width * len(ids)).mean() <= np.exp(-depth)


@pytest.mark.parametrize("stride", [1, 256, 65536])
def test_pairs_of_regular_ids_collide_as_rarely_as_random_ones(stride):
    # Strong universality: over the draw of the hash, two ids collide with probability 1 / width.
    width, ids = 64, jnp.arange(100) * stride - 50 * stride

    @jax.jit
    def collisions(key):
        columns = count_min_sketch._columns(init(key, 500, width), ids)
        return (columns[:, :, None] == columns[:, None, :]).sum() - columns.size

    share = float(collisions(jax.random.key(1))) / (500 * 100 * 99)
    assert share == pytest.approx(1 / width, rel=0.15)


def test_columns_are_uniform():
    sketch = init(jax.random.key(2), 4096, 16)
    columns = np.asarray(count_min_sketch._columns(sketch, jnp.array([ANY_INT32.min, -1, 0, 7])))
    assert columns.min() >= 0
    for of_one_id in columns.T:  # over the draw of the hash
        counts = np.bincount(of_one_id, minlength=16)
        chi_square = ((counts - 256) ** 2 / 256).sum()
        assert chi_square < 37.7  # 99.9 % at 15 degrees of freedom


def test_counts_exactly_what_is_not_masked():
    ids = jnp.array([[5, -1, 5], [ANY_INT32.max, ANY_INT32.min, 5]])
    where = jnp.array([[True, True, False], [True, False, True]])
    sketch = init(jax.random.key(0), 4, 2**12)
    sketch = add(sketch, ids, where)
    counts = count(sketch, ids)
    np.testing.assert_array_equal(counts, [[2, 1, 2], [1, 0, 2]])
    assert sketch.total == 4
    np.testing.assert_array_equal(sketch.table.reshape(4, -1).sum(axis=1), [4] * 4)
    np.testing.assert_allclose(
        log_probability(sketch, ids[0]), np.log([2 / 4, 1 / 4, 2 / 4]), rtol=1e-6
    )


@pytest.mark.parametrize("decay", [1.0, 0.5])
def test_empty_sketch(decay):
    sketch = init(jax.random.key(0), 2, 8, decay)
    ids = jnp.array([0, -7])
    np.testing.assert_array_equal(count(sketch, ids), [0, 0])
    np.testing.assert_array_equal(log_probability(sketch, ids), [-np.inf, -np.inf])


def test_decay_weighs_a_batch_by_its_age():
    decay = 0.9
    batches = np.random.default_rng(0).integers(0, 20, (30, 50))
    sketch = init(jax.random.key(3), 4, 2**14, decay)  # wide: no collisions
    true = np.zeros(20)
    for batch in batches:
        sketch = add(sketch, jnp.asarray(batch))
        true = true * decay + np.bincount(batch, minlength=20)
    np.testing.assert_allclose(count(sketch, jnp.arange(20)), true, rtol=1e-5)
    np.testing.assert_allclose(
        np.exp(log_probability(sketch, jnp.arange(20))),
        true / true.sum(),
        rtol=1e-5,
    )


def test_large_counts_lose_no_increment():
    sketch = init(jax.random.key(0), 2, 4)
    sketch = sketch.replace(table=sketch.table + 2**24, total=sketch.total + 2**24)
    for _ in range(3):
        sketch = add(sketch, jnp.array([9]))
    assert count(sketch, jnp.array([9]))[0] == 2**24 + 3
    assert sketch.total == 2**24 + 3


def test_counts_are_halved_before_they_wrap():
    sketch = init(jax.random.key(0), 2, 4)
    filled = sketch.replace(
        table=sketch.table + jnp.uint32(2**31 + 1), total=sketch.total + jnp.uint32(2**31 + 1)
    )
    after = add(filled, jnp.array([9, 9]))
    assert count(after, jnp.array([9]))[0] == 2**30 + 1 + 2
    assert after.total == 2**30 + 1 + 2


@pytest.mark.parametrize("decay", [1.0, 0.999])
@pytest.mark.parametrize("ids_spec", [PartitionSpec(), PartitionSpec("data")])
def test_same_table_bit_for_bit_on_1_and_8_devices(rng, decay, ids_spec):
    ids = rng.integers(0, 500, (5, 256)).astype(np.int32)
    tables = []
    for devices in (1, 8):
        mesh = Mesh(jax.devices()[:devices], ("data",))
        sketch = init(jax.random.key(0), 3, 64, decay)
        sketch = jax.device_put(sketch, NamedSharding(mesh, PartitionSpec()))
        add = jax.jit(count_min_sketch.add, out_shardings=NamedSharding(mesh, PartitionSpec()))
        for batch in ids:
            sketch = add(sketch, jax.device_put(batch, NamedSharding(mesh, ids_spec)))
        tables.append(jax.device_get((sketch.table, sketch.total)))
        assert len(sketch.table.addressable_shards) == devices
        for shard in sketch.table.addressable_shards:
            np.testing.assert_array_equal(shard.data, tables[0][0])
    np.testing.assert_array_equal(tables[0][1], tables[1][1])


def test_is_a_pytree_of_anything():
    sketch = init(jax.random.key(0), 2, 8)
    shapes = jax.tree.map(lambda x: x.shape, sketch, is_leaf=lambda x: x is None)
    assert shapes.table == (16,)
    abstract = jax.eval_shape(lambda s: add(s, jnp.array([1])), sketch)
    assert abstract.table.shape == (16,)


@pytest.mark.parametrize(
    ("depth", "width", "decay"),
    [
        *[(0, 8, 1.0), (2, 12, 1.0), (2, 1, 1.0), (2, 8, 0.0), (2, 8, 1.1)],
        (64, 2**25, 1.0),  # int32 could not number the counters
    ],
)
def test_refuses_what_it_cannot_be(depth, width, decay):
    with pytest.raises(ValueError, match="expected"):
        count_min_sketch.init(jax.random.key(0), depth, width, decay)


def test_ids_of_pairs_hardly_ever_collide():
    a, b = jnp.meshgrid(jnp.arange(1_000), 64 * jnp.arange(1_000))
    ids = np.asarray(count_min_sketch.pair_ids(a, b))
    collisions = ids.size - len(np.unique(ids))
    expected = ids.size**2 / 2 / 2**32
    assert collisions < expected + 5 * np.sqrt(expected)
    assert ids[3, 7] != ids[7, 3]


@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_accuracy_is_that_of_the_stream(rng, decay):
    """A stream of 30 batches, counted one by one."""
    ids = np.minimum(rng.geometric(0.02, 1200), 200)
    batches = rng.permutation(ids).reshape(30, 40)
    sketch, total = init(jax.random.key(0), 4, 2**10, decay), 0
    for batch in batches:
        sketch = add(sketch, jnp.asarray(batch))
        total = total * decay + 40
    _, counts = np.unique(ids, return_counts=True)
    found = count_min_sketch.accuracy(2**10, decay, 40, 30, 7 * counts)
    np.testing.assert_allclose(total, float(sketch.total), rtol=1e-5)
    np.testing.assert_allclose(found.error, np.e / 2**10 * total)
    np.testing.assert_allclose(found.mean, total / len(counts))
    of_each = np.repeat(counts, counts)  # once for each occurrence
    np.testing.assert_allclose(found.median, total / 1200 * np.quantile(of_each, 0.5))
    for width in (found.least_width // 2, found.least_width):
        other = count_min_sketch.accuracy(width, decay, 40, 30, counts)
        assert (other.error <= other.median) == (width == found.least_width)


def test_of_more_ids_than_are_counted_each_has_one():
    found = count_min_sketch.accuracy(2**10, 0.9, 40, 10**6, np.ones(10**6, int))
    np.testing.assert_allclose([found.mean, found.median], 1)
    assert found.least_width == 2048  # e * 400


def test_what_is_never_counted_is_never_wrong():
    found = count_min_sketch.accuracy(2**10, 1.0, 40, 30, np.zeros(0, int))
    assert found.error == found.median == 0
