"""The table of neighbourhoods on disk is complete or absent, and is what the walks find."""

import concurrent.futures
import dataclasses
import os
import pathlib

import numpy as np
import pytest

from pinjax import signals
from pinjax.errors import InputError
from pinjax.graph import csr, neighbourhoods, walks
from tests.graph.graphs import random_edges

WALKS = walks.Walks(20, 3, 0.2, 6)
ITEMS, GROUPS = 50, 20


@pytest.fixture
def graph(rng, tmp_path):
    """Opened as memory maps."""
    csr.write(tmp_path / "graph", random_edges(rng, ITEMS, GROUPS, 0.1), ITEMS, GROUPS)
    return csr.read(tmp_path / "graph")


def assert_all_of(graph, table, seed=0):
    expected = walks.neighbourhoods(graph, np.arange(ITEMS), WALKS, seed)
    for found, right in zip(table, expected, strict=True):
        assert found.dtype == right.dtype
        np.testing.assert_array_equal(found, right)


def test_what_is_reopened_is_what_the_walks_find(graph, tmp_path):
    neighbourhoods.write(tmp_path / "table", graph, WALKS, 0, rows_at_a_time=7)
    table = neighbourhoods.open(tmp_path / "table")
    assert_all_of(graph, table)
    assert all(isinstance(array, np.memmap) for array in table)


def test_a_table_is_made_once_for_what_it_is_made_of(graph, tmp_path, monkeypatch):
    made = tmp_path / "made"
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for table in pool.map(
            lambda _: neighbourhoods.ensure(made, graph, "a", WALKS, 0), range(4)
        ):
            assert_all_of(graph, table)
    (first,) = made.iterdir()
    neighbourhoods.ensure(made, graph, "b", WALKS, 0)
    neighbourhoods.ensure(made, graph, "a", dataclasses.replace(WALKS, steps=2), 0)
    assert_all_of(graph, neighbourhoods.ensure(made, graph, "a", WALKS, 1), seed=1)
    assert len(os.listdir(made)) == 4
    monkeypatch.delattr(neighbourhoods, "write")
    assert_all_of(graph, neighbourhoods.ensure(made, graph, "a", WALKS, 0))
    os.truncate(first / "ids.npy", 200)
    with pytest.raises(InputError, match=r"ids\.npy: damaged"):
        neighbourhoods.ensure(made, graph, "a", WALKS, 0)


def test_nothing_is_left_of_a_table_that_was_stopped(graph, tmp_path, monkeypatch):
    ranges = iter(range(3))

    def check():
        if next(ranges) == 2:
            raise signals.Stopped(15)

    monkeypatch.setattr(signals, "check", check)
    with pytest.raises(signals.Stopped):
        neighbourhoods.write(tmp_path / "made" / "table", graph, WALKS, 0, rows_at_a_time=10)
    assert list(pathlib.Path(tmp_path / "made").iterdir()) == []
