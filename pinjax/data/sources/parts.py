"""The second pass over a log: its shards and small tables in, the parts of a data set out.

Shards of users do not know each other. What holds over all of them is in the tables `items`,
`queries` and `groups`, each a row number and an id, and in the splits of ids, which are hashes.
"""

import hashlib
import pathlib
from collections.abc import Callable, Iterable, Iterator

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from ml_collections import ConfigDict

from pinjax.data import pairs, parquet, timelines
from pinjax.data.sources import events as events_lib
from pinjax.data.sources.reading import literal
from pinjax.data.spec import SPLITS
from pinjax.data.text import tokens
from pinjax.errors import InputError
from pinjax.graph import csr

_LEFT_OUT = 2  # actions of each user where one is left out: the last tests, the other validates
_TASKS = 2**8  # `pairs.PAIR` holds a task in 8 bits


def split_of(key: int | str, seed: int | str, valid: float, test: float) -> int:
    """The row of `SPLITS` of an id: by a hash, so that it stays when the log grows."""
    hashed = hashlib.blake2b(f"{seed}:{key}".encode(), digest_size=8).digest()
    share = int.from_bytes(hashed, "little") / 2**64
    return 2 if share < test else int(share < test + valid)


def make_table(connection: duckdb.DuckDBPyConnection, table: str, /, **columns: Iterable) -> None:
    """Makes a table of a few columns."""
    made = pa.table(columns)
    connection.register("made", made)
    connection.execute(f"CREATE TABLE {table} AS SELECT * FROM made")
    connection.unregister("made")


def pieces(found: duckdb.DuckDBPyRelation, rows: int = 2**17) -> Iterator[pa.Table]:
    """What a query found, in tables of exactly `rows` rows, of which the last may have fewer."""
    waiting: list[pa.Table] = []
    count = 0
    for batch in found.to_arrow_reader(rows):
        waiting.append(pa.table(batch))
        count += len(batch)
        while count >= rows:
            whole = pa.concat_tables(waiting)
            yield whole[:rows]
            waiting, count = [whole[rows:]], count - rows
    if count:
        yield pa.concat_tables(waiting)


def write_timelines(
    connection: duckdb.DuckDBPyConnection,
    directory: pathlib.Path,
    log: events_lib.Log,
    items: int,
    train_end: int,
    config: ConfigDict,
) -> tuple[dict[str, int], np.ndarray, dict[str, int]]:
    """Writes the timelines of a log.

    Rows that repeat another's user, item, time and action are dropped. Rows of a user are in order
    of time, finer than a second where the log is, and then as they lie in its files.

    Args:
      connection: with `events`, `items`, and the tables `actions` and `surfaces` of name and code.
      directory: of the timelines, not there yet.
      log: of the view `events`.
      items: rows of the catalogue.
      train_end: unix seconds.
      config: a column map.

    Returns:
      (users by split, int64 (items,) the actions of training users up to the end of training,
      counts for the report).

    Raises:
      InputError: where a split has no user.
    """
    split, one_out = config.split, config.split.kind == "leave_one_out"
    counts, actions = np.zeros(items, np.int64), 0
    report = {"repeated rows dropped": 0, "users with too few actions": 0}
    most = 0
    with timelines.writer(directory) as writer:
        for shard in range(log.shards):
            users, records, starts, repeats = _shard(connection, shard)
            report["repeated rows dropped"] += repeats
            lengths = np.diff(starts)
            most = max(most, int(lengths.max(initial=0)))
            for user, start, length in zip(users, starts.tolist(), lengths.tolist(), strict=False):
                if length < config.timelines.min_actions:
                    report["users with too few actions"] += 1
                    continue
                own = records[start : start + length]
                actions += length
                name = SPLITS[0]
                if one_out:
                    own["time"] = np.arange(length)
                    trained = own[: length - _LEFT_OUT]
                else:
                    name = SPLITS[split_of(user, split.seed, split.valid, split.test)]
                    trained = own[own["time"] <= train_end] if name == SPLITS[0] else own[:0]
                np.add.at(counts, trained["item"], 1)
                writer.add(name, user, own)
        found = dict(writer.counts)
    if not any(found.values()):
        least = config.timelines.min_actions
        raise InputError(f"timelines.min_actions is {least}; the most of any user is {most}")
    for name, users in found.items():
        if not users and not one_out:
            shares = f"split.valid={split.valid:g} and split.test={split.test:g}"
            total = sum(found.values())
            raise InputError(f"no user of {total} falls into {name} with {shares}")
    report |= {"users": sum(found.values()), "actions": actions, "longest timeline": most}
    if not one_out:
        report |= {f"users, {name}": users for name, users in found.items()}
    return found, counts, report


