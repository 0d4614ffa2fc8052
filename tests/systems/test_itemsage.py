"""The page against the paper's formula in NumPy, and against itself on several devices."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinjax.data import dataset as dataset_lib
from pinjax.data import pairs
from pinjax.data.spec import Spec
from pinjax.distributed import sharding
from pinjax.errors import InputError
from pinjax.systems import counts, engagements, itemsage, product_table, ragged_features, registry
from pinjax.training import checkpoint, workdirs
from tests.serving import exports

SYSTEM = "itemsage"
SIZE, RANDOM = 32, 24


def expected_losses(config, queries, itself, products, batch, random, num_corpus, scale, certain):
    """Each term of each pair, one pair at a time in float64; P(p | q) is 1 where it is certain."""
    pairs = list(zip(batch["query"].tolist(), batch["item"].tolist(), strict=True))
    num_pairs = len(pairs)

    def count(thing, things):
        return sum(other == thing for other in things)

    positive_log_q = [
        0 if certain else np.log(count(pair, pairs) / count(pair[0], [query for query, _ in pairs]))
        for pair in pairs
    ]

    def log_q(product, num_batch, num_random):
        share = count(product, [other for _, other in pairs]) / num_pairs
        return np.log(num_batch * share + num_random / num_corpus)

    def term(negatives, num_batch, num_random):
        losses = []
        for (query, product), own_log_q in zip(pairs, positive_log_q, strict=True):
            excluded = {product for q, product in pairs if q == query} | {itself[query]}
            logits = [scale * queries[query] @ products[product] - config.log_q * own_log_q]
            logits += [
                scale * queries[query] @ products[n]
                - config.log_q * log_q(n, num_batch, num_random)
                for n in negatives
                if n not in excluded
            ]
            losses.append(np.logaddexp.reduce(logits) - logits[0])
        return np.array(losses)

    in_batch = [product for _, product in pairs]
    return {
        "in_batch": term(in_batch, SIZE, 0),
        "random": term(random, 0, RANDOM),
        "joined": term([*in_batch, *random], SIZE, RANDOM),
    }


@pytest.mark.parametrize(
    ("terms", "log_q", "encoder"),
    [
        ("joined", True, "transformer"),
        ("summed", True, "sum"),
        pytest.param("joined", False, "sum", marks=pytest.mark.slow),
        pytest.param("summed", False, "sum", marks=pytest.mark.slow),
        pytest.param("in_batch", True, "sum", marks=pytest.mark.slow),
        pytest.param("random", True, "sum", marks=pytest.mark.slow),
    ],
)
def test_loss_is_the_formula(make_config, terms, log_q, encoder, mesh):
    loss = dict(terms=terms, log_q=log_q, num_random_negatives=RANDOM, sketch_width=2**18)
    config = make_config(loss=loss, model={"encoder": encoder})
    system = registry.create(config, mesh)
    params, sketches = jax.jit(system.trainable.init)(jax.random.key(1))
    key, dataset = jax.random.key(2), dataset_lib.load(config.data.name, config.data.dir)
    corpus, itself = np.unique(dataset.pairs("train")["item"]), dataset.queries.items.tolist()
    random = corpus[np.asarray(jax.random.randint(key, (RANDOM,), 0, len(corpus)))].tolist()
    batch = next(system.batches(0))
    batch["query"][:5] = batch["query"][0]  # a query with several products
    # Queries that are themselves a random product, or another one of the batch.
    for row, products in ((5, random), (6, batch["item"][7:].tolist())):
        batch["query"][row] = next(itself.index(i) for i in products if i in itself)
    for row, query in zip(batch["excluded"], batch["query"], strict=True):
        same = batch["item"][batch["query"] == query]
        row[:] = np.append(same, np.full(len(row) - len(same), -1))
    loss = jax.jit(system.trainable.loss)
    counts = sketches["pairs"].table + jnp.uint32(1_000)  # of other pairs in the same counters
    many = {**sketches, "pairs": sketches["pairs"].replace(table=counts)}
    with_many, _ = loss(params, system.constants, many, batch, key)
    value, (metrics, sketches) = loss(params, system.constants, sketches, batch, key)

    queries = dataset.queries.vectors.astype(jnp.bfloat16).astype(np.float64)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    encoder = itemsage.make_encoder(config, len(dataset.vocabulary), mesh)
    everything = jnp.arange(dataset.spec.num_items, dtype=jnp.int32)
    texts = product_table.read(config, dataset)["texts"]
    capacity = int(product_table.num_values(texts).sum())

    @jax.jit
    def embed(params, products):
        inputs, fits = product_table.gather(encoder, products, everything, capacity)
        return encoder.apply(params, *inputs), fits

    products, fits = embed(params["encoder"], system.constants["products"])
    assert fits
    products = np.asarray(products, np.float64)
    assert len(corpus) < len(products)

    losses_of = functools.partial(
        *(expected_losses, config.loss, queries, itself, products, batch, random),
        *(len(corpus), 1 / 0.07),
    )
    losses = losses_of(certain=False)
    names = ("in_batch", "random") if terms == "summed" else (terms,)
    of_certain = losses_of(certain=True)
    total = sum(of_certain[name].mean() for name in names)
    np.testing.assert_allclose(float(with_many), total, rtol=1e-4)
    for name in names:
        np.testing.assert_allclose(metrics[f"loss/{name}"], losses[name].mean(), rtol=1e-4)
    total = sum(losses[name] for name in names)
    np.testing.assert_allclose(float(value), total.mean(), rtol=1e-4)
    for row, name in enumerate(dataset.spec.tasks):
        of_task = total[batch["task"] == row].mean()
        np.testing.assert_allclose(metrics[f"loss/{name}"], of_task, rtol=1e-4)
    assert {int(sketch.total) for sketch in sketches.values()} == {SIZE}


def test_only_the_tasks_of_a_run_have_a_loss(make_config, mesh):
    """The mean of a task without pairs would be NaN."""
    config = make_config()
    config.tasks = (("text/save", 1.0, 0), ("image/click", 3.0, 0))
    trainable = registry.build(config, mesh)
    params, sketches = jax.eval_shape(trainable.init, jax.random.key(0))
    arguments = trainable.constants, sketches, trainable.batch, jax.random.key(0)
    _, (metrics, _) = jax.eval_shape(trainable.loss, params, *arguments)
    kinds = ("loss/text/", "loss/image/")
    of_tasks = {name for name in metrics if name.startswith(kinds)}
    assert of_tasks == {"loss/text/save", "loss/image/click"}


@pytest.mark.parametrize(
    "model", [{"texts": (), "encoder": "sum"}, {"image_slots": 0, "encoder": "sum"}]
)
def test_images_or_texts_alone_work_by_config(make_config, model, mesh):
    system = registry.create(make_config(model=model), mesh)
    params, sketches = exports.random_state(system)
    batch, key = next(system.batches(0)), jax.random.key(2)
    gradient, _ = jax.jit(jax.grad(system.trainable.loss, has_aux=True))(
        params, system.constants, sketches, batch, key
    )
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    (row,) = system.evaluate(params, "valid").rows
    assert 0 < row.metrics["R@100"][0] < 1


def test_sketches_are_as_wide_as_there_are_ids(make_config, mesh):
    config = make_config(loss={"sketch_width": 2**14})
    dataset = dataset_lib.load(config.data.name, config.data.dir)
    train = dataset.pairs("train")
    corpus, distinct = np.unique(train["item"]), np.unique(train[["query", "item"]])
    widths = counts.widths_of_pairs(config.loss, dataset.spec)
    assert widths["pairs"] == 2**14
    assert 4 * len(corpus) <= widths["products"] < 8 * len(corpus)
    assert 4 * len(dataset.queries) <= widths["queries"] < 8 * len(dataset.queries)
    system = registry.create(config, mesh)
    _, sketches = jax.eval_shape(system.trainable.init, jax.random.key(0))
    assert {name: sketch.width for name, sketch in sketches.items()} == widths
    assert len(distinct) > 30 * 32  # more than a run counts
    error = np.e / 2**14 * 30 * 32
    expected = f"pairs: mean count 1.0, a label's median 1.0, too high by at most {error:,.1f}"
    assert expected in system.summary["sketches"]


def test_pairs_that_drown_in_their_sketch_are_refused(make_config, mesh):
    """As would happen to the published size's ten million pairs in 2^22 columns."""
    config = make_config(loss={"sketch_width": 2**12}, train={"steps": 10_000})
    dataset = dataset_lib.load(config.data.name, config.data.dir)
    train, visits = dataset.pairs("train"), {}  # of each pair in a batch of 32
    shares = engagements.batches_of(config, dataset.spec, train).shares
    assert len(set(shares.values())) > 1
    for task, share in shares.items():
        of_task = train[train["task"] == task]
        for pair in zip(of_task["query"].tolist(), of_task["item"].tolist(), strict=True):
            visits[pair] = visits.get(pair, 0) + share / len(of_task)
    counts = np.sort(list(visits.values()))
    median = 10_000 * counts[np.searchsorted(np.cumsum(counts), 16)]
    least = 2 ** int(np.ceil(np.log2(np.e * 320_000 / median)))
    message = (
        rf"loss.sketch_width: with 4096 counters a row, the counts of {len(counts):,} pairs, whose "
        rf"median is {median:,.1f}, may be too high by 212.4; expected at least {least}"
    )
    with pytest.raises(InputError, match=message):
        registry.create(config, mesh).check_training()
    config.loss.log_q = False
    registry.create(config, mesh).check_training()
    config.loss.update(log_q=True, sketch_decay=0.9)
    system = registry.create(config, mesh)
    system.check_training()
    _, sketches = jax.eval_shape(system.trainable.init, jax.random.key(0))
    assert {sketch.decay for sketch in sketches.values()} == {0.9}
    config.loss.update(sketch_decay=1.0, sketch_width=least)
    registry.create(config, mesh).check_training()


