"""A report of two runs on items with hostile names, opened in Chromium where there is one."""

import dataclasses
import json
import pathlib
import runpy
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath

from pinjax import checksums, results
from pinjax.data import catalogue, dataset, spec
from pinjax.distributed import sharding
from pinjax.reporting import breakdowns, browser, build, calibration, maps, page, runs
from pinjax.systems import registry
from pinjax.training import checkpoint, loop, workdirs

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
HOSTILE = "</script><script>throw 1</script><img src=x onerror=f()><b>"
CHROMIUM = shutil.which("chromium")
TABS = [
    *("overview", "training", "results", "breakdowns", "coverage"),
    *("logq", "map", "users", "items"),
]


@pytest.fixture(scope="module")
def data(data_dir, tmp_path_factory):
    """The name of a data set whose items have names and pictures, some of them hostile."""
    made = tmp_path_factory.mktemp("data") / "named"
    shutil.copytree(dataset.ensure("pinworld/tiny", data_dir), made)
    items = pq.read_table(made / catalogue.FILE)
    names = [HOSTILE if row % 3 == 0 else f"pin {row}" for row in range(len(items))]
    urls = ["javascript:throw 1", "https://h.invalid/1"] * (len(items) // 2)
    items = items.append_column("name", pa.array(names, pa.large_string()))
    items = items.append_column("image_url", pa.array(urls, pa.large_string()))
    pq.write_table(items, made / catalogue.FILE)
    metadata = made / spec.METADATA_FILE
    content = json.loads(metadata.read_text()) | {"name": "<b>named</b>"}
    metadata.write_text(json.dumps(content))
    checksums.record(made)
    return str(made)


@pytest.fixture(scope="module")
def make_run(data, data_dir, tmp_path_factory):
    """(system, steps) -> the directory of a run."""
    home = tmp_path_factory.mktemp("runs")

    def make(name, steps=0):
        config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]("test")
        config.data.update(name=data, dir=str(data_dir))
        config.evaluate.update(users=40, cadences=("window", "daily"))
        mesh, workdir = sharding.mesh_of(config), epath.Path(home / name)
        params = None
        if steps:
            config.train.update(steps=steps, evaluate_every=steps, log_every=1, select="")
        system = registry.create(config, mesh)
        checkpoint.claim(workdir, config, system.identity)
        if steps:
            with checkpoint.of_run(workdir, config, system) as checkpoints:
                params = loop.train(system, config.train, mesh, workdir, checkpoints).state.params
        results.write(workdir, "test", steps, system.evaluate(params, "test", full=True))
        return workdir

    return make


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """(directories of runs) -> (the runs, the content of their page, the page's path)."""

    def make(*workdirs):
        found = runs.read(workdirs)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(maps, "ITEMS", 300)
            content = build.content(found)
        content["made"] = "Made."
        path = tmp_path_factory.mktemp("page") / "report.html"
        path.write_bytes(page.render(content).encode())
        return found, content, path

    return make


@pytest.fixture(scope="module")
def untrained(make_run):
    """The directory of a run of a system without training."""
    return make_run("pinnersage")


@pytest.fixture(scope="module")
def reported(untrained, report):
    return report(untrained)


@pytest.fixture(scope="module")
def compared(untrained, make_run, report):
    """A report of a trained run beside the other one."""
    return report(make_run("pinnerformer", steps=3), untrained)


def blocks_of(content):
    return {tab["id"]: tab["blocks"] for tab in content["tabs"]}


def test_a_system_without_training_has_all_other_parts(reported):
    found, content, path = reported
    parts = blocks_of(content)
    assert list(parts) == TABS
    assert [name for name in TABS if not parts[name]] == ["training", "logq"]
    assert [line.partition(":")[0] for line in found[0].missing] == ["curves"]
    assert path.stat().st_size < 10e6


@pytest.mark.slow  # it trains a transformer
def test_a_trained_run_has_every_part(compared):
    found, content, _ = compared
    parts = blocks_of(content)
    assert all(parts.values())
    titles = [block.get("title", "") for blocks in parts.values() for block in blocks]
    for start in (
        *("Loss", "Recall on the validation split", "Temperature", "Side by side, test"),
        *("Length of the history", "Popularity of the item", "Age of the item", "Staleness"),
        *("Coverage and concentration", "Concentration", "pinnerformer: items", "pinnersage"),
    ):
        assert any(title.startswith(start) for title in titles), start
    assert found[0].missing == []
    (block,) = parts["users"]
    assert all([n for n, _ in user["recommended"]] == [0, 1] for user in block["users"])


def test_a_card_has_the_warnings_of_its_table(reported):
    (found,), content, _ = reported
    (card,) = blocks_of(content)["overview"][0]["cards"]
    counted, *others = found.results["test"]["notes"]
    warnings = [line for line in others if line.startswith("warning: ")]
    assert 0 < len(warnings) < len(others)
    assert [line for line in card["lines"] if line in (counted, *others)] == [counted, *warnings]


