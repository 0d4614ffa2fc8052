"""The page against the paper's formula in NumPy, and against itself on several devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinjax import settings
from pinjax.errors import InputError
from pinjax.models import tables
from pinjax.systems import pinnerformer, registry
from pinjax.training import sharding

SYSTEM = "pinnerformer"


@pytest.mark.parametrize(
    ("terms", "log_q", "equal_users", "degree_times"),
    [
        ("joined", True, True, 3),
        ("joined", False, False, 1),
        ("summed", True, False, 3),
        ("summed", False, True, 1),
    ],
)
def test_loss_is_the_formula(make_config, terms, log_q, equal_users, degree_times, mesh):
    """Everything but the towers' outputs is computed anew, in float64, one pair at a time."""
    # A sketch as wide as this has no collisions among 1,000 items, or hardly any.
    loss = dict(terms=terms, log_q=log_q, in_batch=20, random=30, sketch_width=2**20)
    loss["equal_users"] = equal_users
    data = {"degree_days": 240.0, "degree_times": degree_times}
    config = make_config(loss=loss, data=data)
    system = registry.create(config, mesh)
    params, sketch = system.init(jax.random.key(1))
    batch = dict(next(system.batches(0)))
    few = np.arange(4) >= 1 + np.arange(len(batch["item"]))[:, None] % 4
    batch["label_item"] = np.where(few, -1, batch["label_item"])  # else all weights are the same
    batch = jax.device_put(batch)
    key = jax.random.key(2)
    value, (metrics, sketch) = jax.jit(system.loss)(params, system.frozen, sketch, batch, key)

    dataset = pinnerformer.datasets.load(config.data.name, config.data.dir)
    model = pinnerformer.make_model(config, dataset.metadata, mesh)
    content, _, times = system.frozen
    apply = functools.partial(model.apply, params, content, degree_times=times)
    outputs = np.asarray(apply(batch, method="users"), np.float64)
    everything = jnp.arange(model.num_items, dtype=jnp.int32)
    # As they were at each time at which degrees were counted.
    times = np.zeros(1, np.uint32) if times is None else np.asarray(times)
    then = [jnp.full(model.num_items, time, jnp.uint32) for time in times]
    items = np.stack([apply(everything, now, method="items") for now in then]).astype(np.float64)
    scale = float(model.apply(params, method="scale"))

    labels = np.asarray(batch["label_item"])
    flat = labels.ravel()
    choice_key, random_key, _ = jax.random.split(key, 3)
    priority = np.where(flat >= 0, jax.random.uniform(choice_key, flat.shape), -1)
    in_batch = flat[np.argsort(-priority)[:20]]
    corpus = np.flatnonzero(dataset.catalogue.created <= dataset.metadata.train_end)
    assert len(corpus) < model.num_items
    random = corpus[np.asarray(jax.random.randint(random_key, (30,), 0, len(corpus)))]
    moments = np.take_along_axis(*map(np.asarray, (batch["moment"], batch["label_position"])), 1)
    some = jax.random.choice(
        jax.random.fold_in(random_key, 1), flat.size, (50,), p=(flat >= 0) / (flat >= 0).sum()
    )
    some = moments.ravel()[some]
    in_batch = list(zip(in_batch, some[:20], strict=True))
    random = list(zip(random, some[20:], strict=True))

    def pair_loss(user, query, positive, negatives, batch_size, random_size):
        def logit(item, moment):
            frequency = np.mean(flat[flat >= 0] == item)
            expected = batch_size * frequency + random_size / len(corpus)
            then = max(np.sum(times <= moment) - 1, 0)
            return scale * query @ items[then, item] - (np.log(expected) if log_q else 0)

        kept = [logit(*n) for n in negatives if n[0] not in labels[user]]
        return -logit(*positive) + np.logaddexp.reduce([logit(*positive), *kept])

    total = 0.0
    users = [u for u in range(len(labels)) if (labels[u] >= 0).any()]
    for u in users:
        pairs = [j for j in range(labels.shape[1]) if labels[u, j] >= 0]
        for j in pairs:
            query = outputs[u, batch["label_position"][u, j]]
            positive = labels[u, j], moments[u, j]
            if terms == "joined":
                value_of_pair = pair_loss(u, query, positive, [*in_batch, *random], 20, 30)
            else:
                value_of_pair = pair_loss(u, query, positive, in_batch, 20, 0)
                value_of_pair += pair_loss(u, query, positive, random, 0, 30)
            weight = 1 / len(pairs) / len(users) if equal_users else 1 / (labels >= 0).sum()
            total += value_of_pair * weight
    np.testing.assert_allclose(float(value), total, rtol=1e-5)
    assert int(sketch.total) == (flat >= 0).sum()
    np.testing.assert_allclose(metrics["temperature"], 0.07, rtol=1e-5)


