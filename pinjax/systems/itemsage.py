"""ItemSage (Baltescu et al., KDD 2022): products in the space of frozen query embeddings.

A product tower makes one vector of a product's images and texts, which lies near the frozen vectors
of the queries that lead to it: of images and of searches alike. One batch is divided over the
tasks, what kind of query led to what kind of engagement; all of them share the tower and the loss,
two sampled softmaxes with logQ correction, over the batch's other products and over random ones.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.data import dataset as dataset_lib
from pinjax.data import spec as spec_lib
from pinjax.data.text import tokens as tokens_lib
from pinjax.distributed import batching, sharding
from pinjax.errors import InputError
from pinjax.evaluation import evaluator as evaluator_lib
from pinjax.evaluation import pair_source, tables, vector_search
from pinjax.losses import count_min_sketch, sampled_softmax
from pinjax.models import features, itemsage, product_features, temperature
from pinjax.systems import engagements, system

ENCODED = 512  # products encoded at a time where a catalogue is embedded
_OVERFLOW = 1e-12  # probability that a run ends because tokens do not fit


def create(config: ConfigDict, mesh: Mesh) -> system.System:
    """ItemSage on the data set that the config names.

    Raises:
      InputError: where the config does not fit the data.
    """
    dataset = dataset_lib.load(config.data.name, config.data.dir)
    dataset.need("pairs")
    spec = dataset.spec
    check_vectors(config, spec)
    train_batches = engagements.train_batches(config, dataset)
    encoder = make_encoder(config, sum(spec.vocabulary), mesh)
    products = make_features(config, dataset)
    # Random negatives are products that were engaged with. What else there is would only be
    # learned, by its tokens, to be never wanted.
    corpus = np.unique(dataset.pairs("train")["item"]).astype(np.int32)
    place = functools.partial(sharding.place_table, mesh, encoder.tables)
    frozen = {
        "products": jax.tree.map(place, products),
        "queries": place(dataset.queries.vectors.astype(jnp.bfloat16)),
        "corpus": jax.device_put(corpus, sharding.replicated(mesh)),
    }
    found = findable(products)
    rows = np.flatnonzero(found).astype(np.int32)
    source = pair_source.PairSource(
        "ItemSage", dataset, tuple(train_batches.tasks), found, config.evaluate
    )
    evaluator = evaluator_lib.Evaluator("ItemSage", source)
    lengths = num_values(products["texts"])
    weights = train_batches.item_weights(spec.num_items)
    capacities = token_capacities(config, mesh, lengths, weights, corpus, rows)
    embed_rows = sharding.shared_out(
        mesh, functools.partial(encode, encoder, mesh, capacities["catalogue"])
    )

    def embed_items(params: Any, rows: np.ndarray) -> np.ndarray:
        embed = functools.partial(embed_rows, params["encoder"], frozen["products"])
        return batching.in_batches(embed, rows, ENCODED)

    def embed_queries(rows: np.ndarray) -> np.ndarray:
        return np.asarray(features.unit_length(jnp.asarray(dataset.queries.vectors[rows])))

    def evaluate(params: Any, split: str, full: bool = False) -> tables.Table:
        items = np.zeros((spec.num_items, config.model.embedding_dim), np.float32)
        items[rows] = embed_items(params, rows)
        retriever = vector_search.of_vectors(embed_queries, items)
        return evaluator(retriever, split, full)

    def embed(params: Any, moment: int) -> dict[str, list[system.Shard]]:
        del moment  # an item is what it is

        def item_shard(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return dataset.catalogue.ids[rows], embed_items(params, rows)

        def query_shard(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return dataset.queries.ids[rows], embed_queries(rows)

        return {
            "items": system.shards(item_shard, rows),
            "queries": system.shards(query_shard, np.arange(spec.num_queries)),
        }

    widths = sketch_widths(config.loss, len(corpus), spec.num_queries)
    counted = counted_ids(train_batches.pairs, widths, config.data.pairs)

    def check_training() -> None:
        system.check_counts(config, counted)
        engagements.check_training(train_batches, in_batch=config.loss.terms == "in_batch")

    return system.System(
        init=functools.partial(init, encoder, config.loss, widths, spec.image_dim),
        loss=functools.partial(loss, encoder, config.loss, mesh, capacities, spec.tasks),
        frozen=frozen,
        batches=functools.partial(train_batches.iterate, workers=config.data.workers),
        evaluate=evaluate,
        asked=evaluator.describe,
        metrics=evaluator.metrics,
        embed=embed,
        embed_as_of=spec.train_end,
        check_training=check_training,
        summary=engagements.summary(dataset, train_batches)
        | system.sketch_summary(config, counted),
        identity={"dataset": spec.digest, **dataset.frozen},
    )


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Refuses a config that does not fit itself or the mesh, whatever the data."""
    model = config.model
    system.check_heads(model)
    if model.residual and not model.image_slots:
        raise InputError("model.residual needs images; expected model.image_slots above 0")
    if not model.image_slots and not model.texts:
        raise InputError("model.texts and model.image_slots: expected texts, images or both")
    sharding.check(mesh, config.train)
    sharding.check_batch(mesh, "data.pairs", config.data.pairs)
    sharding.check_batch(mesh, "loss.num_random_negatives", config.loss.num_random_negatives)