def test_users_have_what_is_known_of_them(reported, data):
    """Against the records and the timelines themselves."""
    found, content, _ = reported
    (block,) = next(tab for tab in content["tabs"] if tab["id"] == "users")["blocks"]
    items, records = content["items"][block["items"]], found[0].chosen
    opened = dataset.open_directory(data)
    timelines = {
        user: chunk.records[start:stop]
        for chunk in opened.chunks("test")
        for user, start, stop in zip(chunk.users, chunk.offsets, chunk.offsets[1:], strict=False)
    }
    for user in block["users"]:
        actions = timelines[user["id"]]
        before = actions[actions["time"] <= opened.spec.train_end]
        assert user["known"] == len(before)
        shown = [int(items["ids"][place]) for place, _, _ in user["history"]]
        assert shown == opened.catalogue.ids[before["item"]][-40:].tolist()
        mine = records.labels["user"] == user["id"]
        did = [int(items["ids"][place]) for place, _ in user["did"]]
        assert set(did) <= set(records.labels["label"][mine].tolist())
        ((_, answers),) = user["recommended"]
        recommended = {int(items["ids"][place]) for place, _ in answers}
        assert len(recommended) == 10
        assert recommended.isdisjoint(opened.catalogue.ids[before["item"]].tolist())
        history = records.labels["history"][mine]
        assert (history == len(before)).all()


def test_a_run_that_was_embedded_daily_alone_is_shown(untrained):
    """By the ranks of these embeddings, and with what they are in every breakdown."""
    (run,) = runs.read([untrained])
    records = run.chosen
    system = records.about.system
    methods = {
        (method, cadence): ranks
        for (method, cadence), ranks in records.methods.items()
        if cadence == "daily" or method in records.about.baselines
    }
    run.records["test"] = dataclasses.replace(records, methods=methods)
    listed = [None if rank is None else rank - 1 for rank in browser.ranks(run.chosen).values()]
    expected = methods[system, "daily"].rank.tolist()
    assert listed == [rank if rank < records.about.listed else None for rank in expected]
    drawn = [block["choices"][""]["data"] for block in breakdowns.tab([run])]
    assert len(drawn) == 4
    for lines in drawn:
        names = [line["name"] for line in lines]
        assert names[0] == f"{run.name}, embedded daily"
        assert names[2:] == ["oracle"]


def test_pictures_are_of_the_web_alone(reported):
    _, content, _ = reported
    (items,) = content["items"].values()
    assert {url.partition(":")[0] for url in items["pictures"]} == {"https", ""}


@pytest.mark.slow
def test_the_sketch_of_a_run_counts_what_it_trained_on(compared):
    """Counts of a sketch are never too low, and of a wide one nearly exact."""
    found, _, _ = compared
    config = workdirs.config_of(found[0].workdir)
    mesh = sharding.mesh_of(config)
    system = registry.create(config, mesh)
    state = checkpoint.load_chosen(found[0].workdir, config, system, mesh)
    (measured,) = calibration.measure(system, state.sketches, 3)
    assert (measured.steps, measured.of, measured.name) == (3, 3, "items")
    total = int(state.sketches.total)
    counts = np.round(measured.counted * total)
    np.testing.assert_allclose(counts.sum(), total)
    estimated = np.round(np.asarray(measured.estimated) * total)
    assert (estimated >= counts).all()
    assert np.mean(estimated == counts) > 0.9


def test_a_run_without_records_says_what_makes_them(untrained, report, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(untrained, bare)
    (bare / "records_test.parquet").unlink()
    (bare / "results_test.json").unlink()
    (found,), content, _ = report(epath.Path(bare))
    assert [name for name, made in blocks_of(content).items() if made] == [
        *("overview", "map", "items")
    ]
    assert f"python -m pinjax.evaluate --workdir={bare}" in found.missing[0]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")
@pytest.mark.parametrize("runs_of", ["reported", "compared"])
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_a_browser_opens_every_tab_without_an_error(request, tmp_path, runs_of, scheme, width):
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    _, content, path = request.getfixturevalue(runs_of)
    parts, errors, requests = blocks_of(content), [], []
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=[*flags, "--disable-component-update"], timeout=0
        )
        opened = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
        opened.set_default_timeout(0)
        opened.on("pageerror", lambda error: errors.append(str(error)))
        opened.on("console", lambda told: errors.append(told.text))
        opened.on("request", lambda request: requests.append(request.url))
        opened.goto(path.as_uri())
        for tab in TABS:
            opened.click(f"nav button[data-tab={tab}]")
            shown = opened.locator("main > :not([hidden])")
            assert shown.count() == 1
            assert shown.inner_text()
            assert not opened.evaluate("document.documentElement.scrollWidth > innerWidth"), tab
            drawn = shown.locator(".figure > .plot-container").count()
            assert drawn == sum(block["type"] == "figure" for block in parts[tab])
        assert opened.evaluate("document.scripts.length") == 3
        assert opened.locator("main img, main b, main script").count() == 0
        assert HOSTILE in shown.locator(".list").first.inner_text()
        picture = tmp_path / "page.png"
        opened.screenshot(path=picture)
        assert picture.stat().st_size > 10_000  # not blank
        opened.click("#theme")
        paper = opened.evaluate("getComputedStyle(document.querySelector('header')).background")
        assert {"light": "rgb(26, 30, 36)", "dark": "rgb(255, 255, 255)"}[scheme] in paper
        browser.close()
    assert errors == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
