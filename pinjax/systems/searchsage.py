"""SearchSage (Pinterest engineering, 2021): search queries in the space of frozen item vectors.

A query tower reads the text of a search and gives a vector near those of the items that it led to.
The item tower is frozen: an item is the vector that it already has. So one index of items serves
searches too. The loss is a softmax over the batch's items.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.data import dataset as dataset_lib
from pinjax.data import item_features
from pinjax.data import spec as spec_lib
from pinjax.data.text import pretrained
from pinjax.data.text import tokens as tokens_lib
from pinjax.distributed import batching, sharded_table, sharding
from pinjax.errors import InputError
from pinjax.evaluation import evaluator as evaluator_lib
from pinjax.evaluation import pair_source, tables, vector_search
from pinjax.losses import count_min_sketch, sampled_softmax
from pinjax.models import bert, features, product_features, searchsage, temperature
from pinjax.systems import engagements, system

ENCODED = 256  # queries encoded at a time where all of them are embedded


def create(config: ConfigDict, mesh: Mesh) -> system.System:
    """SearchSage on the data set that the config names.

    Raises:
      InputError: where the config does not fit the data.
    """
    dataset = dataset_lib.load(config.data.name, config.data.dir)
    dataset.need("pairs")
    spec = dataset.spec
    check_spec(config, spec)
    train_batches = engagements.train_batches(config, dataset)
    items = item_features.item_vectors(dataset)
    tower = (make_bag if config.model.encoder == "bag" else make_bert)(config, dataset, mesh)
    if config.model.residual:
        tower = with_residual(tower, dataset.queries.vectors.astype(jnp.bfloat16))
    place = functools.partial(sharding.place_table, mesh, tower.tables)
    frozen = jax.tree.map(place, {"items": items, "texts": tower.texts})
    embed_rows = sharding.shared_out(mesh, functools.partial(tower.embed, mesh))
    findable = items.any(axis=1)
    source = pair_source.PairSource(
        "SearchSage", dataset, tuple(train_batches.tasks), findable, config.evaluate
    )
    evaluator = evaluator_lib.Evaluator("SearchSage", source)

    def embed_queries(params: Any, rows: np.ndarray) -> np.ndarray:
        embed = functools.partial(embed_rows, params["tower"], frozen["texts"])
        return batching.in_batches(embed, rows.astype(np.int32), ENCODED)

    def evaluate(params: Any, split: str, full: bool = False) -> tables.Table:
        retriever = vector_search.of_vectors(functools.partial(embed_queries, params), items)
        return evaluator(retriever, split, full)

    def embed(params: Any, moment: int) -> dict[str, list[system.Shard]]:
        del moment  # a query is what it is

        def query_shard(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return dataset.queries.ids[rows], embed_queries(params, rows)

        def item_shard(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return dataset.catalogue.ids[rows], items[rows]

        searches = np.flatnonzero(dataset.queries.kinds == "text")
        return {
            "queries": system.shards(query_shard, searches),
            "items": system.shards(item_shard, np.flatnonzero(findable)),
        }

    _, counts = np.unique(train_batches.pairs["item"], return_counts=True)
    counted = {"items": system.Counted(config.loss.sketch_width, counts, config.data.pairs)}

    def check_training() -> None:
        system.check_counts(config, counted)
        engagements.check_training(train_batches, in_batch=True)

    return system.System(
        init=functools.partial(init, tower, config.loss),
        loss=functools.partial(loss, tower, config.loss, mesh),
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
    if config.model.encoder == "bert" and not config.model.pretrained:
        system.check_heads(config.model)
    sharding.check(mesh, config.train)
    sharding.check_batch(mesh, "data.pairs", config.data.pairs)


def check_spec(config: ConfigDict, spec: spec_lib.Spec) -> None:
    """Refuses a data set without searches, and query vectors of another space than the items'."""
    if not any(task.startswith("text/") for task in spec.tasks):
        raise InputError(
            f"data.name: {spec.name} has no text of a search: SearchSage needs events.query"
        )
    if config.model.residual and spec.query_dim != item_dim(spec):
        raise InputError(
            f"model.residual: queries of {spec.name} have {spec.query_dim} numbers, not the items' "
            f"{item_dim(spec)}"
        )


