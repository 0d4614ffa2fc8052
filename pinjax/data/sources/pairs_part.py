"""Pairs of a log: queries and the items they led to, split and written."""

from typing import Any

import pyarrow as pa

from pinjax.data import pairs, parquet
from pinjax.data.sources.engine import Job
from pinjax.data.sources.event_columns import SECOND
from pinjax.data.sources.splits import marked, split_ids
from pinjax.data.spec import SPLITS
from pinjax.data.text import tokens
from pinjax.errors import InputError

_TASKS = 2**8  # `pairs.PAIR` holds a task in 8 bits


def find(job: Job) -> None:
    """Makes the table `found` of pairs.

    Its columns are kind, query (the text of a search, or the id of an item), source (the row of
    `items` of a query, null for a search), item (the row of the item that it led to), action, time,
    sequence, tests, left_out and place. A pair of two actions has the later of their times, and is
    held out if either of them is. Only items with a text or an image are in pairs; an item does not
    lead to itself.
    """
    database, config = job.database, job.config
    database.run(
        f"CREATE VIEW engagements AS SELECT e.* FROM {marked(config)} e "
        "JOIN items i ON e.item = i.row WHERE i.described"
    )
    selects = []
    if config.events.query:
        selects.append(
            "SELECT 'text', query, CAST(NULL AS INTEGER), item, action, time, "
            "CAST(NULL AS INTEGER), tests, left_out, place FROM engagements "
            "WHERE query IS NOT NULL"
        )
    if config.pairs.sequence:
        column = {"user": "user", "group": "grp"}[config.pairs.sequence]
        order = "position" if config.events.position else "time"
        for step in range(1, config.pairs.ahead + 1):
            after = ", ".join(
                f"lead({name}, {step}) OVER w AS {name}_"
                for name in ("item", "action", "time", "tests", "left_out", "place")
            )
            selects.append(
                "SELECT 'image', CAST(i.id AS VARCHAR), item, item_, action_, "
                f"greatest(time, time_), {column}, tests OR tests_, "
                "greatest(left_out, left_out_), place_ "
                f"FROM (SELECT *, {after} FROM engagements WHERE {column} IS NOT NULL "
                f"WINDOW w AS (PARTITION BY {column} ORDER BY {order}, place)) e "
                "JOIN items i ON e.item = i.row WHERE item_ IS NOT NULL AND item_ <> item"
            )
    database.run(
        f"CREATE TABLE found AS SELECT * FROM ({' UNION ALL '.join(selects)}) AS pairs(kind, "
        "query, source, item, action, time, sequence, tests, left_out, place)"
    )


def split(job: Job, train_end: int) -> None:
    """Adds the column `split` to `found`, a row of `SPLITS`.

    By time, pairs later than `train_end` are held out, in valid or test by query. With
    leave-one-out, those of left-out actions are. At random, all pairs of a search, or of a
    sequence, are in one split. A pair that leads to a cold item, or from one, is in valid or test
    by this item, instead of training.
    """
    database, config = job.database, job.config
    ids = "query AS key, query AS id FROM found"
    split_ids(job, "query_splits", ids, tokens.normalise)
    of_lead, joins = "q.split", "LEFT JOIN query_splits q ON f.query = q.key"
    if config.pairs.sequence:
        owners = "groups" if config.pairs.sequence == "group" else "users"
        ids = f"sequence AS key, o.id FROM found JOIN {owners} o ON sequence = o.row"
        split_ids(job, "sequence_splits", ids)
        of_lead = "coalesce(s.split, q.split)"
        joins += " LEFT JOIN sequence_splits s ON f.sequence = s.key"
    match config.split.kind:
        case "time":
            rule = f"CASE WHEN time < {(train_end + 1) * SECOND} THEN 0 ELSE q.split END"
        case "leave_one_out":
            rule = "left_out"
        case "column":
            rule = f"CASE WHEN tests THEN 2 WHEN {of_lead} > 0 THEN 1 ELSE 0 END"
        case _:
            rule = of_lead
    database.run(
        "CREATE TABLE split_pairs AS SELECT f.*, "
        "coalesce(nullif(own, 0), led_to.split, led_from.split, 0) AS split "
        f"FROM (SELECT f.*, {rule} AS own FROM found f {joins}) f "
        "LEFT JOIN cold led_to ON f.item = led_to.item "
        "LEFT JOIN cold led_from ON f.source = led_from.item"
    )


def write(job: Job) -> dict[str, Any]:
    """Writes the pairs of `split_pairs`, with the rows of `queries`.

    Returns:
      the fields of the spec for pairs; tasks are in order of frequency.

    Raises:
      InputError: if there are too many kinds, or a split is empty.
    """
    database, directory = job.database, job.made / "pairs"
    of_split = ", ".join(f"count(*) FILTER (split = {number})" for number in range(len(SPLITS)))
    tasks = database.rows(
        f"SELECT kind || '/' || a.name, kind, a.code, {of_split} FROM split_pairs f "
        "JOIN actions a ON coalesce(f.action, 0) = a.code GROUP BY ALL ORDER BY count(*) DESC, 1"
    )
    names, kinds, actions, *by_split = zip(*tasks, strict=True)
    if len(names) > _TASKS:
        raise InputError(
            f"{len(names)} kinds of engagement; expected at most {_TASKS}: see events.max_actions"
        )
    codes = pa.array(range(len(names)), pa.uint8())
    database.make_table("tasks", kind=pa.array(kinds), action=pa.array(actions), code=codes)
    directory.mkdir()
    # Where the last actions are left out, times are ranks, and pairs have none.
    time = "NULL" if job.config.split.kind == "leave_one_out" else f"time // {SECOND}"
    for number, (name, of_task) in enumerate(zip(SPLITS, by_split, strict=True)):
        job.report |= {f"pairs, {name}, {n}": c for n, c in zip(names, of_task, strict=True)}
        if not any(of_task):
            raise InputError(f"no pair falls into {name}; see config.split")
        found = database.pieces(
            "SELECT CAST(q.row AS INTEGER) AS query, f.item, t.code AS task, "
            f"CAST(coalesce({time}, 0) AS UINTEGER) AS time "
            "FROM split_pairs f JOIN queries q ON f.kind = q.kind AND f.query = q.id "
            "JOIN tasks t ON f.kind = t.kind AND coalesce(f.action, 0) = t.action "
            f"WHERE f.split = {number} ORDER BY f.time, q.row, f.item, t.code"
        )
        parquet.write(directory / f"{name}.parquet", pairs.SCHEMA, found)
    counts = dict(zip(SPLITS, map(sum, by_split), strict=True))
    return {"tasks": names, "pairs": counts}
