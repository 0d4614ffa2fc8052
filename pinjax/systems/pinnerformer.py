"""PinnerFormer (Pancha et al., KDD 2022): a user as what a transformer makes of their timeline.

A user tower reads the newest M actions under a causal mask and gives an embedding at every
position, the newest of which is served. A pin tower embeds an item from its features alone. Both
are of unit length; their dot product over a learned temperature is the logit of a sampled softmax
with logQ correction.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax import settings
from pinjax.data import batches, item_features, timelines, windows
from pinjax.data import dataset as dataset_lib
from pinjax.data import spec as spec_lib
from pinjax.distributed import batching, sharding
from pinjax.errors import InputError
from pinjax.evaluation import evaluator as evaluator_lib
from pinjax.evaluation import tables, timeline_source, vector_search
from pinjax.losses import count_min_sketch, label_weights, sampled_softmax
from pinjax.models import pinnerformer
from pinjax.systems import system


class Frozen(NamedTuple):
    """What a step reads of the catalogue.

    Attributes:
      content: bfloat16 (rows, dim), laid out as its `sharded_table.Layout` says, or None where
        items are their learned ids alone.
      corpus: int32 (n,), the items that existed when the training period ended. Random negatives
        are drawn from these: an item of a later day would only be learned to be never wanted.
      popularity_times: uint32 (times,), unix seconds at which the popularity, the last numbers of
        `content`, were counted, or None where there are none.
    """

    content: jax.Array | None
    corpus: jax.Array
    popularity_times: jax.Array | None = None


def create(config: ConfigDict, mesh: Mesh) -> system.System:
    """PinnerFormer on the data set that the config names.

    Raises:
      InputError: where the config does not fit the data.
    """
    dataset = dataset_lib.load(config.data.name, config.data.dir)
    dataset.need("timelines")
    spec = dataset.spec
    positives = windows.Positives.create(spec, config.data.positives, config.data.surfaces)
    sampler = windows.Sampler(
        length=config.data.length,
        objective=config.objective.name,
        labels=config.objective.labels,
        horizon=config.objective.horizon,
        positives=positives,
        train_end=spec.train_end,
        last_action_share=config.objective.last_action_share,
        leave_one_out=spec.leave_one_out,
    )
    train_batches = batches.Batches(
        timelines=dataset.timelines("train"),
        sampler=sampler,
        users=config.data.users,
        steps=config.train.steps,
        seed=config.train.seed,
        shard=(jax.process_index(), jax.process_count()),
    )
    model = make_model(config, spec, mesh)
    frozen = freeze(config, dataset, model, mesh)
    towers = make_towers(config, dataset, model, mesh, frozen)
    source = timeline_source.TimelineSource(dataset, positives, config.data.length, config.evaluate)
    evaluator = evaluator_lib.Evaluator("PinnerFormer", source)

    def embed(params: Any, moment: int) -> dict[str, list[system.Shard]]:
        embed_history, embed_rows, _ = towers(params, moment)
        splits = spec_lib.SPLITS[:1] if spec.leave_one_out else spec_lib.SPLITS
        return {
            "users": [
                functools.partial(user_shard, dataset, embed_history, config, moment, split, start)
                for split in splits
                for start in range(0, len(dataset.timelines(split)), system.SHARD)
            ],
            "items": [
                functools.partial(item_shard, dataset, embed_rows, start)
                for start in range(0, spec.num_items, system.SHARD)
            ],
        }

    def evaluate(params: Any, split: str, full: bool = False) -> tables.Table:
        towers_as_of = functools.partial(towers, params)
        retriever = vector_search.VectorSearch(towers_as_of, config.evaluate.batch)
        return evaluator(retriever, split, full)

    counts = dataset.catalogue.counts  # of all actions, as labels are about
    labels = config.data.users * sampler.pairs
    counted = {"items": system.Counted(config.loss.sketch_width, counts[counts > 0], labels)}

    def check_training() -> None:
        system.check_counts(config, counted)
        check_labels(config, dataset, train_batches)

    return system.System(
        init=functools.partial(init, model, config.loss, frozen),
        loss=functools.partial(loss, model, config.loss, mesh),
        frozen=frozen,
        batches=functools.partial(train_batches.iterate, workers=config.data.workers),
        evaluate=evaluate,
        asked=evaluator.describe,
        metrics=evaluator.metrics,
        embed=embed,
        embed_as_of=spec.train_end,
        check_training=check_training,
        summary={
            "data set": f"{spec.name}: {spec.users['train']:,} users, {spec.num_items:,} items",
            "batch": f"{config.data.users} users x {config.data.length} actions, "
            f"{sampler.pairs} labels each",
            **system.sketch_summary(config, counted),
        },
        identity={"dataset": spec.digest},
    )


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Refuses a config that does not fit itself or the mesh, whatever the data."""
    for name in ("pca_dim", "popularity_window"):
        if config.data[name] and not config.data.content:
            raise InputError(f"data.{name}: expected 0 without content; set data.content, too")
    if not config.data.content and not config.model.id_dim:
        raise InputError(
            "model.id_dim=0: items without data.content are learned ids; expected more than 0"
        )
    if config.model.gated_layers and not config.data.content:
        raise InputError(
            "model.gated_layers: learned ids begin at zero, where a gate passes no gradient; set "
            "data.content, too"
        )
    negatives = config.loss.num_in_batch_negatives, config.loss.num_random_negatives
    if not any(negatives):
        raise InputError(
            "expected loss.num_in_batch_negatives or loss.num_random_negatives above 0"
        )
    if config.loss.terms == "summed" and not all(negatives):
        raise InputError(
            "loss.terms=summed: expected loss.num_in_batch_negatives and "
            "loss.num_random_negatives above 0"
        )
    system.check_heads(config.model)
    sharding.check_batch(mesh, "data.users", config.data.users)
    labels = config.data.users * windows.labels_per_user(
        config.objective.name, config.data.length, config.objective.labels
    )
    if labels > settings.INT32:
        raise InputError(
            f"data.users={config.data.users}: a batch would have {labels:,} labels; expected at "
            f"most {settings.INT32:,}"
        )
    sharding.check(mesh, config.train)


