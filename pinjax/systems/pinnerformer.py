"""PinnerFormer (Pancha et al., KDD 2022): a user as what a transformer makes of their timeline.

A user tower reads the newest M actions under a causal mask and gives an embedding at every
position, the newest of which is served. A pin tower embeds an item from its features alone. Both
are of unit length; their dot product over a learned temperature is the logit of a sampled softmax
with logQ correction.
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

from pinjax.data import batches, datasets, held_out, schema, windows
from pinjax.errors import InputError
from pinjax.losses import count_min_sketch, sampled_softmax
from pinjax.models import pinnerformer
from pinjax.systems import batching, system, user_retrieval
from pinjax.training import sharding

TERMS = ("joined", "summed")

_PRINCIPAL = 100_000  # items, about, by which principal components are found


class Frozen(NamedTuple):
    """What a step reads of the catalogue.

    Attributes:
      content: bfloat16 (rows, dim), laid out as `models.tables` says, or None where items are
        their learned ids alone.
      corpus: int32 (n,), the items that existed when the training period ended. Random negatives
        are drawn from these: an item of a later day would only be learned to be never wanted.
    """

    content: jax.Array | None
    corpus: jax.Array


def create(config: ConfigDict, mesh: Mesh) -> system.System:
    """PinnerFormer on the data set that the config names.

    Raises:
      InputError: where the config does not fit itself or the data.
    """
    check(config, mesh)
    dataset = datasets.load(config.data.name, config.data.dir)
    metadata = dataset.metadata
    positives = windows.Positives.create(metadata, config.data.positives, config.data.surfaces)
    sampler = windows.Sampler(
        length=config.data.length,
        objective=config.objective.name,
        labels=config.objective.labels,
        horizon=config.objective.horizon,
        positives=positives,
        train_end=metadata.train_end,
        newest=config.objective.newest,
        leave_one_out=metadata.leave_one_out,
    )
    timelines = dataset.timelines("train")
    train_batches = batches.Batches(
        timelines=timelines,
        sampler=sampler,
        users=config.data.users,
        steps=config.train.steps,
        seed=config.train.seed,
        shard=(jax.process_index(), jax.process_count()),
    )
    model = make_model(config, metadata, mesh)
    frozen = freeze(config, dataset, model, mesh)
    towers = make_towers(config, dataset, model, mesh, frozen.content)
    judge = user_retrieval.UserRetrieval(
        "PinnerFormer", dataset, positives, config.data.length, config.evaluate
    )

    def embed(params: Any, moment: int) -> dict[str, list[system.Shard]]:
        embed_history, embed_rows = towers(params, moment)
        splits = schema.SPLITS[:1] if metadata.leave_one_out else schema.SPLITS
        return {
            "users": [
                functools.partial(user_shard, dataset, embed_history, config, moment, split, start)
                for split in splits
                for start in range(0, len(dataset.timelines(split)), system.SHARD)
            ],
            "items": [
                functools.partial(item_shard, dataset, embed_rows, start)
                for start in range(0, metadata.num_items, system.SHARD)
            ],
        }

    def evaluate(params: Any, split: str, full: bool = False) -> list[system.Row]:
        return judge(functools.partial(towers, params), split, full)

    return system.System(
        init=functools.partial(init, model, config.loss, frozen.content),
        loss=functools.partial(loss, model, config.loss, mesh),
        frozen=frozen,
        batches=functools.partial(train_batches.iterate, workers=config.data.workers),
        evaluate=evaluate,
        embed=embed,
        embed_moment=metadata.train_end,
        summary={
            "data set": f"{metadata.name}: {len(timelines):,} users, {metadata.num_items:,} items",
            "batch": f"{config.data.users} users x {config.data.length} actions, "
            f"{sampler.pairs} labels each",
        },
        identity={"dataset": metadata.digest},
    )


def check(config: ConfigDict, mesh: Mesh) -> None:
    """Refuses a config that does not fit itself or the mesh, whatever the data."""
    for name in ("components", "degree_days"):
        if config.data[name] and not config.data.content:
            raise InputError(f"data.{name}: expected 0 without content; set data.content, too")
    if not config.data.content and not config.model.id_dim:
        raise InputError(
            "model.id_dim=0: items without data.content are learned ids; expected more than 0"
        )
    if config.model.gated_layers < 0:
        raise InputError(f"model.gated_layers={config.model.gated_layers}: expected at least 0")
    if config.model.gated_layers and not config.data.content:
        raise InputError(
            "model.gated_layers: learned ids begin at zero, where a gate passes no gradient; set "
            "data.content, too"
        )
    if not 0 <= config.objective.newest <= 1:
        raise InputError(f"objective.newest={config.objective.newest}: expected from 0 to 1")
    for feature in config.model.features:
        system.check_choice("model.features", feature, pinnerformer.FEATURES)
    if not config.model.features:
        raise InputError(f"model.features: expected some of {', '.join(pinnerformer.FEATURES)}")
    system.check_choice("loss.terms", config.loss.terms, TERMS)
    negatives = config.loss.in_batch, config.loss.random
    if max(negatives) < 1:
        raise InputError("expected loss.in_batch or loss.random above 0")
    if config.loss.terms == "summed" and min(negatives) < 1:
        raise InputError("loss.terms=summed: expected loss.in_batch and loss.random above 0")
    system.check_heads(config.model)
    system.check_sketch(config.loss)
    sharding.check_batch(mesh, "data.users", config.data.users)
    sharding.check_tables(mesh, config.train)


def make_model(
    config: ConfigDict, metadata: schema.Metadata, mesh: Mesh
) -> pinnerformer.PinnerFormer:
    """The two towers, sized for the data set."""
    return pinnerformer.PinnerFormer(
        num_items=metadata.num_items,
        num_actions=len(metadata.actions),
        num_surfaces=len(metadata.surfaces),
        length=config.data.length,
        tables=sharding.table_layout(mesh, config.train),
        mesh=mesh,
        **config.model,
    )


def freeze(
    config: ConfigDict, dataset: datasets.Dataset, model: pinnerformer.PinnerFormer, mesh: Mesh
) -> Frozen:
    """What a step reads of the catalogue, on the devices."""
    content = item_content(config, dataset)
    if content is not None:
        content = sharding.place_table(mesh, model.tables, content)
    existed = dataset.catalogue.created <= dataset.metadata.train_end
    corpus = np.flatnonzero(existed).astype(np.int32)
    return Frozen(content, jax.device_put(corpus, sharding.replicated(mesh)))


def item_content(config: ConfigDict, dataset: datasets.Dataset) -> np.ndarray | None:
    """What is known of the catalogue's items, bfloat16 (items, dim), or None if it is ids alone.

    These are content vectors, or with `data.components` the principal components of them.

    With `data.degree_days` they have one number more, the last: an item's degree when the training
    period ended, beside numbers of a mean square of 1.
    """
    if not config.data.content:
        return None
    catalogue, metadata = dataset.catalogue, dataset.metadata
    if catalogue.content is None:
        raise InputError(
            f"data.content: {metadata.name} has no content vectors; set data.content to "
            "False and model.id_dim above 0, so that items are learned ids"
        )
    content = np.asarray(catalogue.content, np.float32)
    check_components(config, content.shape[1])
    if config.data.components:
        existed = np.flatnonzero(catalogue.created <= metadata.train_end)
        some = existed[:: 1 + len(existed) // _PRINCIPAL]
        content = principal_components(content, content[some], config.data.components)
    if config.data.degree_days:
        degree = log_degrees(dataset, config.data.degree_days, metadata.train_end)
        square = np.square(content).mean(axis=1, keepdims=True)
        content = np.c_[content / np.sqrt(np.maximum(square, 1e-12)), degree]
    return content.astype(jnp.bfloat16)


def check_components(config: ConfigDict, content_dim: int) -> None:
    """Refuses more components than content vectors of `content_dim` numbers have."""
    if not 0 <= config.data.components <= content_dim:
        raise InputError(
            f"data.components={config.data.components}: expected from 0 to {content_dim}, the "
            f"numbers of a content vector of {config.data.name}"
        )


def principal_components(vectors: np.ndarray, sample: np.ndarray, count: int) -> np.ndarray:
    """Coordinates of vectors (n, dim) along the axes on which those of a sample vary most.

    The sample's mean is 0, and an axis has the sign by which its largest number is positive.

    Args:
      vectors: (n, dim).
      sample: (m, dim).
      count: of axes, at most dim.

    Returns:
      (n, count), the most important last.
    """
    _, axes = np.linalg.eigh(np.cov(sample, rowvar=False))  # in float64
    axes = axes[:, axes.shape[1] - count :]
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=0)[None], axis=0)
    axes = (axes * np.sign(largest)).astype(vectors.dtype)
    return vectors @ axes - sample.mean(axis=0) @ axes


def log_degrees(dataset: datasets.Dataset, days: float, moment: int) -> np.ndarray:
    """The log of `recent_rates`, of mean 0 and variance 1 over the items: float64 (items,).

    It is PinSage's log degree (Ying et al., KDD 2018, §4.1), for the days that an item has existed:
    how popular an item is does not show in its content.
    """
    degree = np.log(recent_rates(dataset, days, moment))
    return (degree - degree.mean()) / max(degree.std(), 1e-6)


def recent_rates(dataset: datasets.Dataset, days: float, moment: int) -> np.ndarray:
    """Actions a day of training users on each item in the days up to a moment: float64 (items,).

    They are counted from the day on which the item was created or the log began. Of an item that is
    new little is known, so a rate is the mean that follows from the item's actions where rates are
    distributed exponentially about that of all items.
    """
    created = dataset.catalogue.created.astype(np.float64)
    if dataset.metadata.leave_one_out:  # whose times are ranks
        counts, existed = dataset.catalogue.counts, np.ones(len(created))
    else:
        start, first = moment - days * held_out.DAY, moment
        counts = np.zeros(len(created), np.int64)
        for chunk in dataset.chunks("train"):
            time = chunk.records["time"].astype(np.int64)
            late = (time > start) & (time <= moment)
            counts += np.bincount(chunk.records["item"][late], minlength=len(counts))
            first = min(first, time.min(initial=first))
        existed = np.maximum((moment - np.maximum(created, max(start, first))) / held_out.DAY, 0)
    # Where nothing has happened yet, all rates are alike.
    prior = max(existed.sum(), 1.0) / max(counts.sum(), 1)
    return (counts + 1) / (existed + prior)


def init(
    model: pinnerformer.PinnerFormer,
    config: ConfigDict,
    content: jax.Array | jax.ShapeDtypeStruct | None,
    key: jax.Array,
) -> tuple[Any, Any]:
    """Parameters, and the sketch that counts how often an item is a label."""
    params_key, sketch_key = jax.random.split(key)
    history = {
        name: jnp.zeros((1, model.length), dtype)
        for name, (dtype, _) in schema.ACTION.fields.items()
    }
    history["moment"] = history["time"]
    if content is not None:  # as wide is all that counts
        content = jnp.zeros((model.tables.num_rows(1), content.shape[1]), content.dtype)
    params = model.clone(mesh=None).init(params_key, content, history)  # for one user
    sketch = count_min_sketch.init(
        sketch_key, config.sketch_depth, config.sketch_width, config.sketch_decay
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
    content, corpus = frozen
    embed_items = functools.partial(model.apply, params, content, method="items")

    # Queries are the embeddings at the positions that predict, positives what they predict.
    queries = model.apply(
        *(params, content, batch, batch["label_position"]),
        train=True,
        rngs={"dropout": dropout_key},
        method="users",
    )
    labels = batch["label_item"]
    exists = labels >= 0
    positives = embed_items(labels)

    # Negatives are labels of the whole batch and random items. Ids are gathered from all devices
    # and the chosen ones embedded anew, which is far less than to gather all embeddings.
    all_labels = everywhere(labels.ravel())
    chosen = all_labels[choose(choice_key, all_labels, config.in_batch)]
    num_chosen = (chosen >= 0).sum()
    random_items = corpus[jax.random.randint(random_key, (config.random,), 0, len(corpus))]

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
        # Masked for a user are all of the user's own labels.
        return sampled_softmax.sampled_softmax(
            queries, positives, negatives, scale, excluded_ids=labels
        )

    scale = model.apply(params, method="scale")
    in_batch = chosen, embed_items(chosen)
    random = random_items, embed_items(random_items)
    if config.terms == "joined":
        ids, embeddings = jax.tree.map(lambda *x: jnp.concatenate(x), in_batch, random)
        losses = term(ids, embeddings, num_chosen, config.random)
    else:
        losses = term(*in_batch, num_chosen, 0) + term(*random, 0, config.random)

    if config.equal_users:
        weights = sampled_softmax.equal_user_weights(exists)
    else:
        weights = exists / jnp.maximum(exists.sum(), 1)
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
    """Compiled: (params, content, histories) and (params, content, rows) -> embeddings."""
    return (
        sharding.shared_out(mesh, functools.partial(served, model)),
        sharding.shared_out(mesh, functools.partial(model.apply, method="items")),
    )


def served(
    model: pinnerformer.PinnerFormer, params: Any, content: jax.Array | None, history: system.Batch
) -> jax.Array:
    """The user embeddings (users, dim) of histories: the output at the newest action."""
    users, length = history["item"].shape
    newest = jnp.full((users, 1), length - 1, jnp.int32)
    return model.apply(params, content, history, newest, method="users")[:, 0]


def make_towers(
    config: ConfigDict,
    dataset: datasets.Dataset,
    model: pinnerformer.PinnerFormer,
    mesh: Mesh,
    content: jax.Array | None,
) -> Callable[[Any, int], user_retrieval.Towers]:
    """(params, moment) -> the towers at a moment, where degrees are what an index built then knows.

    Args:
      config: of the run.
      dataset: of which the degrees are counted.
      model: of `make_model`.
      mesh: of `sharding.make_mesh`.
      content: of `Frozen`, as it is when the training period ends.
    """
    embed_users, embed_items = embedders(model, mesh)
    metadata, days = dataset.metadata, config.data.degree_days

    def content_at(moment: int) -> jax.Array | None:
        if not days or metadata.leave_one_out or moment == metadata.train_end:
            return content
        degree = log_degrees(dataset, days, moment)[:, None].astype(content.dtype)
        return _with_last(content, sharding.place_table(mesh, model.tables, degree))

    def towers(params: Any, moment: int) -> user_retrieval.Towers:
        then = content_at(moment)

        def embed_rows(rows: np.ndarray) -> np.ndarray:
            embed = functools.partial(embed_items, params, then)
            return batching.in_batches(embed, rows.astype(np.int32), min(len(rows), 2**14))

        return user_retrieval.Towers(functools.partial(embed_users, params, then), embed_rows)

    return towers


@jax.jit
def _with_last(content: jax.Array, column: jax.Array) -> jax.Array:
    return content.at[:, -1:].set(column)


def item_shard(
    dataset: datasets.Dataset, embed_rows: Callable[[np.ndarray], np.ndarray], start: int
) -> tuple[np.ndarray, np.ndarray]:
    """Own ids and embeddings of the items from row `start` on."""
    ids = dataset.catalogue.ids[start : start + system.SHARD]
    return ids, embed_rows(start + np.arange(len(ids)))


def user_shard(
    dataset: datasets.Dataset,
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
    newest = windows.newest(keys, users, np.full(len(users), moment))
    users = users[newest >= chunk.offsets[:-1]]
    history = windows.history(
        *(chunk.records, chunk.offsets[users], newest[users], config.data.length),
        moments=np.full((len(users), 1), moment),
    )
    ids = np.array(chunk.users)[users]
    if not len(ids):
        return ids, np.zeros((0, config.model.dim), np.float32)
    return ids, batching.in_batches(embed_history, history, config.evaluate.batch)
