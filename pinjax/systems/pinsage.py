"""PinSage (Ying et al., KDD 2018): items are embedded from their features and their graph.

The neighbours N(u) of an item u are the items that short random walks from it visit most, and their
importance α is how often (§3.2). A convolution pools what neighbours send, and joins it to the
item's own vector (Algorithm 1):

    n = Σ_v α_v ReLU(Q h_v + q)        v in N(u)
    z = ReLU(W [h_u, n] + w) / ‖·‖

After some convolutions the embedding is G_2 ReLU(G_1 z + g) (Algorithm 2), here of unit length.
Pairs of items (q, i) that belong together are trained to have similar embeddings, by a max-margin
loss or by a sampled softmax. A group of items (a board, a basket, a user) is embedded by one more
convolution, over its items.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.data import dataset as dataset_lib
from pinjax.data import graph_batches
from pinjax.data.dataset import Dataset
from pinjax.data.spec import Spec
from pinjax.distributed import sharding
from pinjax.errors import InputError
from pinjax.evaluation import evaluator as evaluator_lib
from pinjax.evaluation import graph_source, tables, vector_search
from pinjax.graph import groups as groups_lib
from pinjax.losses import count_min_sketch, max_margin, sampled_softmax
from pinjax.models import importance_pooling, pinsage
from pinjax.systems import counts, exports, graph_training, layerwise, node_table, system


def make_model(config: ConfigDict, spec: Spec, mesh: Mesh) -> pinsage.PinSage:
    """The convolutions, sized for the data set."""
    model = dict(config.model)
    del model["texts"], model["tokens"]
    return pinsage.PinSage(
        num_items=spec.num_items,
        num_tokens=sum(spec.vocabulary) if config.model.texts else 0,
        table_layout=sharding.table_layout(mesh, config.train),
        **model,
    )


def init(
    model: pinsage.PinSage, config: ConfigDict, made_up: tuple[Any, ...], key: jax.Array
) -> tuple[Any, Any]:
    """Parameters, and the sketches that count the positives."""
    params_key, sketch_key = jax.random.split(key)
    params = model.init(params_key, *made_up)
    sketches = {
        name: counts.sketch(sketch_key, config, config.sketch_width)
        for name in graph_training.sketched(config)
    }
    return params, sketches


class Pairs(NamedTuple):
    """Embedded pairs of items, or of groups and their items."""

    queries: jax.Array  # float32 (pairs, dim)
    positives: jax.Array  # float32 (pairs, dim)
    ids: jax.Array  # int32 (pairs,), of the positives
    drawn: jax.Array  # bool (pairs,), whether positives may be random negatives
    excluded: jax.Array  # int32 (pairs, n), items that are no negatives; padded with -1
    hard: sampled_softmax.HardNegatives | None = None


def encode(
    model: pinsage.PinSage,
    inputs: node_table.NodeTable,
    mesh: Mesh,
    params: Any,
    constants: dict[str, Any],
    batch: system.Batch,
) -> dict[str, jax.Array]:
    """The embeddings of a batch (Algorithm 2); each device computes those of its own subgraph.

    Returns:
      of pairs `query` and `item`, (pairs, dim), and `hard`, (pairs, num_hard, dim); of edges
      `group` and `group_item`, (edges, dim); and `negatives`, (negatives, dim).
    """
    on_device = model.clone(table_layout=model.table_layout.on_device())

    def of_device(params: Any, constants: Any, batch: system.Batch) -> dict[str, jax.Array]:
        bound = on_device.bind(params)
        graph = {
            name.removeprefix(graph_batches.BY_DEVICE): field[0]
            for name, field in batch.items()
            if name.startswith(graph_batches.BY_DEVICE)
        }
        z = bound.inputs(*inputs.gather(constants, graph["nodes"]))
        for layer in range(model.layers):
            own, neighbours, weights = (
                graph[f"{name}_{layer}"] for name in ("own", "neighbours", "weights")
            )
            messages = bound.messages(layer, z)
            pooled = importance_pooling.pool(messages, neighbours, weights, model.pooling)
            z = bound.combine(layer, z[own], pooled)
        ends = np.cumsum([len(batch[name]) for name in ("query", "item", "group_item")])
        query, item, group_item = jnp.split(bound.head(z[: ends[-1]]), ends[:-1])
        return {
            "query": query,
            "item": item,
            "hard": bound.head(z[graph["hard_at"]]),
            "negatives": bound.head(z[graph["negatives_at"]]),
            "group": bound.group(z, graph["group_at"], graph["group_weights"]),
            "group_item": group_item,
        }

    tables_of = {name: constants[name] for name in node_table.NAMES}
    return sharding.shard_map_rows(mesh, model.table_layout, of_device)(params, tables_of, batch)


def loss(
    model: pinsage.PinSage,
    inputs: node_table.NodeTable,
    config: ConfigDict,
    mesh: Mesh,
    params: Any,
    constants: dict[str, Any],
    sketches: dict[str, count_min_sketch.CountMinSketch],
    batch: system.Batch,
    key: jax.Array,
) -> tuple[jax.Array, tuple[system.Metrics, Any]]:
    """The loss of a global batch: that of pairs of items, and that of groups and their items."""
    del key
    replicate = sharding.replicate(mesh)
    embedded = encode(model, inputs, mesh, params, constants, batch)
    random_ids, random = replicate((batch["negatives"], embedded["negatives"]))
    scale = model.apply(params, method="scale")
    sketches = {
        name: counts.add(mesh, sketches[name], replicate(ids))
        for name, ids in sketched_ids(batch).items()
        if name in sketches
    }

    def term(name: str, pairs: Pairs) -> jax.Array:
        queries, positives, positive_ids, drawn, excluded, hard = pairs
        if config.name == "max_margin":
            # E[max(0, z_q · z_n - z_q · z_i + Δ)] over shared and hard negatives (§3.3).
            own = (hard.embeddings, hard.ids) if hard else ()
            return max_margin.max_margin(
                queries, positives, random, random_ids, excluded, config.margin, *own
            )
        all_ids, all_positives, all_drawn = replicate((positive_ids, positives, drawn))
        ids, number = jnp.concatenate([all_ids, random_ids]), constants["candidates"]
        # Items that no pair leads to are positives of groups, and never random negatives.
        num_random = len(random_ids) * jnp.concatenate([all_drawn, jnp.ones_like(random_ids, bool)])
        log_q = counts.log_q(
            sketches[name], ids, len(all_ids), num_random, number, enabled=config.log_q
        )
        negatives = sampled_softmax.Negatives(
            embeddings=jnp.concatenate([all_positives, random]),
            ids=ids,
            log_q=log_q,
            positive_log_q=log_q[: len(all_ids)],
        )
        return sampled_softmax.of_pairs(queries, positives, negatives, scale, excluded, hard=hard)

    # An item is never its own negative, and neither is another positive of the same query.
    excluded = jnp.concatenate([batch["query"][:, None], batch["excluded"]], axis=1)
    drawn, hard = jnp.ones_like(batch["item"], bool), None
    if batch["hard"].size:
        number = (batch["hard"] >= 0).sum(axis=1)
        expected = jnp.maximum(number, 1) / jnp.maximum(batch["hard_ranks"], 1)
        log_q = jnp.float32(config.log_q) * jnp.log(expected)
        hard = sampled_softmax.HardNegatives(embedded["hard"], batch["hard"], log_q)
    pairs = Pairs(embedded["query"], embedded["item"], batch["item"], drawn, excluded, hard)
    terms = {"items": term("items", pairs)}
    if len(batch["group_item"]):
        of_edges = (batch[f"group_{name}"] for name in ("item", "drawn", "excluded"))
        edges = Pairs(embedded["group"], embedded["group_item"], *of_edges)
        terms["groups"] = term("groups", edges)
    metrics = {"temperature": 1 / scale}
    metrics |= {f"loss/{name}": losses.mean() for name, losses in terms.items()}
    return sum(losses.mean() for losses in terms.values()), (metrics, sketches)


def sketched_ids(batch: system.Batch) -> dict[str, jax.Array]:
    """The ids of a batch that are counted: the positives of items, and of groups."""
    return {"items": batch["item"], "groups": batch["group_item"]}


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Rejects a config that is inconsistent or does not fit the mesh."""
    sharding.check(mesh, config.train)
    for section, name in (("data", "pairs"), ("data", "groups"), ("loss", "num_random_negatives")):
        sharding.check_batch(mesh, f"{section}.{name}", config[section][name])
    if config.loss.hard_first > config.loss.hard_last:
        raise InputError(
            f"loss.hard_first={config.loss.hard_first}: expected at most loss.hard_last="
            f"{config.loss.hard_last}"
        )
    if config.data.pairs_from == "groups" and not config.data.groups:
        raise InputError("data.groups=0: with data.pairs_from=groups, groups are evaluated")
    node_table.check(config)


