"""The page against the paper's formula in NumPy, and against itself on several devices."""

import dataclasses
import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinjax.data import dataset as dataset_lib
from pinjax.data import packing, popularity, timelines
from pinjax.data import spec as spec_lib
from pinjax.data.spec import Spec
from pinjax.distributed import sharded_table, sharding
from pinjax.errors import InputError
from pinjax.systems import embedded, histories, item_table, pinnerformer, registry
from tests.serving import exports

SYSTEM = "pinnerformer"


@pytest.mark.parametrize(
    ("terms", "log_q", "equal_labels", "popularity_times"),
    [
        ("joined", True, False, 3),
        ("summed", False, True, 0),
        pytest.param("joined", False, True, 0, marks=pytest.mark.slow),
        pytest.param("summed", True, True, 3, marks=pytest.mark.slow),
    ],
)
def test_loss_is_the_formula(make_config, terms, log_q, equal_labels, popularity_times, mesh):
    """Everything but the towers' outputs is computed anew, in float64, one pair at a time."""
    # A sketch as wide as this has no collisions among 1,000 items, or hardly any.
    loss = dict(
        terms=terms,
        log_q=log_q,
        num_in_batch_negatives=20,
        num_random_negatives=30,
        sketch_width=2**20,
    )
    loss["equal_labels"] = equal_labels
    data = (
        {"popularity_window": 240 * 86_400, "popularity_times": popularity_times}
        if popularity_times
        else {}
    )
    config = make_config(loss=loss, data=data)
    system = registry.create(config, mesh)
    params, sketch = exports.random_state(system)
    batch = dict(next(system.batches(0)))
    few = np.arange(4) >= 1 + np.arange(len(batch["label_item"]))[:, None] % 4
    batch["label_item"] = np.where(few, -1, batch["label_item"])  # else all weights are the same
    # The labels of user 0 are in three rows, those of user 1 in two.
    user = np.arange(len(batch["label_item"]))
    user[[5, 9]], user[7] = 0, 1
    rows = [np.flatnonzero(user == own) for own in user]
    batch["same_user"] = np.stack([np.pad(r, (0, 3 - len(r)), constant_values=-1) for r in rows])
    batch = jax.device_put(batch)
    key = jax.random.key(2)
    step = jax.jit(jax.value_and_grad(system.trainable.loss, has_aux=True))
    (value, (metrics, sketch)), gradient = step(params, system.constants, sketch, batch, key)

    dataset = dataset_lib.load(config.data.name, config.data.dir)
    model = pinnerformer.make_model(config, dataset.spec, mesh)
    features = system.constants["items"]
    apply = functools.partial(jax.jit(model.apply, static_argnames="method"), params, features)
    outputs = np.asarray(apply(batch, method="users"), np.float64)
    outputs = outputs.reshape(-1, outputs.shape[-1])
    everything = jnp.arange(model.num_items, dtype=jnp.int32)
    # Items before popularity was counted, and after each time at which it was counted.
    times = features.popularity_times
    times = np.zeros(0, np.uint32) if times is None else np.asarray(times)
    then = [jnp.full(model.num_items, time, jnp.uint32) for time in (0, *(times + 1))]
    items = np.stack([apply(everything, now, method="items") for now in then]).astype(np.float64)
    scale = float(model.apply(params, method="scale"))

    labels = np.asarray(batch["label_item"])
    flat = labels.ravel()
    choice_key, random_key, _ = jax.random.split(key, 3)
    priority = np.where(flat >= 0, jax.random.uniform(choice_key, flat.shape), -1)
    in_batch = flat[np.argsort(-priority)[:20]]
    corpus = np.flatnonzero(dataset.catalogue.created <= dataset.spec.train_end)
    assert len(corpus) < model.num_items
    random = corpus[np.asarray(jax.random.randint(random_key, (30,), 0, len(corpus)))]
    positions = np.asarray(batch["label_position"])
    request_times = np.asarray(batch["request_time"]).ravel()[positions]
    some = jax.random.choice(
        jax.random.fold_in(random_key, 1), flat.size, (50,), p=(flat >= 0) / (flat >= 0).sum()
    )
    some = request_times.ravel()[some]
    in_batch = list(zip(in_batch, some[:20], strict=True))
    random = list(zip(random, some[20:], strict=True))

    def pair_loss(row, query, positive, negatives, batch_size, random_size, scale):
        def logit(item, time):
            frequency = np.mean(flat[flat >= 0] == item)
            expected = batch_size * frequency + random_size / len(corpus)
            return scale * query @ items[np.sum(times < time), item] - (
                np.log(expected) if log_q else 0
            )

        own = labels[user == user[row]]
        kept = [logit(*n) for n in negatives if n[0] not in own]
        return -logit(*positive) + np.logaddexp.reduce([logit(*positive), *kept])

    def loss_at(scale):
        total = 0.0
        exists = labels >= 0
        users = len(set(user[exists.any(axis=1)]))
        for u in range(len(labels)):
            for j in np.flatnonzero(exists[u]):
                query = outputs[positions[u, j]]
                positive = labels[u, j], request_times[u, j]
                if terms == "joined":
                    of_pair = pair_loss(u, query, positive, [*in_batch, *random], 20, 30, scale)
                else:
                    of_pair = pair_loss(u, query, positive, in_batch, 20, 0, scale)
                    of_pair += pair_loss(u, query, positive, random, 0, 30, scale)
                labels_of_user = exists[user == user[u]].sum()
                total += of_pair / (exists.sum() if equal_labels else labels_of_user * users)
        return total

    np.testing.assert_allclose(float(value), loss_at(scale), rtol=1e-5)
    # The temperature is 0.01 + e^x: d scale / dx = -scale^2 (1 / scale - 0.01).
    slope = (loss_at(scale + 1e-4) - loss_at(scale - 1e-4)) / 2e-4
    (found,) = jax.tree.leaves(gradient["params"]["temperature"])
    np.testing.assert_allclose(found, -slope * scale**2 * (1 / scale - 0.01), rtol=1e-3)
    assert int(sketch.total) == (flat >= 0).sum()
    np.testing.assert_allclose(metrics["temperature"], 1 / scale, rtol=1e-5)


