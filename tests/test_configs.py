"""Every config builds, refuses nonsense, and trains some steps in its `:test` variant."""

import functools
import math
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from pinjax import settings
from pinjax.distributed import sharding
from pinjax.errors import InputError
from pinjax.systems import registry
from pinjax.training import checkpoint, loop, step

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted(set((ROOT / "configs").glob("*.py")) - {ROOT / "configs/common.py"})
TRAINED = [path for path in CONFIGS if "train" in runpy.run_path(str(path))["get_config"]()]
VARIANTS = [
    pytest.param(path, variant, id=f"{path.stem}:{variant}")
    for path in CONFIGS
    for variant in ("", *runpy.run_path(str(path))["VARIANTS"])
]

# Tables, biases and scales, which weight decay leaves alone.
UNDECAYED = {
    *("bias", "value_bias", "scale", "embedding", "importance"),
    *("phases", "position", "positions", "token_type"),
}
# Nonsense for every field of a type.
NAN, INF = math.nan, math.inf
NONSENSE = {
    bool: (None, 0, 1, 1.0, "True", ()),
    int: (None, True, -1, 2**32, 10**400, 1.5, NAN, INF, "1", (1,)),
    float: (None, True, -1, NAN, INF, -INF, 1e39, 10**400, "1", (1.0,)),
    str: (None, True, 1, b"x", ("x",), "a\nb", "\0"),
    tuple: (None, 1, "x", (None,), (True,), (NAN,), (INF,), (1e39,), ((),), ("nonsense",), ({},)),
}
# The fields for which 0 or an empty value has a meaning; for all others it is nonsense.
MAY_BE_ZERO = {
    *("data.workers", "data.pca_dim", "data.popularity_window", "model.id_dim"),
    "objective.last_action_share",
    *("model.gated_layers", "model.dropout", "model.image_slots"),
    *("model.token_buckets", "loss.num_in_batch_negatives", "train.seed", "train.warmup_steps"),
    *("train.weight_decay", "train.log_every", "train.checkpoint_every"),
    *("train.evaluate_every", "pinnerformer: loss.num_random_negatives"),
    *("model.threshold", "model.decay", "model.seed"),
    *("data.groups", "data.walk_restart", "model.id_buckets", "loss.num_hard_negatives"),
    "pinsage: model.layers",
}
MAY_BE_EMPTY = {
    *("data.surfaces", "data.vectors", "model.pretrained", "model.texts", "train.select"),
    "train.shard",
}
MAY_EXCEED_INT32 = {
    *("train.seed", "objective.horizon", "evaluate.window", "data.popularity_window"),
    *("data.recent", "model.seed"),
}
# Fields that allow only known names.
NAMES = {"system", "objective.name", "model.encoder", "model.dtype", "loss.terms", "train.select"}
# (field, nonsense) for single fields.
MORE = [
    ("model.dropout", 1.0),
    ("objective.last_action_share", 1.01),
    *(("loss.sketch_decay", 1.01), ("loss.sketch_width", 2**26), ("loss.sketch_width", 1_000)),
    *(
        ("data.popularity_window", 2**33),
        ("evaluate.window_starts", (2**33,)),
        ("evaluate.window", 2**32),
    ),
    *(
        ("data.users", 2**21),
        ("data.pairs", 2**21),
        ("data.length", 2**17),
        ("model.embedding_dim", 2**17),
    ),
    *(("tasks", (("image/click", 0, 0),)), ("tasks", (("click", 1, 0),))),
    *(("tasks", (("text/click", 1),)), ("tasks", (("text/click", NAN, 0),))),
    *(("tasks", (("text/click", 1, -1),)), ("tasks", 2 * (("text/click", 1.0, 0),))),
    *(("model.texts", (("title",),)), ("model.texts", (("title", ""),))),
    *(("model.features", ("item", "item")), ("evaluate.cadences", ("hourly",))),
    *(("train.model_devices", 0), ("model.dtype", "int32"), ("model.length", 1)),
]


def get_config(path, variant):
    return runpy.run_path(str(path))["get_config"](variant)


def flat(config, prefix=""):
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", type(value)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_variants_have_the_fields_of_the_default(path):
    variants = runpy.run_path(str(path))["VARIANTS"]
    assert {"paper", "test"} <= variants.keys()
    expected = dict(flat(get_config(path, "")))
    for variant in variants:
        assert dict(flat(get_config(path, variant))) == expected


def nonsense(system, name, value):
    # PinSage's texts may have any names.
    any_names = (system, name) == ("pinsage", "model.texts")
    yield from (x for x in NONSENSE[type(value)] if x != ("nonsense",) or not any_names)
    if type(value) in (int, float) and not {name, f"{system}: {name}"} & MAY_BE_ZERO:
        yield type(value)(0)
    if type(value) in (str, tuple) and name not in MAY_BE_EMPTY:
        yield type(value)()
    if type(value) is int and name not in MAY_EXCEED_INT32:
        yield 2**31
    if name in NAMES:
        yield "nonsense"
    yield from (wrong for field, wrong in MORE if field == name)