def build(config: ConfigDict, mesh: Mesh, spec: Spec) -> system.Trainable:
    """The convolutions and their loss, for a data set with a graph."""
    spec.need("graph")
    if config.data.pairs_from == "engagements":
        spec.need("pairs")
    model = make_model(config, spec, mesh)
    inputs = node_table.NodeTable.create(config, mesh, spec)
    sizes = graph_training.batch_sizes(config, spec, mesh)
    candidates = sharding.abstract(mesh, jax.ShapeDtypeStruct((), jnp.float32))
    depth = graph_training.depth(config)
    return system.Trainable(
        init=functools.partial(init, model, config.loss, inputs.made_up(spec)),
        loss=functools.partial(loss, model, inputs, config.loss, mesh),
        constants={**inputs.abstract(spec), "candidates": candidates},
        batch=graph_training.abstract_batch(sizes, mesh),
        batch_size="data.pairs",
        embedders=layerwise.embedders(model, inputs, mesh, sizes, inputs.dim(config, spec)),
        search=system.Search(
            min(spec.num_items, config.evaluate.index_size), config.model.embedding_dim, depth
        ),
        row_meanings=system.IDS | system.TEXTS,
        sketched_ids=sketched_ids if graph_training.sketched(config.loss) else None,
    )


def bind(
    trainable: system.Trainable, config: ConfigDict, mesh: Mesh, dataset: Dataset
) -> system.System:
    """PinSage on a data set."""
    spec, graph = dataset.spec, dataset.graph
    train_batches = graph_training.batches_of(config, mesh, dataset)
    constants = node_table.NodeTable.create(config, mesh, spec).place(dataset)
    constants["candidates"] = jax.device_put(  # of random negatives
        np.float32(len(train_batches.corpus)), sharding.replicated(mesh)
    )
    source = graph_training.source_of(config, dataset)
    evaluator = evaluator_lib.Evaluator("PinSage", source)
    rows = np.flatnonzero(graph_source.known_items(dataset))
    scratch, near = dataset_lib.home(config.data.dir), train_batches.table
    if train_batches.graph is not graph:  # which has items of the future, too
        near = graph_training.neighbours_in(config, dataset, graph)

    def embed_items(params: Any) -> np.ndarray:
        """The vectors of all items after the last convolution, and their embeddings."""
        return layerwise.embed_items(trainable.embedders, params, constants, near, scratch)

    def embed_groups(params: Any, states: np.ndarray, groups: np.ndarray) -> np.ndarray:
        vectors = states[:, : -config.model.embedding_dim]
        most, seed = config.data.group_items, config.train.seed
        members = groups_lib.members(graph.groups, groups, most, seed)
        return layerwise.embed_groups(trainable.embedders, params, vectors, members)

    def evaluate(params: Any, split: str, full: bool = False) -> tables.Table:
        states = embed_items(params)
        items = states[:, -config.model.embedding_dim :]

        def queries(features: dict[str, np.ndarray]) -> np.ndarray:
            if "group" in features:
                return embed_groups(params, states, features["group"])
            return items[dataset.queries.items[features["query"]]]

        retriever = vector_search.VectorSearch.fixed(queries, items.__getitem__)
        return evaluator(retriever, split, full)

    def serve(params: Any, as_of: int) -> system.Served:
        del as_of  # the graph is that of the end of training
        states = embed_items(params)
        items = system.EmbeddedRows(rows, states[:, -config.model.embedding_dim :].__getitem__)
        if not config.data.groups:
            return system.Served(items)
        has_items = np.flatnonzero(np.diff(graph.groups.offsets))
        groups = system.EmbeddedRows(has_items, functools.partial(embed_groups, params, states))
        return system.Served(items, groups=groups)

    def export(params: Any, as_of: int) -> exports.Exports:
        if not config.data.groups:
            return exports.Exports({}, {})  # items are looked up
        vectors = embed_items(params)[:, : -config.model.embedding_dim]
        model, number = make_model(config, spec, mesh), config.data.group_items
        return exports.of_groups(model, vectors, number)

    streams = graph_training.streams(config, train_batches)
    return system.System(
        dataset=dataset,
        trainable=trainable,
        constants=constants,
        batches=functools.partial(train_batches.iterate, workers=config.data.workers),
        evaluate=evaluate,
        evaluator=evaluator,
        serve=serve,
        export=export,
        check_training=functools.partial(counts.check, config, streams),
        summary=graph_training.summary(dataset, train_batches) | counts.summary(config, streams),
    )
