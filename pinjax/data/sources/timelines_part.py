"""The second pass: independent shards of users become timelines."""

from typing import Any

import numpy as np
import pyarrow as pa

from pinjax.data import timelines
from pinjax.data.sources import events
from pinjax.data.sources.engine import Database, Job
from pinjax.data.sources.event_columns import SECOND
from pinjax.data.sources.splits import LEFT_OUT, split_of
from pinjax.data.spec import SPLITS
from pinjax.errors import InputError


def write(job: Job, shards: int, items: int, train_end: int) -> tuple[dict[str, Any], np.ndarray]:
    """Writes the timelines of a log.

    Rows with the same user, item, time and action as an earlier one are dropped. The rows of a user
    are in order of time, with the resolution of the log, and then of their place in the files.

    Args:
      job: with the view `events` and its tables, see `events.divide`.
      shards: number of shards.
      items: rows of the catalogue.
      train_end: unix seconds.

    Returns:
      (the fields of the spec for users; int64 (items,), the actions of training users up to the end
      of training).

    Raises:
      InputError: if a split has no user.
    """
    split, least = job.config.split, job.config.timelines.min_actions
    one_out = split.kind == "leave_one_out"
    counts = np.zeros(items, np.int64)
    report = {"repeated rows dropped": 0, "users with too few actions": 0, "actions": 0}
    most = 0
    with timelines.writer(job.made / "timelines") as writer:
        for shard in range(shards):
            users, records, starts, repeats = _shard(job.database, shard)
            report["repeated rows dropped"] += repeats
            lengths = np.diff(starts)
            most = max(most, int(lengths.max(initial=0)))
            splits = np.zeros(len(users), np.int8)
            if not one_out:
                shares = split.seed, split.valid, split.test
                splits[:] = [split_of(user, *shares) for user in users]
            place = np.arange(len(records)) - np.repeat(starts[:-1], lengths)
            if one_out:
                records["time"] = place
                trained = place < np.repeat(lengths - LEFT_OUT, lengths)
            else:
                trained = np.repeat(splits == 0, lengths) & (records["time"] <= train_end)
            enough = lengths >= least
            trained &= np.repeat(enough, lengths)
            counts += np.bincount(records["item"][trained], minlength=items)
            report["users with too few actions"] += int((~enough).sum())
            report["actions"] += int(lengths[enough].sum())
            until = np.concatenate([[0], np.cumsum(trained)])[starts]
            for user, own_trained in zip(
                np.flatnonzero(enough).tolist(), np.diff(until)[enough].tolist(), strict=True
            ):
                own = records[starts[user] : starts[user + 1]]
                writer.add(SPLITS[splits[user]], users[user], own, own_trained)
        found = dict(writer.counts)
        if not any(found.values()):
            raise InputError(f"timelines.min_actions is {least}; the most of any user is {most}")
        for name, users in found.items():
            if not users and not one_out:
                shares = f"split.valid={split.valid:g} and split.test={split.test:g}"
                total = sum(found.values())
                raise InputError(f"no user of {total} falls into {name} with {shares}")
    job.report |= report | {"users": sum(found.values())}
    if not one_out:
        job.report |= {f"users, {name}": users for name, users in found.items()}
    id_ = job.database.table("SELECT id FROM users LIMIT 0").schema.field("id")
    spec: dict[str, Any] = {"users": found, "integer_users": pa.types.is_integer(id_.type)}
    if one_out:
        spec["train_end"] = most - 1  # of ranks
    return spec, counts


def _shard(database: Database, shard: int) -> tuple[list[int | str], np.ndarray, np.ndarray, int]:
    """Users of a shard, their `timelines.ACTION` (n,), offsets, and number of repeated rows."""
    table = database.table(
        "SELECT user, item, time, duration, action, surface "
        f"FROM {events.of_shard(database, shard)} WHERE user IS NOT NULL ORDER BY user, time, place"
    )
    user = table["user"].to_numpy()
    first, end = (int(user[0]), int(user[-1]) + 1) if len(user) else (0, 0)
    query = f"SELECT id FROM users WHERE row >= {first} AND row < {end} ORDER BY row"
    users = database.table(query)[0].to_pylist()
    records = np.zeros(len(table), timelines.ACTION)
    for name in ("item", "duration", "action", "surface"):
        column = table[name]
        if column.null_count < len(column):  # null if the map does not name it
            records[name] = column.fill_null(0).to_numpy()
    repeats = np.zeros(len(table), bool)
    if table["time"].null_count < len(table):
        time = table["time"].to_numpy()
        records["time"] = time // SECOND
        repeats = repeated(user, time, records)
    starts = np.searchsorted(user[~repeats], first + np.arange(len(users) + 1))
    return users, records[~repeats], starts, int(repeats.sum())


def repeated(user: np.ndarray, time: np.ndarray, records: np.ndarray) -> np.ndarray:
    """Bool (n,): rows with the user, item, time and action of an earlier row.

    Args:
      user: int (n,), ascending.
      time: int (n,), ascending for each user.
      records: `timelines.ACTION` (n,).
    """
    alike = (np.diff(user) == 0) & (np.diff(time) == 0)
    several = np.flatnonzero(np.append(alike, False) | np.insert(alike, 0, False))
    keys = records["action"][several], records["item"][several], time[several], user[several]
    order = np.lexsort(keys)
    same = np.logical_and.reduce([np.diff(key[order]) == 0 for key in keys])
    repeats = np.zeros(len(records), bool)
    repeats[several[order[1:][same]]] = True
    return repeats