def _shard(
    connection: duckdb.DuckDBPyConnection, shard: int
) -> tuple[list[int | str], np.ndarray, np.ndarray, int]:
    """Users of a shard, their `timelines.ACTION` (n,), where each begins, and repeated rows."""
    table = connection.sql(
        "SELECT user, i.row AS item, e.time, e.duration, a.code AS action, s.code AS surface "
        "FROM events e JOIN items i ON e.item = i.id "
        "LEFT JOIN actions a ON e.action = a.name LEFT JOIN surfaces s ON e.surface = s.name "
        f"WHERE shard = {shard} AND user IS NOT NULL "
        "ORDER BY hash(CAST(user AS VARCHAR)), user, e.time, file, e.row"
    ).to_arrow_table()
    records = np.zeros(len(table), timelines.ACTION)
    time = np.zeros(len(table), np.int64)
    for name in ("item", "duration", "action", "surface"):
        column = table[name]
        if column.null_count < len(column):  # else the map does not name it
            records[name] = column.fill_null(0).to_numpy()
    if table["time"].null_count < len(table):
        time = table["time"].to_numpy()
        records["time"] = time // events_lib.SECOND
    ids = table["user"].combine_chunks()
    first = np.ones(len(table), bool)
    first[1:] = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    users = ids.filter(pa.array(first)).to_pylist()
    repeats = np.zeros(len(table), bool)
    if table["time"].null_count < len(table):
        repeats = _repeats(first, time, records)
    starts = np.append(np.flatnonzero(first), len(table))
    starts -= np.concatenate([[0], np.cumsum(repeats)])[starts]
    return users, records[~repeats], starts, int(repeats.sum())


def _repeats(first: np.ndarray, time: np.ndarray, records: np.ndarray) -> np.ndarray:
    """Bool (n,): rows that repeat an earlier one's user, item, time and action.

    Args:
      first: bool (n,), the first row of each user; rows of a user are in order of time.
      time: int (n,).
      records: `timelines.ACTION` (n,).
    """
    begins = first.copy()
    begins[1:] |= np.diff(time) != 0
    moment = np.cumsum(begins)  # of a user
    several = np.flatnonzero(np.bincount(moment)[moment] > 1)
    keys = records["action"][several], records["item"][several], moment[several]
    order = np.lexsort(keys)
    same = np.logical_and.reduce([np.diff(key[order]) == 0 for key in keys])
    repeats = np.zeros(len(records), bool)
    repeats[several[order[1:][same]]] = True
    return repeats