def item_dim(spec: spec_lib.Spec) -> int:
    """Numbers of an item's vector (`item_features.item_vectors`)."""
    return spec.image_dim or spec.content_dim


class Tower(NamedTuple):
    """A query tower, whatever it is made of.

    Attributes:
      texts: what it reads of all queries, a pytree of tables.
      tables: how these lie on the devices, and those among the parameters.
      init: (key) -> params.
      apply: (params, texts, rows) -> float32 (rows, dim), on each device.
    """

    texts: Any
    tables: sharded_table.Layout
    init: Callable[[jax.Array], Any]
    apply: Callable[..., jax.Array]

    def embed(self, mesh: Mesh, params: Any, texts: Any, rows: jax.Array) -> jax.Array:
        return sharding.by_rows(mesh, self.tables, self.apply)(params, texts, rows)


def make_bag(config: ConfigDict, dataset: dataset_lib.Dataset, mesh: Mesh) -> Tower:
    """A bag of hashed tokens: the cheap tower."""
    tokens, offsets = dataset.vocabulary.encode(_searches(dataset))
    longest = int(np.diff(offsets).max(initial=1))
    texts = product_features.Ragged.create(tokens, offsets)
    layout, dim = sharding.table_layout(mesh, config.train), item_dim(dataset.spec)
    return bag_tower(config.model, texts, layout, len(dataset.vocabulary), longest, dim)


def bag_tower(
    config: ConfigDict,
    texts: Any,
    layout: sharded_table.Layout,
    num_tokens: int,
    longest: int,
    dim: int,
) -> Tower:
    """The bag for texts of at most `longest` tokens, in front of vectors of `dim` numbers."""
    model = searchsage.BagTower(
        num_tokens=num_tokens,
        token_buckets=config.token_buckets,
        token_dim=config.token_dim,
        width=config.width,
        dim=dim,
        dtype=config.dtype,
        tables=layout,
    )
    on_device = model.clone(tables=layout.on_device())

    def apply(params: Any, texts: Any, rows: jax.Array) -> jax.Array:
        tokens, segments, _ = product_features.gather_tokens(
            texts, rows, len(rows) * longest, on_device.tables
        )
        return on_device.apply(params, tokens, segments, len(rows))

    def init(key: jax.Array) -> Any:
        one = jnp.zeros(1, jnp.int32)
        return model.init(key, one, one, 1)

    return Tower(texts, layout, init, apply)


def make_bert(config: ConfigDict, dataset: dataset_lib.Dataset, mesh: Mesh) -> Tower:
    """A transformer: from the weights in `model.pretrained`, or else from scratch.

    From scratch its tokens are the words of the vocabulary, after one that stands for [CLS].
    """
    searches, length = _searches(dataset), config.model.length
    weights = None
    if config.model.pretrained:
        sizes, weights, tokenizer = pretrained.read(config.model.pretrained, length)
        ids, mask = tokenizer(searches)
    else:
        words = dataset.vocabulary.sizes[0]
        sizes = bert_sizes(config.model, words)
        ids, mask = _word_ids(dataset.vocabulary.encode(searches), words, length)
    layout, dim = sharding.table_layout(mesh, config.train), item_dim(dataset.spec)
    return bert_tower(sizes, config.model.dtype, (ids, mask), layout, dim, weights)


def bert_sizes(config: ConfigDict, words: int) -> dict[str, int]:
    """What a transformer from scratch is made of, where there are so many words."""
    return {
        **{"vocabulary": words + 1, "positions": config.length, "token_types": 0},
        **{"layers": config.layers, "heads": config.heads},
        **{"width": config.width, "ffn_width": 4 * config.width},
    }


