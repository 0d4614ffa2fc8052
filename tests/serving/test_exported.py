"""What a service embeds is what training's own code embeds."""

import functools
import json
import pathlib
import runpy
import subprocess
import sys

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from pinjax.data import dataset as dataset_lib
from pinjax.distributed import sharding
from pinjax.errors import InputError
from pinjax.serving import exported, exporting
from pinjax.systems import registry

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
DAY = 86_400
close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)


def write(out, config, system, params, as_of):
    """Exports, with no checks of annotations: the symbolic size of a batch is no int."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        exporting.write(out, config, system, params, as_of, {})
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def random_params(system):
    """Parameters without zeros, such as gains have at first, by which a fault would not show."""
    like, _ = jax.eval_shape(system.trainable.init, jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(0.1 * rng.standard_normal(x.shape, "f4")), like)


class Run:
    """A system on pinworld/tiny with random parameters, and its export."""

    def __init__(self, name, data_dir, out, **model):
        self.config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]("test")
        self.config.data.dir = str(data_dir)
        self.config.model.update(model)
        if name == "pinnerformer":  # all options that are not the paper's, and 16 bits
            self.config.data.update(pca_dim=4, popularity_window=30 * DAY)
            self.config.model.update(history_sums=True, gated_layers=2)
            self.config.model.features = (*self.config.model.features, "request_time")
        mesh = sharding.make_mesh(jax.devices()[:1])
        self.system = registry.create(self.config, mesh)
        self.dataset = dataset_lib.load(self.config.data.name, str(data_dir))
        self.params = random_params(self.system)
        self.as_of = self.system.embed_as_of
        write(out, self.config, self.system, self.params, self.as_of)
        self.exported = exported.load(out)

    def embedded(self, table):
        """Own ids and vectors of a table, by training's code."""
        shards = [shard() for shard in self.system.embed(self.params, self.as_of)[table]]
        ids, vectors = (np.concatenate(x) for x in zip(*shards, strict=True))
        return ids.tolist(), vectors


@pytest.fixture(scope="module")
def make(data_dir, tmp_path_factory):
    """(name, model's fields) -> a run, which is made once."""

    @functools.cache
    def make(name, **model):
        return Run(name, data_dir, tmp_path_factory.mktemp("exported") / name, **model)

    return make


def histories_of(dataset, as_of):
    """(user, raw history) of all users who had acted by then, with some actions of later."""
    spec, ids = dataset.spec, dataset.catalogue.ids
    for split in ("train", "valid", "test"):
        chunk = dataset.chunk(split, 0, 2**20)
        for user, start, stop in zip(chunk.users, chunk.offsets, chunk.offsets[1:], strict=False):
            records = chunk.records[start:stop]
            if (records["time"] <= as_of).any():
                yield (
                    user,
                    [
                        {
                            "item": ids[record["item"]].item(),
                            "action": spec.actions[record["action"]],
                            "surface": spec.surfaces[record["surface"]],
                            "time": int(record["time"]),
                            "duration": float(record["duration"]),
                        }
                        for record in records
                    ],
                )


def test_users_from_raw_histories(make):
    run = make("pinnerformer")
    users, histories = zip(*histories_of(run.dataset, run.as_of), strict=True)
    ids, vectors = run.embedded("users")
    expected = dict(zip(ids, vectors, strict=True))
    found = run.exported.embed_users(histories[:16], run.as_of)
    close(found, [expected[user] for user in users[:16]])
    close(np.linalg.norm(found, axis=1), 1)


def test_what_a_history_may_hold(make):
    run = make("pinnerformer")
    _, history = next(histories_of(run.dataset, run.as_of))
    history = [action for action in history if action["time"] <= run.as_of]
    embed = functools.partial(run.exported.embed_users, as_of=run.as_of)
    (expected,) = embed([history])
    later = {**history[-1], "time": run.as_of + 1}
    nowhere = {**history[-1], "item": -1}
    same = [[nowhere, *reversed(history)][::-1], [*history, later], [nowhere, *history, nowhere]]
    close(embed(same[1:]), [expected] * 2)
    unknown = [{**action, "action": "unheard-of"} for action in history]
    close(embed([unknown]), embed([[{**a, "action": "unknown"} for a in history]]))
    assert not embed([[], [nowhere]]).any()
    assert embed([]).shape == (0, len(expected))
    assert -1 not in run.exported
    assert history[0]["item"] in run.exported
    with pytest.raises(InputError, match="an action of a history has no 'item'"):
        embed([[{"time": 3}]])


def test_items(make):
    run = make("pinnerformer")
    ids, vectors = run.embedded("items")
    close(run.exported.embed_items(ids[3:500:8]), vectors[3:500:8])
    found_ids, found = run.exported.items()
    assert found_ids == ids
    close(found, vectors)
    with pytest.raises(InputError, match="item -5 is not in the catalogue"):
        run.exported.embed_items([ids[0], -5])
    with pytest.raises(InputError, match="does not embed texts; it has users, items"):
        run.exported.embed_texts(["x"])


