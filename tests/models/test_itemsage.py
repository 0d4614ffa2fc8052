import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinjax.models import hash_embedding, itemsage, transformer

PRODUCTS, IMAGE_DIM, NUM_TOKENS, BUCKETS = 6, 5, 30, 8
IMAGE_SLOTS = 4
TEXT_FEATURES = (("title", "words"), ("brand", "name"), ("shop", "name"))


def make(**kwargs):
    features = dict(image_slots=IMAGE_SLOTS, text_features=TEXT_FEATURES)
    tokens = dict(num_tokens=NUM_TOKENS, token_buckets=BUCKETS, token_dim=4)
    size = dict(width=8, embedding_dim=6, layers=1, heads=2)
    return itemsage.ItemSage(**(features | tokens | size | kwargs))


MODELS = {
    "transformer": make(),
    "two layers": make(layers=2),
    "only titles": make(image_slots=0, text_features=(("title", "words"),)),
    "one image": make(image_slots=1, text_features=()),
    "sum": make(encoder="sum"),
    "sum_mlp": make(encoder="sum_mlp"),
    "mlp_concat_mlp": make(encoder="mlp_concat_mlp"),
    "residual": make(residual=True, embedding_dim=IMAGE_DIM),
}
ENCODERS = tuple(name for name in MODELS if name in itemsage.ENCODERS)


def inputs_of(model, rng):
    """Random products: the first without images, the second without texts, the third without both.

    Some tokens at the end are padding.
    """
    images = image_mask = tokens = segments = None
    if model.image_slots:
        shape = PRODUCTS, model.image_slots
        images = rng.standard_normal((*shape, IMAGE_DIM)).astype(np.float32)
        image_mask = rng.random(shape) < 0.7
        image_mask[[0, 2]] = False
        image_mask[-1] = True
    if model.text_features:
        by_product = np.arange(PRODUCTS * len(model.text_features)).reshape(PRODUCTS, -1)
        segments = rng.choice(np.delete(by_product, [1, 2], axis=0).ravel(), 17)
        segments = np.append(np.sort(segments), [by_product.size] * 3).astype(np.int32)
        tokens = rng.integers(0, NUM_TOKENS, len(segments)).astype(np.int32)
    return images, image_mask, tokens, segments


