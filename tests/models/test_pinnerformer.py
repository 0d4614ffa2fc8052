import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinjax.data import packing
from pinjax.models import (
    features,
    history_sums,
    item_input,
    pinnerformer,
    residual_mlp,
    transformer,
)

LENGTH, NUM_ITEMS = 6, 20
CHANGES = {"item": 5, "action": 1, "surface": 1, "duration": 7.5, "time": 3_000}


def make(**kwargs):
    defaults = dict(num_items=NUM_ITEMS, num_actions=4, num_surfaces=3, length=LENGTH)
    size = dict(layers=1, width=16, heads=2, embedding_dim=8, pin_hidden=12, id_dim=4)
    return pinnerformer.PinnerFormer(**(defaults | size | kwargs))


@pytest.fixture(scope="module")
def catalogue():
    content = np.random.default_rng(0).standard_normal((NUM_ITEMS, 5))
    return item_input.ItemFeatures(jnp.asarray(content, jnp.float32))


@pytest.fixture(scope="module")
def history():
    """Two users of this century, the second with two actions of padding."""
    rng = np.random.default_rng(1)
    gaps = rng.integers(10_000, 1_000_000, (2, LENGTH))
    history = {
        "item": rng.integers(0, 10, (2, LENGTH)).astype(np.int32),
        "action": rng.integers(1, 3, (2, LENGTH)).astype(np.uint8),
        "surface": np.ones((2, LENGTH), np.uint16),
        "duration": rng.exponential(20, (2, LENGTH)).astype(np.float32),
        "time": (1_700_000_000 + gaps.cumsum(axis=1)).astype(np.uint32),
    }
    history["request_time"] = history["time"] + np.uint32(1_000)
    history["item"][1, :2] = -1
    for name in ("action", "surface", "duration", "time"):
        history[name][1, :2] = 0
    return alone(history)


def alone(history):
    """Histories with one row each, before which there may be padding."""
    last = history["item"].shape[1] - 1
    end = np.where(history["item"] >= 0, last, -1)
    end[:, -1] = last  # also without actions
    return {**history, "end": end.astype(np.int32)}


@functools.cache
def params_of(model):
    """Random parameters, drawn here, since compiling an `init` takes longer than the tests."""
    rng = np.random.default_rng(2)
    fields = {"item": "i4", "action": "u1", "surface": "u2", "duration": "f4"}
    fields |= {"time": "u4", "request_time": "u4", "end": "i4"}
    history = {name: jax.ShapeDtypeStruct((1, LENGTH), dtype) for name, dtype in fields.items()}
    catalogue = item_input.ItemFeatures(jax.ShapeDtypeStruct((NUM_ITEMS, 5), jnp.float32))
    shapes = jax.eval_shape(model.init, jax.random.key(0), catalogue, history)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), leaf.dtype), shapes
    )


@functools.cache
def users_of(model):
    return jax.jit(functools.partial(model.apply, method="users"))


def users(model, catalogue, history, params=None):
    return np.asarray(users_of(model)(params or params_of(model), catalogue, history))


def periodic(phases, seconds, periods):
    """`features.TimeEncoding` in float64."""
    angles = 2 * np.pi * (seconds[..., None] / np.array(periods))
    cosines, sines = np.cos(angles + phases[0]), np.sin(angles + phases[1])
    return np.concatenate([cosines, sines, np.log1p(seconds)[..., None] / 4], axis=-1)


def embedded(table, rows):
    """Rows of a vocabulary; "unknown", and what is not in it, is zero."""
    known = (rows > 0) & (rows < len(table))
    return np.where(known[..., None], table[np.where(known, rows, 0)], 0)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


BLOCKS = jax.jit(transformer.Transformer(layers=1, heads=2).apply)


