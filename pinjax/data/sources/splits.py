"""The splits of users, pairs, edges and cold items."""

import hashlib
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from ml_collections import ConfigDict

from pinjax import timestamps
from pinjax.data.sources.engine import Job
from pinjax.data.sources.event_columns import SECOND
from pinjax.errors import InputError

LEFT_OUT = 2  # actions of each user with leave-one-out: the last one tests, the other one validates


def split_of(key: int | str, seed: int | str, valid: float, test: float) -> int:
    """The row of `SPLITS` of an id, by a hash: it does not change when the log grows."""
    hashed = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    share = int.from_bytes(hashed, "little") / 2**64
    return 2 if share < test else int(share < test + valid)


def marked(config: ConfigDict) -> str:
    """SQL of `events` with a column `left_out`, the row of `SPLITS` of left-out actions, else 0.

    With leave-one-out, repeated rows are dropped as in timelines. Otherwise a copy of a left-out
    action would be trained on.
    """
    if config.split.kind != "leave_one_out":
        return "(SELECT *, 0 AS left_out FROM events)"
    once = "QUALIFY row_number() OVER (PARTITION BY user, item, time, action ORDER BY place) = 1"
    rows = f"(SELECT * FROM events {once if config.events.time else ''})"
    place = "row_number() OVER (PARTITION BY user ORDER BY time DESC, place DESC)"
    return f"(SELECT *, greatest({LEFT_OUT + 1} - {place}, 0) AS left_out FROM {rows})"


def _shares(config: ConfigDict) -> tuple[float, float]:
    """The shares of valid and test among the queries and groups of held-out pairs and edges."""
    split = config.split
    match split.kind:
        case "time":
            total = split.valid + split.test
            return 1.0, split.test / total
        case "column":
            return split.valid, 0.0
        case _:
            return split.valid, split.test


def train_end(job: Job, first: int | None, last: int | None) -> int:
    """The time after which nothing is trained on, unix seconds; 0 without times.

    It is that of the last event if the split is not by time: until then anything may be trained on,
    and all items exist that have an event.

    Args:
      job: with the config and the report.
      first: microseconds of the first event; None without times.
      last: of the last event.

    Raises:
      InputError: if it is not between the first and the last event.
    """
    split = job.config.split
    if split.kind != "time":
        return (last or 0) // SECOND
    first, last = first // SECOND, last // SECOND
    if split.train_end:
        end = timestamps.parse("config.split.train_end", split.train_end)
    else:
        end = last - round(min(split.test_days * timestamps.DAY, last))
    if not first <= end < last:
        between = f"between the first and the last event, {_iso(first)} and {_iso(last)}"
        raise InputError(f"train_end is {_iso(end)}; expected a time {between}")
    times = {"first event": first, "train_end": end, "last event": last}
    job.report |= {name: _iso(time) for name, time in times.items()}
    return end


def split_ids(job: Job, table: str, ids: str, normalise: Callable[[str], str] = str) -> None:
    """Makes a table of the splits of queries or groups, by a hash of their ids.

    Args:
      job: with the config and the database.
      table: its name; its columns are key and split, a row of `SPLITS`.
      ids: SQL of rows with a key and an id.
      normalise: applied to ids before hashing.
    """
    found = job.database.table(f"SELECT DISTINCT {ids} ORDER BY key")
    seed, shares = job.config.split.seed, _shares(job.config)
    splits = [split_of(normalise(value), seed, *shares) for value in found["id"].to_pylist()]
    job.database.make_table(table, key=found["key"], split=pa.array(splits, pa.int8()))


def make_cold(job: Job) -> None:
    """Makes the table `cold` of items without pairs and edges in training, and their splits."""
    split = job.config.split
    tests = split.test / (split.valid + split.test or 1.0)
    ids = job.database.table("SELECT id FROM items ORDER BY row")["id"]
    cold = {
        row: split_of(item, f"{split.seed}:held out", 1.0, tests)
        for row, item in enumerate(ids.to_pylist() if split.cold else ())
        if split_of(item, f"{split.seed}:cold", 0.0, split.cold)
    }
    rows, splits = pa.array(cold, pa.int32()), pa.array(cold.values(), pa.int8())
    job.database.make_table("cold", item=rows, split=splits)


def _iso(seconds: int) -> str:
    """Unix seconds as readable text, in UTC."""
    return str(np.datetime64(int(seconds), "s")).replace("T", " ")
