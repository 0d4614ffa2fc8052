"""PinnerFormer (Pancha et al., KDD 2022): a transformer embeds users from their timelines.

A user tower reads the last M actions under a causal mask and gives an embedding at every position;
the embedding at the last action is served. A pin tower embeds an item from its features alone. Both
embeddings have unit length; their dot product over a learned temperature is the logit of a sampled
softmax with logQ correction.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.data import packing, windows
from pinjax.data.dataset import Dataset
from pinjax.data.spec import Spec
from pinjax.distributed import batching, sharding
from pinjax.errors import InputError
from pinjax.evaluation import evaluator as evaluator_lib
from pinjax.evaluation import tables, timeline_source, vector_search
from pinjax.losses import count_min_sketch, label_weights, sampled_softmax
from pinjax.models import pinnerformer
from pinjax.systems import counts, exports, histories, item_table, system

_ROWS = 2**14  # items embedded at a time


def make_model(config: ConfigDict, spec: Spec, mesh: Mesh) -> pinnerformer.PinnerFormer:
    """The two towers, sized for the data set (§3.1, §3.2)."""
    return pinnerformer.PinnerFormer(
        num_items=spec.num_items,
        num_actions=len(spec.actions),
        num_surfaces=len(spec.surfaces),
        length=config.data.length,
        table_layout=sharding.table_layout(mesh, config.train),
        mesh=mesh,
        **config.model,
    )


def init(
    model: pinnerformer.PinnerFormer, config: ConfigDict, constants: dict[str, Any], key: jax.Array
) -> tuple[Any, Any]:
    """Parameters, and the sketch that counts the labels."""
    params_key, sketch_key = jax.random.split(key)
    history = histories.unpacked(jax.tree.map(jnp.asarray, histories.made_up(model.length)))
    items = item_table.of_one(constants["items"], model.table_layout)
    params = model.clone(mesh=None).init(params_key, items, history)  # for one user
    return params, counts.sketch(sketch_key, config, config.sketch_width)


def loss(
    model: pinnerformer.PinnerFormer,
    config: ConfigDict,
    mesh: Mesh,
    layout: packing.Layout,
    params: Any,
    constants: dict[str, Any],
    sketch: count_min_sketch.CountMinSketch,
    batch: system.Batch,
    key: jax.Array,
) -> tuple[jax.Array, tuple[system.Metrics, Any]]:
    """The loss of a global batch (§3.3), with labels as the objective drew them (§3.4)."""
    replicate = sharding.replicate(mesh)
    choice_key, random_key, dropout_key = jax.random.split(key, 3)
    corpus, labels = constants["corpus"], batch["label_item"]
    embed_items = functools.partial(model.apply, params, constants["items"], method="items")

    # Queries are the embeddings at `label_position`, positives the labels.
    queries = model.apply(
        params,
        constants["items"],
        batch,
        batch["label_position"],
        train=True,
        alone=layout.alone,
        rngs={"dropout": dropout_key},
        method="users",
    )
    exists = labels >= 0
    request_times = pinnerformer.at(batch["request_time"], batch["label_position"], mesh)
    positives = embed_items(labels, request_times)

    # Negatives (§3.3.1) are labels of the global batch and random items. Only ids are gathered
    # from all devices, and the chosen items are embedded again: embeddings would be far more data.
    all_labels = replicate(labels.ravel())
    chosen = all_labels[choose(choice_key, all_labels, config.num_in_batch_negatives)]
    num_chosen = (chosen >= 0).sum()
    random_items = corpus[
        jax.random.randint(random_key, (config.num_random_negatives,), 0, len(corpus))
    ]
    in_batch_times, random_times = item_table.times_of_negatives(
        random_key,
        replicate(request_times.ravel()),
        all_labels >= 0,
        (len(chosen), len(random_items)),
    )

    # All of the user's labels in the batch are masked.
    same = batch["same_user"]
    excluded = jnp.where(same[..., None] >= 0, replicate(labels)[same], -1)
    excluded = excluded.reshape(len(labels), -1)

    # logQ (§3.3.2) is the log of the expected count of an item among the negatives.
    sketch = counts.add(mesh, sketch, all_labels, where=all_labels >= 0)

    def term(ids, embeddings, num_batch, num_random) -> jax.Array:
        log_q = functools.partial(
            counts.log_q,
            sketch,
            num_batch=num_batch,
            num_random=num_random,
            num_items=len(corpus),
            enabled=config.log_q,
        )
        negatives = sampled_softmax.Negatives(
            # Gathered once, outside the loss's loop over blocks.
            embeddings=replicate(embeddings),
            ids=ids,
            log_q=log_q(ids),
            positive_log_q=log_q(labels),
        )
        return sampled_softmax.sampled_softmax(queries, positives, negatives, scale, excluded)

    scale = model.apply(params, method="scale")
    in_batch = chosen, embed_items(chosen, in_batch_times)
    random = random_items, embed_items(random_items, random_times)
    if config.terms == "joined":
        ids, embeddings = jax.tree.map(lambda *x: jnp.concatenate(x), in_batch, random)
        losses = term(ids, embeddings, num_chosen, config.num_random_negatives)
    else:
        losses = term(*in_batch, num_chosen, 0) + term(*random, 0, config.num_random_negatives)

    if config.equal_labels:
        weights = label_weights.equal_labels(exists)
    else:
        weights = label_weights.equal_users(exists, (excluded >= 0).sum(axis=1))
    metrics = {"temperature": 1 / scale, "labels_per_user": exists.sum() / layout.users}
    return (losses * weights).sum(), (metrics, sketch)


def choose(key: jax.Array, labels: jax.Array, count: int) -> jax.Array:
    """The indices of `count` random labels, or of all if there are fewer; padding last."""
    priority = jnp.where(labels >= 0, jax.random.uniform(key, labels.shape), -1.0)
    return lax.top_k(priority, min(count, len(labels)))[1]


def make_sampler(config: ConfigDict, spec: Spec) -> windows.Sampler:
    """The sampler of windows and labels (§3.4, §3.5)."""
    return windows.Sampler(
        length=config.data.length,
        objective=config.objective.name,
        labels=config.objective.labels,
        horizon=config.objective.horizon,
        positives=windows.Positives.create(spec, config.data.positives, config.data.surfaces),
        train_end=spec.train_end,
        last_action_share=config.objective.last_action_share,
        leave_one_out=spec.leave_one_out,
    )


def served(model: pinnerformer.PinnerFormer, alone: bool, params, constants, history) -> jax.Array:
    """User embeddings (users, dim) of packed histories: the output at the last action (§3.6)."""
    embed = functools.partial(model.apply, params, constants["items"], method="users")
    return embed(history, history["position"], alone=alone)[:, 0]


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Rejects a config that is inconsistent or does not fit the mesh."""
    negatives = config.loss.num_in_batch_negatives, config.loss.num_random_negatives
    word, enough = ("and", all) if config.loss.terms == "summed" else ("or", any)
    if not enough(negatives):
        raise InputError(
            f"loss.terms={config.loss.terms}: expected loss.num_in_batch_negatives {word} "
            "loss.num_random_negatives above 0"
        )
    system.check_heads(config.model)
    item_table.check(config)
    histories.check(config, mesh)


