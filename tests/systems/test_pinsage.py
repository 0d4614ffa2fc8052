"""The page against its formulas, against itself on several devices, and layer by layer."""

import dataclasses
import functools

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinjax.data import catalogue, graph_batches
from pinjax.data import dataset as dataset_lib
from pinjax.data.spec import Spec
from pinjax.errors import InputError
from pinjax.evaluation import graph_source
from pinjax.graph import groups
from pinjax.systems import embedded, graph_training, layerwise, node_table, pinsage, registry

SYSTEM = "pinsage"


@pytest.fixture
def parts(make_config, mesh):
    """(changes) -> the config, data set, system, parameters, and what a batch is embedded as."""

    def make(**changes):
        config = make_config(**changes)
        system = registry.create(config, mesh)
        dataset = dataset_lib.load(config.data.name, config.data.dir)
        params, sketches = jax.jit(system.trainable.init)(jax.random.key(1))
        model = pinsage.make_model(config, dataset.spec, mesh)
        inputs = node_table.NodeTable.create(config, mesh, dataset.spec)
        encode = jax.jit(functools.partial(pinsage.encode, model, inputs, mesh))
        batch = next(system.batches(25))  # with hard negatives
        embedded = jax.device_get(encode(params, system.constants, batch))
        return config, dataset, system, params, sketches, batch, embedded

    return make


@pytest.mark.parametrize(
    ("name", "corrected"),
    [
        ("softmax", True),
        ("max_margin", True),
        pytest.param("softmax", False, marks=pytest.mark.slow),
    ],
)
def test_loss_is_the_formula(parts, name, corrected):
    changes = {"name": name, "sketch_width": 2**18, "log_q": corrected, "hard_last": 900}
    _, dataset, system, params, sketches, batch, embedded = parts(loss=changes)
    arguments = params, system.constants, sketches, batch, jax.random.key(2)
    value, (metrics, _) = jax.jit(system.trainable.loss)(*arguments)
    candidates = set(_pairs(dataset)["item"].tolist())
    assert not set(batch["group_item"].tolist()) <= candidates
    assert 1 < batch["hard_ranks"].min() < 850  # not so many are reached
    random = batch["negatives"].tolist()

    def loss(query, item, same, ids, hard=None, hard_ids=None):
        losses = []
        for row, positive in enumerate(ids):
            q, known = query[row].astype(np.float64), set(same[row])
            negatives = [(id, z) for id, z in zip(random, embedded["negatives"], strict=True)]
            if name == "softmax":
                negatives += list(zip(ids.tolist(), item, strict=True))
            own = [] if hard is None else list(zip(hard_ids[row], hard[row], strict=True))
            own = [z for id, z in own if id >= 0 and id not in known]
            negatives = [(id, z) for id, z in negatives if id not in known]
            if name == "max_margin":
                margins = [q @ z - q @ item[row] + 0.1 for z in [*own, *(z for _, z in negatives)]]
                losses.append(np.mean(np.maximum(margins, 0)))
                continue

            def log_q(id):
                expected = ids.tolist().count(id)
                expected += (id in candidates) * len(random) / len(candidates)
                return np.log(expected) if corrected else 0

            logits = [q @ item[row] / 0.07 - log_q(positive)]
            logits += [q @ z / 0.07 - log_q(id) for id, z in negatives]
            drawn = 0 if hard_ids is None else (hard_ids[row] >= 0).sum()
            own_log_q = np.log(drawn / batch["hard_ranks"][row]) if drawn and corrected else 0
            logits += [q @ z / 0.07 - own_log_q for z in own]
            losses.append(np.logaddexp.reduce(logits) - logits[0])
        return np.mean(losses)

    assert (batch["hard"] >= 0).all()
    same = np.column_stack([batch["query"], batch["excluded"]])
    hard = embedded["hard"], batch["hard"]
    of_items = loss(embedded["query"], embedded["item"], same, batch["item"], *hard)
    of_groups = loss(
        *(embedded["group"], embedded["group_item"]),
        *(batch["group_excluded"], batch["group_item"]),
    )
    np.testing.assert_allclose(metrics["loss/items"], of_items, rtol=1e-4)
    np.testing.assert_allclose(metrics["loss/groups"], of_groups, rtol=1e-4)
    np.testing.assert_allclose(value, of_items + of_groups, rtol=1e-4)


