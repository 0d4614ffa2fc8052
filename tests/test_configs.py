"""Every config builds, and trains some steps in its `:test` variant."""

import pathlib
import runpy

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from pinjax.systems import registry
from pinjax.training import checkpoint, loop, sharding

CONFIGS = sorted((pathlib.Path(__file__).parents[1] / "configs").glob("*.py"))


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


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_an_unknown_variant_is_refused(path):
    with pytest.raises(ValueError, match="variant 'papr' is none of"):
        get_config(path, "papr")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_test_variant_learns(path, tmp_path):
    config = get_config(path, "test")
    config.data.dir = str(tmp_path)
    mesh = sharding.make_mesh(jax.devices()[:1])
    system = registry.create(config, mesh)
    checkpoints = checkpoint.Checkpoints(tmp_path / "run")
    result = loop.train(system, config.train, mesh, tmp_path / "run", checkpoints)
    checkpoints.close()
    assert result.finished
    before, _ = system.init(jax.random.key(0))
    after = jax.device_get(result.state.params)
    moved = [
        np.abs(np.asarray(a) - b).max()
        for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    ]
    assert min(moved) > 0  # no parameter is left out of the loss