def in_numpy(params, content, history):
    """All user embeddings in float64, except for the transformer's own blocks."""
    tower = params["user_tower"]
    item, end = history["item"], history["end"]
    time, requested = (history[name].astype(float) for name in ("time", "request_time"))
    learned = params["item_input"]["id"]["embedding"]
    items = [unit(np.asarray(content, float)) * 5**0.5, learned * 4**0.5]
    items = np.where(item[..., None] >= 0, np.concatenate(items, axis=-1)[item], 0)
    same = np.concatenate([np.zeros((2, 1), bool), end[:, 1:] == end[:, :-1]], axis=1)
    gap = np.where(same, np.diff(time, axis=1, prepend=0), 0)
    age = np.where(item >= 0, time[:, -1:] - time, 0)
    x = [
        items,
        embedded(tower["action"]["embedding"], history["action"]),
        embedded(tower["surface"]["embedding"], history["surface"]),
        np.log1p(history["duration"].astype(float))[..., None] / 16,
        periodic(tower["time"]["phases"], time, features.ABSOLUTE_PERIODS),
        periodic(tower["age"]["phases"], age, features.RELATIVE_PERIODS),
        periodic(tower["gap"]["phases"], gap, features.RELATIVE_PERIODS),
    ]
    x = np.concatenate(x, axis=-1) @ tower["projection"]["kernel"] + tower["projection"]["bias"]
    x = x + tower["positions"]
    single = [jnp.asarray(x, jnp.float32), jnp.asarray(end)]
    blocks = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tower["transformer"])
    out = BLOCKS({"params": blocks}, *single)
    asked = [
        periodic(tower["request_time"]["absolute"]["phases"], requested, features.ABSOLUTE_PERIODS),
        periodic(
            tower["request_time"]["since"]["phases"], requested - time, features.RELATIVE_PERIODS
        ),
    ]
    hidden, last = tower["head"]["hidden"], tower["head"]["out"]
    x = np.concatenate([out, *asked], axis=-1) @ hidden["kernel"] + hidden["bias"]
    x = x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
    return unit(x @ last["kernel"] + last["bias"])


