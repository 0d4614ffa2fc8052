"""ItemSage (Baltescu et al., KDD 2022): products in the space of frozen query embeddings.

A product tower embeds a product from its images and texts, near the frozen vectors of the queries
that lead to it: images and searches. A batch is divided over tasks; a task is a kind of query and a
kind of engagement. All tasks share the tower and the loss: two sampled softmaxes with logQ
correction, one over the batch's other products and one over random products.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.data.dataset import Dataset
from pinjax.data.spec import Spec
from pinjax.distributed import sharding
from pinjax.errors import InputError
from pinjax.evaluation import evaluator as evaluator_lib
from pinjax.evaluation import pair_source, tables, vector_search
from pinjax.losses import count_min_sketch, sampled_softmax
from pinjax.models import features, itemsage, temperature
from pinjax.systems import (
    counts,
    engagements,
    exports,
    product_table,
    ragged_features,
    system,
)


def make_encoder(config: ConfigDict, num_tokens: int, mesh: Mesh) -> itemsage.ItemSage:
    """The product tower, for a vocabulary of `num_tokens`."""
    model = dict(config.model)
    texts = model.pop("texts")
    return itemsage.ItemSage(
        text_features=texts,
        num_tokens=num_tokens,
        table_layout=sharding.table_layout(mesh, config.train),
        **model,
    )


def init(
    encoder: itemsage.ItemSage,
    config: ConfigDict,
    widths: dict[str, int],
    image_dim: int,
    key: jax.Array,
) -> tuple[Any, Any]:
    """Parameters, and sketches that count products, queries and their pairs."""
    params_key, sketch_key = jax.random.split(key)
    images = image_mask = tokens = segments = None
    if encoder.image_slots:
        image_mask = jnp.ones((1, encoder.image_slots), bool)
        images = jnp.zeros((*image_mask.shape, image_dim))
    if encoder.text_features:
        tokens = segments = jnp.zeros(1, jnp.int32)
    params = {
        "encoder": encoder.init(params_key, images, image_mask, tokens, segments, 1),
        "temperature": temperature.Temperature().init(params_key),
    }
    sketches = {name: counts.sketch(sketch_key, config, width) for name, width in widths.items()}
    return params, sketches


def encode(
    encoder: itemsage.ItemSage,
    mesh: Mesh,
    capacity: int,
    params: Any,
    products: dict[str, ragged_features.DeviceRagged],
    rows: jax.Array,
) -> jax.Array:
    """The embeddings of products, float32 (rows, dim); each device computes its share of the rows.

    All are NaN if their tokens exceed the capacity (`token_capacities`).
    """

    on_device = encoder.clone(table_layout=encoder.table_layout.on_device())

    def of_device(params, products, rows):
        inputs, fits = product_table.gather(on_device, products, rows, capacity)
        return jnp.where(fits, on_device.apply(params, *inputs), jnp.nan)

    return sharding.shard_map_rows(mesh, encoder.table_layout, of_device)(params, products, rows)


def loss(
    encoder: itemsage.ItemSage,
    config: ConfigDict,
    mesh: Mesh,
    capacities: dict[str, int],
    tasks: dict[int, str],
    params: Any,
    constants: dict[str, Any],
    sketches: dict[str, count_min_sketch.CountMinSketch],
    batch: system.Batch,
    key: jax.Array,
) -> tuple[jax.Array, tuple[system.Metrics, Any]]:
    """The loss of a global batch of pairs (§4.2): L_pos + L_neg, or one softmax over both."""
    replicate = sharding.replicate(mesh)
    corpus = constants["corpus"]
    size, num_random = len(batch["item"]), config.num_random_negatives

    def embed(rows: jax.Array, capacity: str) -> jax.Array:
        rows = lax.with_sharding_constraint(rows, sharding.over_data(mesh))
        return encode(
            encoder, mesh, capacities[capacity], params["encoder"], constants["products"], rows
        )

    queries = features.unit_length(
        encoder.table_layout.gather(constants["queries"], batch["query"])
    )
    positives = embed(batch["item"], "positives")
    random_rows = corpus[jax.random.randint(key, (num_random,), 0, len(corpus))]

    # Count products, queries and their pairs, over all devices.
    all_queries, all_products = replicate((batch["query"], batch["item"]))
    seen = sketched_ids({"query": all_queries, "item": all_products})
    sketches = {name: counts.add(mesh, sketches[name], ids) for name, ids in seen.items()}
    # log P(p | q) of each pair. The estimated count of a pair may exceed the count of its query.
    share = count_min_sketch.count(sketches["pairs"], seen["pairs"])
    share /= count_min_sketch.count(sketches["queries"], all_queries)
    positive_log_q = jnp.float32(config.log_q) * jnp.log(jnp.minimum(share, 1))

    scale = temperature.Temperature().apply(params["temperature"])
    # Masked are the product that a query itself is, -1 for a search, and all products of the query
    # in the batch, the pair's own among them.
    itself = encoder.table_layout.gather(constants["query_items"], batch["query"])
    excluded = jnp.concatenate([itself[:, None], batch["excluded"]], axis=1)

    def term(ids: jax.Array, embeddings: jax.Array, num_batch: int, num_random: int) -> jax.Array:
        log_q = counts.log_q(
            sketches["products"], ids, num_batch, num_random, len(corpus), enabled=config.log_q
        )
        negatives = sampled_softmax.Negatives(embeddings, ids, log_q, positive_log_q)
        return sampled_softmax.of_pairs(queries, positives, negatives, scale, excluded)

    in_batch = all_products, replicate(positives)
    random = random_rows, replicate(embed(random_rows, "random"))
    if config.terms == "joined":
        both = jax.tree.map(lambda *x: jnp.concatenate(x), in_batch, random)
        terms = {"joined": term(*both, size, num_random)}
    else:
        terms = {}
        if config.terms in ("summed", "in_batch"):
            terms["in_batch"] = term(*in_batch, size, 0)
        if config.terms in ("summed", "random"):
            terms["random"] = term(*random, 0, num_random)

    losses = sum(terms.values())
    metrics = {"temperature": 1 / scale}
    metrics |= {f"loss/{name}": losses.mean() for name, losses in terms.items()}
    for row, name in tasks.items():
        where = batch["task"] == row
        metrics[f"loss/{name}"] = jnp.mean(losses, where=where)
    return losses.mean(), (metrics, sketches)


def sketched_ids(batch: system.Batch) -> dict[str, jax.Array]:
    """The ids of a batch that are counted: of products, queries and their pairs."""
    pairs = count_min_sketch.pair_ids(batch["query"], batch["item"])
    return {"products": batch["item"], "queries": batch["query"], "pairs": pairs}


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Rejects a config that is inconsistent or does not fit the mesh."""
    model = config.model
    system.check_heads(model)
    if model.residual and not model.image_slots:
        raise InputError("model.residual needs images; expected model.image_slots above 0")
    if not model.image_slots and not model.texts:
        raise InputError("model.texts and model.image_slots: expected texts, images or both")
    sharding.check(mesh, config.train)
    sharding.check_batch(mesh, "data.pairs", config.data.pairs)
    sharding.check_batch(mesh, "loss.num_random_negatives", config.loss.num_random_negatives)