@functools.cache
def params_of(model):
    """Random everywhere, since norms and biases that start at one and zero hide mistakes."""
    rng = np.random.default_rng(0)
    init = functools.partial(model.init, num_products=PRODUCTS)
    shapes = jax.eval_shape(init, jax.random.key(0), *inputs_of(model, rng))
    return jax.tree.map(
        lambda leaf: (0.5 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes
    )


def weights(model):
    return (
        np.random.default_rng(1).standard_normal((PRODUCTS, model.embedding_dim)).astype(np.float32)
    )


@functools.cache
def gradients_of(model):
    """(params, *inputs) -> gradients to params and images of the weighted sum, and embeddings."""

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    def function(params, images, image_mask, tokens, segments):
        embeddings = model.apply(params, images, image_mask, tokens, segments, PRODUCTS)
        return (embeddings * weights(model)).sum(), embeddings

    return function


def embed(model, inputs):
    return np.asarray(gradients_of(model)(params_of(model), *inputs)[1])


def norm(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * params["scale"] + params["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def dense(x, params):
    return x @ params["kernel"] + params["bias"]


def mlp(x, params):
    return dense(gelu(dense(x, params["hidden"])), params["out"])


def full_block(x, params, heads):
    """`transformer.Block` on (positions, width) without a mask, a head at a time."""
    y = norm(x, params["attention_norm"])
    projection, out = params["query_key_value"], params["attention_out"]
    for head in range(heads):
        query, key, value = (
            y @ projection["kernel"][:, i, head] + projection["bias"][i, head] for i in range(3)
        )
        softmax = np.exp(query @ key.T / np.sqrt(query.shape[1]))
        softmax /= softmax.sum(axis=1, keepdims=True)
        x = x + softmax @ value @ out["kernel"][head]
    x = x + out["bias"]
    y = norm(x, params["ffn_norm"])
    return x + dense(gelu(dense(y, params["ffn_in"])), params["ffn_out"])


def as_full_block(last):
    """Parameters of `LastBlock` as a `transformer.Block`'s, with a random bias of the keys."""
    own = ("query", "key", "value", "value_bias")
    kernels = last["query"]["kernel"], last["key"], last["value"]
    biases = last["query"]["bias"], np.ones_like(last["value_bias"]), last["value_bias"]
    projection = {"kernel": np.stack(kernels, axis=1), "bias": np.stack(biases)}
    rest = {name: x for name, x in last.items() if name not in own}
    return rest | {"query_key_value": projection}


def oracle(model, params, images, image_mask, tokens, segments):
    """Embeddings in float64, a product and a slot at a time; empty slots are left out."""
    params = params["params"]
    if tokens is not None:
        rows = np.asarray(hash_embedding.hash_ids(jnp.asarray(tokens)) % BUCKETS)
        table, importance = params["text"]["embedding"], params["text"]["importance"]
        by_token = np.einsum("th,thd->td", importance[tokens], table[rows]) * 4**0.5
    embeddings = []
    for product in range(PRODUCTS):
        slots = []  # the map of each, and its vector or None
        for slot in range(model.image_slots):
            image = images[product, slot]
            vector = image / np.sqrt(np.square(image).mean())
            slots.append(("image_image", vector if image_mask[product, slot] else None))
        for text, (_, group) in enumerate(model.text_features):
            inside = segments == product * len(model.text_features) + text
            vector = by_token[inside].sum(axis=0) if inside.any() else None
            slots.append((f"text_{group}", vector))
        filled = [(params[name], vector) for name, vector in slots if vector is not None]

        if model.encoder == "transformer":
            x = np.stack([params["cls"], *(dense(vector, of_map) for of_map, vector in filled)])
            for layer in range(model.layers - 1):
                x = full_block(x, params[f"block_{layer}"], model.heads)
            last = as_full_block(params[f"block_{model.layers - 1}"])
            x = mlp(norm(full_block(x, last, model.heads)[0], params["norm"]), params["head"])
        elif model.encoder == "mlp_concat_mlp":
            zero = np.zeros(model.embedding_dim)
            parts = [zero if v is None else mlp(v, params[name]) for name, v in slots]
            x = mlp(np.concatenate(parts), params["head"])
        else:
            zero = np.zeros(model.embedding_dim if model.encoder == "sum" else model.width)
            x = sum((dense(vector, of_map) for of_map, vector in filled), zero)
            x = mlp(x, params["head"]) if model.encoder == "sum_mlp" else x
        if model.residual:
            units = images[product] / np.linalg.norm(images[product], axis=1, keepdims=True)
            mean = units[image_mask[product]].sum(axis=0)
            gain = params["gain"] if mean.any() else 1
            x = mean / max(np.linalg.norm(mean), 1e-6) + gain * x
        embeddings.append(x / np.sqrt(max(np.square(x).sum(), 1e-12)))
    return np.stack(embeddings)


@pytest.mark.parametrize("name", MODELS)
def test_against_numpy(rng, name):
    model = MODELS[name]
    images, *rest = inputs_of(model, rng)
    params = params_of(model)
    gradients, embeddings = gradients_of(model)(params, images, *rest)

    point = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, images))
    expected = oracle(model, *point, *rest)
    assert embeddings.dtype == jnp.float32
    np.testing.assert_allclose(embeddings, expected, rtol=1e-4, atol=1e-5)

    def loss(step, direction):
        moved = jax.tree.map(lambda x, y: x + step * y, point, direction)
        return (oracle(model, *moved, *rest) * weights(model)).sum()

    for _ in range(3):
        direction = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), point)
        slope = (loss(1e-6, direction) - loss(-1e-6, direction)) / 2e-6
        terms = jax.tree.map(lambda x, y: (np.float64(x) * y).sum(), gradients, direction)
        total = sum(jax.tree.leaves(terms))
        scale = np.sqrt(sum(np.square(x).sum() for x in jax.tree.leaves(gradients)))
        assert abs(slope - total) < 1e-4 * scale