def test_choice_is_without_replacement_and_takes_missing_ones_last():
    labels = jnp.array([5, -1, 7, 8, -1, 9])
    for seed in range(20):
        chosen = np.asarray(pinnerformer.choose(jax.random.key(seed), labels, 5))
        assert len(set(chosen)) == 5
        assert set(np.asarray(labels)[chosen[:4]]) == {5, 7, 8, 9}
    assert len(pinnerformer.choose(jax.random.key(0), labels, 99)) == 6


def assert_close(found, expected):
    """Parameters that differ by rounding alone."""

    def close(path, found, expected):
        # The gradient of a key's bias is zero but for rounding, which Adam makes large.
        of_keys = "query_key_value/bias" in jax.tree_util.keystr(path, simple=True, separator="/")
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=5e-4 if of_keys else 1e-4)

    jax.tree_util.tree_map_with_path(close, found, expected)


def test_one_two_and_eight_devices_agree(make_config, train_on_devices):
    """The same global batches give the same losses and the same parameters."""
    (losses, state), *others = train_on_devices(make_config(), 4)
    for other_losses, other in others:
        np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
        np.testing.assert_array_equal(other.sketches.table, state.sketches.table)
        assert_close(other.params, state.params)


def test_where_state_and_tables_lie_changes_nothing(make_config, train_on_devices):
    config = make_config()
    ((losses, state),) = train_on_devices(config, 4, (1,))
    config.train.update(model_devices=2, shard_optimizer=True, shard_tables=True)
    config.train.shard = "ffn_in/kernel = . . model; ffn_out/kernel = . model"
    ((found, sharded),) = train_on_devices(config, 4, (8,))
    np.testing.assert_allclose(found, losses, rtol=1e-5)
    params, expected = sharded.params["params"], state.params["params"]
    assert_close(params["user_tower"], expected["user_tower"])
    rows = expected["item_input"]["id"]["embedding"]
    table = params["item_input"]["id"]["embedding"]
    layout = tables.Tables(sharding.make_mesh())
    assert_close(table[layout.lies_at(np.arange(len(rows)), len(table))], rows)


def test_data_without_content_needs_learned_ids(make_config, monkeypatch, mesh):
    config = make_config(data={"content": True})
    load = pinnerformer.datasets.load

    def without_content(name, directory):
        dataset = load(name, directory)
        object.__setattr__(dataset.catalogue, "content", None)
        return dataset

    monkeypatch.setattr(pinnerformer.datasets, "load", without_content)
    with pytest.raises(InputError, match=r"pinworld/tiny has no content vectors; set data.content"):
        registry.create(config, mesh)


def log_degrees(dataset, days, moment):
    """One action after the other, of mean 0 and variance 1, and the counts that they come from."""
    created = dataset.catalogue.created.astype(np.float64)
    times = [chunk.records["time"].astype(int) for chunk in dataset.chunks("train")]
    start = max(moment - days * 86_400, min(time.min() for time in times))
    existed = np.maximum(moment - np.maximum(created, start), 0) / 86_400
    assert (existed == 0).any()
    count = np.zeros(len(created))
    for chunk, time in zip(dataset.chunks("train"), times, strict=True):
        for item, acted in zip(chunk.records["item"], time, strict=True):
            count[item] += moment - days * 86_400 < acted <= moment
    # A gamma prior of shape 1 whose mean is the rate of all items together.
    degree = np.log((1 + count) / (existed.sum() / count.sum() + existed))
    there = created <= moment
    return (degree - degree[there].mean()) / degree[there].std(), count


@pytest.mark.parametrize("days", [20.0, 1e4])
def test_degree_stands_beside_content(make_config, days):
    config = make_config(data={"content": True, "degree_days": days})
    dataset = pinnerformer.datasets.load(config.data.name, config.data.dir)
    table = np.asarray(pinnerformer.item_content(config, dataset), np.float64)
    content = np.asarray(dataset.catalogue.content, np.float64)
    dim = content.shape[1]
    expected = content * np.sqrt(dim) / np.linalg.norm(content, axis=1, keepdims=True)
    np.testing.assert_allclose(table[:, :dim], expected, rtol=2**-8, atol=1e-6)
    degree, count = log_degrees(dataset, days, dataset.metadata.train_end)
    if days > 1_000:
        np.testing.assert_array_equal(count, dataset.catalogue.counts)
    np.testing.assert_allclose(table[:, dim], degree, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("times", [1, 3])
def test_towers_know_the_degrees_of_their_moment(make_config, times, mesh):
    data = {"content": True, "degree_days": 24.0, "degree_times": times}
    config = make_config(data=data, model={"id_dim": 0})
    dataset = pinnerformer.datasets.load(config.data.name, config.data.dir)
    page = registry.create(config, mesh)
    params, _ = page.init(jax.random.key(1))
    model = pinnerformer.make_model(config, dataset.metadata, mesh)
    towers_at = pinnerformer.make_towers(config, dataset, model, mesh, page.frozen)
    batch = jax.device_put(next(page.batches(0)))
    rows = np.arange(len(dataset.catalogue))
    served = jax.jit(functools.partial(pinnerformer.served, model))
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)

    @jax.jit
    def items_of(frozen):
        content, _, times = frozen
        everything = jnp.asarray(rows, jnp.int32)
        return model.apply(params, content, everything, degree_times=times, method="items")

    last = 0.0
    for days in (-20, 0, 5):
        moment = dataset.metadata.train_end + days * 86_400
        counted = moment - 2 * 86_400 * np.arange(times)[::-1]
        degrees = np.stack([log_degrees(dataset, 24.0, time)[0] for time in counted], axis=1)
        content = page.frozen.content.at[:, -times:].set(degrees.astype(jnp.bfloat16))
        then = page.frozen._replace(content=content)
        if times > 1:
            then = then._replace(degree_times=jnp.asarray(counted, jnp.uint32))
        items = items_of(then)
        towers = towers_at(params, moment)
        close(towers.items(rows), items)
        close(towers.users(batch), served(params, then, batch))
        close(page.embed(params, moment)["items"][0]()[1], items)
        assert np.abs(items - last).max() > 0.1
        last = items


