"""A model on a later state of the log is the same model, and training may go on from there."""

import json
import pathlib
import runpy
import shutil

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath

from pinjax import checksums
from pinjax.data import catalogue, pairs, spec
from pinjax.distributed import sharding
from pinjax.errors import InputError
from pinjax.serving import previous
from pinjax.systems import embedded, registry
from pinjax.training import checkpoint, step
from tests import days

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
TIMELINES = {"data": {"positives": "buy, click", "surfaces": ""}}
TASKS = (("text/buy", 1.0, 0), ("image/click", 1.0, 0))
# Everything that is fitted, and every table; but nothing that changes as a graph or a log grows.
FIELDS = {
    "pinnerformer": {
        "data": TIMELINES["data"] | {"pca_dim": 4},
        "model": {"id_dim": 8},
        "train": {"shard_tables": True},
    },
    "itemsage": {
        "data": {"pairs": 16},
        "model": {"embedding_dim": 8, "texts": (("title", "title"),), "image_slots": 1},
        "tasks": TASKS,
    },
    "searchsage": {"data": {"pairs": 16}, "tasks": TASKS[:1]},
    "searchsage residual": {
        "data": {"pairs": 16},
        "tasks": TASKS[:1],
        "model": {"residual": True},
    },
    "searchsage bert": {
        "data": {"pairs": 16},
        "tasks": TASKS[:1],
        "model": {"encoder": "bert", "layers": 1, "length": 4},
    },
    "pinsage": {
        "model": {"layers": 0, "log_degree": False, "id_dim": 4, "texts": ("title",)},
        "data": {"groups": 0},
    },
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return days.prepare_both(tmp_path_factory.mktemp("days"), text_ids=True)


def make_config(name, data_dir, data):
    config = runpy.run_path(str(CONFIGS / f"{name.split()[0]}.py"))["get_config"]("test")
    for section, fields in FIELDS[name].items():
        if isinstance(fields, dict):
            config[section].update(fields)
        else:
            config[section] = fields
    config.data.update(dir=str(data_dir), name=data)
    return config


def write_run(workdir, config, mesh):
    """A run with random parameters, also where they are zero at first."""
    made = registry.create(config, mesh)
    state = step.begin(made.trainable, config.train, mesh)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: jax.device_put(rng.normal(size=x.shape).astype(np.float32) / 2, x.sharding),
        state.params,
    )
    checkpoint.claim(workdir, config, made.identity)
    with checkpoint.Checkpoints(workdir) as checkpoints:
        checkpoints.save(7, state.replace(step=state.step + 7, params=params))
    return made, params


def by_id(config, made, params, as_of):
    """(table, own id) -> the vectors."""
    found = {}
    for name, shards in embedded.tables(config, made, params, as_of).items():
        for shard in shards:
            part = shard()
            found |= {(name, own): x for own, x in zip(part.ids, part.vectors, strict=True)}
    return found


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "searchsage")) for name in FIELDS],
)
def test_embeddings_stay_what_they_were(data_dir, data, tmp_path, name):
    mesh = sharding.make_mesh(jax.devices()[:1])
    workdir = epath.Path(tmp_path / "run")
    earlier, later = (make_config(name, data_dir, directory) for directory in data)
    made, params = write_run(workdir, earlier, mesh)
    before = by_id(earlier, made, params, days.EARLIER)
    served, state, own = previous.bind(workdir, later, mesh, verify=True)
    assert int(state.step) == 7
    assert checkpoint.hash_of(own) == checkpoint.hash_of(params)
    after = by_id(later, served, state.params, days.EARLIER)
    assert before.keys() < after.keys()
    check_same(after, before)

    # Training begins with the same parameters, and those of tokens that are new.
    begins, begun = previous.PreviousRun.open(workdir, later, mesh, verify=True).begin(later)
    assert int(begun.step) == 0
    assert begins.identity["warm_start"] == checkpoint.hash_of(params)
    if name.startswith("searchsage"):
        texts = [own for _, own in before]
        encoded = (x.dataset.vocabulary.encode(texts) for x in (made, begins))
        earlier_tokens, later_tokens = (np.diff(x.offsets) for x in encoded)
        known = dict(zip(before, earlier_tokens == later_tokens, strict=True))
        before = {key: vector for key, vector in before.items() if known[key]}
        assert len(texts) / 2 < len(before) < len(texts)
    check_same(by_id(later, begins, begun.params, days.EARLIER), before)
    if name not in ("pinnerformer", "searchsage"):
        return
    # Its features are still fitted to the first data set where it goes on.
    later.train.update(steps=3, learning_rate=0.5)
    workdir = epath.Path(tmp_path / "went on")
    checkpoint.claim(workdir, later, begins.identity)
    begins.dataset.fitted.save(workdir)
    with checkpoint.Checkpoints(workdir) as checkpoints:
        checkpoints.save(0, begun)
    opened, state, _ = previous.bind(workdir, later, mesh, verify=True)
    assert opened.identity == begins.identity
    check_same(by_id(later, opened, state.params, days.EARLIER), before)

    # A run that began otherwise has none of it, even if an attempt before left the file.
    begins.dataset.fitted.save(tmp_path / "run")
    assert previous.fitted_of(tmp_path / "run") is None