def test_what_trains_on_nothing_is_refused(make_config, mesh):
    config = make_config(data={"pairs": 1}, loss={"terms": "in_batch"})
    config.tasks = (("image/click", 1.0, 0),)
    with pytest.raises(InputError, match=r"data.pairs=1: the first 8 batches have one query each"):
        registry.create(config, mesh).check_training()
    config.loss.terms = "random"
    registry.create(config, mesh).check_training()


@pytest.mark.slow
def test_one_and_eight_devices_agree(make_config, train_on_devices):
    (losses, state), (other_losses, other) = train_on_devices(make_config(), 3)
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, other.sketches, state.sketches)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-4)
    jax.tree.map(close, other.params, state.params)


@pytest.mark.slow
def test_where_tables_lie_changes_nothing(make_config, check_sharded_tables):
    check_sharded_tables(make_config())


def test_other_frozen_tables_are_refused(make_config, tmp_path, mesh):
    config = make_config()
    identity = registry.create(config, mesh).identity
    assert identity.keys() == {"dataset", "query vectors", "image vectors", "vocabulary"}
    checkpoint.claim(tmp_path, config, identity)
    for name in ("query vectors", "image vectors", "vocabulary"):
        with pytest.raises(InputError, match=f"holds a run with {name}=.*, this one has {name}=x"):
            workdirs.check(tmp_path, config, {**identity, name: "x"})


