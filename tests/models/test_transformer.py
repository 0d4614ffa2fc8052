import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from pinjax.models import attention, transformer

BATCH, LENGTH, WIDTH, HEADS, LAYERS = 3, 5, 8, 2, 3


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((BATCH, LENGTH, WIDTH)).astype(np.float32)
    end = np.array([[4, 4, 4, 4, 4], [-1, -1, 4, 4, 4], [0, 2, 2, -1, 4]], np.int32)
    return x, end


@pytest.fixture(scope="module")
def params(inputs):
    """Random everywhere, since norms and biases that start at one and zero hide mistakes."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(make().init, jax.random.key(0), *inputs)
    return jax.tree.map(
        lambda leaf: (0.5 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes
    )


def make(layers=LAYERS, **kwargs):
    return transformer.Transformer(layers=layers, heads=HEADS, **kwargs)


@functools.cache
def value_and_gradient(model):
    """(params, x, end) -> outputs, and the gradients of a sum of their sines."""

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    def function(params, x, end):
        outputs = model.apply(params, x, end)
        return jnp.sin(outputs).sum(), outputs

    return function


@functools.cache
def forward(model):
    return jax.jit(functools.partial(model.apply, train=False))


def norm(x, params):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * params["scale"] + params["bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def numpy_transformer(params, x, end):
    """In float64, a row and a position at a time."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    outputs = np.array(x, np.float64)
    for user, layer in np.ndindex(len(x), LAYERS):
        block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], params["blocks"])
        v = outputs[user]
        u = v.copy()
        normed = norm(v, block["attention_norm"])
        projection = block["query_key_value"]
        projected = np.einsum("tw,wkhd->kthd", normed, projection["kernel"])
        query, key, value = projected + projection["bias"][:, None]
        for position in range(LENGTH):
            seen = [j for j in range(position + 1) if end[user, j] == end[user, position]]
            for head in range(HEADS):
                logits = key[seen, head] @ query[position, head] / np.sqrt(WIDTH // HEADS)
                weights = np.exp(logits) / np.exp(logits).sum()
                u[position] += weights @ value[seen, head] @ block["attention_out"]["kernel"][head]
        u += block["attention_out"]["bias"]
        normed = norm(u, block["ffn_norm"])
        hidden = gelu(normed @ block["ffn_in"]["kernel"] + block["ffn_in"]["bias"])
        outputs[user] = u + hidden @ block["ffn_out"]["kernel"] + block["ffn_out"]["bias"]
    return norm(outputs, params["norm"])


def test_against_numpy(params, inputs):
    outputs = forward(make())(params, *inputs)
    np.testing.assert_allclose(outputs, numpy_transformer(params, *inputs), rtol=1e-4, atol=1e-4)


def test_hidden_width_of_the_ffn(params):
    assert params["params"]["blocks"]["ffn_in"]["kernel"].shape == (LAYERS, WIDTH, 4 * WIDTH)


def test_remat_changes_neither_values_nor_gradients(params, inputs):
    plain = value_and_gradient(make())(params, *inputs)
    remat = value_and_gradient(make(remat=True))(params, *inputs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), plain, remat)


def test_scan_is_a_loop_over_the_same_parameters(params, inputs):
    block = transformer.Block(HEADS, 0.0, jnp.float32, True, attention.by_xla)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    def loop(params, x, end):
        for layer in range(LAYERS):
            of_layer = jax.tree.map(lambda leaf: leaf[layer], params["params"]["blocks"])  # noqa: B023
            x, _ = block.apply({"params": of_layer}, x, end)
        norm = params["params"]["norm"]
        centred = x - x.mean(-1, keepdims=True)
        x = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)
        outputs = x * norm["scale"] + norm["bias"]
        return jnp.sin(outputs).sum(), outputs

    scanned = value_and_gradient(make())(params, *inputs)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
        scanned,
        loop(params, *inputs),
    )


def test_positions_see_neither_later_ones_nor_other_windows(params, inputs):
    x, end = inputs
    apply = forward(make())
    before = np.asarray(apply(params, x, end))
    changed = np.array([[3], [3], [2]])  # of each row; in the last one, of its second window
    later = x.copy()
    np.put_along_axis(later, changed[..., None], -np.take_along_axis(x, changed[..., None], 1), 1)
    after = np.asarray(apply(params, later, end))
    differ = (np.abs(before - after) > 1e-6).any(axis=-1)
    np.testing.assert_array_equal(differ, [[0, 0, 0, 1, 1], [0, 0, 0, 1, 1], [0, 0, 1, 0, 0]])
    padding = np.where((end < 0)[..., None], -x, x)
    after = np.asarray(apply(params, padding, end))
    np.testing.assert_array_equal(before[end >= 0], after[end >= 0])


def test_bfloat16_is_close_and_keeps_float32_parameters(params, inputs):
    model = make(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}

    outputs = forward(model)(params, *inputs)
    exact = np.asarray(forward(make())(params, *inputs))
    assert outputs.dtype == jnp.bfloat16
    assert np.linalg.norm(np.asarray(outputs, np.float32) - exact) < 0.03 * np.linalg.norm(exact)


def test_dropout_only_while_training(params, inputs):
    model = make(dropout=0.5)

    @jax.jit
    def train(params, x, end, key):
        return model.apply(params, x, end, train=True, rngs={"dropout": key})

    exact = forward(make())(params, *inputs)
    np.testing.assert_array_equal(forward(model)(params, *inputs), exact)
    first, second, again = (train(params, *inputs, jax.random.key(seed)) for seed in (0, 1, 0))
    assert np.abs(first - second).max() > 0.1
    np.testing.assert_array_equal(first, again)