def test_only_a_softmax_needs_counts(make_config, mesh):
    config = make_config(loss={"name": "max_margin", "sketch_width": 64})
    system = registry.create(config, mesh)
    system.check_training()
    assert system.trainable.sketched_ids is None
    assert "sketches" not in system.summary
    config.loss.name = "softmax"
    with pytest.raises(InputError, match=r"loss.sketch_width: with 64 counters a row, .* items"):
        registry.create(config, mesh).check_training()


def test_more_tokens_than_can_be_numbered_are_refused(make_config, mesh):
    config = make_config(model={"texts": ("title",), "tokens": 32})
    spec = Spec("shop", 2**26, text_features=("title",), num_tokens={"title": 2**32})
    inputs = node_table.NodeTable.create(config, mesh, spec)
    with pytest.raises(InputError, match=r"those of shop have 2,147,483,648 tokens together"):
        inputs.abstract(dataclasses.replace(spec, content_dim=1))


def _pairs(dataset):
    """The training pairs whose query is another item."""
    pairs = dataset.pairs("train")
    query = dataset.queries.items[pairs["query"]]
    return pairs[(query >= 0) & (query != pairs["item"])]


@pytest.mark.parametrize(
    "model",
    [
        {"layers": 0},
        {"layers": 1, "pooling": "max"},
        {"id_dim": 8, "id_buckets": 50, "texts": ("title", "brand"), "tokens": 5, "token_dim": 4},
    ],
)
def test_layer_by_layer_is_the_same_as_a_batch(parts, mesh, model, tmp_path):
    config, dataset, system, params, _, batch, embedded = parts(model=model)
    table = graph_training.batches_of(config, mesh, dataset).table
    functions = system.trainable.embedders
    states = layerwise.embed_items(functions, params, system.constants, table, tmp_path)
    items = states[:, -config.model.embedding_dim :]
    assert len(items) == dataset.spec.num_items
    np.testing.assert_allclose(embedded["negatives"], items[batch["negatives"]], atol=1e-5)
    np.testing.assert_allclose(embedded["hard"], items[batch["hard"]], atol=1e-5)

    # Groups as in the batch, without the item that they are trained to find.
    at = batch[graph_batches.BY_DEVICE + "group_at"][0]
    nodes = batch[graph_batches.BY_DEVICE + "nodes"][0]
    targets = _targets(batch, config.model.layers, nodes)
    members = np.where(at >= 0, targets[at], -1)
    vectors = states[:, : -config.model.embedding_dim]
    found = layerwise.embed_groups(functions, params, vectors, members)
    np.testing.assert_allclose(embedded["group"], found, atol=1e-5)
    assert not list(tmp_path.iterdir())


def _targets(batch, layers, nodes):
    """The items of a device's targets."""
    for layer in range(layers):
        nodes = nodes[batch[graph_batches.BY_DEVICE + f"own_{layer}"][0]]
    return nodes