def test_a_query_without_a_vector_is_not_answered(make_config, other_data, mesh):
    """Else it would get the first products of the catalogue."""

    def change(directory):
        queries = pairs.Queries.read(directory / pairs.QUERIES_FILE)
        vectors = np.where(np.isin(np.arange(len(queries)), [3, 5])[:, None], 0, queries.vectors)
        dataclasses.replace(queries, vectors=vectors).write(directory / pairs.QUERIES_FILE)

    system = registry.create(make_config(data={"name": other_data(change)}), mesh)
    rows = system.serve(None, 0).queries.rows
    assert rows.tolist() == [r for r in range(system.dataset.spec.num_queries) if r not in (3, 5)]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"loss": {"terms": "both"}}, "loss.terms='both': expected one of summed, joined"),
        ({"model": {"texts": (("titel", "a"),)}}, "has no 'titel', only title, description"),
        (
            {"model": {"embedding_dim": 8}},
            "model.embedding_dim=8: query vectors of pinworld/tiny have 256 numbers",
        ),
        ({"model": {"residual": True, "image_slots": 0}}, "model.residual needs images; expected"),
        (
            {"model": {"encoder": "mean"}},
            "model.encoder='mean': expected one of transformer",
        ),
        ({"model": {"layers": 0}}, "model.layers=0: expected an integer from 1"),
        ({"model": {"encoder": "sum", "heads": 3}}, "not divisible by model.heads=3"),
        ({"model": {"texts": (), "image_slots": 0}}, "expected texts, images or both"),
        (
            {"loss": {"num_random_negatives": 0}},
            "loss.num_random_negatives=0: expected an integer from 1",
        ),
        ({"loss": {"sketch_width": 1_000}}, "loss.sketch_width=1000: expected a power of two"),
    ],
)
def test_wrong_config_is_refused(make_config, sections, message, mesh):
    with pytest.raises(InputError, match=message):
        registry.create(make_config(**sections), mesh)


