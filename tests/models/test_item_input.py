import jax.numpy as jnp
import numpy as np

from pinjax.distributed import sharded_table
from pinjax.models import item_input

NUM_ITEMS = 20


def test_item_input_is_content_and_learned_vector(rng):
    content = rng.standard_normal((NUM_ITEMS, 5)).astype(np.float32)
    table = rng.standard_normal((NUM_ITEMS, 4)).astype(np.float32)
    rows = np.array([[3, -1], [0, 19]])
    model = item_input.ItemInput(NUM_ITEMS, id_dim=4, table_layout=sharded_table.REPLICATED)
    params = {"params": {"id": {"embedding": jnp.asarray(table)}}}
    items = item_input.ItemFeatures(100 * jnp.asarray(content))
    vectors = np.asarray(model.apply(params, items, jnp.asarray(rows)))

    of_content = content[rows] / np.sqrt(np.square(content[rows]).mean(axis=-1, keepdims=True))
    expected = np.concatenate([of_content, 2 * table[rows]], axis=-1)  # sqrt(id_dim)
    expected[0, 1] = 0
    np.testing.assert_allclose(vectors, expected, rtol=1e-5)

    ids_alone = np.asarray(model.apply(params, item_input.ItemFeatures(), jnp.asarray(rows)))
    np.testing.assert_array_equal(ids_alone, vectors[..., 5:])


def test_popularity_neither_shrinks_content_nor_is_scaled(rng):
    model = item_input.ItemInput(4, id_dim=0, table_layout=sharded_table.REPLICATED)
    content = rng.standard_normal((4, 6)).astype(np.float32)
    content[2:] = 0  # unknown
    popularity = np.array([[0.05], [300.0], [0.05], [3.0]], np.float32)
    times = jnp.zeros(1, jnp.uint32)
    table = jnp.concatenate([content, popularity], axis=1)
    found = np.asarray(model.apply({}, item_input.ItemFeatures(table, times), jnp.arange(4)))
    size = np.sqrt(np.square(content.astype(np.float64)).mean(axis=1, keepdims=True))
    np.testing.assert_allclose(found[:, :6], content / np.maximum(size, 1e-9), rtol=1e-5)
    np.testing.assert_array_equal(found[:, 6:], popularity)
