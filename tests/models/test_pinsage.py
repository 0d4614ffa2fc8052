import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from pinjax.distributed import sharded_table
from pinjax.models import hash_embedding, importance_pooling, pinsage

NUM_ITEMS, NUM_TOKENS, NEIGHBOURS = 20, 15, 5
SIZES = (11, 7, 4)  # nodes of the input and of each layer
GROUPS = 3


def make(**kwargs):
    sizes = dict(num_items=NUM_ITEMS, layers=2, width=6, message_width=5, embedding_dim=4)
    return pinsage.PinSage(**(sizes | kwargs))


MODELS = {
    "importance": make(
        id_dim=3,
        id_buckets=8,
        log_degree=True,
        num_tokens=NUM_TOKENS,
        token_buckets=6,
        token_dim=4,
    ),
    "mean": make(pooling="mean"),
    "max": make(pooling="max", id_dim=3),
    "ids alone": make(layers=1, id_dim=3),
    "content alone": make(layers=0),
}


def minibatch(name, rng):
    """Nodes of the input with padding, and for each layer its nodes, neighbours and weights.

    The last row of each layer is isolated, and nodes are neighbours several times.
    """
    model = MODELS[name]
    rows = rng.integers(0, NUM_ITEMS, SIZES[0])
    rows[-2:] = -1
    content = None if name == "ids alone" else rng.standard_normal((NUM_ITEMS, 5))
    log_degree = rng.random(NUM_ITEMS) if model.log_degree else None
    tokens = segments = None
    if model.num_tokens:
        tokens = rng.integers(0, NUM_TOKENS, 16)
        segments = np.sort(rng.integers(0, SIZES[0] + 1, 16))
    layers, below = [], SIZES[0]
    for size in SIZES[1 : 1 + model.layers]:
        layers.append((rng.integers(0, below, size), *edges(rng, size, below)))
        below = size
    return as_float32(
        dict(
            inputs=(rows, content, log_degree, tokens, segments),
            layers=layers,
            groups=edges(rng, GROUPS, below),
            towards=(
                rng.standard_normal((below, model.embedding_dim)),
                rng.standard_normal((GROUPS, model.embedding_dim)),
            ),
        )
    )


def edges(rng, size, below):
    neighbours = rng.integers(-2, below, (size, NEIGHBOURS)).clip(-1)
    neighbours[:, 0] = rng.integers(0, below, size)
    neighbours[-1] = -1
    weights = np.where(neighbours >= 0, rng.random(neighbours.shape), 0)
    return neighbours, weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-9)


def as_float32(tree):
    def convert(x):
        x = np.asarray(x)
        return jnp.asarray(x, jnp.float32 if x.dtype == np.float64 else jnp.int32)

    return jax.tree.map(convert, tree)


@functools.cache
def params_of(name):
    """Random everywhere, since biases that start at zero hide mistakes."""
    rng = np.random.default_rng(0)
    inputs = minibatch(name, rng)["inputs"]
    shapes = jax.eval_shape(MODELS[name].init, jax.random.key(0), *inputs)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)


def embed(model, params, batch):
    """Embeddings of items and of groups, as the class says, and the scale."""
    call = functools.partial(model.apply, params)
    h = call(*batch["inputs"], method="inputs")
    for layer, (nodes, neighbours, weights) in enumerate(batch["layers"]):
        messages = call(layer, h, method="messages")
        pooled = importance_pooling.pool(messages, neighbours, weights, model.pooling)
        h = call(layer, h[nodes], pooled, method="combine")
    items, groups = call(h, method="head"), call(h, *batch["groups"], method="group")
    return items, groups, call(method="scale")


def dense(x, params):
    return x @ params["kernel"] + params.get("bias", 0)


def unit(x):
    norm = np.linalg.norm(x)
    return x / norm if norm else x


def head(h, params):
    return unit(dense(np.maximum(dense(h, params["hidden"]), 0), params["out"]))


def convolved(model, h, message, neighbours, weights):
    """n of Algorithm 1 for one node."""
    of_neighbours = [np.maximum(dense(h[v], message), 0) for v in neighbours if v >= 0]
    if not of_neighbours:
        return np.zeros(model.message_width)
    if model.pooling == "importance":
        return sum(w * x for w, x in zip(weights[neighbours >= 0], of_neighbours, strict=True))
    return getattr(np, model.pooling)(of_neighbours, axis=0)


def input_of(model, params, batch, index):
    rows, content, log_degree, tokens, segments = batch["inputs"]
    row, parts = rows[index], []
    if content is not None:
        parts.append(content[row] / np.sqrt(np.square(content[row]).mean()))
    if model.log_degree:
        parts.append(log_degree[[row]])
    if model.num_tokens:
        text = sum((bag(params["text"], t, 6) for t in tokens[segments == index]), np.zeros(4))
        parts.append(text)
    if model.id_dim:
        parts.append(bag(params["id"], row, model.id_buckets))
    vector = np.concatenate(parts)
    return vector if row >= 0 else np.zeros_like(vector)


def bag(params, token, buckets):
    """The hash embedding of one token, or its row of a table with one for each token."""
    table = params["embedding"]
    if not buckets:
        return table[token] * np.sqrt(table.shape[1])
    rows = np.asarray(hash_embedding.hash_ids(jnp.asarray(token, jnp.int32)) % buckets)
    return params["importance"][token] @ table[rows] * np.sqrt(table.shape[1])


