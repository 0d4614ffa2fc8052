"""The command `pinjax.prepare`: what it prints, and that what it proposes can be run."""

import os
import pathlib
import re
import shlex

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinjax import config_flag, settings
from pinjax.data import dataset
from pinjax.distributed import sharding
from pinjax.systems import registry
from tests import commands

ROOT = pathlib.Path(__file__).parents[2]
WORDS = ("oak", "chair", "red", "lamp", "desk", "blue")
ACTIONS = ("buy", "close, up", " save ", 'say "hi"', "a>=b", "whatever")
ACTIONS += ("hide", "Unlike", "isHated")  # which are no sign of interest
MAP = """
from pinjax.data.sources import column_map

def get_config(variant=""):
    config = column_map.default()
    config.split.update(valid=0.2, test=0.3, test_days=5.0)
    config.events.update(time="time", time_unit="s", action="action")
    if variant in ("all", "one_out"):
        config.events.update(user="user", group="basket")
    if variant in ("all", "searches"):
        config.events.query = "query"
    if variant in ("all", "one_out", "searches"):
        config.catalogue.texts = (("title", "name"),)
        config.vectors.update(texts=("title",), dim=4)
    if variant == "all":
        config.catalogue.content = "vector"
    if variant in ("all", "one_out"):
        config.pairs.sequence = "user"
    if variant == "one_out":
        config.split.kind, config.timelines.min_actions = "leave_one_out", 3
    if variant == "users":
        config.events.user = "user"
    if variant == "groups":
        config.events.group = "basket"
    return config
"""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    rng, made = np.random.default_rng(0), tmp_path_factory.mktemp("files")
    rows, items = 3_000, 40
    names = [" ".join(rng.choice(WORDS, 3)) for _ in range(items)]
    item = rng.integers(0, items, rows)
    events = {
        "user": rng.integers(0, 60, rows),
        "item": item,
        "time": 1_600_000_000 + rng.integers(0, 30 * 86_400, rows),
        "action": np.array(ACTIONS)[rng.integers(0, len(ACTIONS), rows)],
        "query": [f"{names[i].split()[0]} {rng.integers(30)}" for i in item],
        "basket": rng.integers(0, 300, rows),
    }
    pq.write_table(pa.table(events), made / "e.parquet")
    vectors = rng.normal(size=(items, 6)).tolist()
    table = {"item": np.arange(items), "name": names, "vector": vectors}
    pq.write_table(pa.table(table), made / "i.parquet")
    (made / "map.py").write_text(MAP)
    return made


@pytest.fixture(scope="module")
def prepare(directory):
    with commands.Command("prepare") as command:

        def prepare(variant, *flags):
            """(exit code, stdout, stderr)"""
            inputs = [f"--events={directory}/e.parquet", f"--out={directory}/{variant}"]
            if variant not in ("users", "groups"):
                inputs.append(f"--items={directory}/i.parquet")
            return command(f"--config={directory}/map.py:{variant}", *inputs, *flags)

        yield prepare


CASES = {
    "all": ("pinnerformer.py:own", "itemsage.py", "searchsage.py", "pinsage.py", "pinnersage.py"),
    "one_out": ("pinnerformer.py:ml1m", "itemsage.py", "pinsage.py"),
    "searches": ("itemsage.py", "searchsage.py"),
    "users": ("pinnerformer.py:own_ids",),
    "groups": ("pinsage.py:users",),
}
LACKS = {
    "one_out": ("SearchSage    no text of a search: it needs events.query",),
    "searches": ("PinnerFormer  no timelines: it needs events.user",),
    "users": ("ItemSage      no pairs: it needs events.query or pairs.sequence",),
    "groups": (
        "PinnerFormer  no timelines",
        "ItemSage      no pairs",
        "PinnerSage    it needs timelines",
    ),
}