def check_labels(
    config: ConfigDict, dataset: dataset_lib.Dataset, train_batches: batches.Batches
) -> None:
    """Refuses to train on nothing: first batches without a label, or without negatives."""
    whole = dataclasses.replace(train_batches, shard=(0, 1))  # the same on every host
    tried = min(system.TRIED, whole.steps) if len(whole.timelines) else 0
    least = 1 if config.loss.num_random_negatives else 2  # users with a label
    most = 0
    for step in range(tried):
        batch = whole[step]
        has_label = (batch["label_item"] >= 0).any(axis=1)
        most = max(most, len(np.unique(batch["same_user"].max(axis=1)[has_label])))
        if most >= least:
            return
    about = f"{dataset.spec.name}: the first {tried} batches have"
    if most:
        raise InputError(
            f"{about} one user each, for whom loss.num_random_negatives=0 leaves no negatives"
        )
    positives = whole.sampler.positives
    if not any(positives(chunk.records).any() for chunk in dataset.chunks("train")):
        raise InputError(
            f"data.positives={config.data.positives!r}, data.surfaces={config.data.surfaces!r}: no "
            f"training user of {dataset.spec.name} has such an action, so there are no labels"
        )
    raise InputError(
        f"{about} no label; expected positive actions (data.positives, data.surfaces) in the "
        f"objective.horizon={config.objective.horizon} seconds after others, or data.users above "
        f"{config.data.users}"
    )


def make_model(config: ConfigDict, spec: spec_lib.Spec, mesh: Mesh) -> pinnerformer.PinnerFormer:
    """The two towers, sized for the data set."""
    return pinnerformer.PinnerFormer(
        num_items=spec.num_items,
        num_actions=len(spec.actions),
        num_surfaces=len(spec.surfaces),
        length=config.data.length,
        tables=sharding.table_layout(mesh, config.train),
        mesh=mesh,
        **config.model,
    )


