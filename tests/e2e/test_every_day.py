"""Two nights and a week of the commands, from one state of a log to the next."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from etils import epath

from pinjax import checksums, timestamps
from pinjax.data import catalogue
from pinjax.training import checkpoint
from tests import commands, days

pytestmark = pytest.mark.slow
CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
CONFIG = f"--config={CONFIGS}/pinnerformer.py:test"
FEW = ("--config.train.steps=8", "--config.train.checkpoint_every=0")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("every-day")


@pytest.fixture(scope="module")
def call(home):
    """(command, work directory, data set, flags) -> the error of one that ends with `code`."""
    settings = {
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(home / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    with commands.Commands("pinjax.systems.registry", "pinjax.training.loop", **settings) as run:

        def call(command, workdir, data, *flags, code=0):
            fields = ("data.positives=buy,click", "data.surfaces=", "data.pca_dim=4")
            fields += ("train.evaluate_every=0", f"data.dir={home}/data", f"data.name={data}")
            overrides = [f"--config.{field}" for field in fields]
            found, _, err = run(command, CONFIG, f"--workdir={workdir}", *overrides, *flags)
            assert found == code, err
            return err

        yield call


@pytest.fixture(scope="module")
def first(home, call):
    """(data sets, work directory, embeddings of the earlier one)."""
    data = days.prepare_both(home, text_ids=False)
    call("train", home / "run", data[0])
    as_of = f"--as_of={timestamps.iso(days.EARLIER)}"
    call("embed", home / "run", data[0], f"--out={home}/first", as_of)
    return data, home / "run", home / "first"


def users(directory):
    """(ids, vectors, times)"""
    table = pq.read_table(sorted(directory.glob("users-*")))
    times = table["as_of"].to_numpy().astype("datetime64[s]").astype(np.int64)
    return table["id"].to_numpy(), catalogue.vectors(table["vector"]), times


def test_a_night(home, call, first):
    (_, later), run, former = first
    as_of = f"--as_of={timestamps.iso(days.EARLIER + 3 * days.DAY)}"
    call("embed", run, later, f"--out={home}/second", f"--since={former}", as_of)
    call("embed", run, later, f"--out={home}/full", as_of)
    ids, vectors, times = users(home / "second")
    all_ids, all_vectors, _ = users(home / "full")
    old_ids, old_vectors, _ = users(former)
    np.testing.assert_array_equal(ids, all_ids)
    kept = times == days.EARLIER
    assert 5 < kept.sum() < len(ids) - 5
    np.testing.assert_array_equal(vectors[~kept], all_vectors[~kept])
    row = {own: place for place, own in enumerate(old_ids)}
    np.testing.assert_array_equal(vectors[kept], old_vectors[[row[own] for own in ids[kept]]])
    name = "items-00000-of-00001.parquet"
    assert (home / "second" / name).read_bytes() == (home / "full" / name).read_bytes()
    manifests = [json.loads((home / x / "manifest.json").read_text()) for x in ("second", "full")]
    assert manifests[0]["checkpoint"] == manifests[1]["checkpoint"]
    call("export", run, later, f"--out={home}/exported")
    exported = json.loads((home / "exported/manifest.json").read_text())
    assert exported["checkpoint"] == manifests[0]["checkpoint"]  # an index of the night is of it
    assert "since" not in manifests[1]

    # An interruption; it is repeated with the same previous directory only.
    lost = sorted((home / "second").glob("users-*"))[0]
    before = lost.read_bytes()
    lost.unlink()
    err = call("embed", run, later, f"--out={home}/second", as_of, code=2)
    assert "holds embeddings of since" in err
    second = f"--out={home}/second", f"--since={home}/second"
    assert "is --out, too" in call("embed", run, later, *second, as_of, code=2)
    assert "this machine" in call("export", run, later, "--out=gs://bucket/export", code=2)
    call("embed", run, later, f"--out={home}/second", f"--since={former}", as_of)
    assert lost.read_bytes() == before


def test_a_week(home, call, first):
    (earlier, later), run, _ = first
    moved = home / "moved"
    shutil.copytree(run, moved)
    flags = (*FEW, f"--warm_start={moved}")
    call("train", home / "next", later, *flags)
    assert checkpoint.Checkpoints(home / "next").steps == [0, 8]
    end = digest(home / "next")
    # It was killed after its first checkpoint, and the previous run is gone.
    shutil.rmtree(home / "next/checkpoints/8")
    shutil.rmtree(moved)
    call("train", home / "next", later, *flags)
    assert digest(home / "next") == end
    call("evaluate", home / "next", later, *FEW)

    err = call("train", run, earlier, f"--warm_start={run}", code=2)
    assert "holds a run that did not begin from another; choose another --workdir" in err


def digest(workdir):
    """Of the latest checkpoint's parameters, read as they were saved."""

    def like(saved):
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), saved)

    state = checkpoint.Checkpoints(epath.Path(workdir)).load_latest(like)
    assert int(state["step"]) == 8
    return checkpoint.hash_of(state["params"])


def test_nights_of_a_system_without_parameters(home, tmp_path):
    """Its users keep their vectors unless these lie in another space than today's items."""
    earlier, later = days.prepare_both(tmp_path, text_ids=True)
    turned = tmp_path / "turned"
    shutil.copytree(later, turned)
    path = turned / catalogue.FILE
    table, content = pq.read_table(path), catalogue.Catalogue(path).content
    place = table.schema.get_field_index("content")
    vectors = catalogue.vector_array(np.roll(content, 1, axis=0))
    pq.write_table(table.set_column(place, "content", vectors), path)
    checksums.record(turned)
    with commands.Command("embed") as embed:

        def night(data, out, *flags, as_of):
            fields = ("data.positives=buy,click", "data.surfaces=", f"data.name={data}")
            return embed(
                f"--config={CONFIGS}/pinnersage.py:test",
                *(f"--config.{field}" for field in (*fields, f"data.dir={home}/data")),
                f"--workdir={tmp_path}/run",
                f"--out={tmp_path}/{out}",
                f"--as_of={timestamps.iso(as_of)}",
                *flags,
            )

        since, as_of = f"--since={tmp_path}/first", days.EARLIER + days.DAY
        code, _, err = night(earlier, "first", as_of=days.EARLIER)
        assert code == 0, err
        code, _, err = night(later, "second", since, as_of=as_of)
        assert code == 0, err
        code, _, err = night(turned, "third", since, as_of=as_of)
        assert code == 2
        assert "later has other vectors of the same items, with a median cosine of" in err
        assert err.endswith("without it all are computed\n")