def test_residual_of_other_images_is_refused(make_config):
    config = make_config(model={"residual": True})
    spec = Spec("shop", 9, query_dim=256, image_dim=5)
    with pytest.raises(InputError, match=r"images of shop have 5 numbers, queries 256"):
        product_table.check(config, spec)


def test_what_the_tower_sees_nothing_of_is_not_found(make_config, mesh, data_dir):
    dataset = dataset_lib.load("pinworld/tiny", str(data_dir))
    images = np.diff(dataset.catalogue.image_offsets)
    brand = np.diff(dataset.catalogue.text("brand").offsets)
    for model, findable in (
        ({}, np.diff(dataset.catalogue.text("title").offsets) > 0),  # which all products have
        ({"texts": (("brand", "brand"),), "image_slots": 0}, brand > 0),
        ({"texts": (("brand", "brand"),)}, (brand > 0) | (images > 0)),
        ({"texts": ()}, images > 0),
    ):
        assert 0.1 < findable.mean() < 0.4
        system = registry.create(make_config(model=model), mesh)
        items = system.serve(exports.random_params(system), 0).items
        np.testing.assert_array_equal(items.rows, np.flatnonzero(findable))
    vectors = items.embed(items.rows)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert (images[findable] > 0).all()


def test_pairs_of_products_without_an_input_are_left_out(make_config, mesh, data_dir):
    dataset = dataset_lib.load("pinworld/tiny", str(data_dir))
    train = dataset.pairs("train")
    left = train[np.diff(dataset.catalogue.image_offsets)[train["item"]] > 0]
    batches = registry.create(make_config(model={"texts": ()}), mesh).batches(0)
    seen = np.concatenate([batch["item"] for batch in itertools.islice(batches, 10)])
    assert np.isin(seen, train["item"]).all()
    assert not np.isin(train["item"], left["item"]).all()
    assert np.isin(seen, left["item"]).all()
    nothing = np.zeros(dataset.spec.num_items, bool)
    with pytest.raises(InputError, match=r" no training pair of .* has a token or an image$"):
        engagements.pairs_of(make_config(), dataset, nothing, "token or an image")


def test_a_catalogue_without_images_has_texts_alone(make_config, other_data, mesh):
    data = {"name": other_data(without=("images",), image_dim=0)}
    for create in (registry.create, registry.build):
        with pytest.raises(InputError, match=r"^model.image_slots=4: other has no images; exp"):
            create(make_config(data=data), mesh)
    config = make_config(data=data, model={"image_slots": 0})
    assert registry.create(config, mesh).constants["products"].keys() == {"texts"}
    registry.build(config, mesh)


def test_pairs_are_needed(make_config, other_data, mesh):
    config = make_config(data={"name": other_data(pairs={})})
    for create in (registry.create, registry.build):
        with pytest.raises(InputError, match=r"^data.name: other has no pairs, only timelines, gr"):
            create(config, mesh)