def freeze(
    config: ConfigDict, dataset: dataset_lib.Dataset, model: pinnerformer.PinnerFormer, mesh: Mesh
) -> Frozen:
    """What a step reads of the catalogue, on the devices."""
    times = popularity_times(config, dataset.spec, dataset.spec.train_end)
    content = item_content(config, dataset, times)
    if content is not None:
        content = sharding.place_table(mesh, model.tables, content)
    existed = dataset.catalogue.created <= dataset.spec.train_end
    corpus = np.flatnonzero(existed).astype(np.int32)
    return Frozen(content, *jax.device_put((corpus, times), sharding.replicated(mesh)))


def popularity_times(config: ConfigDict, spec: spec_lib.Spec, moment: int) -> np.ndarray | None:
    """When popularity that are known at a moment were counted: uint32 (times,), the last at it.

    None where items have no popularity.

    Raises:
      InputError: the data set has ranks for times, of which nothing is known before a moment.
    """
    window, number = config.data.popularity_window, config.data.popularity_times
    if not window:
        return None
    if spec.leave_one_out:
        raise InputError(
            f"data.popularity_window={window}: {spec.name} has the order of actions, but no times "
            "at which they could be counted; expected 0"
        )
    return item_features.times_before(moment, window / 12, number)


def item_content(
    config: ConfigDict, dataset: dataset_lib.Dataset, times: np.ndarray | None
) -> np.ndarray | None:
    """What is known of the catalogue's items, bfloat16 (items, dim), or None if it is ids alone.

    These are content vectors, or with `data.pca_dim` the principal components of them; with
    `data.popularity_window` an item's popularity at the times follow.
    """
    if not config.data.content:
        return None
    if not dataset.spec.content_dim:
        raise InputError(
            f"data.content: {dataset.spec.name} has no content vectors; set data.content to "
            "False and model.id_dim above 0, so that items are learned ids"
        )
    check_pca_dim(config, dataset.spec.content_dim)
    content = item_features.content(dataset, config.data.pca_dim)
    if times is not None:
        popularity = item_features.log_popularity(dataset, config.data.popularity_window, times)
        content = np.concatenate([content, popularity], axis=1)
    return content.astype(jnp.bfloat16)


def check_pca_dim(config: ConfigDict, content_dim: int) -> None:
    """Refuses more components than content vectors of `content_dim` numbers have."""
    if config.data.pca_dim > content_dim:
        raise InputError(
            f"data.pca_dim={config.data.pca_dim}: expected from 0 to {content_dim}, the "
            f"numbers of a content vector of {config.data.name}"
        )


def init(
    model: pinnerformer.PinnerFormer,
    config: ConfigDict,
    frozen: Frozen,
    key: jax.Array,
) -> tuple[Any, Any]:
    """Parameters, and the sketch that counts how often an item is a label."""
    params_key, sketch_key = jax.random.split(key)
    history = {
        name: jnp.zeros((1, model.length), dtype)
        for name, (dtype, _) in timelines.ACTION.fields.items()
    }
    history["request_time"] = history["time"]
    content, _, times = frozen
    if content is not None:
        content = jnp.zeros((model.tables.num_rows(1), content.shape[1]), content.dtype)
    if times is not None:
        times = jnp.zeros(times.shape, times.dtype)
    params = model.clone(mesh=None).init(params_key, content, history, times)  # for one user
    sketch = count_min_sketch.init(
        sketch_key, count_min_sketch.DEPTH, config.sketch_width, config.sketch_decay
    )
    return params, sketch


