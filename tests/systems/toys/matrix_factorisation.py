"""A user's own system: a vector for each query and for each item, and nothing else."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pinjax.distributed import batching, sharding
from pinjax.evaluation import evaluator as evaluator_lib
from pinjax.evaluation import pair_source, vector_search
from pinjax.systems import engagements, system


def check(config, mesh):
    sharding.check_batch(mesh, "data.pairs", config.data.pairs)


def build(config, mesh, spec):
    def init(key):
        sizes = {"queries": spec.num_queries, "items": spec.num_items}
        return {
            n: 0.1 * jax.random.normal(key, (m, config.model.dim)) for n, m in sizes.items()
        }, ()

    def loss(params, constants, sketches, batch, key):
        logits = params["queries"][batch["query"]] @ params["items"][batch["item"]].T
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(len(logits)))
        return losses.mean(), ({}, sketches)

    def embedder(name):
        embed = sharding.jit_over_rows(mesh, lambda params, constants, rows: params[name][rows])
        return system.Embedder(embed, (), jax.ShapeDtypeStruct((64,), jnp.int32))

    return system.Trainable(
        init=init,
        loss=loss,
        constants={},
        batch=engagements.abstract_batch(mesh, engagements.without_data(config, spec)),
        batch_size="data.pairs",
        embedders={name: embedder(name) for name in ("queries", "items")},
        search=system.Search(spec.num_items, config.model.dim, 100),
    )


def bind(trainable, config, mesh, dataset):
    batches = engagements.batches_of(config, dataset.spec, dataset.pairs("train"))
    ids = {"queries": dataset.queries.ids, "items": dataset.catalogue.ids}
    everything = np.ones(dataset.spec.num_items, bool)
    source = pair_source.PairSource(
        "MF", dataset, everything, config.evaluate, tuple(batches.tasks)
    )
    evaluator = evaluator_lib.Evaluator("MF", source)

    def embed_rows(name, params, rows):
        embed = functools.partial(trainable.embedders[name], params, {})
        return batching.in_batches(embed, rows.astype(np.int32), 64)

    def evaluate(params, split, full=False):
        items = embed_rows("items", params, np.flatnonzero(everything))
        queries = functools.partial(embed_rows, "queries", params)
        return evaluator(vector_search.of_vectors(queries, items), split, full)

    def serve(params, as_of):
        tables = {
            name: system.EmbeddedRows(
                np.arange(len(own)), functools.partial(embed_rows, name, params)
            )
            for name, own in ids.items()
        }
        return system.Served(**tables)

    return system.System(
        dataset=dataset,
        trainable=trainable,
        constants={},
        batches=functools.partial(batches.iterate, workers=config.data.workers),
        evaluate=evaluate,
        evaluator=evaluator,
        serve=serve,
        check_training=functools.partial(engagements.check_training, batches, in_batch=True),
        summary=engagements.summary(dataset, batches),
    )