def check_same(found, expected):
    for key, vector in expected.items():
        np.testing.assert_allclose(found[key], vector, rtol=1e-5, atol=1e-6, err_msg=key)


def test_refusals(data_dir, data, tmp_path):
    mesh, workdir = sharding.make_mesh(jax.devices()[:1]), epath.Path(tmp_path / "run")
    earlier, later = (make_config("searchsage", data_dir, directory) for directory in data)
    with pytest.raises(InputError, match="holds no run"):
        previous.bind(workdir, later, mesh, verify=True)
    write_run(workdir, earlier, mesh)
    later.model.width *= 2
    with pytest.raises(InputError, match=r"holds a run with model\.width=16, not 32"):
        previous.bind(workdir, later, mesh, verify=True)
    opened = previous.PreviousRun.open(workdir, later, mesh, verify=True)
    with pytest.raises(InputError, match=r"run: .* has the shape \[.*\], this run's has \["):
        opened.begin(later)
    users = make_config("pinnerformer", data_dir, data[1])
    with pytest.raises(InputError, match="a run with system=searchsage, not pinnerformer"):
        previous.PreviousRun.open(workdir, users, mesh, verify=True)

    earlier.data.name = str(tmp_path / "data")
    shutil.copytree(data[1], earlier.data.name)
    write_run(epath.Path(tmp_path / "other"), earlier, mesh)

    # The run's data set has moved; then it is not there any more.
    moved = make_config("searchsage", data_dir, data[1])
    made, state, trained = previous.bind(epath.Path(tmp_path / "other"), moved, mesh, verify=True)
    assert made.dataset.directory == epath.Path(data[1])
    assert state.params is trained
    metadata = tmp_path / "data" / spec.METADATA_FILE
    changed = json.loads(metadata.read_text()) | {"digest": "prepared anew"}
    metadata.write_text(json.dumps(changed))
    checksums.record(tmp_path / "data")
    with pytest.raises(InputError, match="is now prepared anew; keep a run's data set for as long"):
        previous.PreviousRun.open(epath.Path(tmp_path / "other"), later, mesh, verify=True)


def test_a_damaged_data_set_of_the_run_is_refused(data_dir, data, tmp_path):
    mesh, workdir = sharding.make_mesh(jax.devices()[:1]), epath.Path(tmp_path / "run")
    shutil.copytree(data[0], tmp_path / "data")
    earlier, later = (
        make_config("searchsage", data_dir, x) for x in (str(tmp_path / "data"), data[1])
    )
    write_run(workdir, earlier, mesh)
    damaged = tmp_path / "data/pairs/test.parquet"
    damaged.write_bytes(damaged.read_bytes() + b"?")
    with pytest.raises(InputError, match=r"test\.parquet: damaged"):
        previous.bind(workdir, later, mesh, verify=True)


def turn(directory, file, column):
    """Gives every row of a table the vectors of the row before."""
    table = pq.read_table(directory / file)
    turned = np.roll(np.arange(len(table)), 1)
    place = table.schema.get_field_index(column)
    table = table.set_column(place, column, table[column].take(pa.array(turned)))
    pq.write_table(table, directory / file)
    checksums.record(directory)


@pytest.mark.parametrize(
    ("name", "file", "column", "message"),
    [
        ("searchsage", catalogue.FILE, "content", "content vectors of the same items"),
        ("searchsage", catalogue.FILE, "images", "image vectors of the same items"),
        ("itemsage", pairs.QUERIES_FILE, "vector", "vectors of the same image queries"),
        ("searchsage residual", pairs.QUERIES_FILE, "vector", "vectors of the same image queries"),
        ("searchsage", pairs.QUERIES_FILE, "vector", None),  # it does not read them
    ],
)
def test_another_space_is_refused(data_dir, data, tmp_path, name, file, column, message):
    mesh, workdir = sharding.make_mesh(jax.devices()[:1]), epath.Path(tmp_path / "run")
    shutil.copytree(data[1], tmp_path / "turned")
    turn(epath.Path(tmp_path / "turned"), file, column)
    earlier, later = (make_config(name, data_dir, x) for x in (data[0], str(tmp_path / "turned")))
    write_run(workdir, earlier, mesh)
    if message is None:
        previous.bind(workdir, later, mesh, verify=True)
        return
    expected = f"run: later has other {message}, with a median cosine of .*the space of training"
    with pytest.raises(InputError, match=expected):
        previous.bind(workdir, later, mesh, verify=True)
    with pytest.raises(InputError, match=expected):
        previous.PreviousRun.open(workdir, later, mesh, verify=True).begin(later)
