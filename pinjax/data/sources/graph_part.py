"""The graph of a log: items, and their groups or tags."""

from typing import Any

import numpy as np
import pyarrow as pa

from pinjax.data import parquet
from pinjax.data import spec as spec_lib
from pinjax.data.sources.engine import Job, numbered
from pinjax.data.sources.event_columns import SECOND
from pinjax.data.sources.splits import marked, split_ids
from pinjax.data.spec import SPLITS
from pinjax.errors import InputError
from pinjax.graph import csr


def write(job: Job, items: int, train_end: int) -> dict[str, Any]:
    """Writes the graph of items and groups or, without groups, of items and tags.

    Repeated edges count once. By time, an edge is in training if it occurred up to `train_end`;
    with a split column, if any of its rows is in training. Other edges are held out by group, and
    the edges of cold items by item. With a split column, edges validate one by one unless there are
    pairs in groups: then by group, as these pairs do. Makes the table `groups`.

    Returns:
      the fields of the spec for the graph.

    Raises:
      InputError: if there is no edge to train on.
    """
    database, config, report = job.database, job.config, job.report
    split, by_group = config.split, bool(config.events.group)
    edges = f"SELECT item, grp, time, tests FROM {marked(config)} WHERE left_out = 0"
    if not by_group:
        database.run(
            f"CREATE TABLE groups AS SELECT {numbered('tag')}, tag AS id "
            "FROM (SELECT DISTINCT tag FROM tags)"
        )
        edges = (
            "SELECT i.row AS item, g.row AS grp, 0 AS time, false AS tests FROM tags t "
            "JOIN items i ON t.id = i.id JOIN groups g ON t.tag = g.id"
        )
    split_ids(job, "group_splits", "row AS key, id FROM groups")
    if not by_group or split.kind == "leave_one_out":
        rule = "0"
    elif split.kind == "column":
        edge = f"md5_number_lower({split.seed} || ':' || any_value(g.id) || ':' || any_value(i.id))"
        valid = f"{edge} % 1000000 < {round(split.valid * 1_000_000)}"
        if config.pairs.sequence == "group":  # a graph with their edges would tell these pairs
            valid = "any_value(s.split) > 0"
        rule = f"CASE WHEN bool_and(tests) THEN 2 WHEN {valid} THEN 1 ELSE 0 END"
    else:
        rule = "any_value(s.split)"
        if split.kind == "time":
            later = (train_end + 1) * SECOND
            rule = f"CASE WHEN min(time) < {later} THEN 0 ELSE {rule} END"
    if by_group:
        rule = f"coalesce(nullif({rule}, 0), any_value(c.split), 0)"
    database.run(
        "CREATE TABLE edges AS "
        f"SELECT e.item, e.grp, CAST({rule} AS TINYINT) AS split, count(*) AS rows, "
        f"bool_or(tests) AND NOT bool_and(tests) AS of_both FROM ({edges}) e "
        "JOIN items i ON e.item = i.row JOIN groups g ON e.grp = g.row "
        "JOIN group_splits s ON e.grp = s.key LEFT JOIN cold c ON e.item = c.item GROUP BY 1, 2"
    )
    counts = dict.fromkeys(SPLITS, 0)
    by_split = database.rows("SELECT split, count(*) FROM edges GROUP BY 1 ORDER BY 1")
    counts |= {SPLITS[number]: count for number, count in by_split}
    (groups,) = database.row("SELECT count(*) FROM groups")
    repeats, of_both = database.row("SELECT sum(rows - 1), count(*) FILTER (of_both) FROM edges")
    report["groups"] = groups
    report |= {f"edges, {name}": count for name, count in counts.items() if count}
    report["rows that repeat an edge"] = repeats
    report["edges of training that test rows repeat"] = of_both
    if not counts["train"]:
        raise InputError("the graph has no edge to train on; see config.split")
    ids = database.table("SELECT id FROM groups LIMIT 0").schema
    kind = pa.int64() if pa.types.is_integer(ids.field("id").type) else pa.large_string()
    named = database.pieces("SELECT id FROM groups ORDER BY row")
    parquet.write(job.made / spec_lib.GROUPS_FILE, pa.schema([("id", kind)]), named)
    directory = job.made / "graph"
    directory.mkdir()
    sides = ("item", items, "item", "grp"), ("group", groups, "grp", "item")
    for side, nodes, own, other in sides:
        found = database.table(f"SELECT {own}, count(*) FROM edges WHERE split = 0 GROUP BY 1")
        degrees = np.zeros(nodes, np.int64)
        degrees[found[0].to_numpy()] = found[1].to_numpy()
        ordered = f"SELECT {other} FROM edges WHERE split = 0 ORDER BY {own}, {other}"
        arrays = (piece[0].to_numpy() for piece in database.pieces(ordered))
        csr.write_side(directory, side, degrees, arrays)
    schema = pa.schema([("group", pa.int32()), ("item", pa.int32())])
    for number, name in enumerate(SPLITS[1:], start=1):
        if counts[name]:
            held_out = f'SELECT grp AS "group", item FROM edges WHERE split = {number} ORDER BY ALL'
            parquet.write(directory / f"{name}.parquet", schema, database.pieces(held_out))
    return {"num_groups": groups, "edges": counts}
