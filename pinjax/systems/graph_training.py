"""Training batches of a graph, and the queries that it is evaluated on."""

import functools

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax import settings
from pinjax.data import dataset as dataset_lib
from pinjax.data import graph_batches, item_pairs
from pinjax.data.dataset import Dataset
from pinjax.data.spec import Spec
from pinjax.distributed import processes, sharding
from pinjax.errors import InputError
from pinjax.evaluation import graph_source, pair_source, source
from pinjax.graph import csr, neighbourhoods, pagerank, walks
from pinjax.systems import counts

_SAME = 8  # pairs with the same query, in the abstract shapes of a batch
_PAGERANK = pagerank.PageRank(restart=0.5, epsilon=1e-6)
_CANDIDATES = 8  # for each hard negative of a pair


def batch_sizes(config: ConfigDict, spec: Spec, mesh: Mesh) -> graph_batches.BatchSizes:
    """What is in a batch.

    Raises:
      InputError: if it is too much.
    """
    found = graph_batches.BatchSizes(
        pairs=config.data.pairs,
        groups=config.data.groups,
        group_items=config.data.group_items,
        negatives=config.loss.num_random_negatives,
        hard=config.loss.num_hard_negatives,
        layers=config.model.layers,
        neighbours=config.data.neighbours,
        items=spec.num_items,
        devices=mesh.shape["data"],
    )
    most = max([found.targets, *found.most_nodes]) * max(found.neighbours, found.group_items)
    if most > settings.INT32:
        raise InputError(
            f"data.pairs={found.pairs}: a batch may have {most:,} neighbours; expected at most "
            f"{settings.INT32:,}"
        )
    return found


def abstract_batch(sizes: graph_batches.BatchSizes, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """The abstract shapes of a global batch with the largest possible subgraphs."""
    shapes = sizes.shapes(sizes.most_nodes, (_SAME, _SAME))
    return {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding.over_data(mesh))
        for name, (shape, dtype) in shapes.items()
    }


def batches_of(config: ConfigDict, mesh: Mesh, dataset: Dataset) -> graph_batches.GraphBatches:
    """Training batches.

    Raises:
      InputError: if the data set has no pair of items.
    """
    seed, spec = config.train.seed, dataset.spec
    # Edges without times, as those of tags, are of items of the future, too.
    graph = csr.of_items(dataset.graph, dataset.catalogue.created <= spec.train_end)
    pairs = _pairs(config, dataset, graph)
    # Random negatives are items of pairs: of others a model only learns that they are never found.
    corpus = np.flatnonzero(pairs.counts).astype(np.int32)
    sizes = batch_sizes(config, spec, mesh)
    return graph_batches.GraphBatches(
        batch_sizes=sizes,
        graph=graph,
        table=neighbours_in(config, dataset, graph),
        walks=_walks(config),
        pairs=pairs,
        find_hard=functools.partial(_hard, graph, config.loss, seed),
        hard_after=config.loss.hard_after,
        corpus=corpus,
        steps=config.train.steps,
        seed=seed,
        shard=processes.shard(),
    )


def neighbours_in(config: ConfigDict, dataset: Dataset, graph: csr.Graph) -> walks.Neighbours:
    """The neighbours of all items in the graph of a data set, or in that of its training items."""
    part = "" if graph is dataset.graph else ", items of training"
    home, digest = dataset_lib.home(config.data.dir), dataset.spec.digest + part
    return neighbourhoods.ensure(home, graph, digest, _walks(config), config.train.seed)


def _walks(config: ConfigDict) -> walks.Walks:
    data = config.data
    return walks.Walks(data.walks, data.walk_steps, data.walk_restart, data.neighbours)


def _hard(graph: csr.Graph, config: ConfigDict, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Candidates for hard negatives, as the section `loss` says."""
    items = np.arange(len(graph.items.offsets) - 1, dtype=np.int32)
    if not config.num_hard_negatives:
        return np.zeros((len(items), 0), np.int32), np.zeros(len(items), np.int32)
    return pagerank.ranked(
        graph,
        items,
        _PAGERANK,
        config.hard_first,
        config.hard_last,
        _CANDIDATES * config.num_hard_negatives,
        seed,
    )


def _pairs(config: ConfigDict, dataset: Dataset, graph: csr.Graph) -> item_pairs.Source:
    name = dataset.spec.name
    if config.data.groups and np.diff(graph.groups.offsets).max() < 2:
        raise InputError(f"data.groups={config.data.groups}: no group of {name} has two items")
    if config.data.pairs_from == "groups":
        return item_pairs.Memberships(graph, stream=1)
    train = dataset.pairs("train")
    query = dataset.queries.items[train["query"]]
    known = (query >= 0) & (query != train["item"])
    if not known.any():
        raise InputError(f"data.pairs_from: no item of {name} led to another one; expected groups")
    return item_pairs.Engagements(query[known], train["item"][known], graph.items)


def depth(config: ConfigDict) -> int:
    """The number of results of a query in an evaluation."""
    if config.data.pairs_from == "groups":
        return graph_source.GraphSource.depth
    return pair_source.HITS


def source_of(config: ConfigDict, dataset: Dataset) -> source.Source:
    """The queries of an evaluation: items and what they led to, or groups and their items."""
    known = graph_source.known_items(dataset)
    if config.data.pairs_from == "groups":
        return graph_source.GraphSource("PinSage", dataset, known, config.evaluate)
    products = pair_source.products(dataset)
    eligible = products if products.any() else known
    tasks = tuple(row for row, name in enumerate(dataset.spec.tasks) if name.startswith("image/"))
    return pair_source.PairSource(
        "PinSage",
        dataset,
        eligible,
        config.evaluate,
        tasks,
        main_metrics=pair_source.OFFLINE_METRICS,
        depth=depth(config),
    )


def sketched(loss: ConfigDict) -> tuple[str, ...]:
    """Names of the streams of positives that are counted: none for a loss without logQ."""
    return ("items", "groups") if loss.name == "softmax" else ()


def streams(config: ConfigDict, made: graph_batches.GraphBatches) -> dict[str, counts.Counted]:
    """The streams of positives, of pairs of items and of edges of groups."""
    width = config.loss.sketch_width
    found = {"items": (made.pairs.counts, made.batch_sizes.pairs)}
    if made.batch_sizes.groups:
        found["groups"] = made.edges.counts, made.batch_sizes.groups
    return {
        name: counts.Counted(width, number[number > 0], batch)
        for name, (number, batch) in found.items()
        if name in sketched(config.loss)
    }


def summary(dataset: Dataset, made: graph_batches.GraphBatches) -> dict[str, str]:
    """Lines to print at the start, by name."""
    spec, n = dataset.spec, made.batch_sizes
    return {
        "data set": f"{spec.name}: {spec.num_items:,} items, {spec.num_groups:,} groups, "
        f"{spec.edges['train']:,} edges",
        "batch": f"{n.pairs} pairs of items, {n.groups} edges of groups, {n.negatives} negatives",
    }
