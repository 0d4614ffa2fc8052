"""Rows go where the later data set has what they stand for; all else has to fit."""

import numpy as np
import pytest

from pinjax.distributed import sharded_table, sharding
from pinjax.errors import InputError
from pinjax.training import warm_start

ROWS = {"/id/(embedding|importance)$": "items", "/action/embedding$": "actions"}


def layout(sharded):
    return sharded_table.Layout(sharding.make_mesh() if sharded else None)


def end(sharded=False, **names):
    return warm_start.End(names.__getitem__, layout(sharded))


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize(("before", "after"), [(False, False), (True, True), (True, False)])
def test_rows_are_matched_by_own_ids(rng, text, before, after):
    former, later = rng.permutation(3_000)[:1_100], rng.permutation(3_000)[:1_300]
    old, fresh = rng.normal(size=(1_100, 3)), rng.normal(size=(1_300, 3))
    kernel = rng.normal(size=(2, 2))
    expected = fresh.copy()
    where = {own: row for row, own in enumerate(former)}
    for row, own in enumerate(later):
        if own in where:
            expected[row] = old[where[own]]
    assert 300 < sum(own in where for own in later) < 1_000

    if text:
        former, later = (np.array([f"i{x}" for x in ids], object) for ids in (former, later))
    table = {"tower": {"id": {"embedding": layout(before).lay_out(old)}, "kernel": kernel}}
    like = {"tower": {"id": {"embedding": layout(after).lay_out(fresh)}, "kernel": kernel * 0}}
    found = warm_start.carry(
        table, like, ROWS, end(before, items=former), end(after, items=later), "RUN"
    )
    np.testing.assert_array_equal(found["tower"]["kernel"], kernel)
    np.testing.assert_array_equal(
        found["tower"]["id"]["embedding"], layout(after).lay_out(expected)
    )
    np.testing.assert_array_equal(like["tower"]["kernel"], 0)  # arguments stay


def test_names_are_matched(rng):
    old, fresh = rng.normal(size=(3, 2)), rng.normal(size=(4, 2))
    former, later = ("unknown", "click", "save"), ("unknown", "hide", "save", "click")
    found = warm_start.carry(
        *({"a": {"action": {"embedding": x}}} for x in (old, fresh)),
        *(ROWS, end(actions=former), end(actions=later), "RUN"),
    )
    np.testing.assert_array_equal(
        found["a"]["action"]["embedding"], [old[0], fresh[1], old[2], old[1]]
    )


def test_hashed_rows_are_taken_only_if_they_stand_for_the_same(rng):
    old = {"embedding": rng.normal(size=(4, 2)), "importance": rng.normal(size=(6, 2))}
    fresh = {"embedding": np.zeros((4, 2)), "importance": np.ones((7, 2))}
    params, like = {"x": {"id": old}}, {"x": {"id": fresh}}
    grown = end(items=np.arange(7))
    found = warm_start.carry(params, like, ROWS, end(items=np.arange(6)), grown, "RUN")
    np.testing.assert_array_equal(found["x"]["id"]["embedding"], old["embedding"])
    np.testing.assert_array_equal(found["x"]["id"]["importance"][:6], old["importance"])
    np.testing.assert_array_equal(found["x"]["id"]["importance"][6], 1)
    with pytest.raises(InputError, match="RUN: x/id/embedding has hashes of the rows of items"):
        warm_start.carry(params, like, ROWS, end(items=np.arange(6) + 1), grown, "RUN")


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, True), (True, False)])
def test_hashed_rows_lie_where_the_later_layout_has_them(rng, before, after):
    rows = rng.normal(size=(2_048, 2))  # without padding in either layout
    importance = layout(before).lay_out(np.ones((6, 2)))
    old = {"embedding": layout(before).lay_out(rows), "importance": importance}
    importance = layout(after).lay_out(np.ones((6, 2)))
    fresh = {"embedding": np.zeros_like(rows), "importance": importance}
    ends = (end(sharded, items=np.arange(6)) for sharded in (before, after))
    found = warm_start.carry({"x": {"id": old}}, {"x": {"id": fresh}}, ROWS, *ends, "RUN")
    np.testing.assert_array_equal(found["x"]["id"]["embedding"], layout(after).lay_out(rows))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"id": {"embedding": np.ones((2, 4))}, "kernel": np.ones(3)}, "has the shape"),
        ({"id": {"embedding": np.ones((2, 3))}, "kernel": np.ones(4)}, "kernel has the shape"),
        ({"id": {"embedding": np.ones((2, 3))}}, "of another model: it has no x/kernel"),
        (
            {"id": {"embedding": np.ones((2, 3))}, "kernel": np.ones(3), "bias": np.ones(1)},
            "of another model: this run has no x/bias",
        ),
    ],
)
def test_what_does_not_fit_is_named(params, message):
    like = {"x": {"id": {"embedding": np.ones((2, 3))}, "kernel": np.ones(3)}}
    ids = end(items=np.arange(2))
    with pytest.raises(InputError, match=f"RUN: .*{message}"):
        warm_start.carry({"x": params}, like, ROWS, ids, ids, "RUN")


def test_integers_are_no_text():
    with pytest.raises(InputError, match="ids were int64, now they are string"):
        warm_start.match(np.arange(3), np.array(["0", "1"], object), "ids")
