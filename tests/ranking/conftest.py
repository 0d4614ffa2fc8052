"""A made-up log of two splits, and rows of it."""

import numpy as np
import pytest

from pinjax.data import spec as spec_lib
from pinjax.data import timelines, windows
from pinjax.ranking.rows import Log
from pinjax.timestamps import DAY

ACTIONS = ("unknown", "save", "click", "hide")
START = 100 * DAY


@pytest.fixture
def spec():
    """Of 30 items and 12 users, 4 of whom are evaluated."""
    users = {"train": 8, "valid": 2, "test": 2}
    return spec_lib.Spec(
        "made-up", 30, START, users=users, actions=ACTIONS, surfaces=("unknown", "home")
    )


@pytest.fixture
def positives(spec):
    return windows.Positives.create(spec, "save, click>=10", "home")


@pytest.fixture
def make_log(rng, positives):
    """(users, actions of each, action types) -> a log of random actions around START."""

    def make(users=12, actions=40, types=ACTIONS[1:]):
        records = np.zeros((users, actions), timelines.ACTION)
        records["time"] = np.sort(
            rng.integers(START - 50 * DAY, START + 50 * DAY, (users, actions))
        )
        records["item"] = rng.integers(0, 30, (users, actions))
        records["action"] = rng.choice([ACTIONS.index(name) for name in types], (users, actions))
        records["duration"] = rng.choice([0, 20], (users, actions))
        records["surface"] = rng.choice([0, 1], (users, actions), p=(0.1, 0.9))
        records = records.ravel()
        user = np.repeat(np.arange(users), actions)
        return Log(list(range(100, 100 + users)), users - 4, user, records, positives(records))

    return make
