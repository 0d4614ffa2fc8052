"""The column maps of configs/prepare on the logs that they are for, and a few steps on each."""

import pathlib
import runpy

import jax
import numpy as np
import pytest

from pinjax.data import datasets, prepared, windows
from pinjax.systems import registry
from pinjax.training import checkpoint, loop, sharding

ROOT = pathlib.Path(__file__).parents[1]
RAW = ROOT.parent / "shared/data"
pytestmark = pytest.mark.skipif(not RAW.exists(), reason=f"needs the public logs in {RAW.name}")


def config_of(name, *variant):
    return runpy.run_path(str(ROOT / f"configs/{name}.py"))["get_config"](*variant)


def prepare(log, events, items, out, directory=None):
    directory = RAW / (directory or log)
    events = [directory / name for name in events]
    items = directory / items if items else None
    metadata, _ = prepared.prepare(events, items, out, config_of(f"prepare/{log}"))
    return metadata


def train(variant, out, workdir, content=False, **model):
    config = config_of("pinnerformer", variant)
    config.data.update(name=str(out), users=16, length=8, content=content)
    config.data.degree_days = 0.0
    config.objective.labels = 4
    config.model.update(layers=1, width=16, heads=2, dim=8, pin_hidden=16, **model)
    config.loss.update(in_batch=32, random=64, sketch_width=2**10)
    config.train.update(steps=6, warmup_steps=2, learning_rate=1e-2)
    config.evaluate.update(moments=(0.0,), users=50, batch=50)
    mesh = sharding.make_mesh(jax.devices()[:1])
    system = registry.create(config, mesh)
    with checkpoint.Checkpoints(workdir) as checkpoints:
        result = loop.train(system, config.train, mesh, workdir, checkpoints)
    assert result.stopped is None
    (row,) = system.evaluate(result.state.params, "valid").rows
    assert 0 <= row.metrics["R@10"][0] <= 1
    return jax.tree.map(np.shape, result.state.params["params"])


@pytest.fixture(scope="module")
def ifdb(tmp_path_factory):
    out = tmp_path_factory.mktemp("ifdb") / "ifdb"
    events = ("playedgames.parquet", "wishlists.parquet")
    return out, prepare("ifdb", events, "gametags.parquet", out)


def test_ifdb_is_the_dated_rows_of_both_files(ifdb):
    out, metadata = ifdb
    assert sorted(metadata.actions) == ["played", "unknown", "wish-listed"]
    report = metadata.report
    assert report["rows read"] == 71_033 + 48_303
    assert report["actions"] + report["duplicates dropped"] == 117_527
    catalogue = datasets.load(str(out), "").catalogue
    np.testing.assert_allclose(np.linalg.norm(catalogue.content[0].astype(float)), 1, atol=2e-3)


@pytest.mark.parametrize(("content", "id_dim"), [(False, 8), (True, 0), (True, 8)])
def test_ifdb_items_are_ids_tag_vectors_or_both(ifdb, tmp_path, content, id_dim):
    params = train("ifdb", ifdb[0], tmp_path, content, id_dim=id_dim)
    assert params["pin_tower"]["hidden"]["kernel"][0] == 64 * content + id_dim


def test_kuairand_sees_hate_and_never_asks_for_it(tmp_path):
    out = tmp_path / "kuairand"
    metadata = prepare("kuairand", ("log.parquet",), None, out, "kuairand_like_hate")
    assert metadata.report["rows read"] == 41_828
    dataset = datasets.load(str(out), "")
    records = dataset.chunk("train", 0, 10**6).records
    hate = records["action"] == metadata.actions.index("hate")
    assert hate.any()
    assert records["duration"].max() > 10
    config = config_of("pinnerformer", "kuairand").data
    positives = windows.Positives.create(metadata, config.positives, config.surfaces)
    assert positives(records)[~hate].any()
    assert not positives(records)[hate].any()
    train("kuairand", out, tmp_path / "run", id_dim=8)


def test_globo_has_surfaces_of_three_columns(tmp_path):
    out = tmp_path / "globo"
    metadata = prepare("globo", ("clicks.parquet",), "articles.parquet", out)
    assert metadata.report["rows read"] == 2_988_181
    assert metadata.report["users"] == 322_897
    assert all(surface.count("|") == 2 for surface in metadata.surfaces[1:])
    train("globo", out, tmp_path / "run", id_dim=8)