def loss(
    model: pinnerformer.PinnerFormer,
    config: ConfigDict,
    mesh: Mesh,
    params: Any,
    frozen: Frozen,
    sketch: count_min_sketch.CountMinSketch,
    batch: system.Batch,
    key: jax.Array,
) -> tuple[jax.Array, tuple[system.Metrics, Any]]:
    """The loss of a global batch (§3.3), with labels as the objective drew them (§3.5)."""
    everywhere = functools.partial(
        lax.with_sharding_constraint, shardings=sharding.replicated(mesh)
    )
    choice_key, random_key, dropout_key = jax.random.split(key, 3)
    content, corpus, times = frozen
    embed_items = functools.partial(
        model.apply, params, content, popularity_times=times, method="items"
    )

    # Queries are the embeddings at the positions that predict, positives what they predict.
    queries = model.apply(
        *(params, content, batch, batch["label_position"]),
        train=True,
        popularity_times=times,
        rngs={"dropout": dropout_key},
        method="users",
    )
    labels = batch["label_item"]
    exists = labels >= 0
    moments = pinnerformer.at(batch["request_time"], batch["label_position"])
    positives = embed_items(labels, moments)

    # Negatives are labels of the whole batch and random items. Ids are gathered from all devices
    # and the chosen ones embedded anew, which is far less than to gather all embeddings.
    all_labels = everywhere(labels.ravel())
    chosen = all_labels[choose(choice_key, all_labels, config.num_in_batch_negatives)]
    num_chosen = (chosen >= 0).sum()
    random_items = corpus[
        jax.random.randint(random_key, (config.num_random_negatives,), 0, len(corpus))
    ]
    # Each is seen at the moment of any query, since logQ knows of no time: at its own, a label of
    # the batch is wanted more than it is at others.
    in_batch_moments, random_moments = jnp.split(
        jax.random.choice(
            jax.random.fold_in(random_key, 1),
            everywhere(moments.ravel()),
            (len(chosen) + config.num_random_negatives,),
            p=(all_labels >= 0) / jnp.maximum((all_labels >= 0).sum(), 1),
        ),
        [len(chosen)],
    )

    # Masked for a user are the user's labels in all rows of the batch.
    same = batch["same_user"]
    excluded = jnp.where(same[..., None] >= 0, everywhere(labels)[same], -1)
    excluded = excluded.reshape(len(labels), -1)

    # logQ is the log of how often an item is expected among the negatives.
    sketch = count_min_sketch.add(sketch, all_labels, where=all_labels >= 0)

    def log_q(ids: jax.Array, num_batch: jax.Array | int, num_random: int) -> jax.Array:
        expected = sampled_softmax.log_expected_count(
            count_min_sketch.log_probability(sketch, ids), num_batch, num_random, len(corpus)
        )
        return jnp.where(config.log_q & (ids >= 0), expected, 0.0)

    def term(ids, embeddings, num_batch, num_random) -> jax.Array:
        negatives = sampled_softmax.Negatives(
            # Gathered once: the loss goes over them in a loop.
            embeddings=everywhere(embeddings),
            ids=ids,
            log_q=log_q(ids, num_batch, num_random),
            positive_log_q=log_q(labels, num_batch, num_random),
        )
        return sampled_softmax.sampled_softmax(queries, positives, negatives, scale, excluded)

    scale = model.apply(params, method="scale")
    in_batch = chosen, embed_items(chosen, in_batch_moments)
    random = random_items, embed_items(random_items, random_moments)
    if config.terms == "joined":
        ids, embeddings = jax.tree.map(lambda *x: jnp.concatenate(x), in_batch, random)
        losses = term(ids, embeddings, num_chosen, config.num_random_negatives)
    else:
        losses = term(*in_batch, num_chosen, 0) + term(*random, 0, config.num_random_negatives)

    weigh = (
        label_weights.equal_labels if config.equal_labels else sampled_softmax.equal_user_weights
    )
    weights = weigh(exists)
    value = (losses * weights).sum()
    metrics = {"temperature": 1 / scale, "labels_per_user": exists.sum() / len(labels)}
    return value, (metrics, sketch)


def choose(key: jax.Array, labels: jax.Array, count: int) -> jax.Array:
    """The places of `count` labels (all if there are fewer), at random, missing ones last."""
    priority = jnp.where(labels >= 0, jax.random.uniform(key, labels.shape), -1.0)
    return lax.top_k(priority, min(count, len(labels)))[1]