def check_vectors(config: ConfigDict, spec: spec_lib.Spec) -> None:
    """Refuses a config that does not fit the frozen vectors of queries and images."""
    name, dim, slots = spec.name, config.model.embedding_dim, config.model.image_slots
    if spec.query_dim != dim:
        raise InputError(
            f"model.embedding_dim={dim}: query vectors of {name} have {spec.query_dim} numbers"
        )
    if slots and not spec.image_dim:
        raise InputError(f"model.image_slots={slots}: {name} has no images; expected 0")
    if config.model.residual and spec.image_dim != dim:
        raise InputError(
            f"model.residual: images of {name} have {spec.image_dim} numbers, queries {dim}"
        )


def token_capacities(
    config: ConfigDict,
    mesh: Mesh,
    lengths: np.ndarray,
    weights: np.ndarray,
    corpus: np.ndarray,
    index: np.ndarray,
) -> dict[str, int]:
    """Room for the tokens of the products that a device encodes at once, by what they are.

    That a run has a batch with more is less probable than `_OVERFLOW`. A device's share of a batch
    is drawn without replacement from the tasks' pairs in the proportion of their shares.

    Args:
      config: of the system.
      mesh: over whose axis `data` they are shared out.
      lengths: int (items,), tokens of each item of the catalogue.
      weights: (items,), how often each is a positive, up to a factor.
      corpus: int (n,), the items that random negatives are drawn from.
      index: int (n,), the items that are embedded for an index, in that order.
    """
    of_index = lengths[index]
    devices = mesh.shape["data"]
    if ENCODED % devices:  # what is read together is another share in each batch
        catalogue = -(-ENCODED // devices) * int(of_index.max())
    else:
        catalogue = product_features.most_tokens(of_index, ENCODED // devices)

    def capacity(lengths: np.ndarray, weights: np.ndarray, products: int) -> int:
        chance = overflow_chance(config, mesh)
        return product_features.token_capacity(lengths, weights, products // devices, chance)

    return {
        "positives": capacity(lengths, weights, config.data.pairs),
        "random": capacity(lengths[corpus], np.ones(len(corpus)), config.loss.num_random_negatives),
        "catalogue": catalogue,
    }


def overflow_chance(config: ConfigDict, mesh: Mesh) -> float:
    """Of one device's tokens in one step: all of a run's together are at most `_OVERFLOW`."""
    return _OVERFLOW / (2 * config.train.steps * mesh.shape["data"])


def check_tokens(name: str, tokens: int) -> None:
    """Refuses texts that have more tokens together than an int32 can number."""
    if tokens >= 2**31:
        raise InputError(
            f"model.texts: those of {name} have {tokens:,} tokens together; expected under 2^31"
        )


def make_encoder(config: ConfigDict, num_tokens: int, mesh: Mesh) -> itemsage.ItemSage:
    """The product tower, for a vocabulary of so many tokens."""
    model = dict(config.model)
    slots, texts = model.pop("image_slots"), model.pop("texts")
    return itemsage.ItemSage(
        image_features=(("image", "image", slots),) if slots else (),
        text_features=texts,
        num_tokens=num_tokens,
        tables=sharding.table_layout(mesh, config.train),
        **model,
    )


def make_features(
    config: ConfigDict, dataset: dataset_lib.Dataset
) -> dict[str, product_features.Ragged]:
    """The texts that the config names, of all items, and their images if the tower sees any."""
    names = [name for name, _ in config.model.texts]
    catalogue, spec = dataset.catalogue, dataset.spec
    for name in names:
        if name not in spec.text_features:
            known = ", ".join(spec.text_features) or "images"
            raise InputError(f"model.texts: {spec.name} has no {name!r}, only {known}")
    none = tokens_lib.Ragged(np.zeros(0, np.int32), np.zeros(len(catalogue) + 1, np.int64))
    tokens, offsets = tokens_lib.interleave([catalogue.text(name) for name in names] or [none])
    check_tokens(spec.name, len(tokens))
    made = {"texts": product_features.Ragged.create(tokens, offsets, max(1, len(names)))}
    if config.model.image_slots:
        images = catalogue.images.astype(jnp.bfloat16)
        made["images"] = product_features.Ragged.create(images, catalogue.image_offsets)
    return made


def num_values(feature: product_features.Ragged) -> np.ndarray:
    """How many tokens, or images, each item has: int32 (items,)."""
    return feature.offsets[:, -1] - feature.offsets[:, 0]


def findable(features: dict[str, product_features.Ragged]) -> np.ndarray:
    """Bool (items,): which items have a token or an image that the tower sees."""
    return sum(map(num_values, features.values())) > 0


def sketch_widths(config: ConfigDict, products: int, queries: int) -> dict[str, int]:
    """Counters a row of each sketch: where there are few ids, about four for each are enough."""

    def width(distinct: int) -> int:
        return min(config.sketch_width, 2 ** math.ceil(math.log2(4 * distinct)))

    return {"products": width(products), "queries": width(queries), "pairs": config.sketch_width}


def counted_ids(train: np.ndarray, widths: dict[str, int], batch: int) -> dict[str, system.Counted]:
    """What the sketches count.

    Args:
      train: `pairs.PAIR` (n,), the training pairs.
      widths: of the sketches.
      batch: pairs in a batch.
    """
    ids = {"products": train["item"], "queries": train["query"]}
    ids["pairs"] = (train["query"].astype(np.int64) << 32) + train["item"]
    return {
        name: system.Counted(widths[name], np.unique(ids[name], return_counts=True)[1], batch)
        for name in widths
    }


def init(
    encoder: itemsage.ItemSage,
    config: ConfigDict,
    widths: dict[str, int],
    image_dim: int,
    key: jax.Array,
) -> tuple[Any, Any]:
    """Parameters, and sketches that count products, queries and pairs of them."""
    params_key, sketch_key = jax.random.split(key)
    images = image_mask = tokens = segments = None
    if encoder.image_features:
        image_mask = jnp.ones((1, encoder.image_features[0][-1]), bool)
        images = jnp.zeros((*image_mask.shape, image_dim))
    if encoder.text_features:
        tokens = segments = jnp.zeros(1, jnp.int32)
    params = {
        "encoder": encoder.init(params_key, images, image_mask, tokens, segments, 1),
        "temperature": temperature.Temperature().init(params_key),
    }
    sketches = {
        name: count_min_sketch.init(sketch_key, count_min_sketch.DEPTH, width, config.sketch_decay)
        for name, width in widths.items()
    }
    return params, sketches


def gather(
    encoder: itemsage.ItemSage,
    products: dict[str, product_features.Ragged],
    rows: jax.Array,
    capacity: int,
) -> tuple[tuple[Any, ...], jax.Array | bool]:
    """What the encoder takes of products, and whether their tokens fit in the capacity."""
    images = image_mask = tokens = segments = None
    fits = True
    if encoder.image_features:
        slots = encoder.image_features[0][-1]
        images, image_mask = product_features.gather_images(
            products["images"], rows, slots, encoder.tables
        )
    if encoder.text_features:
        tokens, segments, fits = product_features.gather_tokens(
            products["texts"], rows, capacity, encoder.tables
        )
    return (images, image_mask, tokens, segments, len(rows)), fits


def encode(
    encoder: itemsage.ItemSage,
    mesh: Mesh,
    capacity: int,
    params: Any,
    products: dict[str, product_features.Ragged],
    rows: jax.Array,
) -> jax.Array:
    """The embeddings of products, float32 (rows, dim), each device those of its share of the rows.

    Where their tokens do not fit in the capacity (`token_capacities`), all are NaN.
    """

    on_device = encoder.clone(tables=encoder.tables.on_device())

    def of_device(params, products, rows):
        inputs, fits = gather(on_device, products, rows, capacity)
        return jnp.where(fits, on_device.apply(params, *inputs), jnp.nan)

    return sharding.by_rows(mesh, encoder.tables, of_device)(params, products, rows)


def loss(
    encoder: itemsage.ItemSage,
    config: ConfigDict,
    mesh: Mesh,
    capacities: dict[str, int],
    tasks: tuple[str, ...],
    params: Any,
    frozen: Any,
    sketches: dict[str, count_min_sketch.CountMinSketch],
    batch: system.Batch,
    key: jax.Array,
) -> tuple[jax.Array, tuple[system.Metrics, Any]]:
    """The loss of a global batch of pairs (§4.2): L_pos + L_neg, or one normaliser over both."""
    everywhere = functools.partial(
        lax.with_sharding_constraint, shardings=sharding.replicated(mesh)
    )
    corpus = frozen["corpus"]
    size, num_random = len(batch["item"]), config.num_random_negatives

    def embed(rows: jax.Array, capacity: str) -> jax.Array:
        rows = lax.with_sharding_constraint(rows, sharding.over_data(mesh))
        return encode(
            encoder, mesh, capacities[capacity], params["encoder"], frozen["products"], rows
        )

    queries = features.unit_length(encoder.tables.gather(frozen["queries"], batch["query"]))
    positives = embed(batch["item"], "positives")
    random_rows = corpus[jax.random.randint(key, (num_random,), 0, len(corpus))]

    # How often products, queries and their pairs have come, over all devices.
    all_queries, all_products = everywhere((batch["query"], batch["item"]))
    seen = {
        "products": all_products,
        "queries": all_queries,
        "pairs": count_min_sketch.pair_ids(all_queries, all_products),
    }
    add = sharding.on_each(mesh, count_min_sketch.add)
    sketches = {name: add(sketches[name], ids) for name, ids in seen.items()}
    # log P(p | q) of each pair, whose count may be too high by more than that of its query.
    share = count_min_sketch.count(sketches["pairs"], seen["pairs"])
    share /= count_min_sketch.count(sketches["queries"], all_queries)
    positive_log_q = jnp.log(jnp.minimum(share, 1))

    scale = temperature.Temperature().apply(params["temperature"])
    corrected = jnp.float32(config.log_q)

    def term(ids: jax.Array, embeddings: jax.Array, num_batch: int, num_random: int) -> jax.Array:
        """Masked are a pair's own product and all others of its query in the batch."""
        log_q = sampled_softmax.log_expected_count(
            count_min_sketch.log_probability(sketches["products"], ids),
            *(num_batch, num_random, len(corpus)),
        )
        negatives = sampled_softmax.Negatives(
            embeddings, ids, corrected * log_q, corrected * positive_log_q[:, None]
        )
        return sampled_softmax.sampled_softmax(
            queries[:, None], positives[:, None], negatives, scale, batch["excluded"]
        )[:, 0]

    in_batch = all_products, everywhere(positives)
    random = random_rows, everywhere(embed(random_rows, "random"))
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
    for row, name in enumerate(tasks):
        where = batch["task"] == row
        metrics[f"loss/{name}"] = jnp.mean(losses, where=where)
    return losses.mean(), (metrics, sketches)
