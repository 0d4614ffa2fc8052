"""The numbers of a report against loops and definitions."""

import collections
import html.parser
import itertools
import json
import types

import numpy as np
import pytest
from etils import epath

from pinjax.errors import InputError
from pinjax.evaluation import records as records_lib
from pinjax.evaluation import tables
from pinjax.reporting import (
    breakdowns,
    browser,
    calibration,
    curves,
    maps,
    opened,
    page,
    runs,
    spread,
)
from pinjax.timestamps import DAY

LABELS, WINDOW = 300, 1_700_000_000


@pytest.fixture
def records(rng):
    """Records of users with several labels each, by the system and two baselines."""
    user = np.sort(rng.integers(0, 40, LABELS))
    time = WINDOW + rng.integers(1, 14 * DAY, LABELS)
    labels = {
        "user": np.array([f"user {i}" for i in user], object),
        "window": np.full(LABELS, WINDOW),
        "label": rng.permutation(LABELS) + 1_000,
        "label_time": time,
        "label_age": np.where(
            rng.random(LABELS) < 0.2, time, rng.integers(-DAY, 900 * DAY, LABELS)
        ),
        "label_popularity": (10 ** (4 * rng.random(LABELS)) - 1).astype(np.int32),
        "history": np.minimum(user * 7, 99),
        "task": np.full(LABELS, "", object),
        "tier": np.full(LABELS, "", object),
    }
    names = ("ours", "popularity", "co-occurrence")
    methods = {
        (name, "window"): records_lib.Ranks(
            rng.integers(0, 30, LABELS).astype(np.int32),
            np.full(LABELS, WINDOW),
            np.full(LABELS, np.nan, np.float32),
        )
        for name in names
    }
    about = records_lib.About(
        **{"system": "ours", "averaged_over": "users", "metrics": ("R@10",), "tiers": ()},
        **{"tasks": (), "has_topics": False, "listed": 25, "baselines": names[1:]},
        **{"figures": (), "notes": ("40 users",)},
    )
    return records_lib.Records(about, labels, methods)


def recall(records, method, where):
    """The mean over users of the share of their labels that rank in the top ten."""
    found = collections.defaultdict(list)
    rank = records.methods[method, "window"].rank
    for user, place, counts in zip(records.labels["user"], rank, where, strict=True):
        if counts:
            found[user].append(place < 10)
    return np.mean([np.mean(hits) for hits in found.values()]) if found else np.nan