def find_pairs(connection: duckdb.DuckDBPyConnection, one_out: bool, config: ConfigDict) -> None:
    """Makes the table `found` of what led to what.

    Its columns are kind, query (the text of a search, or the id of an item), source (a row of
    `items`, null for a search), item (likewise), action, time, sequence, tests, training (whether
    no user's left-out action is in it), file, row and step. Only items with a text or an image lead
    somewhere or are led to; an item does not lead to itself.
    """
    last = "row_number() OVER (PARTITION BY user ORDER BY time DESC, file DESC, e.row DESC)"
    training = f"{last} > {_LEFT_OUT}" if one_out else "true"
    connection.execute(
        f"CREATE VIEW engagements AS SELECT e.*, i.row AS item_row, {training} AS training "
        "FROM events e JOIN items i ON e.item = i.id WHERE i.described"
    )
    selects = []
    if config.events.query:
        selects.append(
            "SELECT 'text', query, CAST(NULL AS INTEGER), item_row, action, time, "
            "CAST(NULL AS VARCHAR), tests, training, file, row, 0 FROM engagements "
            "WHERE query IS NOT NULL"
        )
    if config.pairs.sequence:
        column = {"user": "user", "group": "grp"}[config.pairs.sequence]
        order = "position" if config.events.position else "time"
        for step in range(1, config.pairs.ahead + 1):
            after = ", ".join(
                f"lead({name}, {step}) OVER w AS {name}_"
                for name in ("item_row", "action", "time", "tests", "training", "file", "row")
            )
            selects.append(
                f"SELECT 'image', CAST(item AS VARCHAR), item_row, item_row_, action_, "
                f"time_, CAST({column} AS VARCHAR), tests_, training_, file_, row_, {step} "
                f"FROM (SELECT *, {after} FROM engagements WHERE {column} IS NOT NULL "
                f"WINDOW w AS (PARTITION BY {column} ORDER BY {order}, file, row)) "
                "WHERE item_row_ IS NOT NULL AND item_row_ <> item_row"
            )
    connection.execute(
        f"CREATE TABLE found AS SELECT * FROM ({' UNION ALL '.join(selects)}) AS pairs(kind, "
        "query, source, item, action, time, sequence, tests, training, file, row, step)"
    )


def make_cold(connection: duckdb.DuckDBPyConnection, config: ConfigDict) -> None:
    """Makes the table `cold` of items without pairs and edges in training, and their splits."""
    split = config.split
    ids = connection.sql("SELECT id FROM items ORDER BY row").to_arrow_table()[0]
    rows, splits = [], []
    for row, item in enumerate(ids.to_pylist() if split.cold else ()):
        if split_of(item, f"{split.seed}:cold", 0.0, split.cold):
            rows.append(row)
            splits.append(split_of(item, f"{split.seed}:held out", 1.0, _tests(config)))
    make_table(
        connection, "cold", item=pa.array(rows, pa.int32()), split=pa.array(splits, pa.int8())
    )


def _tests(config: ConfigDict) -> float:
    """The share of test of what is held out."""
    total = config.split.valid + config.split.test
    return config.split.test / total if total else 0.0


def split_pairs(connection: duckdb.DuckDBPyConnection, train_end: int, config: ConfigDict) -> None:
    """Adds the column `split` to `found`, a row of `SPLITS`.

    With times, what is later than `train_end` is held out, in valid or test by the query. Without,
    a search, or a sequence, is in one split. What would be in training of a cold item goes to valid
    or test by the item; that an item is cold says nothing of pairs whose query it is.
    """
    split, by_time = config.split, config.split.kind == "time"
    shares = (1.0, _tests(config)) if by_time else (split.valid, split.test)

    def hashed(name: str, column: str, key: Callable[[str], int]) -> None:
        ids = connection.sql(
            f"SELECT DISTINCT {column} FROM found WHERE {column} IS NOT NULL ORDER BY 1"
        ).to_arrow_table()[0]
        splits = [key(value) for value in ids.to_pylist()]
        make_table(connection, name, key=ids, split=pa.array(splits, pa.int8()))

    def of_query(query: str) -> int:
        return split_of(tokens.normalise(query), split.seed, *shares)

    hashed("query_splits", "query", of_query)
    hashed("sequence_splits", "sequence", lambda key: split_of(key, split.seed, *shares))
    match split.kind:
        case "time":
            rule = f"CASE WHEN time < {(train_end + 1) * events_lib.SECOND} THEN 0 ELSE q.split END"
        case "column":
            rule = "CASE WHEN tests THEN 2 WHEN coalesce(s.split, q.split) > 0 THEN 1 ELSE 0 END"
        case _:
            rule = "coalesce(s.split, q.split)"
    connection.execute(
        "CREATE TABLE split_pairs AS SELECT f.*, CASE WHEN own = 0 THEN coalesce(cold.split, 0) "
        f"ELSE own END AS split FROM (SELECT f.*, {rule} AS own FROM found f "
        "LEFT JOIN query_splits q ON f.query = q.key LEFT JOIN sequence_splits s "
        "ON f.sequence = s.key) f LEFT JOIN cold ON f.item = cold.item WHERE training OR own > 0"
    )


