"""What a service embeds is what training's own code embeds."""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys

import jax
import jax.export
import numpy as np
import pytest

from pinjax.distributed import sharding
from pinjax.errors import InputError
from pinjax.serving import exported
from pinjax.systems import embedded, registry
from tests.data.text import test_pretrained
from tests.serving import exports

close = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-5)


def test_users_from_raw_histories(make):
    run = make("pinnerformer")
    users, histories = zip(*exports.histories_of(run.dataset, run.as_of), strict=True)
    ids, vectors = run.embedded("users")
    expected = dict(zip(ids, vectors, strict=True))
    found = run.exported.embed_users(histories[:16], run.as_of)
    close(found, [expected[user] for user in users[:16]])
    close(np.linalg.norm(found, axis=1), 1)


def test_what_a_history_may_hold(make):
    run = make("pinnerformer")
    _, history = next(exports.histories_of(run.dataset, run.as_of))
    history = [action for action in history if action["time"] <= run.as_of]
    embed = functools.partial(run.exported.embed_users, as_of=run.as_of)
    (expected,) = embed([history])
    later = {**history[-1], "time": run.as_of + 1}
    nowhere = {**history[-1], "item": -1}
    same = [[nowhere, *reversed(history)][::-1], [*history, later], [nowhere, *history, nowhere]]
    close(embed(same[1:]), [expected] * 2)
    close(embed([history + history[-3:]]), [expected])  # as in a log, an event sent twice is one
    unknown = [{**action, "action": "unheard-of"} for action in history]
    close(embed([unknown]), embed([[{**a, "action": "unknown"} for a in history]]))
    assert not embed([[], [nowhere]]).any()
    assert embed([]).shape == (0, len(expected))
    assert -1 not in run.exported
    assert history[0]["item"] in run.exported
    with pytest.raises(InputError, match="an action of a history has no 'item'"):
        embed([[{"time": 3}]])
    with pytest.raises(InputError, match="an action of a history has no number as its time"):
        embed([[{**history[0], "time": "2025-01-01"}]])


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
    others = ["unheard-of", f"{texts[0]} {texts[1]}"]
    close(run.exported.embed_texts(others), run.system.serve(run.params, 0).texts(others))
    ids, items = run.embedded("items")
    close(run.exported.embed_items(ids), items)


@pytest.mark.slow
def test_texts_by_the_tokens_of_pretrained_weights(make, rng, tmp_path):
    tensors = test_pretrained.make_tensors(rng, "bert")
    test_pretrained.write(tmp_path, tensors, test_pretrained.BERT_CONFIG)
    run = make("searchsage", encoder="bert", pretrained=str(tmp_path), length=6)
    (tmp_path / "tokenizer.json").unlink()
    texts = test_pretrained.TEXTS[:2]
    found = run.exported.embed_texts(texts)
    test_pretrained.make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    close(found, run.system.serve(run.params, 0).texts(texts))
    assert not np.array_equal(*found)


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
def test_programs_are_for_all_platforms_where_these_have_kernels_too(make, tmp_path):
    config = make("pinnerformer").config.copy_and_resolve_references()
    config.data.length = 128  # for which a TPU has a kernel
    config.model.dtype = "bfloat16"
    system = registry.create(config, sharding.make_mesh(jax.devices()[:1]))
    exports.write(tmp_path / "out", config, system, exports.random_params(system), 0)
    for name in ("users", "items"):
        program = jax.export.deserialize((tmp_path / f"out/{name}.jax").read_bytes())
        assert program.platforms == ("cpu", "cuda", "tpu")
    assert exported.load(tmp_path / "out").embed_users([[]]).shape == (1, 8)


@pytest.mark.slow
def test_without_groups_there_is_a_lookup(make, tmp_path):
    run = make("pinsage")
    config = run.config.copy_and_resolve_references()
    config.data.groups = 0
    system = registry.create(config, sharding.make_mesh(jax.devices()[:1]))
    exports.write(tmp_path / "out", config, system, run.params, 0)
    found = exported.load(tmp_path / "out")
    close(found.items()[1], run.embedded("items")[1])
    with pytest.raises(InputError, match="does not embed groups; it has only a lookup of items"):
        found.embed_groups([[]])


@pytest.mark.slow
def test_rows_of_sharded_tables_are_put_in_order(make, data_dir, tmp_path):
    run = make("searchsage", encoder="bag")
    config = run.config.copy_and_resolve_references()
    config.train.shard_tables = True
    system = registry.create(config, sharding.mesh_of(config))
    params = exports.random_params(system)
    exports.write(tmp_path / "out", config, system, params, 0)
    texts, vectors = embedded.tables(config, system, params, 0)["queries"][0]()[:2]
    close(exported.load(tmp_path / "out").embed_texts(texts.tolist()), vectors)


LIGHT = """
import json, sys
from pinjax.serving import exported, service
found = exported.load(sys.argv[1])
vectors = found.embed_users(json.loads(sys.argv[2]), int(sys.argv[3]))
heavy = {"flax", "optax", "orbax", "tensorflow_datasets", "grain", "duckdb", "ml_collections"}
print(json.dumps([vectors.tolist(), sorted(heavy & set(sys.modules))]))
"""


@pytest.mark.slow
def test_a_service_needs_neither_the_data_set_nor_what_training_needs(make):
    run = make("pinnerformer")
    history = next(exports.histories_of(run.dataset, run.as_of))[1]
    arguments = str(run.exported.directory), json.dumps([history]), str(run.as_of)
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *arguments], capture_output=True, text=True, check=True
    )
    vectors, heavy = json.loads(done.stdout)
    assert not heavy
    close(vectors, run.exported.embed_users([history], run.as_of))


def test_a_system_without_training_has_nothing_to_export(make, tmp_path):
    run = make("searchsage", encoder="bag")
    untrained = dataclasses.replace(run.system, export=None)
    with pytest.raises(InputError, match="system='searchsage' has nothing to export; embed by it"):
        exports.write(tmp_path / "out", run.config, untrained, run.params, 0)


def test_damage_is_found(make, tmp_path):
    run = make("searchsage", encoder="bag")
    with pytest.raises(InputError, match=r"nothing exported by pinjax\.export"):
        exported.load(tmp_path)
    with pytest.raises(InputError, match="choose another --out"):
        exports.write(run.exported.directory, run.config, run.system, run.params, 0)
    shutil.copytree(run.exported.directory, tmp_path / "copy")
    damaged = tmp_path / "copy/params.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-3] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(InputError, match=r"params\.safetensors: damaged: its checksum"):
        exported.load(tmp_path / "copy")
    found = exported.load(tmp_path / "copy", verify=False)
    assert np.isfinite(found.embed_texts(["x"])).all()