def test_users_are_the_formula_with_its_gradient(catalogue, history, rng):
    """Along a random direction; some categories are unknown or not in the vocabulary."""
    history = {name: values.copy() for name, values in history.items()}
    history["action"][0, :3], history["surface"][0, 2:5] = (0, 3, 9), (0, 2, 7)
    history["request_time"] += rng.integers(0, 90_000, (2, LENGTH)).astype(np.uint32)
    model = make(features=pinnerformer.FEATURES)
    params = params_of(model)
    point = jax.tree.map(lambda leaf: np.asarray(leaf, float), params["params"])
    there = history["item"] >= 0
    found = users(model, catalogue, history)
    np.testing.assert_allclose(
        found[there], in_numpy(point, catalogue.content, history)[there], atol=2e-5
    )

    back = np.where(there[..., None], rng.standard_normal(found.shape), 0)
    direction = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), point)

    @jax.jit
    @jax.grad
    def gradient(params, history):
        return (model.apply(params, catalogue, history, method="users") * back).sum()

    def loss(step):
        moved = jax.tree.map(lambda x, y: x + step * y, point, direction)
        return (in_numpy(moved, catalogue.content, history) * back).sum()

    products = jax.tree.map(np.vdot, gradient(params, history)["params"], direction)
    expected = (loss(1e-3) - loss(-1e-3)) / 2e-3
    assert sum(jax.tree.leaves(products)) == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("history_sums", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_causality(catalogue, history, name, history_sums):
    first = {field: values[:1] for field, values in history.items()}
    # Row j of the batch: action j changed; the last row: none changed.
    rows = {field: np.repeat(values, LENGTH + 1, axis=0) for field, values in first.items()}
    rows[name][np.arange(LENGTH), np.arange(LENGTH)] += CHANGES[name]
    outputs = users(make(history_sums=history_sums), catalogue, rows)
    changed = (np.abs(outputs[:-1] - outputs[-1]) > 1e-6).any(axis=-1)
    expected = np.tri(LENGTH, dtype=bool).T  # of action j, at positions j and later
    if name == "time":
        expected[-1] = True  # ages are counted from the last action
    np.testing.assert_array_equal(changed, expected)


def test_only_the_embedding_at_an_action_depends_on_its_request_time(catalogue, history):
    later = {**history, "request_time": history["request_time"].copy()}
    later["request_time"][0, 3] += 50_000
    model = make(features=pinnerformer.FEATURES)
    changed = np.abs(users(model, catalogue, later) - users(model, catalogue, history)) > 1e-6
    expected = np.zeros((2, LENGTH), bool)
    expected[0, 3] = True
    np.testing.assert_array_equal(changed.any(axis=-1), expected)
    same = users(make(), catalogue, later)
    np.testing.assert_array_equal(same, users(make(), catalogue, history))


def test_positions_are_those_of_the_full_history(catalogue, history):
    model = make(features=pinnerformer.FEATURES, history_sums=True)
    outputs = users(model, catalogue, history)
    positions = jnp.array([[4, 0], [2 * LENGTH - 1, LENGTH + 4]])
    some = users_of(model)(params_of(model), catalogue, history, positions)
    np.testing.assert_allclose(some, np.stack([outputs[0, [4, 0]], outputs[1, [-1, 4]]]), atol=1e-6)


@pytest.mark.parametrize("history_sums", [pytest.param(False, marks=pytest.mark.slow), True])
def test_users_who_share_a_row_are_embedded_as_alone(catalogue, history, rng, history_sums):
    """Windows of 1 to all cells and of no action, in any order, with gradients."""
    number = 12
    length = rng.integers(0, LENGTH + 1, number)
    length[:4] = 0, 1, LENGTH, LENGTH - 1
    inside = np.arange(LENGTH) >= LENGTH - length[:, None]
    windows = {
        name: np.where(inside, values[rng.integers(0, 2, number)], 0).astype(values.dtype)
        for name, values in history.items()
        if name != "end"
    }
    windows["item"] = np.where(inside, rng.integers(0, NUM_ITEMS, inside.shape), -1)
    windows["item"] = windows["item"].astype(np.int32)
    layout = packing.layout_for(np.maximum(length, 1)[None], 1, LENGTH)
    assert layout.rows < number - 2
    ((packed, places),) = packing.batches([windows], layout)
    assert places.tolist() == list(range(number))
    model = make(features=pinnerformer.FEATURES, history_sums=history_sums)
    back = rng.standard_normal((number, 1, 8)).astype(np.float32)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(params, history, positions):
        outputs = model.apply(params, catalogue, history, positions, method="users")
        return (outputs * back).sum(), outputs

    padded = alone(windows)
    last = LENGTH * np.arange(1, number + 1)[:, None] - 1
    expected = gradient(params_of(model), padded, last)
    found = gradient(params_of(model), packed, packed["position"])
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("history_sums", [False, True])
def test_padding_has_no_influence(catalogue, history, history_sums):
    model = make(history_sums=history_sums)
    outputs = users(model, catalogue, history)

    padding = {field: values.copy() for field, values in history.items()}
    for name in ("action", "surface", "duration", "time"):
        padding[name][1, :2] += CHANGES[name]
    np.testing.assert_array_equal(users(model, catalogue, padding)[1, 2:], outputs[1, 2:])

    # Positions are counted from the last action, so a shorter array is the same history.
    short = alone({field: values[1:, 2:] for field, values in history.items()})
    np.testing.assert_allclose(users(model, catalogue, short)[0], outputs[1, 2:], atol=1e-5)


def test_user_without_actions_has_an_embedding_of_no_one_else(catalogue, history):
    nobody = {field: np.zeros_like(values) for field, values in history.items()}
    nobody["item"][:] = -1
    nobody["item"][1, -1] = 3
    outputs = users(make(), catalogue, alone(nobody))
    np.testing.assert_allclose(np.linalg.norm(outputs, axis=-1), 1, rtol=1e-5)
    assert np.abs(outputs[0, -1] - outputs[1, -1]).max() > 1e-3


def test_both_towers_give_unit_vectors_in_float32(catalogue, history):
    model = make(dtype=jnp.bfloat16)
    rows = jnp.arange(NUM_ITEMS).reshape(4, 5)
    items = model.apply(params_of(model), catalogue, rows, method="items")
    outputs = users(model, catalogue, history)
    for embeddings, shape in ((outputs, (2, 6, 8)), (items, (4, 5, 8))):
        assert embeddings.shape == shape
        assert embeddings.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(embeddings, axis=-1), 1, rtol=1e-5)