@pytest.mark.parametrize("by", ["history", "popularity", "age", "staleness"])
def test_recall_by_bins_is_what_a_loop_counts(records, by):
    labels = records.labels
    bins = getattr(breakdowns, by)(labels)
    edges = [0, 1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000]
    if by == "staleness":
        value = (labels["label_time"] - WINDOW - 1) // DAY
        edges = range(15)
    else:
        seconds = np.where(labels["label_age"] == labels["label_time"], -1, labels["label_age"])
        columns = {"history": labels["history"], "popularity": labels["label_popularity"]}
        value = columns.get(by, seconds // DAY)
    parts = [(value >= low) & (value < high) for low, high in itertools.pairwise(edges)]
    some = np.flatnonzero([part.any() for part in parts])
    parts = parts[some[0] : some[-1] + 1]
    assert bins.counts.tolist() == [part.sum() for part in parts]
    found = tables.recall_by(records, bins.part, len(bins.names))
    for method in ("ours", "popularity"):
        wanted = [recall(records, method, part) for part in parts]
        values = [estimate.value for estimate in found[method, "window"]]
        np.testing.assert_allclose(values, wanted)
    best = max(records.about.baselines, key=lambda m: recall(records, m, np.ones(LABELS, bool)))
    assert tables.best_baseline(records) == best


@pytest.mark.parametrize("days", [31, 32, 60])
def test_days_of_an_evaluation_are_weeks_from_a_month_on(days):
    """The last second of a day belongs to it; empty weeks stay."""
    last = np.array([1, 7 * DAY, 7 * DAY + 1, 14 * DAY, 29 * DAY, days * DAY])
    bins = breakdowns.staleness({"label_time": WINDOW + last, "window": np.full(6, WINDOW)})
    if days == 31:
        assert bins.names == [str(day) for day in range(1, 32)]
        assert bins.part.tolist() == [0, 6, 7, 13, 28, 30]
    else:
        weeks = [f"{first}–{first + 6}" for first in range(1, days + 1, 7)]
        assert bins.names == weeks
        assert bins.part.tolist() == [0, 0, 1, 1, 4, len(weeks) - 1]


def test_bins_are_named_by_their_ends():
    values = np.array([0, 1, 2, 3, 9, 10, 999, 1_000, 2_999, 3_000, 10**6, -1, 5])
    known = np.arange(len(values)) < 12
    bins = breakdowns.half_decades(values, known)
    names = [bins.names[part] if part >= 0 else None for part in bins.part]
    assert names == [
        *("0", "1–2", "1–2", "3–9", "3–9", "10–29", "300–999", "1k–3k", "1k–3k", "3k–10k"),
        *("1M–3M", None, None),
    ]
    assert bins.names[0] == "0"
    assert bins.names[-1] == "1M–3M"


@pytest.mark.parametrize("without", ["times", "dates", "popularity"])
def test_what_records_do_not_tell_has_no_figure(records, without):
    labels = dict(records.labels)
    if without == "times":
        labels |= {"window": np.zeros(LABELS, int), "label_time": np.arange(LABELS)}
        assert breakdowns.staleness(labels) is None
    if without == "dates":
        assert breakdowns.age(labels | {"label_age": labels["label_time"]}) is None
    if without == "popularity":
        zeros = np.zeros(LABELS, np.int32)
        assert breakdowns.popularity(labels | {"label_popularity": zeros}) is None


def test_concentration_is_as_defined(rng):
    counts = rng.integers(0, 50, 400) * (rng.random(400) < 0.3)
    assert spread.share(counts) == pytest.approx(np.mean(counts > 0))
    differences = np.abs(counts[:, None] - counts).sum()
    assert spread.gini(counts) == pytest.approx(differences / (2 * 400**2 * counts.mean()))
    assert spread.gini(np.full(9, 4)) == pytest.approx(0)
    assert spread.gini(np.eye(100)[3]) == pytest.approx(0.99)
    falling = sorted(counts.tolist(), reverse=True)
    assert spread.top_share(counts) == pytest.approx(sum(falling[:4]) / sum(falling))
    for x, y in zip(*spread.curve(counts), strict=True):
        assert y == pytest.approx(sum(falling[: round(400 * x)]) / sum(falling))


def test_shares_are_what_a_counter_counts(rng):
    stream = [rng.integers(-1, 30, 80) for _ in range(5)]
    counter = collections.Counter(x for ids in stream for x in ids.tolist() if x >= 0)
    total = counter.total()
    for least in (1, 14):
        ids, shares = calibration.shares(stream, least)
        wanted = {id_: n / total for id_, n in counter.items() if n >= least}
        assert dict(zip(ids.tolist(), shares.tolist(), strict=True)) == pytest.approx(wanted)


def test_a_curve_by_time_leaves_interruptions_out():
    minute = 60.0
    times = [0, 10, 20, 20 + 1_000, 1_030]  # in minutes
    lines = [
        {"step": step, "time": minute * time, "loss": None if step == 4 else 1 / step}
        for step, time in zip([2, 4, 6, 8, 10], times, strict=True)
    ]
    x, y = curves.series(lines, "loss", "time")
    assert x.tolist() == pytest.approx([0, 20, 30, 40])
    assert y.tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 8, 1 / 10])
    assert curves.series(lines, "loss", "steps")[0].tolist() == [2, 6, 8, 10]
    many = [{"step": i, "time": float(i), "loss": 1.0} for i in range(1, 2_501)]
    assert len(curves.series(many, "loss", "steps")[0]) == 834