def test_an_item_that_was_never_trained_on_is_embedded_from_its_edges(parts, mesh, tmp_path):
    config, dataset, system, params, *_ = parts()
    table = graph_training.batches_of(config, mesh, dataset).table
    functions, constants = system.trainable.embedders, system.constants
    unseen = np.setdiff1d(np.flatnonzero(table.weights[:, 0] > 0), _pairs(dataset)["item"])[0]
    states = layerwise.embed_items(functions, params, constants, table, tmp_path)
    ids, weights = table.ids.copy(), table.weights.copy()
    ids[unseen], weights[unseen] = -1, 0
    alone = type(table)(ids, weights)
    others = layerwise.embed_items(functions, params, constants, alone, tmp_path)
    dim = config.model.embedding_dim
    lengths = np.linalg.norm(states[[unseen], -dim:], axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    assert states[unseen, -dim:] @ others[unseen, -dim:] < 0.999


def test_items_of_the_future_are_in_no_batch(parts, make_config, mesh, other_data):
    """They are embedded from their edges, as any other item."""
    _, dataset, *_ = parts()
    degrees = np.diff(dataset.graph.items.offsets)
    queries, train = dataset.queries.items, _pairs(dataset)
    paired = np.append(queries[train["query"]], train["item"])
    future = np.setdiff1d(np.flatnonzero(degrees > 1), paired)[::2]

    def change(directory):
        items = pq.read_table(directory / catalogue.FILE)
        created = items["created"].to_numpy().copy()
        created[future] = dataset.spec.train_end + 1
        column = items.schema.get_field_index("created")
        made = pa.array(created, items.schema.field(column).type)
        pq.write_table(items.set_column(column, "created", made), directory / catalogue.FILE)

    system = registry.create(make_config(data={"name": other_data(change)}), mesh)
    batches = system.batches(25)  # with hard negatives
    seen = [value for batch in (next(batches), next(batches)) for value in batch.items()]
    names = ("query", "item", "group_item", "hard", "negatives", "graph_nodes")
    seen = np.concatenate([values.ravel() for name, values in seen if name in names])
    assert len(future) > 20
    assert not np.isin(seen, future).any()
    params, _ = jax.jit(system.trainable.init)(jax.random.key(1))
    served = system.serve(params, system.dataset.spec.train_end).items
    assert np.isin(future, served.rows).all()


def test_groups_may_be_left_out(parts):
    config, _, system, params, sketches, batch, _ = parts(data={"groups": 0})
    arguments = params, system.constants, sketches, batch, jax.random.key(2)
    value, (metrics, sketches) = jax.jit(system.trainable.loss)(*arguments)
    assert value == metrics["loss/items"] > 0
    assert "loss/groups" not in metrics
    assert int(sketches["groups"].total) == 0
    assert embedded.tables(config, system, params, 0).keys() == {"items"}


@pytest.mark.slow
def test_one_and_eight_devices_agree(make_config, train_on_devices):
    (losses, state), (other_losses, other) = train_on_devices(make_config(), 3)
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=2e-4)
    jax.tree.map(close, other.params, state.params)


@pytest.mark.slow
def test_where_tables_lie_changes_nothing(make_config, check_sharded_tables):
    model = {"id_dim": 8, "id_buckets": 64, "texts": ("title",), "tokens": 5, "token_dim": 4}
    check_sharded_tables(make_config(model=model))


def test_embeddings_are_of_known_items_and_of_groups(parts):
    config, dataset, system, params, *_ = parts()
    shards = embedded.tables(config, system, params, 0)
    assert shards.keys() == {"items", "groups"}
    ids, vectors, _ = shards["items"][0]()
    known = graph_source.known_items(dataset)
    assert known.sum() > graph_training.source_of(config, dataset).eligible.sum()
    np.testing.assert_array_equal(ids, dataset.catalogue.ids[known])
    assert vectors.shape == (len(ids), config.model.embedding_dim)
    ids, vectors, _ = shards["groups"][0]()
    has = np.diff(dataset.graph.groups.offsets) > 0
    np.testing.assert_array_equal(ids, dataset.groups[has])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    members = groups.members(dataset.graph.groups, np.flatnonzero(has)[:3].astype(np.int32), 6, 0)
    assert (members[:, 0] >= 0).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": {"hard_first": 200}}, "loss.hard_first=200: expected at most loss.hard_last=150"),
        (
            {"data": {"pairs_from": "groups", "groups": 0}},
            "data.groups=0: with data.pairs_from=groups, groups are evaluated",
        ),
        (
            {"data": {"content": False}, "model": {"log_degree": False}},
            "model.id_dim=0: items have no features",
        ),
        ({"data": {"content": False, "vectors": "nowhere"}}, "data.vectors: without effect unless"),
        ({"model": {"texts": ("tale",)}}, "model.texts: pinworld/tiny has no 'tale', only title"),
    ],
)
def test_what_does_not_fit_is_refused(make_config, mesh, changes, message):
    with pytest.raises(InputError, match=message):
        registry.create(make_config(**changes), mesh)