@pytest.mark.slow
def test_users_who_share_rows_learn_what_they_learn_alone(make_config, mesh):
    """Windows in full rows, and labels in narrow ones."""
    loss = {"num_in_batch_negatives": 1_000}  # all labels, in whatever order
    config = make_config(data={"length": 64}, model={"history_sums": True}, loss=loss)
    dataset = dataset_lib.load(config.data.name, config.data.dir)
    model = pinnerformer.make_model(config, dataset.spec, mesh)
    sampler = pinnerformer.make_sampler(config, dataset.spec)
    source = histories.batches_of(config, mesh, sampler, dataset)
    system = registry.create(config, mesh)
    params, sketch = exports.random_state(system)
    users, pairs = source.layout.users, sampler.pairs
    alone = packing.Layout(1, users, users, 64, 1.0, users, pairs)
    packed = source.layout._replace(label_rows=2 * users, label_width=pairs - 1)
    assert not packed.alone
    found = []
    for layout in (alone, packed):
        batch = dataclasses.replace(source, layout=layout)[0]
        of_layout = functools.partial(pinnerformer.loss, model, config.loss, mesh, layout)
        step = jax.jit(jax.value_and_grad(of_layout, has_aux=True))
        arguments = params, system.constants, sketch, jax.device_put(batch), jax.random.key(2)
        (value, (metrics, counted)), gradient = step(*arguments)
        found.append((value, metrics, counted.table, gradient))
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_user_is_not_their_own_negative(make_config, mesh):
    """In a batch of a single user nothing is left to learn from."""
    config = make_config(loss={"num_random_negatives": 0})
    system = registry.create(config, mesh)
    params, sketch = exports.random_state(system)
    batch = dict(next(system.batches(0)))
    step = jax.jit(jax.grad(system.trainable.loss, has_aux=True))
    different = np.tile(np.arange(16)[:, None], 16)  # as wide as the other: one compilation
    for same, learns in ((different, True), (different.T, False)):
        arguments = sketch, jax.device_put({**batch, "same_user": same}), jax.random.key(2)
        gradient, _ = step(params, system.constants, *arguments)
        found = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient))
        assert found > 0.1 if learns else found == 0


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"data": {"positives": "unknown"}},
            r"data.positives='unknown', data.surfaces='home': no training user of pinworld/tiny",
        ),
        (
            {"data": {"users": 1}, "objective": {"horizon": 1}},
            r"tiny: the first 8 batches have no label; .* objective.horizon=1 seconds after others",
        ),
        (
            {"data": {"users": 1}, "loss": {"num_random_negatives": 0}},
            r"tiny: the first 8 batches have one user each, for whom loss.num_random_negatives=0 ",
        ),
        (
            {"loss": {"sketch_width": 64}},
            r"loss.sketch_width: with 64 counters a row, .* [0-9]+ items, .* too high by 81.5;",
        ),
    ],
)
def test_what_trains_on_nothing_is_refused(make_config, mesh, sections, message):
    with pytest.raises(InputError, match=message):
        registry.create(make_config(**sections), mesh).check_training()


