"""The graph of random logs against a plain reading of their edges."""

import collections
import hashlib

import numpy as np
import pyarrow.parquet as pq
import pytest

from pinjax.data.sources import column_map
from pinjax.data.spec import SPLITS
from pinjax.graph import csr
from pinjax.timestamps import DAY

START = 1_600_000_000
SHARES = (0.3, 0.2)  # valid, test


def random_log(rng, rows=300, groups=20, nulls=False):
    time = START + rng.integers(0, 30, rows) * DAY
    first = rng.integers(0, 30, groups) * DAY  # some groups begin late
    board = rng.integers(0, groups, rows)
    return {
        "user": rng.integers(0, 15, rows),
        "item": rng.integers(0, 40, rows),
        "time": np.maximum(time, START + first[board]),
        "board": [f"b{n}" if n or not nulls else None for n in board],
        "tests": rng.random(rows) < 0.1,
    }


def make_config(kind, **events):
    config = column_map.default()
    config.events.update(group="board", **events)
    config.split.update(kind=kind, valid=SHARES[0], test=SHARES[1], test_days=10.0)
    if kind in ("time", "leave_one_out"):
        config.events.update(user="user", time="time", time_unit="s")
    if kind == "leave_one_out":
        config.timelines.min_actions = 3
    if kind == "column":
        config.split.column = "tests"
    return config


def drawn(seed, key, valid, test):
    hashed = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    share = int.from_bytes(hashed, "little") / 2**64
    return "test" if share < test else "valid" if share < test + valid else "train"


def plainly(log, kind, seed):
    """{split: {(group, item)}}"""
    rows = [dict(zip(log, row, strict=True)) for row in zip(*log.values(), strict=True)]
    if kind == "leave_one_out":
        users = collections.defaultdict(list)
        for row in sorted(rows, key=lambda row: row["time"]):
            own = users[row["user"]]
            if not any(r["item"] == row["item"] and r["time"] == row["time"] for r in own):
                own.append(row)
        rows = [row for own in users.values() for row in own[:-2]]
    edges = collections.defaultdict(list)
    for row in rows:
        if row["board"] is not None:
            edges[row["board"], int(row["item"])].append(row)
    train_end = max(log["time"]) - 10 * DAY
    found = {split: set() for split in SPLITS}
    for (board, item), own in edges.items():
        match kind:
            case "time" if min(row["time"] for row in own) <= train_end:
                split = "train"
            case "time":
                half = SHARES[1] / sum(SHARES)
                split = drawn(seed, board, 1 - half, half)
            case "random":
                split = drawn(seed, board, *SHARES)
            case "column" if all(row["tests"] for row in own):
                split = "test"
            case "column":
                hashed = hashlib.md5(f"{seed}:{board}:{item}".encode()).digest()
                share = int.from_bytes(hashed[8:], "little") % 1_000_000
                split = "valid" if share < SHARES[0] * 1_000_000 else "train"
            case _:
                split = "train"
        found[split].add((board, item))
    return found


def read(made, split):
    """{(group, item)} of a split, in the user's own terms."""
    if split == "train":
        groups = made.graph.groups
        pairs = [(g, i) for g in range(len(made.groups)) for i in groups.of(g)]
    else:
        path = made.directory / "graph" / f"{split}.parquet"
        if not path.exists():
            return set()
        pairs = [(row["group"], row["item"]) for row in pq.read_table(path).to_pylist()]
        assert pairs == sorted(pairs)
    assert len(set(pairs)) == len(pairs)
    return {(made.groups[group], int(made.catalogue.ids[item])) for group, item in pairs}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["time", "leave_one_out", "random", "column"])
def test_edges_equal_a_plain_reading(prepare, kind, seed):
    nulls = kind in ("time", "leave_one_out")  # whether rows also have a user
    log = random_log(np.random.default_rng(seed), nulls=nulls)
    config = make_config(kind)
    config.split.seed = seed
    made, prepared = prepare(config, log)
    expected = plainly(log, kind, seed)
    for split in SPLITS:
        assert read(made, split) == expected[split]
        assert made.spec.edges[split] == len(expected[split])
    if kind != "leave_one_out":
        assert all(expected.values())
    assert made.groups.tolist() == sorted(set(log["board"]) - {None})
    assert made.spec.num_groups == len(made.groups) == prepared.report["groups"]
    # Both sides hold the same edges, ascending, and no held-out edge.
    items, groups = made.graph.items, made.graph.groups
    assert len(items.offsets) == made.spec.num_items + 1
    assert (items.offsets.dtype, items.neighbours.dtype) == (np.int64, np.int32)
    both = [
        {(g, i) for i in range(made.spec.num_items) for g in items.of(i)},
        {(g, i) for g in range(len(made.groups)) for i in groups.of(g)},
    ]
    assert both[0] == both[1]
    for side in (items, groups):
        for node in range(len(side.offsets) - 1):
            assert (np.diff(side.of(node)) > 0).all()
    assert isinstance(items.neighbours, np.memmap)


def test_integer_groups_stay_integers(rng, prepare):
    log = random_log(rng)
    log["board"] = [int(name[1:]) for name in log["board"]]
    made, _ = prepare(make_config("random"), log)
    assert made.groups.dtype == np.int64
    assert made.groups.tolist() == sorted(set(log["board"]))


def test_a_graph_needs_neither_users_nor_times(rng, write, prepare):
    """As in published graphs, which say which edges test."""
    log = random_log(rng)
    lines = [
        f"{b} {i} {int(t)}"
        for b, i, t in zip(log["board"], log["item"], log["tests"], strict=True)
        if b
    ]
    config = column_map.default()
    config.events.update(group="board", header=("board", "item", "tests"), delimiter=" ")
    config.split.update(kind="column", column="tests", valid=0.0, test=0.1)
    made, _ = prepare(config, [write("edges.txt", "\n".join(lines).encode())])
    assert made.spec.parts == ("graph",)
    edges = collections.defaultdict(lambda: True)
    for board, item, tests in zip(log["board"], log["item"], log["tests"], strict=True):
        if board:
            edges[board, int(item)] &= bool(tests)
    assert read(made, "test") == {edge for edge, tests in edges.items() if tests}
    assert read(made, "train") == {edge for edge, tests in edges.items() if not tests}


def test_refuses_a_graph_without_a_training_edge(rng, refuse):
    log = random_log(rng)
    log["tests"] = [True] * len(log["item"])
    refuse("no edge to train on; see config.split", make_config("column"), log)
    config = make_config("column")
    refuse(
        "row 5: board is None; expected a group's id",
        config,
        {**log, "board": [*"abcd", None] + ["e"] * 295},
    )


def test_write_and_read_are_inverse(tmp_path, rng):
    edges = rng.integers(0, [7, 5], (40, 2))
    csr.write(tmp_path, edges, 9, 6)
    graph = csr.read(tmp_path)
    matrix = np.zeros((9, 6), bool)
    matrix[edges[:, 0], edges[:, 1]] = True
    for node in range(9):
        np.testing.assert_array_equal(graph.items.of(node), np.flatnonzero(matrix[node]))
    for node in range(6):
        np.testing.assert_array_equal(graph.groups.of(node), np.flatnonzero(matrix[:, node]))