def test_bfloat16_is_close(catalogue, history):
    params = params_of(make())
    exact = users(make(), catalogue, history)
    rounded = users(make(dtype=jnp.bfloat16), catalogue, history, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert (exact * rounded).sum(axis=-1).min() > 0.999


def test_features_left_out_are_not_seen(catalogue, history):
    first = {field: values[:1] for field, values in history.items()}
    changed = {
        field: values + np.asarray(CHANGES.get(field, 0) * (field != "item"), values.dtype)
        for field, values in first.items()
    }
    both = {field: np.concatenate([first[field], changed[field]]) for field in first}
    outputs = users(make(features=("item",)), catalogue, both)
    np.testing.assert_array_equal(outputs[0], outputs[1])


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("item", 5 + 4), ("action", 16), ("surface", 16), ("duration", 1), ("time", 23 + 65 + 65)],
)
def test_numbers_that_make_a_feature(name, numbers):
    tower = params_of(make(features=(name,)))["params"]["user_tower"]
    assert tower["projection"]["kernel"].shape == (numbers, 16)


def test_learned_positions():
    without = params_of(make(positions=False))["params"]["user_tower"]
    assert "positions" not in without
    assert params_of(make())["params"]["user_tower"]["positions"].shape == (LENGTH, 16)


@pytest.mark.parametrize("name", ["users", "items"])
def test_an_item_has_the_last_popularity_before_its_time(catalogue, history, rng, name):
    """The same as in a catalogue with an item for each pair of item and time."""
    popularity = rng.standard_normal((NUM_ITEMS, 3)).astype(np.float32)
    times = history["time"][0, [1, 3, 5]] + np.uint32([0, 5, 0])

    def before(now):
        return np.array([[sum(times < time) for time in row] for row in now])

    # Of each item one without popularity and three with each of them.
    known = np.concatenate([np.zeros((NUM_ITEMS, 1)), popularity], axis=1).reshape(-1, 1)
    pairs = item_input.ItemFeatures(
        content=jnp.concatenate([jnp.repeat(catalogue.content, 4, axis=0), known], axis=1),
        popularity_times=jnp.ones(1, jnp.uint32),  # before all times
    )
    catalogue = item_input.ItemFeatures(
        content=jnp.concatenate([catalogue.content, popularity], axis=1),
        popularity_times=jnp.asarray(times),
    )
    model = make(num_items=4 * NUM_ITEMS, id_dim=0)
    init = jax.jit(functools.partial(model.init, jax.random.key(0)))
    params = init(pairs, jax.device_put(history))
    rows, now = history["item"], history["time"]
    paired = np.where(rows < 0, -1, 4 * rows + before(now)).astype(np.int32)
    assert set(np.unique(before(now))) == {0, 1, 2, 3}
    apply = functools.partial(model.apply, params, method=name)
    if name == "users":
        found = apply(catalogue, jax.device_put(history))
        expected = apply(pairs, jax.device_put({**history, "item": paired}))
        np.testing.assert_allclose(found, expected, atol=1e-5)
        return
    expected = apply(pairs, jnp.asarray(paired))[rows >= 0]
    found = apply(catalogue, jnp.asarray(rows), jnp.asarray(now))[rows >= 0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    current = apply(catalogue, jnp.arange(4))
    expected = apply(pairs, 4 * jnp.arange(4) + 3)
    np.testing.assert_allclose(current, expected, atol=1e-5)


def test_towers_share_the_learned_vectors(catalogue, history):
    model = make()
    before = params_of(model)["params"]
    item = int(history["item"][0, -1])
    table = before["item_input"]["id"]["embedding"].at[item].add(1)
    after = before | {"item_input": {"id": {"embedding": table}}}
    items = [
        model.apply({"params": params}, catalogue, jnp.array([item]), method="items")
        for params in (before, after)
    ]
    outputs = [
        users(model, catalogue, history, {"params": params})[0, -1] for params in (before, after)
    ]
    assert np.abs(items[0] - items[1]).max() > 1e-3
    assert np.abs(outputs[0] - outputs[1]).max() > 1e-3


def test_user_embedding_is_what_was_liked_and_what_the_head_makes_of_sums(catalogue, history):
    model = make(history_sums=True, gated_layers=1)
    params = jax.tree.map(lambda leaf: leaf, params_of(model))
    head = params["params"]["user_tower"]["head"]
    head["gate"] = jax.tree.map(jnp.zeros_like, head["gate"])  # 1/2 of everything
    hidden = head["mlp"]["hidden"]["kernel"]
    other = model.width + model.embedding_dim  # the transformer's output and what was liked,
    head["mlp"]["hidden"]["kernel"] = hidden.at[:other].set(0)  # which the MLP ignores here
    rows = jnp.asarray(history["item"])
    items = model.apply(params, catalogue, rows, method="items")
    inputs = model.apply(params, catalogue, rows, method=lambda model, *x: model.item_input(*x))
    halves = jnp.where(rows >= 0, 0.5, 0)
    time = jnp.asarray(history["time"])
    everywhere = jnp.arange(2 * LENGTH).reshape(2, LENGTH)
    windows = {"time": time, "end": jnp.asarray(history["end"])}
    liked = history_sums.Liked().apply(
        {"params": head["liked"]}, items, halves, windows, everywhere
    )
    sums = history_sums.sums_until(inputs, halves, windows["end"], everywhere)
    seen = jnp.pad(2 * sums, [(0, 0), (0, 0), (other, 0)])
    sizes = hidden.shape[1], model.embedding_dim, jnp.float32
    mlp = residual_mlp.ResidualMLP(*sizes, layers=2, gated=False)
    expected = liked + mlp.apply({"params": head["mlp"]}, seen) / 10
    expected /= np.maximum(np.linalg.norm(expected, axis=-1, keepdims=True), 1e-12)
    np.testing.assert_allclose(users(model, catalogue, history, params), expected, atol=1e-5)


def test_time_features_are_a_quarter_where_they_are_divided(catalogue, history):
    undivided, divided = make(features=("time",)), make(features=("time",), divided_time=True)
    params = jax.tree.map(lambda leaf: leaf, params_of(undivided))
    expected = users(undivided, catalogue, history, params)
    projection = params["params"]["user_tower"]["projection"]
    projection["kernel"] = 4 * projection["kernel"]
    np.testing.assert_allclose(users(divided, catalogue, history, params), expected, atol=1e-5)


def test_scale_is_bounded_and_never_stuck():
    @jax.jit
    def scale(x):
        return make().apply({"params": {"temperature": {"log_temperature": x}}}, method="scale")

    for x in (-12.0, -5.0, 0.0, 3.0):
        value, gradient = jax.value_and_grad(scale)(jnp.float32(x))
        temperature = 0.01 + np.exp(x)
        assert value == pytest.approx(1 / temperature, rel=1e-4)
        assert gradient == pytest.approx(-np.exp(x) / temperature**2, rel=1e-4)
        assert gradient < 0


def test_unknown_feature(catalogue, history):
    model = make(features=("item", "colour"))
    with pytest.raises(ValueError, match=r"^unknown features \['colour'\], expected some of "):
        jax.eval_shape(model.init, jax.random.key(0), catalogue, history)


def test_too_long_a_history(catalogue, history):
    with pytest.raises(ValueError, match=r"^a history of 6 actions, expected at most 5"):
        jax.eval_shape(make(length=5).init, jax.random.key(0), catalogue, history)


def test_items_of_which_nothing_is_known(history):
    with pytest.raises(ValueError, match=r"^items have neither content vectors nor id_dim > 0"):
        jax.eval_shape(make(id_dim=0).init, jax.random.key(0), item_input.ItemFeatures(), history)
