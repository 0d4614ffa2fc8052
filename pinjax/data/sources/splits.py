"""What is trained on, what validates and what tests: users, pairs, edges and cold items."""

import hashlib
from collections.abc import Callable

import duckdb
import pyarrow as pa
from ml_collections import ConfigDict

from pinjax.data.sources.engine import make_table

LEFT_OUT = 2  # actions of each user where one is left out: the last tests, the other validates


def split_of(key: int | str, seed: int | str, valid: float, test: float) -> int:
    """The row of `SPLITS` of an id: by a hash, so that it stays when the log grows."""
    hashed = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    share = int.from_bytes(hashed, "little") / 2**64
    return 2 if share < test else int(share < test + valid)


def marked(config: ConfigDict) -> str:
    """SQL of `events` with a column `training`, which is false for the actions that are left out.

    Where some are, repeated rows are dropped as from timelines: else a left-out action's twin would
    be trained on.
    """
    if config.split.kind != "leave_one_out":
        return "(SELECT *, true AS training FROM events)"
    once = "QUALIFY row_number() OVER (PARTITION BY user, item, time, action ORDER BY place) = 1"
    rows = f"(SELECT * FROM events {once if config.events.time else ''})"
    place = "row_number() OVER (PARTITION BY user ORDER BY time DESC, place DESC)"
    return f"(SELECT *, {place} > {LEFT_OUT} AS training FROM {rows})"


def _shares(config: ConfigDict) -> tuple[float, float]:
    """The shares of what leads to held-out pairs and edges that validates and that tests."""
    split = config.split
    match split.kind:
        case "time":
            total = split.valid + split.test
            return 1.0, split.test / total
        case "column":
            return split.valid, 0.0
        case _:
            return split.valid, split.test


def split_ids(
    connection: duckdb.DuckDBPyConnection,
    table: str,
    ids: str,
    config: ConfigDict,
    normalise: Callable[[str], str] = str,
) -> None:
    """Makes a table of the splits of what leads to held-out pairs and edges, by a hash of ids.

    Args:
      connection: to make it in.
      table: its name; its columns are key and split, a row of `SPLITS`.
      ids: SQL of rows with a key and an id.
      config: a column map.
      normalise: ids, before they are hashed.
    """
    found = connection.sql(f"SELECT DISTINCT {ids} ORDER BY key").to_arrow_table()
    seed, shares = config.split.seed, _shares(config)
    splits = [split_of(normalise(value), seed, *shares) for value in found["id"].to_pylist()]
    make_table(connection, table, key=found["key"], split=pa.array(splits, pa.int8()))


def make_cold(connection: duckdb.DuckDBPyConnection, config: ConfigDict) -> None:
    """Makes the table `cold` of items without pairs and edges in training, and their splits."""
    split = config.split
    tests = split.test / (split.valid + split.test or 1.0)
    ids = connection.sql("SELECT id FROM items ORDER BY row").to_arrow_table()[0]
    rows, splits = [], []
    for row, item in enumerate(ids.to_pylist() if split.cold else ()):
        if split_of(item, f"{split.seed}:cold", 0.0, split.cold):
            rows.append(row)
            splits.append(split_of(item, f"{split.seed}:held out", 1.0, tests))
    make_table(
        connection, "cold", item=pa.array(rows, pa.int32()), split=pa.array(splits, pa.int8())
    )