def test_what_users_did_is_in_order_and_has_its_ranks(records):
    (someone, *_) = browser.sample(records, 5)
    then = browser.did(records, someone)
    labels = records.labels
    wanted = sorted(
        np.flatnonzero(labels["user"] == someone), key=lambda r: labels["label_time"][r]
    )
    assert then.rows.tolist() == wanted
    assert (then.window, then.first) == (WINDOW, labels["label_time"][wanted[0]])
    rank = records.methods["ours", "window"].rank
    found = [browser.ranks(records)[key] for key in browser.keys(records, then.rows)]
    assert found == [rank[row] + 1 if rank[row] < 25 else None for row in wanted]


def test_only_users_of_the_first_window_are_sampled_for_it(records):
    users = records.labels["user"]
    late = np.isin(users, [f"user {i}" for i in range(0, 40, 2)])
    records.labels["window"] = np.where(late, WINDOW + 14 * DAY, WINDOW)
    assert set(browser.sample(records, 99)) == set(users)
    assert set(browser.sample(records, 99, first_window=True)) == set(users[~late])


def test_recommendations_that_know_the_label_are_left_out(records):
    someone = browser.sample(records, 1)
    then, entry = browser.did(records, someone[0]), {"ranks": [], "recommended": []}
    users = opened.Users(records, someone, someone, [then], (), [entry], [])
    run = types.SimpleNamespace(chosen=records, missing=[])
    of_run = types.SimpleNamespace(
        dataset=types.SimpleNamespace(spec=types.SimpleNamespace(leave_one_out=True))
    )
    group = types.SimpleNamespace(users=users, shown=None, noun="user")
    opened.Opened([], verify=False)._recommend(0, run, of_run, group)
    expected = [browser.ranks(records)[key] for key in browser.keys(records, then.rows)]
    assert entry == {"ranks": [[0, expected]], "recommended": []}
    assert run.missing == ["recommendations: with leave-one-out they come after the label"]


def test_the_sketches_of_a_warm_start_have_seen_nothing():
    assert calibration.measure(None, None, 0) == []


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (3, 5), (40, 2), (40, 60)])
def test_a_map_has_a_place_for_each_item(rng, shape):
    vectors = rng.standard_normal(shape)
    places = maps.project(vectors)
    assert places.shape == (shape[0], 2)
    assert np.isfinite(places).all()
    assert maps.project(np.ones((10, 4))).shape == (10, 2)


def test_a_map_keeps_clusters_together(rng):
    vectors = np.repeat(np.eye(4, 16), 15, axis=0) + 0.02 * rng.standard_normal((60, 16))
    places = maps.project(vectors)
    cluster = np.repeat(np.arange(4), 15)
    distance = np.linalg.norm(places[:, None] - places, axis=-1) + np.diag([np.inf] * 60)
    assert (cluster[distance.argmin(axis=1)] == cluster).all()


class Scripts(html.parser.HTMLParser):
    """The scripts of a page, as a browser reads them."""

    def __init__(self, text):
        super().__init__()
        self.found, self._inside = [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self._inside = tag == "script"
        if self._inside:
            self.found.append("")

    def handle_endtag(self, tag):
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self.found[-1] += data


def test_data_cannot_leave_its_script():
    texts = [
        "</script><script>alert(1)</script>",
        "<!--<script>",
        "]]>",
        "&lt;",
        "\u2028",
        "\ud800",
    ]
    content = {"title": "</title><script>", "tabs": texts, "{{js}}": "{{plotly}}"}
    made = page.render(content)
    data, _, script = Scripts(made).found
    assert json.loads(data) == content
    assert script.strip().endswith("})();")
    assert "<title>&lt;/title&gt;&lt;script&gt;</title>" in made
    made.encode()


def test_a_directory_without_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"--workdir=.*: holds no run"):
        runs.read([epath.Path(tmp_path)])
    with pytest.raises(InputError, match="no such directory"):
        runs.read([epath.Path(tmp_path / "none")])
    (tmp_path / "results_test.json").write_text("{")
    with pytest.raises(InputError, match=r"results_test.json: damaged"):
        runs.read([epath.Path(tmp_path)])
