"""The table of several evaluations against figures of their ranks."""

import dataclasses

import numpy as np
import pytest

from pinjax.evaluation import comparison, formatting, metrics, records

LABELS = 60


@pytest.fixture
def make(rng):
    """(system, users) -> records of a system with a variant, a baseline and an oracle."""

    def make(system, users):
        about = records.About(
            **{"system": system, "averaged_over": "labels", "metrics": ("R@10",), "tiers": ()},
            **{"tasks": ("",), "has_topics": False, "listed": 101, "baselines": ("popularity",)},
            **{"figures": (), "notes": ()},
        )
        names = system, f"{system}, ScaNN", "oracle", "popularity"
        ranks = {
            (name, "window"): records.Ranks(
                rng.integers(0, 30, LABELS).astype(np.int16),
                np.zeros(LABELS, np.int64),
                np.full(LABELS, np.nan, np.float32),
            )
            for name in names
        }
        ranks[system, "daily"] = ranks[system, "window"]
        labels = {
            "user": users,
            "label": np.arange(LABELS),
            "task": np.full(LABELS, "", object),
            "tier": np.full(LABELS, "", object),
            **{name: np.zeros(LABELS, np.int64) for name in ("window", "label_time")},
        }
        return records.Records(about, labels, ranks)

    return make


def hits(of, method):
    return (of.methods[method, "window"].rank < 10).astype(float)


def test_runs_of_the_same_labels_share_baselines_and_are_paired(make, rng):
    users = np.sort(rng.integers(0, 20, LABELS))
    runs = {
        "A": make("Other", np.arange(LABELS)),
        "B": make("Model", users),
        "B on A": make("Model", users),
        "C": make("Third", users),
    }
    found = comparison.rows(runs)
    assert [name for name, _ in found] == [
        *("A", "A, ScaNN", "  oracle", "  popularity"),
        *("B", "B, ScaNN", "B on A", "B on A, ScaNN", "C", "C, ScaNN", "  oracle", "  popularity"),
    ]
    for name, system in (("A", "Other"), ("B", "Model"), ("C", "Third")):
        cells = dict(found)[name]
        ours, baseline, best = (hits(runs[name], m) for m in (system, "popularity", "oracle"))
        np.testing.assert_allclose(cells["R@10"].value, ours.mean())
        np.testing.assert_allclose(cells["over baseline"].value, (ours - baseline).mean())
        np.testing.assert_allclose(cells["of oracle"].value, ours.mean() / best.mean())
    for name, of, method in (("B on A", "B on A", "Model"), ("C, ScaNN", "C", "Third, ScaNN")):
        expected = metrics.paired_difference(
            hits(runs[of], method), hits(runs["B"], "Model"), users
        )
        np.testing.assert_allclose(dict(found)[name]["over B"], expected)
    assert "over B" not in dict(found)["B"] | dict(found)["B, ScaNN"] | dict(found)["A"]
    assert "over B" in formatting.format_table(found)


def without(of, *keys):
    return dataclasses.replace(of, methods={k: x for k, x in of.methods.items() if k not in keys})


def test_a_run_without_the_first_cadence_of_another_one_is_shown_with_its_own(make, rng):
    users = np.sort(rng.integers(0, 20, LABELS))
    twice, daily, once = make("Model", users), make("Model", users), make("Model", users)
    daily = without(daily, ("Model", "window"), ("Model, ScaNN", "window"))
    once = without(once, ("Model", "daily"))
    daily.methods["Model", "daily"] = once.methods["Model", "window"]
    rows = [comparison.rows({"A": x, "B": daily}) for x in (twice, once)]
    names = "A", "A, ScaNN", "B, daily", "  oracle", "  popularity"
    for found, first in zip(rows, (twice, once), strict=True):
        assert tuple(name for name, _ in found) == names
        np.testing.assert_allclose(dict(found)["A"]["R@10"].value, hits(first, "Model").mean())
        np.testing.assert_allclose(
            dict(found)["B, daily"]["R@10"].value, hits(once, "Model").mean()
        )
    expected = metrics.paired_difference(hits(once, "Model"), hits(twice, "Model"), users)
    np.testing.assert_allclose(dict(rows[0])["B, daily"]["over A"], expected)
    assert "over A" not in dict(rows[1])["B, daily"]
    assert next(name for name, _ in comparison.rows({"B": daily, "A": once})) == "B, daily"


def test_runs_that_did_not_rank_the_same_items_are_not_compared(make):
    """All-time popularity tells; records without it are compared by their labels."""
    key = "popularity, all time", "window"
    one, same, other, unknown = (make("Model", np.arange(LABELS)) for _ in range(4))
    rank = one.methods["popularity", "window"].rank
    for of, values in ((one, rank), (same, rank), (other, rank + (rank > 20))):
        of.methods[key] = dataclasses.replace(of.methods["popularity", "window"], rank=values)
    assert comparison.comparable(one, same)
    assert not comparison.comparable(one, other)
    assert comparison.comparable(one, unknown)
    assert comparison.comparable(unknown, other)
    found = comparison.rows({"A": one, "B": same, "C": other})
    assert [name for name, cells in found if "over A" in cells] == ["B", "B, ScaNN"]
    assert [name for name, _ in found].count("  oracle") == 2