def build(config: ConfigDict, mesh: Mesh, spec: Spec) -> system.Trainable:
    """The two towers and their loss, for a data set with timelines."""
    histories.check_spec(config, spec)
    model = make_model(config, spec, mesh)
    constants = item_table.ItemTable.create(config, mesh, spec).abstract(spec)

    def items(params: Any, constants: dict[str, Any], rows: jax.Array) -> jax.Array:
        return model.apply(params, constants["items"], rows, method="items")

    rows = jax.ShapeDtypeStruct((min(spec.num_items, _ROWS),), jnp.int32)
    sampler = make_sampler(config, spec)
    layout = histories.layout_of(sampler, spec, config.data.users, mesh)
    served_layout = histories.served_layout(config, spec, mesh)
    history = histories.abstract_histories(served_layout, mesh)
    users = sharding.jit_over_rows(
        mesh, functools.partial(served, model, served_layout.alone), pad=False
    )
    return system.Trainable(
        init=functools.partial(init, model, config.loss, constants),
        loss=functools.partial(loss, model, config.loss, mesh, layout),
        constants=constants,
        batch=histories.abstract_batch(sampler, layout, spec, mesh),
        batch_size="data.users",
        batch_form=layout.describe(),
        embedders={
            "users": system.Embedder(users, ("items",), history),
            "items": system.Embedder(sharding.jit_over_rows(mesh, items), ("items",), rows),
        },
        search=system.Search(
            items=min(spec.num_items, config.evaluate.index_size),
            dim=config.model.embedding_dim,
            results=timeline_source.TimelineSource.depth,
        ),
        row_meanings=system.IDS
        | {f"/{name}/embedding$": f"{name}s" for name in ("action", "surface")},
        sketched_ids=lambda batch: batch["label_item"],
    )


