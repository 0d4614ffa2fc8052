"""The page against the formula in NumPy, and against itself on several devices."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinjax.data import dataset as dataset_lib
from pinjax.data import item_features, pairs
from pinjax.data.spec import Spec
from pinjax.data.text import word_ids
from pinjax.errors import InputError
from pinjax.systems import query_tower, registry, searchsage
from tests.data.text import test_pretrained
from tests.serving import exports

SYSTEM = "searchsage"


def create(config, mesh, spec):
    return query_tower.create(config, mesh, spec, query_tower.known_lengths(config, spec))


@pytest.mark.parametrize(("encoder", "corrected"), [("bag", True), ("bert", False)])
def test_loss_is_the_formula(make_config, encoder, corrected, mesh):
    loss = {"sketch_width": 2**18, "log_q": corrected}
    config = make_config(model={"encoder": encoder}, loss=loss)
    system = registry.create(config, mesh)
    params, sketch = jax.jit(system.trainable.init)(jax.random.key(1))
    batch = next(system.batches(0))
    arguments = params, system.constants, sketch, batch, jax.random.key(2)
    value, (metrics, sketch) = jax.jit(system.trainable.loss)(*arguments)

    dataset = dataset_lib.load(config.data.name, config.data.dir)
    tower = create(config, mesh, dataset.spec)
    texts = jax.tree.map(jnp.asarray, query_tower.read(config, dataset))
    queries = np.asarray(jax.jit(tower.apply)(params["tower"], texts, jnp.asarray(batch["query"])))
    items = item_features.item_vectors(dataset).astype(np.float64)
    answers = batch["item"].tolist()
    log_q = {item: corrected * np.log(answers.count(item)) for item in answers}
    assert max(map(answers.count, answers)) > 1
    losses = []
    for query, vector, answer in zip(batch["query"], queries, answers, strict=True):
        same = set(batch["item"][batch["query"] == query])
        logits = [vector @ items[answer] / 0.07 - log_q[answer]]
        logits += [vector @ items[i] / 0.07 - log_q[i] for i in answers if i not in same]
        losses.append(np.logaddexp.reduce(logits) - logits[0])
    np.testing.assert_allclose(float(value), np.mean(losses), rtol=1e-4)
    np.testing.assert_allclose(metrics["temperature"], 0.07, rtol=1e-5)
    assert int(sketch.total) == len(answers)


def test_what_a_cap_leaves_out_is_not_counted(make_config, mesh, data_dir):
    """Of one pair for each item all counts are the same."""
    config = make_config()
    config.tasks = (("text/click", 1.0, 1),)
    dataset = dataset_lib.load(config.data.name, data_dir)
    train = dataset.pairs("train")
    items = train["item"][train["task"] == dataset.spec.tasks.index("text/click")]
    items = items[item_features.item_vectors(dataset)[items].any(axis=1)]
    mean = config.train.steps * config.data.pairs / len(np.unique(items))
    assert len(items) > 2 * len(np.unique(items))
    counted = registry.create(config, mesh).summary["sketches"]
    assert counted.startswith(f"items: mean count {mean:,.1f}, a label's median {mean:,.1f}, ")


def test_what_trains_on_nothing_is_refused(make_config, mesh):
    registry.create(make_config(), mesh).check_training()
    config = make_config(data={"pairs": 1})
    config.tasks = config.tasks[:1]
    with pytest.raises(InputError, match=r"data.pairs=1: the first 8 batches have one query each"):
        registry.create(config, mesh).check_training()
    with pytest.raises(
        InputError, match=r"loss.sketch_width: with 64 counters a row, the counts of .* items"
    ):
        registry.create(make_config(loss={"sketch_width": 64}), mesh).check_training()


@pytest.mark.slow
def test_one_and_eight_devices_agree(make_config, train_on_devices):
    (losses, state), (other_losses, other) = train_on_devices(make_config(), 3)
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-4)
    jax.tree.map(close, other.params, state.params)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["bag", "bert"])
def test_where_tables_lie_changes_nothing(make_config, check_sharded_tables, encoder):
    check_sharded_tables(make_config(model={"encoder": encoder}))


def test_residual_is_added_to_the_queries_own_vectors(make_config, mesh, check_sharded_tables):
    config = make_config(model={"residual": True})
    system = registry.create(config, mesh)
    params, _ = jax.jit(system.trainable.init)(jax.random.key(1))
    dataset = dataset_lib.load(config.data.name, config.data.dir)
    without = make_config()
    tower = create(without, mesh, dataset.spec)
    with_residual = create(config, mesh, dataset.spec)
    rows = jnp.arange(0, len(dataset.queries), 3)
    without_one = np.flatnonzero(dataset.queries.kinds[rows] == "text")[2]
    vectors = jnp.asarray(dataset.queries.vectors, jnp.bfloat16).at[rows[without_one]].set(0)
    texts = jax.tree.map(jnp.asarray, query_tower.read(without, dataset))
    of_tower = np.asarray(jax.jit(tower.apply)(params["tower"]["tower"], texts, rows), np.float64)
    own = np.asarray(vectors[rows], np.float64)
    own /= np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-6)
    for gain in (params["tower"]["gain"], jnp.float32(0.7)):
        found = with_residual.apply(params["tower"] | {"gain": gain}, (texts, vectors), rows)
        expected = own + np.where(own.any(axis=1, keepdims=True), gain, 1) * of_tower
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert params["tower"]["gain"] == 0
    check_sharded_tables(config)


def test_residual_of_another_space_is_refused(make_config):
    spec = Spec("shop", 9, query_dim=3, image_dim=4, content_dim=3, tasks=("text/click",))
    with pytest.raises(InputError, match="queries of shop have 3 numbers, not the items' 4"):
        searchsage.check_spec(make_config(model={"residual": True}), spec)
    searchsage.check_spec(make_config(), spec)


def test_only_items_with_a_vector_are_found(make_config, mesh, data_dir):
    system = registry.create(make_config(), mesh)
    params = exports.random_params(system)
    dataset = dataset_lib.load("pinworld/tiny", str(data_dir))
    with_image = np.diff(dataset.catalogue.image_offsets) > 0
    assert 0.2 < with_image.mean() < 0.3  # the others are no products, or without images
    items = system.serve(params, 0).items
    np.testing.assert_array_equal(items.rows, np.flatnonzero(with_image))
    vectors = items.embed(items.rows)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    check_texts(dataset, system.serve(params, 0))
    table = system.evaluate(params, "test", full=True)
    test = dataset.pairs("test")
    for task in ("text/click", "text/save"):
        of_task = test[test["task"] == dataset.spec.tasks.index(task)]
        most = with_image[of_task["item"]].mean()
        assert most < 1
        rows = [row for row in table.rows if row.task == task]
        assert {"SearchSage", "oracle", "co-occurrence"} < {row.method for row in rows}
        assert all(row.metrics["R@100"].value <= most for row in rows)


def test_pairs_without_a_vector_are_left_out(make_config, mesh, data_dir):
    config = make_config()
    dataset = dataset_lib.load(config.data.name, data_dir)
    train = dataset.pairs("train")
    tasks = [dataset.spec.tasks.index(name) for name, *_ in config.tasks]
    train = train[np.isin(train["task"], tasks)]
    left = train[np.diff(dataset.catalogue.image_offsets)[train["item"]] > 0]
    assert 0 < len(left) < len(train)
    system = registry.create(config, mesh)
    assert f": {len(left):,} pairs of " in system.summary["data set"]
    seen = np.concatenate([batch["item"] for batch in system.batches(0)])
    assert len(seen) == 30 * 32
    assert np.isin(seen, left["item"]).all()


def test_a_task_of_items_without_a_vector_is_refused(make_config, mesh, data_dir, other_data):
    dataset = dataset_lib.load("pinworld/tiny", data_dir)
    train, tasks = dataset.pairs("train"), dataset.spec.tasks
    has_vector = np.diff(dataset.catalogue.image_offsets)[train["item"]] > 0
    saved = train["task"] == tasks.index("text/save")
    assert 0 < np.sum(saved & has_vector) < np.sum(saved)
    train["task"][saved & has_vector] = tasks.index("text/click")
    name = other_data(lambda directory: pairs.write(directory / "pairs" / "train.parquet", train))
    config = make_config(data={"name": name})
    registry.build(config, mesh)
    with pytest.raises(
        InputError,
        match=r"^tasks: other has no training pair of 'text/save' whose item has a vector$",
    ):
        registry.create(config, mesh)
    config.tasks = config.tasks[:1]
    registry.create(config, mesh)


def test_there_is_room_for_the_texts_that_are_trained_on(make_config, mesh, data_dir, other_data):
    """Not for those of pairs that are left out."""
    dataset = dataset_lib.load("pinworld/tiny", data_dir)
    spaces = np.char.count(dataset.queries.searches, " ")
    is_text = dataset.queries.kinds == "text"
    short, long = (np.flatnonzero(is_text & (spaces == number))[0] for number in (0, 3))
    train = dataset.pairs("train")
    has_vector = np.diff(dataset.catalogue.image_offsets)[train["item"]] > 0
    train["query"] = np.where(has_vector, short, long)
    name = other_data(lambda directory: pairs.write(directory / "pairs" / "train.parquet", train))
    config = make_config(model={"encoder": "bert"}, data={"name": name, "pairs": 128})
    texts = registry.create(config, mesh).summary["texts"]
    assert texts == "128 queries on each device in 256 tokens, with padding 1,024"


def test_there_is_room_for_the_texts_that_a_cap_leaves(make_config, mesh, data_dir, other_data):
    """A cap leaves out most pairs of one item, which come from many short searches."""
    dataset = dataset_lib.load("pinworld/tiny", data_dir)
    words = np.where(
        dataset.queries.kinds == "text", 1 + np.char.count(dataset.queries.searches, " "), 0
    )
    short, longest = np.flatnonzero(words == 1), words.argmax()
    train = dataset.pairs("train")
    popular = np.arange(len(train)) % 4 > 0
    train["query"] = np.where(popular, np.resize(short, len(train)), longest)
    train["item"] = np.where(
        popular, np.diff(dataset.catalogue.image_offsets).argmax(), train["item"]
    )
    name = other_data(lambda directory: pairs.write(directory / "pairs" / "train.parquet", train))
    config = make_config(model={"encoder": "bert"}, data={"name": name, "pairs": 512})
    config.tasks = tuple((task, weight, 2) for task, weight, _ in config.tasks)
    system = registry.create(config, mesh)
    room = int(re.search(r"in ([\d,]+) tokens", system.summary["texts"])[1].replace(",", ""))
    tokens = query_tower.num_tokens(config, query_tower.read(config, system.dataset))
    for batch in itertools.islice(system.batches(0), 5):
        assert tokens[batch["query"]].sum() <= room * mesh.shape["data"]


def test_a_long_search_needs_no_room_in_every_row(make_config, mesh, data_dir, other_data):
    """One text is 400 times as long as others; a bag has what it needs, and no more."""
    dataset = dataset_lib.load("pinworld/tiny", data_dir)
    queries = dataset.queries
    often = np.bincount(dataset.pairs("train")["query"], minlength=len(queries))
    row = np.where((queries.kinds == "text") & (often > 0), often, often.max()).argmin()
    queries.ids[row] = " ".join([queries.ids[row]] * 400)
    lengths = np.diff(dataset.encode(queries.searches).offsets)
    name = other_data(
        lambda directory: queries.write(directory / pairs.QUERIES_FILE),
        longest_search=int(lengths.max()),
        num_search_tokens=int(lengths.sum()),
    )
    config = make_config(data={"name": name})
    system = registry.create(config, mesh)
    dataset = system.dataset
    texts, train = query_tower.read(config, dataset), dataset.pairs("train")
    assert lengths[row] > 1000
    assert 0 < (train["query"] == row).mean() < 0.002
    drawn = query_tower.lengths_of(config, dataset.spec, texts, train)
    room = query_tower.capacity(config, mesh, dataset.spec, drawn, 512)
    assert lengths[row] <= room < 0.05 * 512 * lengths[row]
    params, _ = jax.jit(system.trainable.init)(jax.random.key(1))
    rows = np.resize(row + np.arange(-5, 5), 300)  # the long one 30 times
    served = system.serve(params, 0).queries.embed(rows)
    tower = create(config, mesh, dataset.spec)
    expected = jax.jit(tower.apply)(params["tower"], jax.tree.map(jnp.asarray, texts), rows[:10])
    np.testing.assert_allclose(served, np.resize(expected, served.shape), atol=1e-6)
    little = query_tower.create(config, mesh, dataset.spec, dict.fromkeys(drawn, np.ones(33)))
    at_once = jnp.asarray(np.resize(row, 8))
    assert np.isnan(little.embed(mesh, params["tower"], texts, at_once)).all()


def check_texts(dataset, served):
    """Any texts are embedded as searches are, and of a long one the first tokens."""
    rows = np.resize(served.queries.rows, 300)  # more than are embedded at a time
    texts = dataset.queries.ids[rows].tolist()
    expected = served.queries.embed(rows)
    np.testing.assert_allclose(served.texts(texts), expected, atol=1e-5)
    longest = dataset.spec.longest_search * " ".join(texts[:3]).split()
    long = " ".join(longest), " ".join(longest[:-1])
    known, unknown, *long = served.texts([texts[0], "zzz", *long])
    np.testing.assert_allclose(known, expected[0], atol=1e-5)
    assert unknown @ known < 0.99
    np.testing.assert_allclose(np.linalg.norm(long, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
def test_words_of_a_text_are_those_of_a_search(make_config, data_dir, residual):
    config = make_config(model={"encoder": "bert", "residual": residual})
    dataset = dataset_lib.load("pinworld/tiny", str(data_dir))
    rows = np.flatnonzero(dataset.queries.kinds == "text")[[5, 2, 9]]
    found = query_tower.encode(config, dataset, [*dataset.queries.ids[rows], "zzz"])
    for of_text, table in zip(
        jax.tree.leaves(found), jax.tree.leaves(query_tower.read(config, dataset)), strict=True
    ):
        np.testing.assert_array_equal(of_text[:3], table[rows])
        assert not np.any(np.asarray(of_text[3], np.float32).ravel()[1:])  # [CLS] alone


def test_items_without_images_are_their_content(make_config, other_data, data_dir, mesh):
    content = dataset_lib.load("pinworld/tiny", data_dir).catalogue.content
    system = registry.create(
        make_config(data={"name": other_data(without=("images",), image_dim=0)}), mesh
    )
    params, sketch = exports.random_state(system)
    items = system.serve(params, 0).items
    vectors = items.embed(items.rows)
    np.testing.assert_allclose(vectors, content, atol=1e-3)
    batch = next(system.batches(0))
    gradient_of = jax.jit(jax.grad(system.trainable.loss, has_aux=True))
    gradient, _ = gradient_of(params, system.constants, sketch, batch, jax.random.key(0))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pairs": {}}, "^data.name: other has no pairs, only timelines, graph"),
        (
            {"tasks": ["image/click", "image/save"]},
            r"^data.name: other has no text of a search: SearchSage needs events.query$",
        ),
    ],
)
def test_searches_are_needed(make_config, other_data, mesh, fields, message):
    config = make_config(data={"name": other_data(**fields)})
    for create in (registry.create, registry.build):
        with pytest.raises(InputError, match=message):
            create(config, mesh)


def test_queries_without_texts_are_refused(make_config, mesh):
    config = make_config()
    config.tasks = (*config.tasks, ("image/click", 1.0, 5))
    message = r"^tasks: queries of 'image/click' have no text, which is all that SearchSage reads; "
    for create in (registry.create, registry.build):
        with pytest.raises(InputError, match=message):
            create(config, mesh)


def test_more_tokens_than_can_be_numbered_are_refused(make_config, mesh):
    spec = Spec("shop", 9, num_queries=9, num_search_tokens=2**31, vocabulary=(1, 0, 0))
    with pytest.raises(InputError, match=r"^shop: searches have 2,147,483,648 tokens together"):
        create(make_config(), mesh, spec)


def test_pretrained_weights_are_read_once(make_config, mesh, data_dir, rng, tmp_path):
    tensors = test_pretrained.make_tensors(rng, "bert")
    test_pretrained.write(tmp_path, tensors, test_pretrained.BERT_CONFIG)
    config = make_config(model={"encoder": "bert", "pretrained": str(tmp_path), "length": 6})
    dataset = dataset_lib.load("pinworld/tiny", str(data_dir))
    trainable = searchsage.build(config, mesh, dataset.spec)
    (tmp_path / "model.safetensors").unlink()
    system = searchsage.bind(trainable, config, mesh, dataset)
    params, _ = trainable.init(jax.random.key(0))
    word = params["tower"]["params"]["encoder"]["token"]["embedding"]
    np.testing.assert_array_equal(word, tensors["embeddings.word_embeddings.weight"])
    ids, _ = system.constants["texts"]
    assert np.unique(ids[dataset.queries.kinds == "text"]).tolist() == [0, 1, 2, 3]


def test_words_follow_cls_and_are_cut(data_dir):
    dataset = dataset_lib.load("pinworld/tiny", str(data_dir))
    words = dataset.vocabulary.sizes[0]
    tokens = dataset.vocabulary.rows["token"].to_pylist()
    texts = ["", f"{tokens[3]} unheard-of {tokens[1]}", " ".join(tokens[:9])]
    ids, mask = word_ids.of_texts(dataset.vocabulary.encode(texts), words, 4)
    assert ids[:, 0].tolist() == [words] * 3
    assert mask.sum(axis=1).tolist() == [1, 3, 4]
    assert ids[1, :3].tolist() == [words, 3, 1]
    assert ids[2].tolist() == [words, 0, 1, 2]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"encoder": "lstm"}}, "model.encoder='lstm': expected one of bag, bert"),
        ({"loss": {"sketch_width": 1_000}}, "loss.sketch_width=1000: expected a power of two"),
    ],
)
def test_wrong_config_is_refused(make_config, sections, message, mesh):
    with pytest.raises(InputError, match=message):
        registry.create(make_config(**sections), mesh)