def test_the_config_as_it_is_learns(make_config, mesh):
    registry.create(make_config(), mesh).check_training()
    # All items have the same probability to be a random negative.
    uncounted = {"num_in_batch_negatives": 0, "sketch_width": 64}
    registry.create(make_config(loss=uncounted), mesh).check_training()
    registry.create(
        make_config(data={"users": 2}, loss={"num_random_negatives": 0}), mesh
    ).check_training()


def test_choice_is_without_replacement_and_takes_missing_ones_last():
    labels = jnp.array([5, -1, 7, 8, -1, 9])
    for seed in range(20):
        chosen = np.asarray(pinnerformer.choose(jax.random.key(seed), labels, 5))
        assert len(set(chosen)) == 5
        assert set(np.asarray(labels)[chosen[:4]]) == {5, 7, 8, 9}
    assert len(pinnerformer.choose(jax.random.key(0), labels, 99)) == 6


def assert_close(found, expected):
    """Parameters differ only by rounding."""

    def close(path, found, expected):
        # The gradient of a key's bias is zero but for rounding, which Adam makes large.
        of_keys = "query_key_value/bias" in sharding.path_name(path)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=5e-4 if of_keys else 1e-4)

    jax.tree_util.tree_map_with_path(close, found, expected)


@pytest.mark.slow
def test_one_and_eight_devices_agree(make_config, train_on_devices):
    """The same global batches give the same losses and the same parameters, with every option."""
    data = {"pca_dim": 8, "popularity_window": 84 * 86_400}
    features = ("item", "action", "surface", "duration", "time", "request_time")
    model = {"history_sums": True, "gated_layers": 2, "features": features}
    config = make_config(data=data, model=model)
    (losses, state), (other_losses, other) = train_on_devices(config, 4)
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    np.testing.assert_array_equal(other.sketches.table, state.sketches.table)
    assert_close(other.params, state.params)


@pytest.mark.slow
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
    layout = sharded_table.Layout(sharding.make_mesh())
    assert_close(table[layout.lies_at(np.arange(len(rows)), len(table))], rows)


def test_data_without_content_needs_learned_ids(make_config, other_data, mesh):
    config = make_config(data={"name": other_data(without=("content",), content_dim=0)})
    with pytest.raises(InputError, match=r"other has no content vectors; for items"):
        registry.create(config, mesh)
    config.data.content = False
    registry.create(config, mesh)


def test_timelines_are_needed(make_config, other_data, mesh):
    config = make_config(data={"name": other_data(users={})})
    for create in (registry.create, registry.build):
        with pytest.raises(InputError, match=r"^data.name: other has no timelines, only pairs, gr"):
            create(config, mesh)


