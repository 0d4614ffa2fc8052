import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from ml_collections import ConfigDict

from pinjax.distributed import sharded_table, sharding
from pinjax.errors import InputError
from pinjax.training import step

PARAMS = {
    "block": {"ffn_in": {"kernel": (8, 16), "bias": (16,)}, "ffn_out": {"kernel": (16, 8)}},
    "input": {"id": {"embedding": (1024, 3), "importance": (1024, 2)}},
    "temperature": (),
    "odd": (3, 5),
}


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(jax.devices()[:8], model=2)


def places(mesh, **config):
    """{path: mesh axes} of everything that is not replicated."""
    fields = {"shard": "", "shard_optimizer": False, "shard_tables": False, **config}
    make = jax.ShapeDtypeStruct
    params = jax.tree.map(
        lambda shape: make(shape, jnp.float32), PARAMS, is_leaf=lambda x: isinstance(x, tuple)
    )
    scalar = make((), jnp.int32)
    moments = [{"mu": params, "nu": params}]
    state = step.State(
        step=scalar, params=params, opt_state=moments, sketches=make((4, 64), jnp.int32), key=scalar
    )
    found = sharding.of_state(mesh, ConfigDict(fields), state)
    flat, _ = jax.tree_util.tree_flatten_with_path(found)
    return {
        sharding.path_name(path): place.spec
        for path, place in flat
        if place.spec != PartitionSpec()
    }


def test_all_is_replicated_unless_said(mesh):
    assert places(mesh) == {}


def test_rules_place_parameters_and_their_moments(mesh):
    rules = "ffn_in/kernel = . model; kernel = data,model ."
    wide, tall = PartitionSpec(None, ("model",)), PartitionSpec(("data", "model"), None)
    expected = {}
    for tree in ("params", "opt_state/0/mu", "opt_state/0/nu"):
        expected |= {f"{tree}/block/ffn_in/kernel": wide, f"{tree}/block/ffn_out/kernel": tall}
    assert places(mesh, shard=rules) == expected


def test_moments_lie_on_the_first_dimension_that_data_divides(mesh):
    found = places(mesh, shard_optimizer=True, shard="ffn_in/bias = model")
    first = PartitionSpec("data")
    for moment in ("mu", "nu"):
        of_bias = found.pop(f"opt_state/0/{moment}/block/ffn_in/bias")
        assert of_bias == PartitionSpec(("model",))
        for name in ("block/ffn_in/kernel", "block/ffn_out/kernel"):
            assert found.pop(f"opt_state/0/{moment}/{name}") == first
        for name in ("embedding", "importance"):
            assert found.pop(f"opt_state/0/{moment}/input/id/{name}") == first
    assert found == {"params/block/ffn_in/bias": PartitionSpec(("model",))}


def test_rows_of_tables_lie_on_all_devices(mesh):
    found = places(mesh, shard_tables=True)
    rows = PartitionSpec(("data", "model"))
    assert found == {
        f"{tree}/input/id/{name}": rows
        for tree in ("params", "opt_state/0/mu", "opt_state/0/nu")
        for name in ("embedding", "importance")
    }


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("kernel", r"'kernel' is not PATTERN = AXES"),
        ("kernel =", r"'kernel =' is not PATTERN = AXES"),
        ("kernel = rows", r"for each dimension one of data, model that no other has, or \. for"),
        ("kernel = data data", r"'kernel = data data' is not PATTERN = AXES"),
        ("( = data", r"'\(' is no pattern: missing \)"),
        ("embeding = data", r"no parameter's path has 'embeding' in it"),
        ("odd = . data", r"'odd' cuts params/odd \[3, 5\] into \[1, 4\] parts, which do not"),
        ("bias = . data", r"'bias' cuts params/block/ffn_in/bias \[16\] into \[1, 4\] parts"),
    ],
)
def test_rules_that_do_not_fit(mesh, rules, message):
    with pytest.raises(InputError, match=message):
        places(mesh, shard=rules)


def test_a_mesh_that_the_devices_do_not_make():
    with pytest.raises(InputError, match=r"^train\.model_devices=3 does not divide 8 devices"):
        sharding.make_mesh(jax.devices()[:8], model=3)


@pytest.mark.parametrize("sharded", [False, True])
def test_rows_in_parts_make_the_table(mesh, rng, sharded):
    """In any order, in several parts, or in none."""
    layout = sharded_table.Layout(mesh) if sharded else sharded_table.REPLICATED
    table = rng.standard_normal((1500, 3)).astype(np.float32)
    table[::7] = 0
    rows = rng.permutation(np.flatnonzero(table.any(axis=1)))
    parts = [(some, table[some]) for some in np.array_split(rows, 4)]
    parts.insert(0, (rows[-5:], np.ones((5, 3))))  # overwritten later
    found = sharding.place_rows(mesh, layout, table.shape, jnp.bfloat16, parts)
    expected = sharding.place_table(mesh, layout, table.astype(jnp.bfloat16))
    np.testing.assert_array_equal(found, expected)
    assert found.sharding == expected.sharding