def build(config: ConfigDict, mesh: Mesh, spec: Spec) -> system.Trainable:
    """The product tower and its loss, for a data set with pairs."""
    spec.need("pairs")
    product_table.check(config, spec)
    made_up = engagements.without_data(config, spec)
    encoder = make_encoder(config, sum(spec.vocabulary), mesh)
    capacities = product_table.token_capacities(config, mesh, spec, made_up)
    queries = sharding.abstract_table(
        mesh, encoder.table_layout, (spec.num_queries, spec.query_dim), jnp.bfloat16
    )
    query_items = sharding.abstract_table(
        mesh, encoder.table_layout, (spec.num_queries,), jnp.int32
    )
    corpus = jax.ShapeDtypeStruct((spec.num_engaged,), jnp.int32)

    def products(params: Any, constants: dict[str, Any], rows: jax.Array) -> jax.Array:
        room = capacities["catalogue"]
        return encode(encoder, mesh, room, params["encoder"], constants["products"], rows)

    rows = jax.ShapeDtypeStruct((ragged_features.rows_at_once(mesh),), jnp.int32)
    widths = counts.widths_of_pairs(config.loss, spec)
    tasks = {row: task.name for row, task in made_up.tasks.items()}
    return system.Trainable(
        init=functools.partial(init, encoder, config.loss, widths, spec.image_dim),
        loss=functools.partial(loss, encoder, config.loss, mesh, capacities, tasks),
        constants={
            "products": product_table.abstract(config, mesh, encoder.table_layout, spec),
            "queries": queries,
            "query_items": query_items,
            "corpus": sharding.abstract(mesh, corpus),
        },
        batch=engagements.abstract_batch(mesh, made_up),
        batch_size="data.pairs",
        embedders={
            "products": system.Embedder(sharding.jit_over_rows(mesh, products), ("products",), rows)
        },
        search=system.Search(
            spec.num_items, config.model.embedding_dim, pair_source.PairSource.depth
        ),
        row_meanings=system.TEXTS,
        sketched_ids=sketched_ids,
    )