def embedders(
    model: pinnerformer.PinnerFormer, mesh: Mesh
) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    """Compiled: (params, frozen, histories) and (params, frozen, rows) -> embeddings."""

    def items(params: Any, frozen: Frozen, rows: jax.Array) -> jax.Array:
        content, _, times = frozen
        return model.apply(params, content, rows, popularity_times=times, method="items")

    return (
        sharding.shared_out(mesh, functools.partial(served, model)),
        sharding.shared_out(mesh, items),
    )


def served(
    model: pinnerformer.PinnerFormer, params: Any, frozen: Frozen, history: system.Batch
) -> jax.Array:
    """The user embeddings (users, dim) of histories: the output at the newest action."""
    users, length = history["item"].shape
    newest = jnp.full((users, 1), length - 1, jnp.int32)
    content, _, times = frozen
    return model.apply(params, content, history, newest, popularity_times=times, method="users")[
        :, 0
    ]


def make_towers(
    config: ConfigDict,
    dataset: dataset_lib.Dataset,
    model: pinnerformer.PinnerFormer,
    mesh: Mesh,
    frozen: Frozen,
) -> Callable[[Any, int], vector_search.Towers]:
    """(params, moment) -> towers at a moment, whose popularity is what an index built then knows.

    Args:
      config: of the run.
      dataset: of which the popularity are counted.
      model: of `make_model`.
      mesh: of `sharding.make_mesh`.
      frozen: as it is when the training period ends.
    """
    embed_users, embed_items = embedders(model, mesh)

    def frozen_at(moment: int) -> Frozen:
        if frozen.popularity_times is None or moment == dataset.spec.train_end:
            return frozen
        times = popularity_times(config, dataset.spec, moment)
        popularity = item_features.log_popularity(dataset, config.data.popularity_window, times)
        popularity = sharding.place_table(
            mesh, model.tables, popularity.astype(frozen.content.dtype)
        )
        return frozen._replace(
            content=_with_last(frozen.content, popularity),
            popularity_times=jax.device_put(times, sharding.replicated(mesh)),
        )

    def towers(params: Any, moment: int) -> vector_search.Towers:
        then = frozen_at(moment)

        def embed_rows(rows: np.ndarray) -> np.ndarray:
            embed = functools.partial(embed_items, params, then)
            return batching.in_batches(embed, rows.astype(np.int32), min(len(rows), 2**14))

        as_of = None if then.popularity_times is None else moment
        return vector_search.Towers(functools.partial(embed_users, params, then), embed_rows, as_of)

    return towers


@jax.jit
def _with_last(content: jax.Array, columns: jax.Array) -> jax.Array:
    return content.at[:, -columns.shape[1] :].set(columns)


def item_shard(
    dataset: dataset_lib.Dataset, embed_rows: Callable[[np.ndarray], np.ndarray], start: int
) -> tuple[np.ndarray, np.ndarray]:
    """Own ids and embeddings of the items from row `start` on."""
    ids = dataset.catalogue.ids[start : start + system.SHARD]
    return ids, embed_rows(start + np.arange(len(ids)))


def user_shard(
    dataset: dataset_lib.Dataset,
    embed_history: Callable[[system.Batch], jax.Array],
    config: ConfigDict,
    moment: int,
    split: str,
    start: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Own ids and embeddings of the users from row `start` on who had acted by the moment."""
    chunk = dataset.chunk(split, start, start + system.SHARD)
    users = np.arange(len(chunk.users))
    keys = windows.time_keys(chunk.records, chunk.offsets)
    newest = windows.last_action_before(keys, users, np.full(len(users), moment))
    users = users[newest >= chunk.offsets[:-1]]
    history = windows.history(
        *(chunk.records, chunk.offsets[users], newest[users], config.data.length),
        moments=np.full((len(users), 1), moment),
    )
    # As objects: text of one width would be as wide as the longest.
    kind = np.int64 if dataset.spec.integer_users else object
    ids = np.array(chunk.users, kind)[users]
    if not len(ids):
        return ids, np.zeros((0, config.model.embedding_dim), np.float32)
    return ids, batching.in_batches(embed_history, history, config.evaluate.batch)
