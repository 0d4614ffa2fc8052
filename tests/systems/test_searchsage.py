"""The page against the formula in NumPy, and against itself on several devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinjax.data import datasets
from pinjax.errors import InputError
from pinjax.systems import registry, searchsage

SYSTEM = "searchsage"


@pytest.mark.parametrize("encoder", ["bag", "bert"])
def test_loss_is_the_formula(make_config, encoder, mesh):
    config = make_config(model={"encoder": encoder}, loss={"sketch_width": 2**18})
    system = registry.create(config, mesh)
    params, sketch = jax.jit(system.init)(jax.random.key(1))
    batch = next(system.batches(0))
    arguments = params, system.frozen, sketch, batch, jax.random.key(2)
    value, (metrics, sketch) = jax.jit(system.loss)(*arguments)

    dataset = datasets.load_pairs(config.data.name, config.data.dir)
    make = searchsage.make_bag if encoder == "bag" else searchsage.make_bert
    tower = make(config, dataset, mesh)
    texts = jax.tree.map(jnp.asarray, tower.texts)
    queries = np.asarray(jax.jit(tower.apply)(params["tower"], texts, jnp.asarray(batch["query"])))
    items = np.asarray(searchsage.item_vectors(dataset), np.float64)
    products = batch["product"].tolist()
    log_q = {p: np.log(len(products) * products.count(p) / len(products)) for p in products}
    losses = []
    for query, vector, product in zip(batch["query"], queries, products, strict=True):
        same = set(batch["product"][batch["query"] == query])
        logits = [vector @ items[product] / 0.07 - log_q[product]]
        logits += [vector @ items[p] / 0.07 - log_q[p] for p in products if p not in same]
        losses.append(np.logaddexp.reduce(logits) - logits[0])
    np.testing.assert_allclose(float(value), np.mean(losses), rtol=1e-4)
    np.testing.assert_allclose(metrics["temperature"], 0.07, rtol=1e-5)
    assert int(sketch.total) == len(products)


def test_what_trains_on_nothing_is_refused(make_config, mesh):
    registry.create(make_config(), mesh).check_training()
    config = make_config(data={"pairs": 1})
    config.tasks = config.tasks[:1]
    with pytest.raises(InputError, match=r"data.pairs=1: the first 8 batches have one query each"):
        registry.create(config, mesh).check_training()
    with pytest.raises(
        InputError, match=r"loss.sketch_width: with 64 counters a row, the counts of .* items"
    ):
        registry.create(make_config(loss={"sketch_width": 64}), mesh).check_training()


def test_one_two_and_eight_devices_agree(make_config, train_on_devices):
    (losses, state), *others = train_on_devices(make_config(), 3)
    for other_losses, other in others:
        np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
        close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-4)
        jax.tree.map(close, other.params, state.params)


@pytest.mark.parametrize("encoder", ["bag", "bert"])
def test_where_tables_lie_changes_nothing(make_config, check_shared_out_tables, encoder):
    check_shared_out_tables(make_config(model={"encoder": encoder}))


def test_residual_is_added_to_the_queries_own_vectors(make_config, mesh, check_shared_out_tables):
    config = make_config(model={"residual": True})
    system = registry.create(config, mesh)
    params, _ = jax.jit(system.init)(jax.random.key(1))
    dataset = datasets.load_pairs(config.data.name, config.data.dir)
    tower = searchsage.make_bag(config, dataset, mesh)
    vectors = jnp.asarray(dataset.queries.vectors, jnp.bfloat16)
    rows = jnp.arange(0, len(vectors), 3)
    texts = jax.tree.map(jnp.asarray, tower.texts)
    of_tower = np.asarray(jax.jit(tower.apply)(params["tower"]["tower"], texts, rows), np.float64)
    own = np.asarray(vectors[rows], np.float64)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    for gain in (params["tower"]["gain"], 0.7):
        found = searchsage.with_residual(tower, vectors).apply(
            params["tower"] | {"gain": gain}, (texts, vectors), rows
        )
        expected = own + gain * of_tower
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert params["tower"]["gain"] == 0
    check_shared_out_tables(config)


def test_residual_of_another_space_is_refused():
    with pytest.raises(InputError, match="queries of shop have 3 numbers, not the items' 4"):
        searchsage.check_residual("shop", 3, 4)


def test_an_item_is_the_mean_of_its_images(data_dir):
    dataset = datasets.load_pairs("pinshop/tiny", str(data_dir))
    found = np.asarray(searchsage.item_vectors(dataset))
    offsets = dataset.products.image_offsets
    assert (np.diff(offsets) == 0).any()
    for row in range(0, len(offsets) - 1, 7):
        images = dataset.products.images[offsets[row] : offsets[row + 1]].astype(np.float64)
        images /= np.linalg.norm(images, axis=1, keepdims=True)
        expected = images.sum(axis=0)
        expected /= max(np.linalg.norm(expected), 1e-9)
        np.testing.assert_allclose(found[row], expected, atol=1e-5)


def test_words_follow_cls_and_are_cut(data_dir):
    dataset = datasets.load_pairs("pinshop/tiny", str(data_dir))
    words = dataset.vocabulary.sizes[0]
    tokens = dataset.vocabulary.rows["token"].to_pylist()
    texts = ["", f"{tokens[3]} unheard-of {tokens[1]}", " ".join(tokens[:9])]
    ids, mask = searchsage._word_ids(dataset.vocabulary.encode(texts), words, 4)
    assert ids[:, 0].tolist() == [words] * 3
    assert mask.sum(axis=1).tolist() == [1, 3, 4]
    assert ids[1, :3].tolist() == [words, 3, 1]
    assert ids[2].tolist() == [words, 0, 1, 2]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"encoder": "lstm"}}, "model.encoder='lstm': expected one of bag, bert"),
        ({"loss": {"sketch_width": 1_000}}, "loss.sketch_width=1000: expected a power of two"),
    ],
)
def test_wrong_config_is_refused(make_config, sections, message, mesh):
    with pytest.raises(InputError, match=message):
        registry.create(make_config(**sections), mesh)