def oracle(model, params, batch):
    """`embed` in float64, node by node."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params["params"])
    batch = jax.tree.map(np.asarray, batch)
    h = [
        input_of(model, params.get("node_input"), batch, i) for i in range(len(batch["inputs"][0]))
    ]
    for layer, of_layer in enumerate(batch["layers"]):
        message, update = params[f"message_{layer}"], params[f"update_{layer}"]
        h = [
            unit(
                np.maximum(
                    dense(
                        np.append(h[node], convolved(model, h, message, neighbours, weights)),
                        update,
                    ),
                    0,
                )
            )
            for node, neighbours, weights in zip(*of_layer, strict=True)
        ]
    items = np.stack([head(x, params["item_head"]) for x in h])
    groups = []
    for neighbours, weights in zip(*batch["groups"], strict=True):
        n = convolved(model, h, params["group_message"], neighbours, weights)
        z = unit(np.maximum(dense(n, params["group_update"]), 0))
        groups.append(head(z, params["group_head"]))
    return items, np.stack(groups), 1 / (0.01 + np.exp(params["temperature"]["log_temperature"]))


@pytest.mark.parametrize("name", MODELS)
def test_embeddings_and_gradients_against_numpy(rng, name):
    model, params, batch = MODELS[name], params_of(name), minibatch(name, rng)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradients(params, batch):
        found = items, groups, scale = embed(model, params, batch)
        of_items, of_groups = batch["towards"]
        return (items * of_items).sum() + (groups * of_groups).sum() + 0.1 * scale, found

    gradient, found = gradients(params, batch)
    for array, expected in zip(found, oracle(model, params, batch), strict=True):
        assert array.dtype == jnp.float32
        np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-5)

    def loss(params):
        items, groups, scale = oracle(model, params, batch)
        of_items, of_groups = (np.asarray(x, np.float64) for x in batch["towards"])
        return (items * of_items).sum() + (groups * of_groups).sum() + 0.1 * scale

    # Central differences along a random direction of each parameter.
    leaves, tree = jax.tree.flatten(params)
    leaves = [leaf.astype(np.float64) for leaf in leaves]
    for i, (path, slope) in enumerate(jax.tree_util.tree_leaves_with_path(gradient)):
        direction = rng.standard_normal(leaves[i].shape)
        step = 1e-6

        def moved(by, i=i, direction=direction):
            changed = [*leaves[:i], leaves[i] + by * direction, *leaves[i + 1 :]]
            return loss(jax.tree.unflatten(tree, changed))

        expected = (moved(step) - moved(-step)) / (2 * step)
        error = np.abs((np.asarray(slope, np.float64) * direction).sum() - expected)
        size = np.linalg.norm(slope) * np.linalg.norm(direction)
        assert error <= 1e-4 * size + 1e-6, jax.tree_util.keystr(path)


def test_nodes_of_zeros_have_no_nan(rng):
    model = MODELS["mean"]
    params = jax.tree.map(
        lambda x: x * (x.ndim > 1),  # without biases, a node without content or neighbours is zero
        params_of("mean"),
    )
    batch = minibatch("mean", rng)
    rows, content, *rest = batch["inputs"]
    batch["inputs"] = (rows, jnp.zeros_like(content), *rest)
    loss, gradient = jax.jit(
        jax.value_and_grad(lambda params: sum(x.sum() for x in embed(model, params, batch)[:2]))
    )(params)
    assert loss == 0
    for leaf in jax.tree.leaves(gradient):
        np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))


def test_bfloat16_is_near_float32(rng):
    model, params = MODELS["importance"], params_of("importance")
    batch = minibatch("importance", rng)
    low = functools.partial(embed, model.clone(dtype=jnp.bfloat16))
    for array, expected in zip(
        jax.jit(low)(params, batch), oracle(model, params, batch), strict=True
    ):
        assert array.dtype == jnp.float32
        np.testing.assert_allclose(array, expected, atol=0.05)


def test_ids_start_apart(rng):
    """Without content nothing else tells nodes apart."""
    model, batch = MODELS["ids alone"], minibatch("ids alone", rng)
    params = jax.jit(model.init)(jax.random.key(0), *batch["inputs"])
    h = np.asarray(model.apply(params, jnp.arange(NUM_ITEMS), method="inputs"))
    assert len(np.unique(h, axis=0)) == NUM_ITEMS


def test_nothing_known_of_nodes_is_refused():
    with pytest.raises(ValueError, match="neither content"):
        make().init(jax.random.key(0), jnp.zeros(3, jnp.int32))


@pytest.mark.slow
def test_inputs_of_sharded_tables_equal_replicated_ones(rng):
    """Eight devices with nodes of their own, under shard_map."""
    name, devices = "importance", 8
    model, params = MODELS[name], params_of(name)
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    layout = sharded_table.Layout(mesh)
    rows, content, log_degree, tokens, segments = minibatch(name, rng)["inputs"]
    rows = jnp.asarray(rng.integers(-1, NUM_ITEMS, (devices, SIZES[0])), jnp.int32)
    segments = jnp.asarray(
        np.sort(rng.integers(0, SIZES[0] + 1, (devices, len(tokens)))), jnp.int32
    )

    apply = jax.jit(functools.partial(model.apply, method="inputs"))
    expected = [
        apply(params, r, content, log_degree, tokens, s)
        for r, s in zip(rows, segments, strict=True)
    ]

    def of_device(tables, content, log_degree, rows, segments):
        sharded = model.clone(table_layout=layout.on_device())
        inputs = rows[0], content, log_degree, tokens, segments[0]
        return sharded.apply({"params": {"node_input": tables}}, *inputs, method="inputs")

    laid_out = jax.tree.map(
        lambda x: jax.device_put(layout.lay_out(np.asarray(x)), layout.sharding),
        (params["params"]["node_input"], content, log_degree),
    )
    spec = layout.spec
    found = jax.jit(
        jax.shard_map(of_device, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    )(*laid_out, rows, segments)
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-5, atol=1e-6)