@pytest.mark.parametrize(("path", "variant"), VARIANTS)
def test_nonsense_is_refused_in_every_field(path, variant):
    config = get_config(path, variant)
    settings.check(config)
    before = config.to_json()
    for name, _ in list(flat(config)):
        section, _, key = name.rpartition(".")
        section = config[section] if section else config
        for wrong in nonsense(config.system, name, section[key]):
            with pytest.raises(InputError) as error:
                section[key] = wrong
            assert str(error.value).startswith(f"{name}={wrong!r}: expected "), (name, wrong)
    assert config.to_json() == before


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_what_means_nothing_is_allowed_where_it_says_so(path):
    config = get_config(path, "")
    for name, kind in list(flat(config)):
        section, _, key = name.rpartition(".")
        if {name, f"{config.system}: {name}"} & (MAY_BE_ZERO | MAY_BE_EMPTY):
            config[section][key] = kind()
        if name in MAY_EXCEED_INT32:
            config[section][key] = 2**32 - 1


@pytest.mark.parametrize("bound", ["at_least", pytest.param("at_most", marks=pytest.mark.slow)])
@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_a_step_has_shapes_at_the_bounds_of_all_integers(path, bound):
    config = get_config(path, "test")
    if config.system == "searchsage":
        config.model.encoder = "bert"
    # These fit the data or the devices, or make long programs, which take minutes to trace.
    left = {
        "model.embedding_dim",
        "data.pca_dim",
        "train.model_devices",
        "model.layers",
        "data.length",
    }
    for name, section, key in settings._fields(config):
        field = settings._declaration(section, key)
        if isinstance(field, settings.Int) and name not in left:
            section[key] = getattr(field, bound)
    if bound == "at_least":
        config.model.update({"heads": 1} if "heads" in config.model else {})
        if "tasks" in config:  # each of which has a pair
            config.tasks = config.tasks[:1]
        config.loss.update(
            {"num_random_negatives": 1} if "num_random_negatives" in config.loss else {}
        )
    elif config.system == "pinnerformer":  # a batch's labels are numbered by an int32
        config.objective.name, config.data.popularity_window = "next_action", 86_400
    elif config.system == "pinsage":  # and so are the neighbours of a batch
        config.data.update(neighbours=50, group_items=50)
    mesh = sharding.make_mesh(jax.devices()[:1])
    trainable = registry.build(config, mesh)
    optimizer = step.make_optimizer(config.train)
    state = step.abstract_state(trainable, optimizer, config.train, mesh)
    train_step = step.make_step(trainable, optimizer)
    after, metrics = jax.eval_shape(train_step, state, trainable.constants, trainable.batch)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert metrics["loss"].shape == ()


def test_what_is_not_the_papers_is_off_in_paper():
    config = get_config(ROOT / "configs/pinnerformer.py", "paper")
    off = {
        "data.pca_dim": 0,
        "data.popularity_window": 0,
        "objective.last_action_share": 0,
        "model.features": ("item", "action", "surface", "duration", "time"),
        "model.id_dim": 0,
        "model.history_sums": False,
        "model.gated_layers": 0,
        "model.scaled_attention": False,
        "model.divided_time": False,
        "loss.equal_labels": False,
    }
    for name, value in off.items():
        section, _, key = name.partition(".")
        assert config[section][key] == value, name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_unknown_variant_is_refused(path):
    with pytest.raises(ValueError, match="variant 'papr' is none of"):
        get_config(path, "papr")


@pytest.mark.slow
@pytest.mark.parametrize("path", TRAINED, ids=lambda path: path.stem)
def test_the_test_variant_learns(path, data_dir, tmp_path):
    config = get_config(path, "test")
    config.data.dir = str(data_dir)
    config.train.update(steps=12, evaluate_every=0)  # with hard negatives of PinSage
    config.train.weight_decay = 0.0  # it would move every parameter by itself
    mesh = sharding.make_mesh(jax.devices()[:1])
    system = registry.create(config, mesh)
    with checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
        result = loop.train(system, config.train, mesh, tmp_path / "run", checkpoints)
    assert result.stopped is None
    optimizer = step.make_optimizer(config.train)
    init = functools.partial(step.init_state, system.trainable, optimizer, config.train.seed)
    before = jax.jit(init)().params
    after = jax.device_get(result.state.params)
    moved = [
        np.abs(np.asarray(a) - b).max()
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    ]
    assert min(moved) > 0  # no parameter is left out of the loss

    config.train.update(weight_decay=0.1, warmup_steps=0)
    optimizer = step.make_optimizer(config.train)
    zeros = jax.tree.map(np.zeros_like, after)
    decayed, _ = jax.jit(optimizer.update)(zeros, optimizer.init(after), after)
    for path, change in jax.tree_util.tree_leaves_with_path(decayed):
        matrix = change.ndim > 1 and path[-1].key not in UNDECAYED
        assert np.any(change) == matrix, path
