"""SearchSage (Pinterest engineering, 2021): search queries in the space of frozen item vectors.

A query tower embeds the text of a search near the vectors of the items that it led to. The item
tower is frozen: an item's embedding is its existing vector, so one index of items serves searches,
too. The loss is a softmax over the batch's items.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.data import item_features
from pinjax.data.dataset import Dataset
from pinjax.data.spec import Spec
from pinjax.distributed import sharding
from pinjax.errors import InputError
from pinjax.evaluation import evaluator as evaluator_lib
from pinjax.evaluation import pair_source, tables, vector_search
from pinjax.losses import count_min_sketch, sampled_softmax
from pinjax.models import temperature
from pinjax.systems import counts, engagements, exports, query_tower, ragged_features, system


def init(tower: query_tower.Tower, config: ConfigDict, key: jax.Array) -> tuple[Any, Any]:
    """Parameters, and the sketch that counts the positives."""
    params_key, sketch_key = jax.random.split(key)
    params = {
        "tower": tower.init(params_key),
        "temperature": temperature.Temperature().init(params_key),
    }
    return params, counts.sketch(sketch_key, config, config.sketch_width)


def loss(
    tower: query_tower.Tower,
    config: ConfigDict,
    mesh: Mesh,
    params: Any,
    constants: dict[str, Any],
    sketch: count_min_sketch.CountMinSketch,
    batch: system.Batch,
    key: jax.Array,
) -> tuple[jax.Array, tuple[system.Metrics, Any]]:
    """The softmax of a global batch of pairs over the batch's items, with logQ correction."""
    del key
    replicate = sharding.replicate(mesh)
    queries = tower.embed(mesh, params["tower"], constants["texts"], batch["query"])
    positives = tower.table_layout.gather(constants["items"], batch["item"])
    ids, embeddings = replicate((batch["item"], positives))
    sketch = counts.add(mesh, sketch, ids)
    log_q = counts.log_q(sketch, ids, len(ids), 0, len(constants["items"]), enabled=config.log_q)
    negatives = sampled_softmax.Negatives(embeddings, ids, log_q, positive_log_q=log_q)
    scale = temperature.Temperature().apply(params["temperature"])
    # The items of a pair's query in the batch are masked, its own among them.
    losses = sampled_softmax.of_pairs(queries, positives, negatives, scale, batch["excluded"])
    return losses.mean(), ({"temperature": 1 / scale}, sketch)


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Rejects a config that is inconsistent or does not fit the mesh."""
    if config.model.encoder == "bert" and not config.model.pretrained:
        system.check_heads(config.model)
    sharding.check(mesh, config.train)
    sharding.check_batch(mesh, "data.pairs", config.data.pairs)


def check_spec(config: ConfigDict, spec: Spec) -> None:
    """Rejects data sets without searches, or with query vectors of another space than the items,
    and tasks of other queries."""
    if not any(task.startswith("text/") for task in spec.tasks):
        raise InputError(
            f"data.name: {spec.name} has no text of a search: SearchSage needs events.query"
        )
    for name, *_ in config.tasks:
        if not name.startswith("text/"):
            raise InputError(
                f"tasks: queries of {name!r} have no text, which is all that SearchSage reads; "
                "expected tasks that begin with text/"
            )
    if config.model.residual and spec.query_dim != item_features.item_vector_dim(spec):
        raise InputError(
            f"model.residual: queries of {spec.name} have {spec.query_dim} numbers, not the items' "
            f"{item_features.item_vector_dim(spec)}"
        )


def build(
    config: ConfigDict, mesh: Mesh, spec: Spec, lengths: query_tower.Lengths | None = None
) -> system.Trainable:
    """The query tower and its loss, for a data set with searches.

    Args:
      config: of the run.
      mesh: of the devices.
      spec: of the data set.
      lengths: of the texts; None: what the spec tells.
    """
    spec.need("pairs")
    check_spec(config, spec)
    made_up = engagements.without_data(config, spec)
    lengths = lengths or query_tower.known_lengths(config, spec)
    tower = query_tower.create(config, mesh, spec, lengths)
    dim = item_features.item_vector_dim(spec)
    items = sharding.abstract_table(mesh, tower.table_layout, (spec.num_items, dim), jnp.float32)

    def queries(params: Any, constants: dict[str, Any], rows: jax.Array) -> jax.Array:
        return tower.embed(mesh, params["tower"], constants["texts"], rows)

    rows = jax.ShapeDtypeStruct((ragged_features.rows_at_once(mesh),), jnp.int32)
    embedder = system.Embedder(sharding.jit_over_rows(mesh, queries), ("texts",), rows)
    return system.Trainable(
        init=functools.partial(init, tower, config.loss),
        loss=functools.partial(loss, tower, config.loss, mesh),
        constants={"items": items, "texts": tower.texts},
        batch=engagements.abstract_batch(mesh, made_up),
        batch_size="data.pairs",
        batch_form=query_tower.describe(config, mesh, spec, lengths),
        embedders={"queries": embedder},
        search=system.Search(spec.num_items, dim, pair_source.PairSource.depth),
        row_meanings=tower.row_meanings,
        sketched_ids=lambda batch: batch["item"],
    )


def bind(
    trainable: system.Trainable, config: ConfigDict, mesh: Mesh, dataset: Dataset
) -> system.System:
    """SearchSage on a data set."""
    spec = dataset.spec
    items = item_features.item_vectors(dataset)
    findable = items.any(axis=1)
    train = engagements.pairs_of(config, dataset, findable, "vector")
    train_batches = engagements.batches_of(config, spec, train)
    texts = query_tower.read(config, dataset)
    kept = train_batches.pairs[train_batches.visits > 0]
    lengths = query_tower.lengths_of(config, spec, texts, kept)
    trainable = build(config, mesh, spec, lengths)
    layout = sharding.table_layout(mesh, config.train)
    place = functools.partial(sharding.place_table, mesh, layout)
    constants = jax.tree.map(place, {"items": items, "texts": texts})
    source = pair_source.PairSource(
        "SearchSage", dataset, findable, config.evaluate, tuple(train_batches.tasks)
    )
    evaluator = evaluator_lib.Evaluator("SearchSage", source)

    at_once = ragged_features.rows_at_once(mesh)
    capacity = query_tower.capacity(config, mesh, spec, lengths, at_once // mesh.shape["data"])
    tokens = query_tower.num_tokens(config, texts)

    def embed_rows(params: Any, tokens: np.ndarray, constants: Any, rows: np.ndarray) -> np.ndarray:
        embed = functools.partial(trainable.embedders["queries"], params, constants)
        return ragged_features.embed_rows(embed, rows, tokens, mesh, capacity)

    def embed_queries(params: Any, rows: np.ndarray) -> np.ndarray:
        return embed_rows(params, tokens, constants, rows)

    def evaluate(params: Any, split: str, full: bool = False) -> tables.Table:
        retriever = vector_search.of_vectors(functools.partial(embed_queries, params), items)
        return evaluator(retriever, split, full)

    def embed_texts(params: Any, texts: list[str]) -> np.ndarray:
        parts = []
        for start in range(0, len(texts), at_once):
            some = texts[start : start + at_once]
            encoded = query_tower.encode(config, dataset, some + [""] * (at_once - len(some)))
            of_texts = {"texts": jax.tree.map(place, encoded)}
            of_some = query_tower.num_tokens(config, encoded)
            parts.append(embed_rows(params, of_some, of_texts, np.arange(len(some))))
        return np.concatenate(parts)

    def serve(params: Any, as_of: int) -> system.Served:
        del as_of  # embeddings do not depend on time
        searches = np.flatnonzero(dataset.queries.kinds == "text")
        return system.Served(
            items=system.EmbeddedRows(np.flatnonzero(findable), items.__getitem__),
            queries=system.EmbeddedRows(searches, functools.partial(embed_queries, params)),
            texts=functools.partial(embed_texts, params),
        )

    engaged = train_batches.pairs["item"]
    streams = {"items": counts.of_pairs(config.loss.sketch_width, engaged, train_batches)}

    def check_training() -> None:
        counts.check(config, streams)
        engagements.check_training(train_batches, in_batch=True)

    return system.System(
        dataset=dataset,
        trainable=trainable,
        constants=constants,
        batches=functools.partial(train_batches.iterate, workers=config.data.workers),
        evaluate=evaluate,
        evaluator=evaluator,
        serve=serve,
        export=lambda params, as_of: exports.of_searches(
            query_tower.create(config, mesh, spec, lengths), config, dataset
        ),
        check_training=check_training,
        summary=engagements.summary(dataset, train_batches)
        | ({"texts": trainable.batch_form} if trainable.batch_form else {})
        | counts.summary(config, streams),
        identity=dataset.frozen,
    )