def write_pairs(
    connection: duckdb.DuckDBPyConnection, directory: pathlib.Path
) -> tuple[tuple[str, ...], dict[str, int], dict[str, int]]:
    """Writes the pairs of `split_pairs`, with the rows of `queries`.

    Returns:
      (names of tasks, the most frequent first; pairs by split; counts for the report).

    Raises:
      InputError: where there are too many kinds, or a split is empty.
    """
    tasks = connection.execute(
        f"SELECT kind || '/' || coalesce(action, {literal(timelines.UNKNOWN)}) FROM split_pairs "
        "GROUP BY 1 ORDER BY count(*) DESC, 1"
    ).fetchall()
    names = tuple(name for (name,) in tasks)
    if len(names) > _TASKS:
        raise InputError(
            f"{len(names)} kinds of engagement; expected at most {_TASKS}: see config.events.action"
        )
    make_table(
        connection, "tasks", name=pa.array(names), code=pa.array(range(len(names)), pa.uint8())
    )
    directory.mkdir()
    counts, report = {}, {}
    for number, split in enumerate(SPLITS):
        found = connection.sql(
            "SELECT CAST(q.row AS INTEGER) AS query, f.item, t.code AS task, "
            "CAST(coalesce(time // 1000000, 0) AS UINTEGER) AS time "
            "FROM split_pairs f JOIN queries q ON f.kind = q.kind AND f.query = q.id JOIN tasks t "
            f"ON f.kind || '/' || coalesce(f.action, {literal(timelines.UNKNOWN)}) = t.name "
            f"WHERE f.split = {number} ORDER BY f.time, f.file, f.row, f.step"
        )
        of_task = np.zeros(len(names), np.int64)

        def counted(found: duckdb.DuckDBPyRelation, of_task: np.ndarray) -> Iterator[pa.Table]:
            for piece in pieces(found):
                of_task += np.bincount(piece["task"].to_numpy(), minlength=len(of_task))
                yield piece

        parquet.write(directory / f"{split}.parquet", pairs.SCHEMA, counted(found, of_task))
        counts[split] = int(of_task.sum())
        report |= {f"pairs, {split}, {n}": int(c) for n, c in zip(names, of_task, strict=True)}
        if not counts[split]:
            raise InputError(f"no pair falls into {split}; see config.split")
    return names, counts, report