def test_last_block_is_a_full_one_at_the_first_position(rng):
    x = rng.standard_normal((3, 5, 8)).astype(np.float32)
    mask = jnp.array([[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [1, 0, 0, 0, 0]], bool)
    visible = jnp.broadcast_to(mask[:, None, None], (3, 1, 5, 5))
    last = itemsage.LastBlock(heads=2, dtype=jnp.float32)
    full = transformer.Block(2, 0.0, jnp.float32, deterministic=True)
    params = params_of(MODELS["transformer"])["params"]["block_0"]

    @jax.jit
    def both(x):
        def of_last(x):
            y = last.apply({"params": params}, x, mask)
            return jnp.sin(y).sum(), y

        def of_full(x):
            y = full.apply({"params": as_full_block(params)}, x, visible)[0][:, 0]
            return jnp.sin(y).sum(), y

        return [jax.grad(function, has_aux=True)(x) for function in (of_last, of_full)]

    found, expected = both(x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )


@pytest.mark.parametrize("name", ENCODERS)
def test_what_is_empty_has_no_influence(rng, name):
    model = MODELS[name]
    images, image_mask, tokens, segments = inputs_of(model, rng)
    before = gradients_of(model)(params_of(model), images, image_mask, tokens, segments)
    images[~image_mask] = rng.choice([np.nan, np.inf, -3e38, 1.0], ((~image_mask).sum(), IMAGE_DIM))
    tokens[-3:] = [-1, NUM_TOKENS - 1, 2]
    after = gradients_of(model)(params_of(model), images, image_mask, tokens, segments)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert (np.asarray(after[0][1])[~image_mask] == 0).all()


@pytest.mark.parametrize("name", ENCODERS)
def test_order_and_scale_of_images_and_order_of_texts(rng, name):
    model = MODELS[name]
    images, image_mask, tokens, segments = inputs_of(model, rng)
    embeddings = embed(model, (images, image_mask, tokens, segments))

    scaled = embed(model, (images * 100, image_mask, tokens, segments))
    np.testing.assert_allclose(scaled, embeddings, rtol=1e-3, atol=1e-5)

    order = [0, 3, 1, 2]  # of the slots of one group
    permuted = embed(model, (images[:, order], image_mask[:, order], tokens, segments))
    moved = np.abs(permuted - embeddings).max(axis=1)
    if name == "mlp_concat_mlp":
        assert moved[-1] > 1e-2
    else:
        assert moved.max() < 1e-5

    title, brand = segments % 3 == 0, segments % 3 == 1
    swapped = segments + np.where(segments < 3 * PRODUCTS, title * 1 - brand * 1, 0)
    by_segment = np.argsort(swapped, kind="stable")
    swapped = swapped[by_segment].astype(np.int32)
    moved = embed(model, (images, image_mask, tokens[by_segment], swapped)) - embeddings
    has_one = np.isin(np.arange(PRODUCTS), segments[title | brand] // 3)
    np.testing.assert_array_equal(np.abs(moved).max(axis=1) > 1e-3, has_one)


@pytest.mark.parametrize("name", ENCODERS)
def test_bfloat16_is_close(rng, name):
    model = MODELS[name]
    images, *rest = inputs_of(model, rng)
    exact = embed(model, (images, *rest))
    rounded = make(encoder=name, dtype=jnp.bfloat16)
    shapes = params_of(rounded)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype("float32")}
    inputs = jnp.asarray(images, jnp.bfloat16), *rest
    embeddings = jax.jit(rounded.apply)(params_of(model), *inputs)
    assert embeddings.dtype == jnp.float32
    cosines = (exact * np.asarray(embeddings)).sum(axis=1)
    known = np.linalg.norm(exact, axis=1) > 0.5  # Sum has no input for the third product
    assert cosines[known].min() > 0.999


BOTH = inputs_of(make(), np.random.default_rng(0))
NO_IMAGES, NO_TEXTS = (None, None, *BOTH[2:]), (*BOTH[:2], None, None)


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (make(encoder="mean"), BOTH, r"unknown encoder 'mean', expected one of \("),
        (make(layers=0), BOTH, "0 layers of width 8 and 2 heads, expected at least 1"),
        (make(heads=3), BOTH, "1 layers of width 8 and 3 heads, expected .* divide the width"),
        (make(image_slots=0, text_features=()), BOTH, "neither image slots nor text features"),
        (make(), NO_IMAGES, "4 image slots and 0 of their 2 arrays, expected both"),
        (make(), (BOTH[0], None, *BOTH[2:]), "4 image slots and 1 of their 2 arrays"),
        (make(), NO_TEXTS, "3 text features and 0 of their 2 arrays"),
        (make(text_features=()), BOTH, "0 text features and 2 of their 2 arrays"),
        (make(image_slots=0), NO_IMAGES, "without images, num_products says"),
        (make(residual=True), BOTH, "a residual of images of 5 numbers, expected 6"),
        (make(residual=True, image_slots=0), NO_IMAGES, "a residual of no images, expected 6"),
        (MODELS["one image"], NO_TEXTS, "4 images a product, expected 1"),
    ],
)
def test_wrong_combinations(model, inputs, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        jax.eval_shape(model.init, jax.random.key(0), *inputs)


def test_with_a_residual_products_begin_as_their_images(rng):
    model = MODELS["residual"]
    inputs = inputs_of(model, rng)
    found, _ = model.init_with_output(jax.random.key(0), *jax.device_put(inputs), PRODUCTS)
    images, mask = inputs[:2]
    mean = (images / np.linalg.norm(images, axis=-1, keepdims=True) * mask[..., None]).sum(axis=1)
    shown = mask.any(axis=1)
    expected = mean[shown] / np.linalg.norm(mean[shown], axis=1, keepdims=True)
    np.testing.assert_allclose(found[shown], expected, atol=1e-5)