def test_published_size_has_43_million_parameters():
    model = transformer.Transformer(layers=6, heads=8)
    shapes = jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, 4, 768)), jnp.full((1, 4), 3)
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == pytest.approx(42.5e6, rel=0.01)


def test_heads_must_divide_the_width(inputs):
    model = transformer.Transformer(layers=1, heads=3)
    with pytest.raises(ValueError, match=r"^width 8 is not divisible by 3 heads"):
        jax.eval_shape(model.init, jax.random.key(0), *inputs)


@pytest.mark.slow
@pytest.mark.parametrize("alone", [False, True])
def test_on_gpus_it_is_the_same_model(params, inputs, monkeypatch, alone):
    """Tokens as a matrix, layers without a loop; attention by XLA, since there is no GPU."""
    x, end = map(jnp.asarray, inputs)
    if alone:
        end = jnp.array([[4, 4, 4, 4, 4], [2, 2, 2, -1, -1], [0, -1, -1, -1, -1]])
    inside = (end >= 0)[..., None]
    weights = np.random.default_rng(2).standard_normal(x.shape) * inside

    def value_and_gradient():
        def function(params, x):
            outputs = make().apply(params, x, end, alone=alone) * inside
            return (outputs * weights).sum(), outputs

        return jax.jit(jax.grad(function, argnums=(0, 1), has_aux=True))(params, x)

    expected = value_and_gradient()

    def by_cudnn_alone(query, key, value, end):
        return jax.nn.dot_product_attention(query, key, value, is_causal=True)

    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, cuda, **_: cuda(*args))
    monkeypatch.setattr(attention, "has_cudnn", lambda *_: True)
    monkeypatch.setattr(attention, "by_cudnn", attention.by_xla)
    monkeypatch.setattr(attention, "by_cudnn_alone", by_cudnn_alone)
    found = value_and_gradient()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected
    )


def lowered(dtype, platforms, alone=False, **kwargs):
    """A training step's program text for platforms that need not be present."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    model = make(dtype=dtype, mesh=mesh, **kwargs)
    x, end = jnp.zeros((2, 128, 16)), jnp.full((2, 128), 127)
    params = jax.eval_shape(model.init, jax.random.key(0), x, end)

    def function(params, x):
        rngs = {"dropout": jax.random.key(0)}
        outputs = model.apply(params, x, end, train=True, alone=alone, rngs=rngs)
        return outputs.sum().astype(jnp.float32)

    traced = jax.jit(jax.grad(function)).trace(params, x)
    return traced.lower(lowering_platforms=platforms).as_text()


@pytest.mark.parametrize(
    ("remat", "alone"),
    [
        (False, False),
        pytest.param(True, False, marks=pytest.mark.slow),
        pytest.param(False, True, marks=pytest.mark.slow),
    ],
)
def test_each_platform_gets_its_attention(monkeypatch, remat, alone):
    # As on a machine with GPUs.
    monkeypatch.setattr(attention, "has_cudnn", lambda *_: True)
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91_000)
    cudnn = "__cudnn$fmha" + ("" if alone else "ScaleBias") + "SoftmaxBackward"
    kernels = {"tpu": "tpu_custom_call", "cuda": cudnn}
    for platform in ("cpu", "tpu", "cuda"):
        text = lowered(jnp.bfloat16, (platform,), alone, layers=1, remat=remat, dropout=0.1)
        found = {name for name, call in kernels.items() if call in text}
        assert found == {platform} & kernels.keys()


@pytest.mark.slow
def test_without_kernels_one_program_serves_all_platforms(monkeypatch):
    monkeypatch.setattr(attention, "has_cudnn", lambda *_: True)
    text = lowered(jnp.bfloat16, ("cpu", "tpu", "cuda"), kernels=False)
    assert "tpu_custom_call" not in text
    assert "cudnn" not in text


@pytest.mark.slow
def test_gpus_that_are_not_there_are_served_by_xla():
    text = lowered(jnp.bfloat16, ("cuda",))
    assert "cudnn" not in text
    assert "stablehlo.while" not in text  # and layers are not a loop


@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_only_blocks_that_are_recomputed_are_a_loop(remat):
    text = lowered(jnp.float32, ("cpu",), layers=3, remat=remat)
    assert ("stablehlo.while" in text) == remat


def test_attention_may_start_with_larger_outputs():
    x, end = jnp.zeros((1, 64, 32)), jnp.full((1, 64), 63)
    plain, scaled = (
        jax.jit(make(scaled_attention=scaled).init)(jax.random.key(0), x, end)["params"]["blocks"]
        for scaled in (False, True)
    )
    kernels = [blocks.pop("attention_out")["kernel"] for blocks in (plain, scaled)]
    np.testing.assert_allclose(kernels[1], 8 * kernels[0], rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, plain, scaled)


def test_each_layer_begins_with_parameters_of_its_own(inputs):
    blocks = jax.jit(make().init)(jax.random.key(0), *inputs)["params"]["blocks"]
    for kernel in (blocks["query_key_value"]["kernel"], blocks["ffn_in"]["kernel"]):
        assert (kernel[0] != kernel[1]).any()


def test_each_layer_has_dropout_of_its_own(params, inputs):
    """Layers that add 1, or with dropout 0 or 2, to zeros."""
    x, end = inputs
    zeros = jax.tree.map(np.zeros_like, params)["params"]
    zeros["norm"]["scale"] += 1
    zeros["blocks"]["ffn_out"]["bias"] += 1
    model, rngs = make(dropout=0.5), {"dropout": jax.random.key(0)}
    arguments = jax.device_put(({"params": zeros}, 0 * x, end))
    found = model.apply(*arguments, train=True, rngs=rngs)
    assert max(len(np.unique(np.round(row, 4))) for row in np.asarray(found[0])) > 2