@pytest.mark.parametrize(
    "variant",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ("all", "one_out"))) for name in CASES],
)
def test_what_is_proposed_can_be_run(prepare, variant, monkeypatch, tmp_path):
    code, out, err = prepare(variant)
    assert (code, err) == (0, "")
    for lack in LACKS.get(variant, ()):
        assert lack in out
    few = re.search(
        r"# evaluated on .* users of .*\n +# warning: \d+ users are too few to tell", out
    )
    assert bool(few) == CASES[variant][0].startswith("pinnerformer")
    commands = re.findall(r"python -m pinjax.(?:train|evaluate) .*", out)
    made = [shlex.split(command)[3:] for command in commands]
    assert [flags[0] for flags in made] == [f"--config=configs/{name}" for name in CASES[variant]]
    monkeypatch.chdir(ROOT)
    mesh = sharding.make_mesh(jax.devices()[:1])
    for flags in made:
        flags = [flag for flag in flags if not flag.startswith("--workdir=")]
        of_words = re.search("(item|search)sage.py", flags[0])
        assert ("--config.model.residual=True" in flags) == bool(of_words)
        config = config_flag.load(flags[0].partition("=")[2])
        settings.check(config)
        for flag in flags[1:]:
            name, _, value = flag.removeprefix("--config.").partition("=")
            settings.override(config, name, value)
        config.data.update({name: 16 for name in ("users", "pairs") if name in config.data})
        config.data.update({name: 8 for name in ("neighbours", "walks") if name in config.data})
        config.data.dir = str(tmp_path)
        system = registry.create(config, mesh)
        assert re.search("users|queries|groups", system.evaluator.source.describe("valid"))
        if system.trainable is None:
            continue
        system.check_training()
        params, sketches = jax.eval_shape(system.trainable.init, jax.random.key(0))
        batch = next(system.batches(0))
        args = params, system.constants, sketches, batch, jax.random.key(0)
        assert jax.eval_shape(system.trainable.loss, *args)[0].shape == ()
        if config.system == "pinnerformer":
            for name in ("hide", "Unlike", "isHated"):
                assert name not in config.data.positives
            for name in ('"close, up"', "whatever"):
                assert name in config.data.positives


def test_images_lie_in_another_space_than_words(prepare, tmp_path):
    flags = "--config.catalogue.images=vector", f"--out={tmp_path}/shown"
    code, out, _ = prepare("searches", *flags)
    assert code == 0
    assert "configs/itemsage.py" in out
    assert "residual" not in out


def test_dislike_is_no_engagement_to_learn(prepare, tmp_path):
    named = "--config.events.action=", '--config.events.action_by_file=(("e", "hide"),)'
    code, out, _ = prepare("searches", *named, f"--out={tmp_path}/hidden")
    assert code == 0
    for system in ("ItemSage      ", "SearchSage    "):
        assert f"{system}no engagement that could be learned among text/hide" in out


@pytest.mark.parametrize(
    ("days", "split", "counts"),
    [
        (0.001, "test", "2 users of valid, 0 of test"),
        (0.05, "valid", "0 users of valid, 1 of test"),
    ],
)
def test_a_split_that_nobody_is_evaluated_on(prepare, tmp_path, days, split, counts):
    flags = "--config.split.valid=0.2" if split == "test" else "--config.split.valid=0.02"
    code, out, _ = prepare(
        "users", flags, f"--config.split.test_days={days}", f"--out={tmp_path}/x"
    )
    assert code == 0
    assert f"# evaluated on {counts} in the 14 days after training" in out
    told = "# warning: without users there is nothing to measure, which is an error; raise "
    assert re.findall(f"{told}.* or split.(.*) of pinjax.prepare", out) == [split]


def test_the_report_and_a_second_call(prepare, directory):
    _, first, _ = prepare("searches", "--memory=200MiB")
    assert re.search(r"events whose item is in the table +100\.0%", first)
    opened = dataset.open_directory(directory / "searches")
    learned = [not re.search("hide|unlike|hated", task.lower()) for task in opened.spec.tasks]
    counts = [
        len(np.unique(pairs["query"][np.array(learned)[pairs["task"]]]))
        for pairs in (opened.pairs("valid"), opened.pairs("test"))
    ]
    assert not all(learned)
    for line in re.findall("# evaluated on (.*)", first):
        assert line == f"{counts[0]:,} queries of valid, {counts[1]:,} of test"
    _, again, _ = prepare("searches")
    assert again.partition("already prepared")[0] in first


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--memory=lots", "--memory=lots: expected a size like 512MiB or 3GiB"),
        ("--memory=3GiB\n", "--memory=3GiB : expected a size like 512MiB or 3GiB"),
        ("--memory=1MiB", "--memory=1MiB: expected from 128MiB to 1024TiB"),
        ("--memory=999999999TiB", "expected from 128MiB to 1024TiB"),
        ("--events=", "--events names an empty file"),
        ("--events=https://host/e.parquet", "expected a file on this machine"),
        (f"--events={os.sep}tmp", "is a directory; expected files"),
        ("--config.split.test_days=nan", "split.test_days='nan'|split.test_days=nan"),
        ("--config.split.kind=random", "split.kind is 'random'; expected 'time' or"),
        ("--out=gs://bucket/data", "expected a directory on this machine"),
        ("--out=", "--out is empty; expected a directory"),
        ("--out=a\nb", r"--out='a\\nb': expected a directory"),
    ],
)
def test_wrong_flags_are_one_line(prepare, flag, message):
    code, _, err = prepare("users", flag)
    assert code == 2
    assert re.search(message, err)
    assert len(err.splitlines()) == 1