def test_integer_user_ids_come_back_as_integers(make_config, other_data, data_dir, mesh):
    def renumber(directory):
        source = dataset_lib.load("pinworld/tiny", data_dir)
        shutil.rmtree(directory / "timelines")
        with timelines.writer(directory / "timelines") as writer:
            for split in spec_lib.SPLITS:
                for chunk in source.chunks(split):
                    parts = np.split(chunk.records, chunk.offsets[1:-1])
                    for user, records in zip(chunk.users, parts, strict=True):
                        trained = (records["time"] <= source.spec.train_end).sum()
                        writer.add(split, -int(user[1:]), records, int(trained))

    config = make_config(data={"name": other_data(renumber, integer_users=True)})
    ends = []
    for name in ("pinworld/tiny", config.data.name):
        config.data.name = name
        system = registry.create(config, mesh)
        params = exports.random_params(system)
        for as_of in (0, system.dataset.spec.train_end):  # at first nobody has acted
            parts = [
                shard()[:2] for shard in embedded.tables(config, system, params, as_of)["users"]
            ]
            ends.append([np.concatenate(part) for part in zip(*parts, strict=True)])
    nobody, (text, vectors), _, (ids, same) = ends
    assert len(nobody[0]) == 0
    assert {part[0].dtype for part in ends[2:]} == {np.dtype(np.int64)}
    assert ids.tolist() == [-int(user[1:]) for user in text]
    np.testing.assert_array_equal(vectors, same)


def test_nobody_knows_what_is_done_later(make_config, mesh):
    """Other actions after a count change nothing until the next count."""
    data = {"popularity_window": 84 * 86_400, "popularity_times": 13}
    config = make_config(data=data, model={"id_dim": 0})
    dataset = dataset_lib.load(config.data.name, config.data.dir)
    model = pinnerformer.make_model(config, dataset.spec, mesh)
    table = item_table.ItemTable.create(config, mesh, dataset.spec)
    times, _ = table.rates.counted(dataset, dataset.spec.train_end)
    after = times[5]

    class Other:
        catalogue, spec = dataset.catalogue, dataset.spec

        def chunks(self, split):
            for chunk in dataset.chunks(split):
                records = chunk.records.copy()
                records["item"][records["time"] > after] = 7
                yield timelines.Chunk(chunk.users, records, chunk.offsets)

    of_items = [table.place(data)["items"] for data in (dataset, Other())]
    system = registry.create(config, mesh)
    params = exports.random_params(system)
    embed_users, embed_items = (
        jax.jit(functools.partial(model.apply, params, method=name)) for name in ("users", "items")
    )
    unlike = 0
    for step in range(3):
        batch = jax.device_put(system.batches(step).__next__())
        request_times = batch["request_time"].ravel()[batch["label_position"]]
        users, items = (
            [np.asarray(embed(features, *arguments)) for features in of_items]
            for embed, arguments in (
                (embed_users, (batch, batch["label_position"])),
                (embed_items, (batch["label_item"], request_times)),
            )
        )
        exists = np.asarray(batch["label_item"]) >= 0
        known = np.asarray(request_times) <= times[6]  # the next count, which is not used yet
        for a, b in (users, items):
            np.testing.assert_array_equal(a[exists & known], b[exists & known])
            unlike += (np.abs(a - b).max(axis=-1) > 1e-3)[exists & ~known].sum()
        assert (exists & known).any()
    assert unlike > 20


def test_popularity_needs_times(make_config, mesh):
    config = make_config(data={"popularity_window": 30 * 86_400})
    spec = Spec("ml1m", 9, leave_one_out=True)
    with pytest.raises(
        InputError, match=r"data.popularity_window=2592000: ml1m has the order of actions"
    ):
        item_table.ItemTable.create(config, mesh, spec)


def test_a_request_needs_times(make_config):
    spec = Spec("ml1m", 9, leave_one_out=True, users={"train": 9})
    histories.check_spec(make_config(model={"features": ("item", "time")}), spec)
    with pytest.raises(InputError, match=r"^model.features: ml1m has .* but no times; expected "):
        histories.check_spec(make_config(model={"features": ("item", "request_time")}), spec)


