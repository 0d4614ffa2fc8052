"""All systems on one data set: finished, stopped and killed, with other inputs, and left out."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from pinjax import stack
from pinjax.data import catalogue, dataset
from pinjax.evaluation import records
from tests import commands

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("stack")


@pytest.fixture(scope="module")
def start(home):
    """(workdir, flags) -> the process of a stack, in a group of its own."""

    def start(workdir, *flags):
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "pinjax.stack", "--variant=test", "--data=pinworld/tiny"),
                *(f"--workdir={workdir}", f"--config.data.dir={home}/data"),
                *("--config.train.evaluate_every=0", "--config.train.log_every=1", *flags),
            ],
            cwd=ROOT,
            env=os.environ
            | {
                "JAX_PLATFORMS": "cpu",
                "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
                "JAX_COMPILATION_CACHE_DIR": str(home / "compiled"),
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


def finish(process, code=0):
    out, err = process.communicate()
    assert process.returncode == code, (out, err)
    return out, err


def commands_of(out):
    return re.findall(r"python -m pinjax\.(\w+) .*--workdir=\S*/([\w-]+)", out)


def table_of(out):
    return out[out.index("\nmethod ") :]


@pytest.fixture(scope="module")
def finished(home, start):
    """The directory of a stack from its first to its last stage, and what it printed."""
    workdir = home / "finished"
    return workdir, finish(start(workdir))[0]


def embeddings_of(workdir):
    return {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in workdir.glob("*/embeddings/*")
        if path.suffix in (".parquet", ".json")
    }


@pytest.mark.slow
def test_every_stage_is_made_from_those_before_it(finished, home):
    workdir, out = finished
    first = {
        stage.name: "evaluate" if stage.name == "pinnersage" else "train" for stage in stack.STAGES
    }
    assert commands_of(out) == [(c, name) for name in first for c in (first[name], "embed")]
    manifests = {
        name: json.loads((workdir / name / "embeddings/manifest.json").read_text())
        for name in first
    }
    assert len({manifest["dataset"] for manifest in manifests.values()}) == 1
    for stage in stack.STAGES:
        number = len(manifests[stage.name].get("vectors", "").split(", "))
        assert number == max(1, len(stage.vectors))
        assert ("vectors" in manifests[stage.name]) == bool(stage.vectors)

    def table(stage, name):
        (path,) = (workdir / stage / "embeddings").glob(f"{name}-*")
        read = pq.read_table(path)
        return dict(zip(read["id"].to_pylist(), catalogue.vectors(read["vector"]), strict=True))

    # ItemSage's queries: items are PinSage's vectors, searches SearchSage's.
    items, searches = table("pinsage", "items"), table("searchsage", "queries")
    queries = dataset.load("pinworld/tiny", f"{home}/data").queries
    found = table("itemsage", "queries")
    assert len(found) == len(queries)
    for query, kind in zip(queries.ids, queries.kinds, strict=True):
        expected = searches[query] if kind == "text" else items[int(query)]
        np.testing.assert_allclose(found[query], expected, atol=4e-3)


@pytest.mark.slow
def test_one_table_compares_all(finished):
    workdir, out = finished
    rows = table_of(out)
    for stage in stack.STAGES:
        assert re.search(rf"^{stage.title}  ", rows, re.MULTILINE), rows
    assert rows.count("  oracle") >= 4
    ranks = {
        name: records.read(workdir / name / "records_test.parquet")
        .methods["PinnerFormer", "window"]
        .rank
        for name in ("pinnerformer", "pinnerformer-pinsage", "pinnerformer-itemsage")
    }
    assert len({rank.tobytes() for rank in ranks.values()}) == 3
    assert "over PinnerFormer" in rows


@pytest.mark.slow
def test_a_finished_stack_only_prints_its_table(finished, start):
    workdir, out = finished
    before = embeddings_of(workdir)
    again, _ = finish(start(workdir))
    assert commands_of(again) == []
    assert table_of(again) == table_of(out)
    assert embeddings_of(workdir) == before

    # Damaged embeddings are written again, and the same.
    path = next((workdir / "searchsage/embeddings").glob("items-*"))
    path.write_bytes(b"?" + path.read_bytes()[1:])
    again, _ = finish(start(workdir))
    assert commands_of(again) == [("embed", "searchsage")]
    assert embeddings_of(workdir) == before


@pytest.mark.slow
def test_what_is_stale_is_refused(finished, start, home):
    changed = home / "changed"
    shutil.copytree(finished[0], changed)
    out, err = finish(start(changed, "--config.train.seed=1"), code=2)
    assert commands_of(out) == []
    assert err == (
        f"error: {changed}/pinsage was made with train.seed=0, and now it is 1; remove it, or "
        "choose another --workdir\n"
    )
    # A stage that is run again has other embeddings, and what was made from it is refused.
    shutil.rmtree(changed / "searchsage")
    out, err = finish(start(changed, "--searchsage=--config.train.steps=5"), code=2)
    assert commands_of(out) == [("train", "searchsage"), ("embed", "searchsage")]
    assert err.startswith(f"error: {changed}/itemsage was made with vectors=")
    assert err.count("\n") == 1


@pytest.fixture(scope="module")
def command():
    with commands.Command("stack") as command:
        yield command


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=configs/pinsage.py"], "--config: every stage has its own; give --SYSTEM="),
        (["--config.train.step=3"], "--config.train.step: the config of no stage has such a field"),
        (["--itemsage=--config.train.step=3"], "no such field; did you mean train.steps?"),
        (["--itemsage=--workdir=x"], "--itemsage=--workdir=x: expected --config=FILE and"),
        (["--itemsage='--config.train.steps=3"], "train.steps=3: expected --config=FILE and"),
        (["--variant=tset"], "variant 'tset' is none of"),
        (["--data=nowhere"], "data.name: no prepared data set in nowhere"),
        (["--workdir=gs://bucket/stack"], "expected a directory on this machine"),
    ],
)
def test_wrong_input_is_one_line(command, home, flags, message):
    given = f"--workdir={home}/wrong", f"--config.data.dir={home}/data", *flags
    code, out, err = command(*given)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (home / "wrong").exists()


@pytest.mark.slow
def test_stages_that_the_data_set_cannot_carry_are_left_out(
    finished, start, home, other_data, tmp_path
):
    del finished  # the data set is there
    name = other_data(pairs={}, tasks=[], edges={})
    positives = "--config.data.positives=sav"
    flags = f"--pinnerformer={positives}", f"--pinnersage={positives}"
    out, err = finish(start(tmp_path / "less", f"--data={name}", *flags), code=2)
    assert "SearchSage is left out: data.name: other has no pairs, only timelines" in out
    assert "ItemSage is left out: data.name: other has no pairs, only timelines" in out
    assert "PinnerFormer is left out: other has no action 'sav'" in out
    assert "PinnerFormer on PinSage is left out: it needs the embeddings of pinsage" in out
    assert err == f"error: --data={name}: no stage can be run on it\n"


@pytest.mark.parametrize(
    ("reason", "named"),
    [
        ("data.name: log has no pairs, only timelines", True),
        ("log has no action 'sav'", True),
        ("log, split test: no label", True),
        ("data/log/items.parquet: damaged", False),
        ("/data/log: No space left on device", False),
        ("train.log_every: expected 1 or more", False),
        ("/runs/log-stack/run.json: No space left on device", False),
    ],
)
def test_a_data_set_is_named_by_more_than_a_path(reason, named):
    assert stack.names(reason, "log") == named


@pytest.mark.slow
def test_pinnerformer_without_content_has_no_stage_on_vectors(finished, start, home):
    workdir = shutil.copytree(finished[0], home / "without content")
    for directory in workdir.glob("pinnerformer*"):
        shutil.rmtree(directory)
    out, _ = finish(start(workdir, "--pinnerformer=--config.data.content=False"))
    for title in ("PinSage", "ItemSage"):
        assert f"PinnerFormer on {title} is left out: its config reads no vectors" in out
    assert "PinnerSage" in table_of(out)


@pytest.mark.slow
def test_a_config_that_a_stage_refuses_ends_the_stack(command, home):
    flags = "--variant=test", "--data=pinworld/tiny", "--pinsage=--config.train.select=valid/R@11"
    given = f"--workdir={home}/refused", f"--config.data.dir={home}/data", *flags
    code, out, err = command(*given)
    assert code == 2
    assert "left out" not in out
    assert err.startswith("error: PinSage: train.select: 'valid/R@11' is none of")


@pytest.mark.slow
def test_a_signal_stops_the_stage_and_the_stack(finished, start, home):
    workdir = home / "stopped"
    process = start(workdir)
    wait_for(process, workdir / "pinsage/metrics.jsonl")
    process.send_signal(signal.SIGTERM)
    _, err = finish(process, code=75)
    assert err == "stopped by SIGTERM; run the same command again to continue\n"
    assert "stopped after step" in (workdir / "pinsage/train.log").read_text()
    assert not (workdir / "pinsage/writer.lock").exists()  # the child is gone


def wait_for(process, *paths):
    while not any(path.exists() for path in paths):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "embed"])
def test_killed_in_each_stage_a_stack_ends_with_the_same_embeddings(finished, start, home, command):
    workdir = home / f"killed-{command}"
    for stage in stack.STAGES:
        process, directory = start(workdir), workdir / stage.name
        if command == "embed":
            wait_for(process, directory / "embeddings/manifest.json")
        else:
            wait_for(
                process,
                directory / "metrics.jsonl",
                *[directory / "evaluate.log"] * (stage.system == "pinnersage"),
            )
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    finish(start(workdir))
    assert embeddings_of(workdir) == embeddings_of(finished[0])