@pytest.mark.parametrize("texts", [("title", "description", "brand"), ("brand",)])
@pytest.mark.parametrize("cap", [0, 1, 2])
def test_there_is_room_for_the_tokens_of_what_is_drawn(make_config, data_dir, texts, cap):
    """As much room as the data need, and not much more."""
    config = make_config(model={"texts": tuple((name, name) for name in texts)})
    config.tasks = (("image/click", 3.0, cap), ("text/save", 1.0, cap))
    config.data.pairs = config.loss.num_random_negatives = 256
    dataset = dataset_lib.load("pinworld/tiny", str(data_dir))
    spec, train = dataset.spec, dataset.pairs("train")
    products = product_table.read(config, dataset)
    lengths = product_table.num_values(products["texts"]).astype(int)
    # Products with long texts have two pairs of each task, others one or twenty: neither all pairs
    # nor all products have as many long ones as two pairs of each.
    long = lengths > np.quantile(lengths, 0.7)
    many = np.where(long, 2, np.where(np.arange(len(lengths)) % 8, 1, 20))
    item = np.concatenate([np.repeat(np.arange(len(lengths)), many)] * 2)
    train = np.resize(train, len(item))
    train["item"] = item
    tasks = [spec.tasks.index(name) for name in ("image/click", "text/save")]
    train["task"] = np.repeat(tasks, len(item) // 2)
    mesh = sharding.make_mesh(jax.devices()[:2])
    batches = engagements.batches_of(config, spec, train)
    corpus = np.arange(0, len(lengths), 3)
    made = product_table.with_products(config, spec, products, batches, corpus)
    found = product_table.token_capacities(config, mesh, made, batches)

    weights = np.minimum(many, cap) if cap else many
    capacity = functools.partial(
        ragged_features.token_capacity, number=128, chance=1e-12 / (2 * 30 * 2)
    )
    least = {
        "positives": capacity(lengths, weights),
        "random": capacity(lengths[corpus], np.ones(len(corpus))),
    }
    for kind, tokens in least.items():
        assert tokens <= found[kind] <= 1.4 * tokens
    assert found["catalogue"] >= lengths.max()
    assert made.num_engaged == len(corpus)
    if cap == 2:
        assert product_table.token_capacities(config, mesh, spec, batches) != found


def test_products_are_embedded_wherever_they_stand(make_config, mesh, data_dir):
    """In full batches, in small ones, and where their texts leave no room for others."""
    config = make_config()
    system = registry.create(config, mesh)
    params = exports.random_params(system)
    dataset = dataset_lib.load("pinworld/tiny", str(data_dir))
    products = product_table.read(config, dataset)
    lengths = product_table.num_values(products["texts"])
    rows = np.flatnonzero(product_table.findable(products))[:40]
    embed = functools.partial(system.trainable.embedders["products"], params, system.constants)
    everything = ragged_features.embed_rows(embed, rows, lengths, mesh, 2**20)
    for some, capacity in ((slice(3, 4), 2**20), (slice(None), int(lengths.max()))):
        few = ragged_features.embed_rows(embed, rows[some], lengths, mesh, capacity)
        np.testing.assert_allclose(few, everything[some], atol=1e-5)


def test_more_tokens_than_can_be_numbered_are_refused(make_config, mesh):
    config = make_config(model={"texts": (("title", "title"),)})
    tables = sharding.table_layout(mesh, config.train)
    spec = Spec("shop", 9, text_features=("title",), num_tokens={"title": 2**31 - 1}, image_dim=1)
    product_table.abstract(config, mesh, tables, spec)
    spec = dataclasses.replace(spec, num_tokens={"title": 2**31})
    with pytest.raises(InputError, match=r"those of shop have 2,147,483,648 tokens together"):
        product_table.abstract(config, mesh, tables, spec)
    spec = dataclasses.replace(spec, num_tokens={"title": 9}, num_images=2**31)
    with pytest.raises(InputError, match=r"items of shop have 2,147,483,648 images together"):
        product_table.abstract(config, mesh, tables, spec)


def test_a_task_without_pairs_is_refused(make_config, mesh):
    config = make_config()
    config.tasks = (("image/click", 1.0, 0), ("text/click", 1e-9, 0))
    with pytest.raises(InputError, match=r"text/click has no pair in a batch of data.pairs=32"):
        registry.create(config, mesh)


def test_unknown_task_is_refused(make_config, mesh):
    config = make_config()
    config.tasks = (("image/clik", 1.0, 0),)
    with pytest.raises(InputError, match="tasks: pinworld/tiny has no task 'image/clik'"):
        registry.create(config, mesh)
