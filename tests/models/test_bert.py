import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinjax.models import bert, searchsage

VOCABULARY, POSITIONS, TYPES, LAYERS, HEADS, WIDTH, FFN, DIM = 11, 7, 2, 3, 2, 8, 12, 5
EPSILON = 1e-3  # large enough to be seen
IDS = np.random.default_rng(0).integers(0, VOCABULARY, (3, 5)).astype(np.int32)
MASK = np.arange(5) < np.array([[5], [3], [1]])


def make(**kwargs):
    sizes = dict(
        vocabulary=VOCABULARY,
        positions=POSITIONS,
        token_types=TYPES,
        layers=LAYERS,
        heads=HEADS,
        width=WIDTH,
        ffn_width=FFN,
        epsilon=EPSILON,
    )
    return bert.Bert(**(sizes | kwargs))


def params_of(model):
    """Random everywhere, since norms and biases that start at one and zero hide mistakes."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IDS, MASK)
    return jax.tree.map(
        lambda leaf: (0.5 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes
    )


@functools.cache
def forward(model):
    return jax.jit(model.apply)


@functools.cache
def value_and_gradient(model):
    """(params, ids, mask) -> gradients of the sum of the sines of real positions, and outputs."""

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def function(params, ids, mask):
        outputs = model.apply(params, ids, mask)
        return jnp.where(mask[..., None], jnp.sin(outputs), 0).sum(), outputs

    return function


def in_float64(params):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)["params"]


def norm(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPSILON)
    return x * params["scale"] + params["bias"]


def gelu(x):
    return x * np.vectorize(lambda value: 0.5 * (1 + math.erf(value / math.sqrt(2))))(x)


def numpy_bert(params, ids, mask):
    """In float64, a text, a head and a position at a time."""
    outputs = np.zeros((*ids.shape, WIDTH))
    for text, tokens in enumerate(ids):
        x = params["token"]["embedding"][tokens] + params["position"][: len(tokens)]
        if "token_type" in params:
            x += params["token_type"][0]
        x = norm(x, params["norm"])
        for layer in range(LAYERS):
            block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"])
            projection = block["query_key_value"]
            projected = np.einsum("tw,wkhd->kthd", x, projection["kernel"])
            query, key, value = projected + projection["bias"][:, None]
            mixed = np.zeros_like(x) + block["attention_out"]["bias"]
            for position, head in np.ndindex(len(tokens), HEADS):
                logits = key[mask[text], head] @ query[position, head] / math.sqrt(WIDTH // HEADS)
                weights = np.exp(logits) / np.exp(logits).sum()
                mean = weights @ value[mask[text], head]
                mixed[position] += mean @ block["attention_out"]["kernel"][head]
            x = norm(x + mixed, block["attention_norm"])
            hidden = gelu(x @ block["ffn_in"]["kernel"] + block["ffn_in"]["bias"])
            hidden = hidden @ block["ffn_out"]["kernel"] + block["ffn_out"]["bias"]
            x = norm(x + hidden, block["ffn_norm"])
        outputs[text] = x
    return outputs


@pytest.mark.parametrize("token_types", [TYPES, 0])
def test_against_numpy(token_types):
    model = make(token_types=token_types)
    params = params_of(model)
    assert ("token_type" in params["params"]) == bool(token_types)
    expected = numpy_bert(in_float64(params), IDS, MASK)
    np.testing.assert_allclose(forward(model)(params, IDS, MASK), expected, rtol=1e-4, atol=1e-5)


def test_gradient_along_random_directions(rng):
    params = params_of(make())
    gradient, _ = value_and_gradient(make())(params, IDS, MASK)
    gradient, exact = in_float64(gradient), in_float64(params)
    assert not gradient["token_type"][1].any()

    def loss(step, direction):
        moved = jax.tree.map(lambda leaf, towards: leaf + step * towards, exact, direction)
        return np.sin(numpy_bert(moved, IDS, MASK))[MASK].sum()

    for part in exact:  # one by one, so that none hides behind a larger one
        direction = jax.tree.map(np.zeros_like, exact)
        direction[part] = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), exact[part])
        difference = (loss(1e-5, direction) - loss(-1e-5, direction)) / 2e-5
        products = jax.tree.map(lambda a, b: (a * b).sum(), gradient[part], direction[part])
        np.testing.assert_allclose(sum(jax.tree.leaves(products)), difference, rtol=1e-3, atol=1e-3)


def test_padding_has_no_influence(rng):
    params = params_of(make())
    gradient, before = value_and_gradient(make())(params, IDS, MASK)
    others = np.where(MASK, IDS, rng.integers(0, VOCABULARY, IDS.shape)).astype(np.int32)
    gradient_after, after = value_and_gradient(make())(params, others, MASK)
    np.testing.assert_array_equal(np.asarray(before)[MASK], np.asarray(after)[MASK])
    assert (others != IDS).any()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        gradient,
        gradient_after,
    )
    # Neither has the amount of it.
    longer = np.pad(IDS, ((0, 0), (0, 2))), np.pad(MASK, ((0, 0), (0, 2)))
    after = np.asarray(forward(make())(params, *longer))[:, :5]
    np.testing.assert_allclose(after[MASK], np.asarray(before)[MASK], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("capacity", [9, 12, 15])  # all tokens, more, and cells of padding, too
def test_without_padding_it_is_the_same(rng, capacity):
    """Also for a text without a token, and its gradient."""
    params, mask = params_of(make()), np.concatenate([MASK[:2], np.zeros((1, 5), bool), MASK[2:]])
    ids = rng.integers(0, VOCABULARY, mask.shape).astype(np.int32)
    back = np.where(mask[..., None], rng.standard_normal((*mask.shape, WIDTH)), 0)

    def gradient(capacity):
        def function(params):
            outputs = make().apply(params, *map(jnp.asarray, (ids, mask)), capacity=capacity)
            return (outputs * back).sum(), outputs

        return jax.jit(jax.grad(function, has_aux=True))(params)

    (expected, padded), (found, outputs) = gradient(None), gradient(capacity)
    np.testing.assert_allclose(outputs[mask], padded[mask], rtol=1e-5, atol=1e-5)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, found, expected)


def test_more_tokens_than_its_capacity_are_nan():
    texts = map(jnp.asarray, (IDS, MASK))
    outputs = make().apply(params_of(make()), *texts, capacity=int(MASK.sum()) - 1)
    assert np.isnan(outputs).all()


def test_a_text_of_padding_alone_is_finite():
    nothing = np.zeros_like(MASK)
    gradient, outputs = value_and_gradient(make())(params_of(make()), IDS, nothing)
    assert np.isfinite(outputs).all()
    assert not any(leaf.any() for leaf in jax.tree.leaves(jax.tree.map(np.asarray, gradient)))


def test_bfloat16_is_close_and_keeps_float32_parameters():
    model = make(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(model.init, jax.random.key(0), IDS, MASK)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}

    params = params_of(make())
    outputs = forward(model)(params, IDS, MASK)
    exact = np.asarray(forward(make())(params, IDS, MASK))
    assert outputs.dtype == jnp.bfloat16
    assert np.linalg.norm(np.asarray(outputs, np.float32) - exact) < 0.03 * np.linalg.norm(exact)


def test_bert_base_has_109_million_parameters():
    sizes = dict(vocabulary=30_522, positions=512, layers=12, heads=12, width=768, ffn_width=3072)
    shapes = jax.eval_shape(make(**sizes).init, jax.random.key(0), IDS, MASK)
    # 109,482,240 as published, less the pooler of 768 * 769.
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 109_482_240 - 768 * 769


def test_query_tower_is_a_unit_vector_of_the_first_position():
    model = searchsage.BertTower(make(), dim=DIM)
    params = params_of(model)
    exact = in_float64(params)
    expected = numpy_bert(exact["encoder"], IDS, MASK)[:, 0]
    expected = expected @ exact["out"]["kernel"] + exact["out"]["bias"]
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    outputs = forward(model)(params, IDS, MASK)
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)

    low = forward(searchsage.BertTower(make(dtype=jnp.bfloat16), dim=DIM))(params, IDS, MASK)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(low, axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(low, expected, atol=0.05)


def test_refusals():
    with pytest.raises(ValueError, match=r"^texts of 5 tokens, expected at most 4"):
        params_of(make(positions=4))
    with pytest.raises(ValueError, match=r"^width 8 is not divisible by 3 heads"):
        params_of(make(heads=3))


def test_each_layer_begins_with_parameters_of_its_own():
    blocks = jax.jit(make().init)(jax.random.key(0), IDS, MASK)["params"]["blocks"]
    for kernel in (blocks["query_key_value"]["kernel"], blocks["ffn_in"]["kernel"]):
        assert (kernel[0] != kernel[1]).any()
        assert 0.01 < kernel.std() < 0.03