def test_products_from_raw_texts_and_images(make):
    run = make("itemsage")
    catalogue, names = run.dataset.catalogue, [name for name, _ in run.config.model.texts]
    vocabulary = run.dataset.vocabulary
    words = vocabulary.rows["token"].to_pylist()
    texts = {name: catalogue.text(name) for name in names}
    ids, vectors = run.embedded("items")
    rows = {item: row for row, item in enumerate(catalogue.ids.tolist())}
    products = {}
    for item in ids[:60]:
        row, made = rows[item], {}
        for name, (tokens, offsets) in texts.items():
            mine = tokens[offsets[row] : offsets[row + 1]]
            made[name] = " ".join(words[token] for token in mine if token < vocabulary.sizes[0])
            if vocabulary.encode([made[name]]).tokens.tolist() != mine.tolist():
                break  # it has a word that the vocabulary does not know
        else:
            images = slice(*catalogue.image_offsets[[row, row + 1]])
            products[item] = {"texts": made, "images": catalogue.images[images]}
    assert len(products) > 10
    expected = [vectors[ids.index(item)] for item in products]
    close(run.exported.embed_products(list(products.values())), expected)
    close(run.exported.embed_items(ids[:40]), vectors[:40])
    assert not run.exported.embed_products([{}, {"texts": {names[0]: "&"}}]).any()
    with pytest.raises(InputError, match="an image of 1 numbers, expected"):
        run.exported.embed_products([{"images": [[1.0]]}])


@pytest.mark.parametrize(
    "model",
    [
        {"encoder": "bag"},
        pytest.param({"encoder": "bert"}, marks=pytest.mark.slow),
        pytest.param({"encoder": "bag", "residual": True}, marks=pytest.mark.slow),
    ],
)
def test_texts(make, model):
    run = make("searchsage", **model)
    texts, vectors = run.embedded("queries")
    close(run.exported.embed_texts(texts[:300]), vectors[:300])
    assert not run.exported.embed_texts([" ", ""]).any()
    assert np.isfinite(run.exported.embed_texts(["unheard-of"])).all()
    ids, items = run.embedded("items")
    close(run.exported.embed_items(ids), items)


def test_groups_and_a_lookup_of_items(make):
    run = make("pinsage")
    ids, vectors = run.embedded("items")
    found_ids, found = run.exported.items()
    assert found_ids == ids
    close(found, vectors)
    groups, expected = run.embedded("groups")
    side, own = run.dataset.graph.groups, run.dataset.catalogue.ids.tolist()
    length = run.config.data.group_items
    names = run.dataset.groups.tolist()
    rows = [names.index(group) for group in groups]
    few = [i for i, row in enumerate(rows) if len(side.of(row)) <= length][:20]
    assert few
    members = [[own[item] for item in side.of(rows[i])] for i in few]
    close(run.exported.embed_groups(members), expected[few])
    assert not run.exported.embed_groups([[], [-1]]).any()


@pytest.mark.slow
def test_without_groups_there_is_a_lookup(make, tmp_path):
    run = make("pinsage")
    config = run.config.copy_and_resolve_references()
    config.data.groups = 0
    system = registry.create(config, sharding.make_mesh(jax.devices()[:1]))
    write(tmp_path / "out", config, system, run.params, 0)
    found = exported.load(tmp_path / "out")
    close(found.items()[1], run.embedded("items")[1])
    with pytest.raises(InputError, match="does not embed groups; it has only a lookup of items"):
        found.embed_groups([[]])


@pytest.mark.slow
def test_rows_of_sharded_tables_are_put_in_order(make, data_dir, tmp_path):
    run = make("searchsage", encoder="bag")
    config = run.config.copy_and_resolve_references()
    config.train.shard_tables = True
    mesh = sharding.make_mesh(jax.devices()[:1])
    system = registry.create(config, mesh)
    params = random_params(system)
    write(tmp_path / "out", config, system, params, 0)
    shards = [shard() for shard in system.embed(params, 0)["queries"]]
    close(exported.load(tmp_path / "out").embed_texts(shards[0][0].tolist()), shards[0][1])


LIGHT = """
import json, sys
from pinjax.serving import exported
found = exported.load(sys.argv[1])
vectors = found.embed_users(json.loads(sys.argv[2]), int(sys.argv[3]))
heavy = {"flax", "optax", "orbax", "tensorflow_datasets", "grain", "duckdb", "ml_collections"}
print(json.dumps([vectors.tolist(), sorted(heavy & set(sys.modules))]))
"""


@pytest.mark.slow
def test_a_service_needs_neither_the_data_set_nor_what_training_needs(make):
    run = make("pinnerformer")
    history = next(histories_of(run.dataset, run.as_of))[1]
    arguments = str(run.exported._directory), json.dumps([history]), str(run.as_of)
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *arguments], capture_output=True, text=True, check=True
    )
    vectors, heavy = json.loads(done.stdout)
    assert not heavy
    close(vectors, run.exported.embed_users([history], run.as_of))


def test_damage_is_found(make, tmp_path):
    run = make("searchsage", encoder="bag")
    with pytest.raises(InputError, match=r"nothing exported by pinjax\.export"):
        exported.load(tmp_path)
    with pytest.raises(InputError, match="choose another --out"):
        write(run.exported._directory, run.config, run.system, run.params, 0)