def test_rates_tell_popularity_whenever_an_item_was_created(make_config):
    config = make_config()
    dataset = pinnerformer.datasets.load(config.data.name, config.data.dir)
    end = np.array([dataset.metadata.train_end])
    rates = pinnerformer.recent_rates(dataset, 365.0, end)[:, 0]
    # An item of pinworld is as popular on its first day as on any other.
    oracle = dataset.oracle
    appeal = oracle.popularity * np.exp(oracle.tastes @ oracle.style.T).mean(axis=0)
    topic = np.bincount(oracle.leaf, rates) / np.bincount(oracle.leaf, appeal)
    error = np.log(rates / (topic[oracle.leaf] * appeal))
    age = (dataset.metadata.train_end - oracle.created.astype(np.float64)) / 86_400
    new, old = error[(age > 5) & (age < 60)], error[age > 91]
    assert len(new) > 50
    assert abs(new.mean() - old.mean()) < 0.2


def test_components_are_those_along_which_items_of_the_training_period_vary_most(make_config):
    config = make_config(data={"content": True, "components": 3})
    dataset = pinnerformer.datasets.load(config.data.name, config.data.dir)
    found = np.asarray(pinnerformer.item_content(config, dataset), np.float64)
    content = np.asarray(dataset.catalogue.content, np.float64)
    existed = dataset.catalogue.created <= dataset.metadata.train_end
    assert not existed.all()
    centred = content - content[existed].mean(axis=0)
    _, _, axes = np.linalg.svd(centred[existed], full_matrices=False)
    axes = axes[2::-1]
    axes *= np.where(axes.max(axis=1) > -axes.min(axis=1), 1, -1)[:, None]
    np.testing.assert_allclose(found, centred @ axes.T, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"content": False, "degree_days": 1.0}}, "data.degree_days: expected 0 without"),
        ({"data": {"content": False, "components": 1}}, "data.components: expected 0 without"),
        (
            {"data": {"content": True, "components": 257}},
            "data.components=257: expected from 0 to 256, the numbers",
        ),
        (
            {"data": {"content": True, "components": -1}},
            "data.components=-1: expected an integer from 0",
        ),
        (
            {"data": {"users": 2**20}, "objective": {"name": "all_action", "labels": 2**12}},
            "data.users=1048576: a batch would have 4,294,967,296 labels; expected at most",
        ),
        ({"data": {"degree_times": 2}}, "data.degree_times=2: expected 1 where"),
        ({"data": {"content": False}, "model": {"id_dim": 0}}, "model.id_dim=0: items without"),
        (
            {"data": {"content": False}, "model": {"gated_layers": 1}},
            "model.gated_layers: learned ids begin",
        ),
        ({"model": {"gated_layers": -1}}, "model.gated_layers=-1: expected an integer from 0"),
        ({"objective": {"newest": 1.5}}, "objective.newest=1.5: expected a number at least 0"),
        ({"model": {"features": ("item", "age")}}, "each one of item, action, "),
        ({"model": {"features": ()}}, "expected a tuple of at least 1, "),
        ({"loss": {"terms": "both"}}, "loss.terms='both': expected one of joined, summed"),
        ({"loss": {"terms": "summed", "in_batch": 0}}, "loss.in_batch and loss.random above 0"),
        ({"loss": {"terms": "summed", "random": 0}}, "loss.in_batch and loss.random above 0"),
        ({"loss": {"in_batch": 0, "random": 0}}, "expected loss.in_batch or loss.random above 0"),
        ({"loss": {"sketch_width": 1_000}}, "loss.sketch_width=1000: expected a power of two"),
    ],
)
def test_wrong_config_is_refused(make_config, sections, message, mesh):
    with pytest.raises(InputError, match=message):
        registry.create(make_config(**sections), mesh)


def test_unknown_system_is_refused(make_config, mesh):
    config = make_config()
    config.system = settings.Choice("itempage")
    with pytest.raises(InputError, match="'itempage' is none of pinnerformer"):
        registry.create(config, mesh)