def write_graph(
    connection: duckdb.DuckDBPyConnection,
    directory: pathlib.Path,
    items: int,
    train_end: int,
    config: ConfigDict,
) -> tuple[int, dict[str, int], dict[str, int]]:
    """Writes the graph of items and groups or, without groups, of items and tags.

    An edge is one however many rows have it. With times an edge that came up to `train_end` is of
    training, and with a column one that any row has in training; others are held out by the group.
    Those of a cold item are, too. Makes the table `groups`.

    Returns:
      (groups, edges by split, counts for the report).

    Raises:
      InputError: where there is no edge to train on.
    """
    split, by_group = config.split, bool(config.events.group)
    if by_group:
        last = "row_number() OVER (PARTITION BY user ORDER BY time DESC, file DESC, row DESC)"
        one_out = split.kind == "leave_one_out"
        edges = (
            f"SELECT item, grp AS id, time, tests, {last if one_out else 3} AS place FROM events"
        )
        edges = f"SELECT * FROM ({edges}) WHERE id IS NOT NULL AND place > {_LEFT_OUT}"
    else:
        edges = "SELECT id AS item, tag AS id, NULL AS time, false AS tests FROM tags"
    connection.execute(
        "CREATE TABLE groups AS SELECT CAST(row_number() OVER (ORDER BY id) - 1 AS INTEGER) AS row,"
        f" id FROM (SELECT DISTINCT id FROM ({edges}))"
    )
    if not by_group or split.kind == "leave_one_out":
        rule = "0"
    elif split.kind == "column":
        rule = "CASE WHEN bool_and(tests) THEN 2 WHEN bool_or(valid) THEN 1 ELSE 0 END"
    else:
        shares = (split.valid, split.test)
        if split.kind == "time":
            shares = (1.0, _tests(config))
        ids = connection.sql("SELECT id FROM groups ORDER BY row").to_arrow_table()[0]
        splits = [split_of(key, split.seed, *shares) for key in ids.to_pylist()]
        make_table(
            connection,
            "group_splits",
            row=pa.array(range(len(splits)), pa.int32()),
            split=pa.array(splits, pa.int8()),
        )
        rule = "any_value(s.split)"
        if split.kind == "time":
            after = (train_end + 1) * events_lib.SECOND
            rule = f"CASE WHEN min(time) < {after} THEN 0 ELSE {rule} END"
    splits = "LEFT JOIN group_splits s ON g.row = s.row" if "s.split" in rule else ""
    if by_group and split.cold:
        rule = f"coalesce(nullif({rule}, 0), any_value(c.split), 0)"
        splits += " LEFT JOIN cold c ON i.row = c.item"
    valid = "false AS valid"
    if split.kind == "column" and split.valid:
        share = round(split.valid * 1_000_000)
        edge = f"md5_number_lower({split.seed} || ':' || id || ':' || item)"
        valid = f"{edge} % 1000000 < {share} AS valid"
    connection.execute(
        "CREATE TABLE edges AS "
        f"SELECT i.row AS item, g.row AS grp, CAST({rule} AS TINYINT) AS split, count(*) AS rows, "
        "bool_or(tests) AND NOT bool_and(tests) AS of_both "
        f"FROM (SELECT *, {valid} FROM ({edges})) e JOIN items i ON e.item = i.id "
        f"JOIN groups g ON e.id = g.id {splits} GROUP BY 1, 2"
    )
    counts, report = dict.fromkeys(SPLITS, 0), {}
    for number, count in connection.execute(
        "SELECT split, count(*) FROM edges GROUP BY 1 ORDER BY 1"
    ).fetchall():
        counts[SPLITS[number]] = count
        report[f"edges, {SPLITS[number]}"] = count
    report["rows that repeat an edge"], report["edges of training and test (left in training)"] = (
        connection.execute("SELECT sum(rows - 1), count(*) FILTER (of_both) FROM edges").fetchall()[
            0
        ]
    )
    (groups,) = connection.execute("SELECT count(*) FROM groups").fetchall()[0]
    if not counts["train"]:
        raise InputError("the graph has no edge to train on; see config.split")
    directory.mkdir()
    for side, nodes, own, other in (
        ("item", items, "item", "grp"),
        ("group", groups, "grp", "item"),
    ):
        degrees = np.zeros(nodes, np.int64)
        of_node = connection.execute(
            f"SELECT {own}, count(*) FROM edges WHERE split = 0 GROUP BY 1"
        ).fetchnumpy()
        node, count = of_node.values()
        degrees[node] = count
        neighbours = connection.sql(
            f"SELECT {other} FROM edges WHERE split = 0 ORDER BY {own}, {other}"
        )
        arrays = (piece[0].to_numpy() for piece in pieces(neighbours))
        csr.write_side(directory, side, degrees, arrays)
    for number, split_name in enumerate(SPLITS[1:], start=1):
        if counts[split_name]:
            held_out = connection.sql(
                f'SELECT grp AS "group", item FROM edges WHERE split = {number} ORDER BY ALL'
            )
            schema = pa.schema([("group", pa.int32()), ("item", pa.int32())])
            parquet.write(directory / f"{split_name}.parquet", schema, pieces(held_out))
    return groups, counts, {"groups": groups, **report}


def write_ids(connection: duckdb.DuckDBPyConnection, path: pathlib.Path, table: str) -> None:
    """Writes the ids of a table of rows and ids, in order of its rows."""
    found = connection.sql(f"SELECT id FROM {table} ORDER BY row")
    kind = pa.int64() if str(found.types[0]) == "BIGINT" else pa.large_string()
    parquet.write(path, pa.schema([("id", kind)]), pieces(found))