def bert_tower(
    sizes: dict[str, Any],
    dtype: str,
    texts: Any,
    layout: sharded_table.Layout,
    dim: int,
    weights: Any = None,
) -> Tower:
    """The transformer of such sizes, in front of vectors of `dim` numbers."""
    encoder = bert.Bert(**sizes, dtype=dtype)
    model = bert.QueryTower(encoder, dim)

    def init(key: jax.Array) -> Any:
        params = model.init(key, *(jnp.zeros((1, x.shape[1]), x.dtype) for x in texts))
        if weights is not None:
            params["params"]["encoder"] = jax.tree.map(jnp.asarray, weights)
        return params

    def apply(params: Any, texts: Any, rows: jax.Array) -> jax.Array:
        ids, mask = (layout.on_device().gather(table, rows) for table in texts)
        return model.apply(params, ids, mask)

    return Tower(texts, layout, init, apply)


def with_residual(tower: Tower, vectors: Any) -> Tower:
    """A tower whose output is added to the queries' own vectors, at first with a gain of zero.

    That is not the published tower. Where queries have vectors in the space of items, a query that
    training does not know stays near the items that look like it.

    Args:
      tower: what learns.
      vectors: (queries, dim), of any scale.
    """

    def init(key: jax.Array) -> Any:
        return {"tower": tower.init(key), "gain": jnp.zeros(())}

    def apply(params: Any, tables: Any, rows: jax.Array) -> jax.Array:
        texts, vectors = tables
        own = features.unit_length(tower.tables.on_device().gather(vectors, rows))
        return features.unit_length(
            own + params["gain"] * tower.apply(params["tower"], texts, rows)
        )

    return Tower((tower.texts, vectors), tower.tables, init, apply)


def _searches(dataset: dataset_lib.Dataset) -> list[str]:
    """The text of every query, "" for those that are no search."""
    queries = dataset.queries
    return np.where(queries.kinds == "text", queries.ids, "").tolist()


def _word_ids(encoded: tokens_lib.Ragged, words: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """[CLS] and the first words of each text: int32 (texts, length), and where there is one."""
    tokens, offsets = encoded
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    row, word = row[tokens < words], tokens[tokens < words]
    place = 1 + np.arange(len(row)) - np.searchsorted(row, row)
    ids = np.zeros((len(offsets) - 1, length), np.int32)
    mask = np.zeros(ids.shape, bool)
    ids[:, 0], mask[:, 0] = words, True
    fits = place < length
    ids[row[fits], place[fits]], mask[row[fits], place[fits]] = word[fits], True
    return ids, mask


def init(tower: Tower, config: ConfigDict, key: jax.Array) -> tuple[Any, Any]:
    """Parameters, and the sketch that counts how often an item is an answer."""
    params_key, sketch_key = jax.random.split(key)
    params = {
        "tower": tower.init(params_key),
        "temperature": temperature.Temperature().init(params_key),
    }
    sketch = count_min_sketch.init(
        sketch_key, count_min_sketch.DEPTH, config.sketch_width, config.sketch_decay
    )
    return params, sketch


def loss(
    tower: Tower,
    config: ConfigDict,
    mesh: Mesh,
    params: Any,
    frozen: Any,
    sketch: count_min_sketch.CountMinSketch,
    batch: system.Batch,
    key: jax.Array,
) -> tuple[jax.Array, tuple[system.Metrics, Any]]:
    """The softmax of a global batch of pairs over the batch's items, with logQ correction."""
    del key
    everywhere = functools.partial(
        lax.with_sharding_constraint, shardings=sharding.replicated(mesh)
    )
    queries = tower.embed(mesh, params["tower"], frozen["texts"], batch["query"])
    positives = tower.tables.gather(frozen["items"], batch["item"])
    ids, embeddings = everywhere((batch["item"], positives))
    sketch = sharding.on_each(mesh, count_min_sketch.add)(sketch, ids)
    log_q = jnp.float32(config.log_q) * sampled_softmax.log_expected_count(
        count_min_sketch.log_probability(sketch, ids), len(ids), 0, len(frozen["items"])
    )
    scale = temperature.Temperature().apply(params["temperature"])
    # Masked are a pair's own item and all others of its query in the batch.
    losses = sampled_softmax.sampled_softmax(
        queries[:, None],
        positives[:, None],
        sampled_softmax.Negatives(embeddings, ids, log_q, log_q[:, None]),
        scale,
        batch["excluded"],
    )
    return losses.mean(), ({"temperature": 1 / scale}, sketch)