def bind(
    trainable: system.Trainable, config: ConfigDict, mesh: Mesh, dataset: Dataset
) -> system.System:
    """PinnerFormer on a data set."""
    spec = dataset.spec
    sampler = make_sampler(config, spec)
    train_batches = histories.batches_of(config, mesh, sampler, dataset)
    table = item_table.ItemTable.create(config, mesh, spec)
    constants = table.place(dataset)
    source = timeline_source.TimelineSource(
        dataset, sampler.positives, config.data.length, config.evaluate
    )
    evaluator = evaluator_lib.Evaluator("PinnerFormer", source)
    served_layout = histories.served_layout(config, spec, mesh)
    make = make_towers(trainable, served_layout, table, dataset, constants)

    def serve(params: Any, as_of: int) -> system.Served:
        users, towers = make(params, as_of)
        return system.Served(
            system.EmbeddedRows(np.arange(spec.num_items), towers.items), users=users
        )

    def evaluate(params: Any, split: str, full: bool = False) -> tables.Table:
        retriever = vector_search.VectorSearch(lambda as_of: make(params, as_of)[1])
        return evaluator(retriever, split, full)

    acted = dataset.catalogue.counts  # of all actions; labels are distributed much alike
    stream = counts.Counted(config.loss.sketch_width, acted[acted > 0], train_batches.layout.labels)
    streams = {"items": stream} if config.loss.num_in_batch_negatives else {}  # else Q is uniform

    def check_training() -> None:
        counts.check(config, streams)
        histories.check_training(config, dataset, train_batches)

    return system.System(
        dataset=dataset,
        trainable=trainable,
        constants=constants,
        batches=functools.partial(train_batches.iterate, workers=config.data.workers),
        evaluate=evaluate,
        evaluator=evaluator,
        serve=serve,
        export=lambda params, as_of: exports.of_timelines(
            make_model(config, spec, mesh), served, table.as_of(dataset, constants, as_of), spec
        ),
        check_training=check_training,
        summary=histories.summary(spec, train_batches) | counts.summary(config, streams),
    )


def make_towers(
    trainable: system.Trainable,
    layout: packing.Layout,
    table: item_table.ItemTable,
    dataset: Dataset,
    constants: item_table.Constants,
) -> Callable[[Any, int], tuple[system.EmbedUsers, vector_search.Towers]]:
    """(params, as_of) -> embedding functions; popularity is as of that time."""

    def make(params: Any, as_of: int) -> tuple[system.EmbedUsers, vector_search.Towers]:
        then, embed = table.as_of(dataset, constants, as_of), trainable.embedders
        users = histories.users_of(functools.partial(embed["users"], params, then), layout)
        embed_items = functools.partial(embed["items"], params, then)

        def items(rows: np.ndarray) -> np.ndarray:
            return batching.in_batches(embed_items, rows.astype(np.int32), min(len(rows), _ROWS))

        items_as_of = None if then["items"].popularity_times is None else as_of
        return users, vector_search.Towers(lambda one: users([one]), items, items_as_of)

    return make
