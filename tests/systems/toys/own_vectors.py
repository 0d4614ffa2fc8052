"""A system that is not trained: queries and items are the vectors that the data set has of them."""

import numpy as np

from pinjax.data import item_features
from pinjax.evaluation import evaluator as evaluator_lib
from pinjax.evaluation import pair_source, vector_search
from pinjax.systems import system


def check(config, mesh):
    pass


def build(config, mesh, spec):
    spec.need("pairs")


def bind(trainable, config, mesh, dataset):
    items, queries = item_features.item_vectors(dataset), dataset.queries.vectors
    tasks = tuple(range(len(dataset.spec.tasks)))
    findable = items.any(axis=1)
    source = pair_source.PairSource("own vectors", dataset, findable, config.evaluate, tasks)
    evaluator = evaluator_lib.Evaluator("own vectors", source)

    def evaluate(params, split, full=False):
        def embed(rows):
            return queries[rows].astype(np.float32)

        return evaluator(vector_search.of_vectors(embed, items), split, full)

    def serve(params, as_of):
        return system.Served(system.EmbeddedRows(np.flatnonzero(findable), items.__getitem__))

    return system.System(
        dataset=dataset,
        trainable=trainable,
        constants={},
        batches=None,
        evaluate=evaluate,
        evaluator=evaluator,
        serve=serve,
        check_training=None,
        summary={},
    )