def bind(
    trainable: system.Trainable, config: ConfigDict, mesh: Mesh, dataset: Dataset
) -> system.System:
    """ItemSage on a data set."""
    spec = dataset.spec
    products = product_table.read(config, dataset)
    found = product_table.findable(products)
    train = engagements.pairs_of(config, dataset, found, "token or an image")
    train_batches = engagements.batches_of(config, spec, train)
    # Random negatives are products that were engaged with. From others the
    # model would only learn that their tokens are never those of positives.
    corpus = np.unique(train["item"]).astype(np.int32)
    spec = product_table.with_products(config, spec, products, train_batches, corpus)
    trainable = build(config, mesh, spec)
    layout = sharding.table_layout(mesh, config.train)
    place = functools.partial(sharding.place_table, mesh, layout)
    constants = {
        "products": product_table.place(products, dataset, mesh, layout),
        "queries": place(dataset.queries.vectors.astype(jnp.bfloat16)),
        "query_items": place(dataset.queries.items),
        "corpus": jax.device_put(corpus, sharding.replicated(mesh)),
    }
    tasks = tuple(train_batches.tasks)
    source = pair_source.PairSource("ItemSage", dataset, found, config.evaluate, tasks)
    evaluator = evaluator_lib.Evaluator("ItemSage", source)
    lengths = product_table.num_values(products["texts"])
    capacities = product_table.token_capacities(config, mesh, spec, train_batches)

    def embed_items(params: Any, rows: np.ndarray) -> np.ndarray:
        embed = functools.partial(trainable.embedders["products"], params, constants)
        return ragged_features.embed_rows(embed, rows, lengths, mesh, capacities["catalogue"])

    def embed_queries(rows: np.ndarray) -> np.ndarray:
        return np.asarray(features.unit_length(jnp.asarray(dataset.queries.vectors[rows])))

    def evaluate(params: Any, split: str, full: bool = False) -> tables.Table:
        def items(some: np.ndarray) -> np.ndarray:
            vectors = np.zeros((len(some), config.model.embedding_dim), np.float32)
            vectors[found[some]] = embed_items(params, some[found[some]])
            return vectors

        retriever = vector_search.VectorSearch.fixed(lambda x: embed_queries(x["query"]), items)
        return evaluator(retriever, split, full)

    def serve(params: Any, as_of: int) -> system.Served:
        del as_of  # embeddings do not depend on time
        items = system.EmbeddedRows(np.flatnonzero(found), functools.partial(embed_items, params))
        known = np.flatnonzero(dataset.queries.vectors.any(axis=1))
        return system.Served(items, queries=system.EmbeddedRows(known, embed_queries))

    streams = counts.count_pairs(counts.widths_of_pairs(config.loss, spec), train_batches)

    def check_training() -> None:
        counts.check(config, streams)
        engagements.check_training(train_batches, in_batch=config.loss.terms == "in_batch")

    return system.System(
        dataset=dataset,
        trainable=trainable,
        constants=constants,
        batches=functools.partial(train_batches.iterate, workers=config.data.workers),
        evaluate=evaluate,
        evaluator=evaluator,
        serve=serve,
        export=lambda params, as_of: exports.of_products(
            make_encoder(config, sum(spec.vocabulary), mesh), dataset
        ),
        check_training=check_training,
        summary=engagements.summary(dataset, train_batches) | counts.summary(config, streams),
        identity=dataset.frozen,
    )