def test_towers_know_the_popularity_as_of_their_time(make_config, mesh):
    times = 3
    data = {"content": True, "popularity_window": 24 * 86_400, "popularity_times": times}
    config = make_config(data=data, model={"id_dim": 0})
    dataset = dataset_lib.load(config.data.name, config.data.dir)
    page = registry.create(config, mesh)
    params = exports.random_params(page)
    model = pinnerformer.make_model(config, dataset.spec, mesh)
    table = item_table.ItemTable.create(config, mesh, dataset.spec)
    layout = histories.served_layout(config, dataset.spec, mesh)
    (chunk,) = dataset.chunks("valid")
    _, _, history = histories.until(chunk, dataset.spec.train_end, config.data.length)
    batch, _ = next(packing.batches([history], layout))
    rows = np.arange(len(dataset.catalogue))
    acted = np.sort(np.concatenate([chunk.records["time"] for chunk in dataset.chunks("train")]))
    served = jax.jit(functools.partial(pinnerformer.served, model, layout.alone))
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)

    @jax.jit
    def items_of(constants):
        everything = jnp.asarray(rows, jnp.int32)
        return model.apply(params, constants["items"], everything, method="items")

    last = 0.0
    for days in (-20, 0, 5):
        as_of = dataset.spec.train_end + days * 86_400
        before = (acted <= as_of).sum()
        counted = np.array([acted[0], acted[before // 2], as_of])
        rates = popularity.log_popularity(dataset, 24 * 86_400, np.array(counted))
        features = page.constants["items"]
        features = features.replace(
            content=features.content.at[:, -times:].set(rates.astype(jnp.bfloat16)),
            popularity_times=jnp.asarray(counted, jnp.uint32),
        )
        then = {**page.constants, "items": features}
        items = items_of(then)
        found = table.as_of(dataset, page.constants, as_of)
        jax.tree.map(np.testing.assert_array_equal, found, then)
        close(page.trainable.embedders["users"](params, found, batch), served(params, then, batch))
        close(page.serve(params, as_of).items.embed(np.arange(len(items))), items)
        assert np.abs(items - last).max() > 0.01
        last = items


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"data": {"content": False, "popularity_window": 1 * 86_400}},
            "data.popularity_window: without effect unless",
        ),
        ({"data": {"content": False, "pca_dim": 1}}, "data.pca_dim: without effect unless"),
        ({"data": {"content": False, "vectors": "nowhere"}}, "data.vectors: without effect unless"),
        (
            {"data": {"content": True, "pca_dim": 257}},
            "data.pca_dim=257: expected from 0 to 256, the numbers",
        ),
        (
            {"data": {"content": True, "pca_dim": -1}},
            "data.pca_dim=-1: expected an integer from 0",
        ),
        (
            {"data": {"users": 2**20}, "objective": {"name": "all_action", "labels": 2**12}},
            "data.users=1048576: a batch would have 4,294,967,296 labels; expected at most",
        ),
        (
            {"data": {"popularity_window": 1 * 86_400, "popularity_times": 1}},
            "data.popularity_times=1: expected an integer from 2",
        ),
        ({"data": {"content": False}, "model": {"id_dim": 0}}, "model.id_dim=0: items without"),
        (
            {"data": {"content": False}, "model": {"gated_layers": 1}},
            "model.gated_layers: learned ids begin",
        ),
        ({"model": {"gated_layers": -1}}, "model.gated_layers=-1: expected an integer from 0"),
        (
            {"objective": {"last_action_share": 1.5}},
            "objective.last_action_share=1.5: expected a number at least 0",
        ),
        ({"model": {"features": ("item", "age")}}, "each one of item, action, "),
        ({"model": {"features": ()}}, "expected a tuple of at least 1, "),
        (
            {"model": {"features": ("request_time",)}},
            "model.features: expected a feature of actions beside request_time",
        ),
        ({"loss": {"terms": "both"}}, "loss.terms='both': expected one of joined, summed"),
        (
            {"loss": {"terms": "summed", "num_in_batch_negatives": 0}},
            "loss.num_in_batch_negatives and loss.num_random_negatives above 0",
        ),
        (
            {"loss": {"terms": "summed", "num_random_negatives": 0}},
            "loss.num_in_batch_negatives and loss.num_random_negatives above 0",
        ),
        (
            {"loss": {"num_in_batch_negatives": 0, "num_random_negatives": 0}},
            "expected loss.num_in_batch_negatives or loss.num_random_negatives above 0",
        ),
        ({"loss": {"sketch_width": 1_000}}, "loss.sketch_width=1000: expected a power of two"),
    ],
)
def test_wrong_config_is_refused(make_config, sections, message, mesh):
    with pytest.raises(InputError, match=message):
        registry.create(make_config(**sections), mesh)
