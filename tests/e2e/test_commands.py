"""The commands, run as a user runs them: in processes of their own, from flags to files."""

import importlib.util
import json
import os
import pathlib
import re
import runpy
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from pinjax import results
from pinjax.data import catalogue, dataset
from pinjax.distributed import sharding
from pinjax.evaluation import records, tables
from pinjax.systems import registry
from pinjax.training import checkpoint
from tests import commands

ROOT = pathlib.Path(__file__).parents[2]
# Fails where anything imported TensorFlow on the way.
RUN = """
import runpy, sys
sys.argv[0] = sys.argv.pop(1)
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=False)
finally:
    assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("e2e")


def config_flags(home):
    return (
        *(f"--config={ROOT}/configs/pinnerformer.py:test", f"--config.data.dir={home}/data"),
        *("--config.train.log_every=1", "--config.train.checkpoint_every=4"),
    )


def settings(home):
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(home / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def start(home, command, workdir, *flags, within=(), by_config=True):
    return subprocess.Popen(
        [
            *within,
            *(sys.executable, "-c", RUN, f"pinjax.{command}", f"--workdir={workdir}"),
            *(config_flags(home) if by_config else ()),
            *flags,
        ],
        cwd=ROOT,
        env=os.environ | settings(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, code=0):
    out, err = process.communicate()
    assert process.returncode == code, err
    return out, err


@pytest.fixture(scope="module")
def forked(home):
    """`commands.Commands`, for what needs no process that imports everything anew."""
    modules = ("pinjax.serving.run", "pinjax.training.loop")
    with commands.Commands(*modules, **settings(home)) as forked:
        yield forked


@pytest.fixture(scope="module")
def run(home, forked):
    """(command, work directory, flags) -> the errors of one that ends with `code`."""

    def run(command, workdir, *flags, code=0):
        found, _, err = forked(command, f"--workdir={workdir}", *config_flags(home), *flags)
        assert found == code, err
        return err

    return run


def steps_logged(workdir):
    path = workdir / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def wait_for_step(process, workdir, step):
    while steps_logged(workdir) < step:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)


@pytest.fixture(scope="module")
def unbroken(home):
    """An uninterrupted run: its directory and its output."""
    workdir = home / "unbroken"
    return workdir, finish(start(home, "train", workdir))[0]


def state_of(home, workdir):
    config = runpy.run_path(str(ROOT / "configs/pinnerformer.py"))["get_config"]("test")
    config.data.dir = f"{home}/data"
    config.train.update(log_every=1, checkpoint_every=4)
    mesh = sharding.make_mesh(jax.devices()[:1])
    return checkpoint.load_chosen(workdir, config, registry.create(config, mesh), mesh)


def assert_same_end(home, workdir, unbroken):
    found, expected = state_of(home, workdir), state_of(home, unbroken[0])
    assert int(found.step) == 30
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_training_ends_with_a_table_and_the_next_commands(unbroken):
    workdir, out = unbroken
    for method in ("PinnerFormer ", "oracle", "popularity, all time", "co-occurrence"):
        assert f"\n{method}" in out
    assert f"{workdir}/checkpoints" in out
    assert f"python -m pinjax.embed --workdir={workdir} --out={workdir}/embeddings" in out
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in metrics] == list(range(1, 31))
    assert np.mean([m["loss"] for m in metrics[-5:]]) < np.mean([m["loss"] for m in metrics[:5]])
    assert {"valid/R@10", "temperature", "gradient_norm"} <= metrics[-1].keys()
    assert any(path.name.startswith("events.") for path in workdir.iterdir())


@pytest.mark.slow
def test_killed_at_three_random_steps_a_run_ends_the_same(home, unbroken, rng):
    workdir = home / "killed"
    for step in sorted(rng.choice(np.arange(2, 27), 3, replace=False)):
        process = start(home, "train", workdir)
        wait_for_step(process, workdir, step)
        process.kill()
        process.communicate()
    finish(start(home, "train", workdir))
    assert_same_end(home, workdir, unbroken)
    assert steps_logged(workdir) == 30


@pytest.mark.slow
def test_preempted_a_run_says_so_and_ends_the_same(home, unbroken):
    workdir = home / "preempted"
    process = start(home, "train", workdir)
    wait_for_step(process, workdir, 6)
    process.send_signal(signal.SIGTERM)
    out, _ = finish(process, code=75)
    assert "run the same command again to continue" in out
    saved = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
    assert f"stopped after step {saved};" in out
    finish(start(home, "train", workdir))
    assert_same_end(home, workdir, unbroken)


@pytest.mark.slow
def test_a_trace_of_some_steps(home, unbroken):
    """In a process of its own: a trace once crashed a process that had run many tests."""
    workdir = home / "traced"
    finish(start(home, "train", workdir, "--profile=2"))
    (trace,) = workdir.glob("plugins/profile/*/*.xplane.pb")
    assert trace.stat().st_size > 1_000
    assert_same_end(home, workdir, unbroken)


def without_speeds(rows):
    return {
        method: {name: value for name, value in metrics.items() if "queries/s" not in name}
        for method, metrics in rows.items()
    }


@pytest.mark.slow
def test_evaluate_measures_what_training_did(home, unbroken):
    workdir, _ = unbroken
    written = workdir / "results_test.json"
    trained = json.loads(written.read_text())
    written.unlink()
    out, _ = finish(start(home, "evaluate", workdir, by_config=False))
    evaluated = json.loads(written.read_text())
    assert evaluated["step"] == trained["step"] == 30
    assert str(without_speeds(evaluated["rows"])) == str(without_speeds(trained["rows"]))  # NaNs
    for method, metrics in evaluated["rows"].items():
        assert f"\n{method} " in out
        assert f"{metrics['R@10'][0]:.4f}" in out
    # The printed table is made again from the records of all labels.
    again = tables.table_of(records.read(workdir / "records_test.parquet"))
    assert results.table(again) in out
    assert max(map(len, results.table(again).splitlines())) <= 100


@pytest.mark.slow
def test_embed_writes_what_serving_needs_and_resumes(home, unbroken, run):
    workdir, _ = unbroken
    out = home / "embeddings"
    finish(start(home, "embed", workdir, f"--out={out}", "--precision=float32"))
    files = sorted(path.name for path in out.iterdir())
    assert files == [
        "items-00000-of-00001.parquet",
        "manifest.json",
        *(f"users-{i:05d}-of-00003.parquet" for i in range(3)),
    ]
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["step"] == 30
    items = pq.read_table(out / files[0])
    vectors = catalogue.vectors(items["vector"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    known = dataset.load("pinworld/tiny", f"{home}/data").catalogue
    np.testing.assert_array_equal(items["id"].to_numpy(), known.ids)

    # One file is lost, and one is damaged: only they are written again, unchanged. What is
    # evaluated, and how input is read, changes no embedding.
    lost, damaged = (out / f"users-{number:05d}-of-00003.parquet" for number in (1, 2))
    before = {path: path.read_bytes() for path in out.iterdir()}
    lost.unlink()
    damaged.write_bytes(before[damaged][:-1] + b"?")
    kept = {path: path.stat().st_mtime_ns for path in (out / files[0], out / files[2])}
    same = ("--precision=float32", "--config.evaluate.users=7", "--config.data.workers=1")
    run("embed", workdir, f"--out={out}", *same)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert all(path.stat().st_mtime_ns == t for path, t in kept.items())

    # With another time the embeddings differ.
    early = ("--as_of=2025-02-01", "--precision=float32")
    err = run("embed", workdir, f"--out={out}", *early, code=2)
    assert "holds embeddings of as_of" in err.splitlines()[-1]
    err = run("embed", workdir, f"--out={home}/never", "--as_of=9999-12-31", code=2)
    assert err.splitlines()[-1].endswith("'9999-12-31'; expected ISO 8601, from 1970 to 2106")
    # Before the first action there are no users. A kill may have left an unnamed file.
    (home / "early").mkdir()
    (home / "early/manifest.json.tmp").write_text("{")
    (home / "early/writer.lock").write_text("process 1 on elsewhere")
    run("embed", workdir, f"--out={home}/early", "--as_of=1990-01-01")
    assert not any(len(pq.read_table(path)) for path in (home / "early").glob("users-*"))


@pytest.mark.slow
def test_recommend_knows_the_run_from_its_directory(home, unbroken, forked):
    workdir, out = unbroken[0], home / "recommended.parquet"
    flags = f"--workdir={workdir}", f"--out={out}"
    code, printed, err = forked("recommend", *flags, "--k=3")
    assert code == 0, err
    assert f"python -m pinjax.report --workdir={workdir}" in printed
    found = pq.read_table(out)
    assert found.column_names == ["user", "item", "score", "rank"]
    known = dataset.load("pinworld/tiny", f"{home}/data")
    assert len(found) == 3 * len(set(found["user"].to_pylist())) > 1_000

    (home / "users.txt").write_text("u00000003\nu00000001\n")
    (home / "items.txt").write_text("\n".join(map(str, known.catalogue.ids[:50])), "utf-8-sig")
    (home / "utf16.txt").write_text("u00000003\n", "utf-16")
    lists = f"--users={home}/users.txt", f"--allow={home}/items.txt", "--nofilter_seen"
    code, printed, err = forked("recommend", *flags, "--k=3", *lists)
    assert code == 0, err
    some = pq.read_table(out)
    assert set(some["user"].to_pylist()) == {"u00000001", "u00000003"}
    assert set(some["item"].to_pylist()) <= set(known.catalogue.ids[:50].tolist())
    before = out.read_bytes()
    for wrong, message in (
        (["--workdir=."], "holds no run"),
        (["--to=items", "--queries=x"], "--queries and --to: expected one of them"),
        ([f"--queries={home}/users.txt"], "pinnerformer embeds no texts of searches"),
        ([f"--deny={home}/users.txt"], "deny: ids such as u00000003 are string; expected int64"),
        ([f"--users={home}/nobody.txt"], "nobody.txt: No such file or directory"),
        ([f"--users={home}/utf16.txt"], "utf16.txt: expected text in UTF-8"),
        (["--as_of=noon"], "--as_of is 'noon'; expected ISO 8601, from 1970 to 2106"),
    ):
        code, _, err = forked("recommend", *flags, *wrong)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
    assert out.read_bytes() == before


@pytest.mark.slow
def test_the_notebook_runs(unbroken, monkeypatch):
    monkeypatch.chdir(ROOT)
    cells = json.loads((ROOT / "docs/python.ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    names = {}
    exec("\n".join(code).replace("work/pinnerformer", str(unbroken[0])), names)
    assert len(names["found"]) == 5
    assert {"PinnerFormer", "oracle"} < set(names["results"]["method"])


@pytest.mark.slow
def test_a_second_run_on_a_directory_hears_of_the_first(home, unbroken, run):
    del unbroken  # the data set is there
    workdir = home / "two"
    first = start(home, "train", workdir, "--config.train.steps=100_000")  # no end in sight
    wait_for_step(first, workdir, 1)
    err = run("train", workdir, code=2)
    assert err.startswith(f"error: {workdir}: process {first.pid} on ")
    assert err.count("\n") == 1
    first.send_signal(signal.SIGINT)
    out, _ = finish(first, code=130)
    assert "run the same command again to continue" in out


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGHUP, 75, marks=pytest.mark.slow)],
)
def test_a_signal_while_data_are_made_leaves_nothing(tmp_path, signum, code):
    process = start(tmp_path, "train", tmp_path / "run", "--config.data.name=pinworld/small")
    while not list((tmp_path / "data/pinworld/small").glob(".*.unfinished")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.002)
    process.send_signal(signum)
    _, err = finish(process, code)
    assert err == f"stopped by {signum.name}; run the same command again to continue\n"
    left = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert not left
    assert not list((tmp_path / "data/pinworld/small").iterdir())


@pytest.mark.parametrize(
    ("signum", "code"),
    [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)],
)
def test_a_signal_while_a_config_file_runs_is_one_line(tmp_path, signum, code):
    path = tmp_path / "config.py"
    path.write_text("print('inside', flush=True)\nwhile True:\n  pass\n")
    command = (sys.executable, "-m", "pinjax.train", f"--config={path}")
    process = subprocess.Popen(command, cwd=ROOT, stdout=-1, stderr=-1, text=True)
    assert process.stdout.readline() == "inside\n"
    process.send_signal(signum)
    _, err = finish(process, code)
    assert err == f"stopped by {signum.name}; run the same command again to continue\n"


def test_a_damaged_data_set_is_named(home, unbroken, run):
    data = next((home / "data").rglob("checksums.json")).parent
    (path,) = data.glob("timelines/*valid.array_record*")
    kept = path.read_bytes()
    path.write_bytes(kept[:100] + bytes([kept[100] ^ 1]) + kept[101:])
    try:
        err = run("evaluate", unbroken[0], code=2)
        assert err == f"error: {path}: damaged: its checksum is not that of what was written\n"
    finally:
        path.write_bytes(kept)


@pytest.mark.slow
@pytest.mark.parametrize("blocks", [1, 100])
def test_a_disk_that_takes_no_more_is_one_line(home, unbroken, blocks):
    """A limit on the size of files, which the system reports like a full disk."""
    del unbroken  # the data set is there
    workdir = home / f"full-{blocks}"
    flags = ("--config.train.evaluate_every=0",)
    limited = ("bash", "-c", f'ulimit -f {blocks}; exec "$@"', "bash")
    process = start(home, "train", workdir, *flags, within=limited)
    _, err = finish(process, code=2)
    lines = [line for line in re.split("[\r\n]", err) if line and "/30 [" not in line]
    assert len(lines) == 1, err
    assert re.fullmatch(rf"error: {workdir}/.*: File too large", lines[0])


@pytest.fixture(scope="module")
def train():
    with commands.Command("train") as train:
        yield train


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.train.step=3"], "no such field; did you mean train.steps?"),
        (["--config.train.steps=many"], "train.steps='many': expected an integer from 1"),
        (["--config.data.name=nowhere"], "data.name: no prepared data set in nowhere"),
        (
            ["--config.data.name=pinworld/huge"],
            "data.name: no data set pinworld/huge; expected one of",
        ),
        (["--config.data.positives=sav"], "no action 'sav'"),
        (["--config.objective.name=sas"], "objective.name='sas': expected one of"),
        (["--config.loss.terms=both"], "loss.terms='both': expected one of"),
        (["--config.model.heads=3"], "model.width=16 is not divisible by model.heads=3"),
        (["--config.evaluate.cadences=('hourly',)"], "('hourly',): expected a tuple of at least 1"),
        (["--config.train.seed=-1"], "train.seed=-1: expected an integer from 0"),
        (["--config"], "Missing value for flag --config"),
        (["--workdir="], "--workdir is empty; expected a directory"),
        (["--workdir=s3://bucket/run"], "expected a directory, on this machine or on gs://"),
        (["--workdir=/\udcff"], r"--workdir='/\udcff': expected a directory"),
        (["--config.data.name=s3://bucket/data"], "on this machine or on gs://"),
        (
            ["--coordinator=localhost:1", "--processes=1", "--process=5"],
            "--process=5: expected from 0 to 0",
        ),
        (["stray"], "unexpected argument 'stray'"),
        (["--config.train.model_devices=3"], "train.model_devices=3 does not divide 1 devices"),
        pytest.param(
            ["--workdir=gs://bucket/run"],
            "gs:// needs more: pip install -r requirements-gcp.txt",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed"
            ),
        ),
    ],
)
def test_wrong_input_is_one_line(home, unbroken, train, flags, message):
    del unbroken  # the data set is there
    config = f"--config={ROOT}/configs/pinnerformer.py:test"
    code, out, err = train(
        config, f"--workdir={home}/wrong", f"--config.data.dir={home}/data", *flags
    )
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not (home / "wrong").exists()


def test_another_config_in_the_same_directory_is_refused(unbroken, run):
    flags = ("--config.train.learning_rate=0.5",)
    err = run("train", unbroken[0], *flags, code=2)
    assert "holds a run with train.learning_rate=0.002, this one has" in err
