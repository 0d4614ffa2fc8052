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
from ml_collections import ConfigDict

from pinjax.data import pairs, parquet, timelines
from pinjax.data.sources import events as events_lib
from pinjax.data.sources import reading
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
    shards: int,
    items: int,
    train_end: int,
    config: ConfigDict,
) -> tuple[dict[str, int], np.ndarray, dict[str, int]]:
    """Writes the timelines of a log.

    Rows that repeat another's user, item, time and action are dropped. Rows of a user are in order
    of time, finer than a second where the log is, and then as they lie in its files.

    Args:
      connection: with the view `events` and its tables, see `events.divide`.
      directory: of the timelines, not there yet.
      shards: how many there are.
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
    counts = np.zeros(items, np.int64)
    report = {"repeated rows dropped": 0, "users with too few actions": 0, "actions": 0}
    most = 0
    with timelines.writer(directory) as writer:
        for shard in range(shards):
            users, records, starts, repeats = _shard(connection, shard)
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
                trained = place < np.repeat(lengths - _LEFT_OUT, lengths)
            else:
                trained = np.repeat(splits == 0, lengths) & (records["time"] <= train_end)
            enough = lengths >= config.timelines.min_actions
            trained &= np.repeat(enough, lengths)
            counts += np.bincount(records["item"][trained], minlength=items)
            report["users with too few actions"] += int((~enough).sum())
            report["actions"] += int(lengths[enough].sum())
            for user in np.flatnonzero(enough).tolist():
                own = records[starts[user] : starts[user + 1]]
                writer.add(SPLITS[splits[user]], users[user], own)
        found = dict(writer.counts)
        if not any(found.values()):
            least = config.timelines.min_actions
            raise InputError(f"timelines.min_actions is {least}; the most of any user is {most}")
        for name, users in found.items():
            if not users and not one_out:
                shares = f"split.valid={split.valid:g} and split.test={split.test:g}"
                total = sum(found.values())
                raise InputError(f"no user of {total} falls into {name} with {shares}")
    report |= {"users": sum(found.values()), "longest timeline": most}
    if not one_out:
        report |= {f"users, {name}": users for name, users in found.items()}
    return found, counts, report


def _shard(
    connection: duckdb.DuckDBPyConnection, shard: int
) -> tuple[list[int | str], np.ndarray, np.ndarray, int]:
    """Users of a shard, their `timelines.ACTION` (n,), where each begins, and repeated rows."""
    table = connection.sql(
        "SELECT user, item, time, duration, action, surface FROM events "
        f"WHERE shard = {shard} AND user IS NOT NULL ORDER BY user, time, place"
    ).to_arrow_table()
    user = table["user"].to_numpy()
    first, end = (int(user[0]), int(user[-1]) + 1) if len(user) else (0, 0)
    query = f"SELECT id FROM users WHERE row >= {first} AND row < {end} ORDER BY row"
    users = connection.sql(query).to_arrow_table()[0].to_pylist()
    records = np.zeros(len(table), timelines.ACTION)
    for name in ("item", "duration", "action", "surface"):
        column = table[name]
        if column.null_count < len(column):  # else the map does not name it
            records[name] = column.fill_null(0).to_numpy()
    repeats = np.zeros(len(table), bool)
    if table["time"].null_count < len(table):
        time = table["time"].to_numpy()
        records["time"] = time // events_lib.SECOND
        repeats = _repeats(user, time, records)
    starts = np.searchsorted(user[~repeats], first + np.arange(len(users) + 1))
    return users, records[~repeats], starts, int(repeats.sum())


def _repeats(user: np.ndarray, time: np.ndarray, records: np.ndarray) -> np.ndarray:
    """Bool (n,): rows that repeat an earlier one's user, item, time and action.

    Args:
      user: int (n,), ascending.
      time: int (n,), of a user ascending.
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


def _marked(config: ConfigDict) -> str:
    """SQL of `events` with a column `training`, which is false for the actions that are left out.

    Where some are, repeated rows are dropped as from timelines: else a left-out action's twin would
    be trained on.
    """
    if config.split.kind != "leave_one_out":
        return "(SELECT *, true AS training FROM events)"
    once = "QUALIFY row_number() OVER (PARTITION BY user, item, time, action ORDER BY place) = 1"
    rows = f"(SELECT * FROM events {once if config.events.time else ''})"
    place = "row_number() OVER (PARTITION BY user ORDER BY time DESC, place DESC)"
    return f"(SELECT *, {place} > {_LEFT_OUT} AS training FROM {rows})"


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


def find_pairs(connection: duckdb.DuckDBPyConnection, config: ConfigDict) -> None:
    """Makes the table `found` of what led to what.

    Its columns are kind, query (the text of a search, or the id of an item), source (a row of
    `items`, null for a search), item (likewise), action, time, sequence, tests, training (whether
    no user's left-out action is in it) and place. Only items with a text or an image lead
    somewhere or are led to; an item does not lead to itself.
    """
    connection.execute(
        f"CREATE VIEW engagements AS SELECT e.* FROM {_marked(config)} e "
        "JOIN items i ON e.item = i.row WHERE i.described"
    )
    selects = []
    if config.events.query:
        selects.append(
            "SELECT 'text', query, CAST(NULL AS INTEGER), item, action, time, "
            "CAST(NULL AS INTEGER), tests, training, place FROM engagements "
            "WHERE query IS NOT NULL"
        )
    if config.pairs.sequence:
        column = {"user": "user", "group": "grp"}[config.pairs.sequence]
        order = "position" if config.events.position else "time"
        for step in range(1, config.pairs.ahead + 1):
            after = ", ".join(
                f"lead({name}, {step}) OVER w AS {name}_"
                for name in ("item", "action", "time", "tests", "training", "place")
            )
            selects.append(
                f"SELECT 'image', CAST(i.id AS VARCHAR), item, item_, action_, time_, {column}, "
                "tests_, training_, place_ "
                f"FROM (SELECT *, {after} FROM engagements WHERE {column} IS NOT NULL "
                f"WINDOW w AS (PARTITION BY {column} ORDER BY {order}, place)) e "
                "JOIN items i ON e.item = i.row WHERE item_ IS NOT NULL AND item_ <> item"
            )
    connection.execute(
        f"CREATE TABLE found AS SELECT * FROM ({' UNION ALL '.join(selects)}) AS pairs(kind, "
        "query, source, item, action, time, sequence, tests, training, place)"
    )


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


def split_pairs(connection: duckdb.DuckDBPyConnection, train_end: int, config: ConfigDict) -> None:
    """Adds the column `split` to `found`, a row of `SPLITS`.

    With times, what is later than `train_end` is held out, in valid or test by the query. Without,
    a search, or a sequence, is in one split. What would be in training of a cold item goes to valid
    or test by the item; that an item is cold says nothing of pairs whose query it is.
    """
    split, shares = config.split, _shares(config)

    def hashed(name: str, keys: str, normalise: Callable[[str], str] = str) -> None:
        found = connection.sql(f"SELECT DISTINCT {keys} ORDER BY key").to_arrow_table()
        ids = map(normalise, found["id"].to_pylist())
        splits = pa.array([split_of(value, split.seed, *shares) for value in ids], pa.int8())
        make_table(connection, name, key=found["key"], split=splits)

    hashed("query_splits", "query AS key, query AS id FROM found", tokens.normalise)
    of_lead, joins = "q.split", "LEFT JOIN query_splits q ON f.query = q.key"
    if config.pairs.sequence:
        owners = "groups" if config.pairs.sequence == "group" else "users"
        ids = f"sequence AS key, o.id FROM found JOIN {owners} o ON sequence = o.row"
        hashed("sequence_splits", ids)
        of_lead = "coalesce(s.split, q.split)"
        joins += " LEFT JOIN sequence_splits s ON f.sequence = s.key"
    match split.kind:
        case "time":
            rule = f"CASE WHEN time < {(train_end + 1) * events_lib.SECOND} THEN 0 ELSE q.split END"
        case "column":
            rule = f"CASE WHEN tests THEN 2 WHEN {of_lead} > 0 THEN 1 ELSE 0 END"
        case _:
            rule = of_lead
    connection.execute(
        "CREATE TABLE split_pairs AS SELECT f.*, CASE WHEN own = 0 THEN coalesce(cold.split, 0) "
        f"ELSE own END AS split FROM (SELECT f.*, {rule} AS own FROM found f "
        f"{joins}) f LEFT JOIN cold ON f.item = cold.item WHERE training OR own > 0"
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
        "SELECT kind || '/' || a.name, kind, a.code FROM split_pairs f "
        "JOIN actions a ON coalesce(f.action, 0) = a.code GROUP BY ALL ORDER BY count(*) DESC, 1"
    ).fetchall()
    names, kinds, actions = zip(*tasks, strict=True)
    if len(names) > _TASKS:
        raise InputError(
            f"{len(names)} kinds of engagement; expected at most {_TASKS}: see events.max_actions"
        )
    codes = pa.array(range(len(names)), pa.uint8())
    make_table(connection, "tasks", kind=pa.array(kinds), action=pa.array(actions), code=codes)
    directory.mkdir()
    counts, report = {}, {}
    for number, split in enumerate(SPLITS):
        found = connection.sql(
            "SELECT CAST(q.row AS INTEGER) AS query, f.item, t.code AS task, "
            "CAST(coalesce(time // 1000000, 0) AS UINTEGER) AS time "
            "FROM split_pairs f JOIN queries q ON f.kind = q.kind AND f.query = q.id "
            "JOIN tasks t ON f.kind = t.kind AND coalesce(f.action, 0) = t.action "
            f"WHERE f.split = {number} ORDER BY f.time, q.row, f.item, t.code"
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
    edges = f"SELECT item, grp, time, tests FROM {_marked(config)} WHERE training"
    if not by_group:
        connection.execute(
            f"CREATE TABLE groups AS SELECT {reading.numbered('tag')}, tag AS id "
            "FROM (SELECT DISTINCT tag FROM tags)"
        )
        edges = (
            "SELECT i.row AS item, g.row AS grp, 0 AS time, false AS tests FROM tags t "
            "JOIN items i ON t.id = i.id JOIN groups g ON t.tag = g.id"
        )
    ids = connection.sql("SELECT id FROM groups ORDER BY row").to_arrow_table()[0].to_pylist()
    shares = _shares(config)
    make_table(
        connection,
        "group_splits",
        row=pa.array(range(len(ids)), pa.int32()),
        split=pa.array([split_of(key, split.seed, *shares) for key in ids], pa.int8()),
    )
    if not by_group or split.kind == "leave_one_out":
        rule = "0"
    elif split.kind == "column":
        edge = f"md5_number_lower({split.seed} || ':' || any_value(g.id) || ':' || any_value(i.id))"
        valid = f"{edge} % 1000000 < {round(split.valid * 1_000_000)}"
        rule = f"CASE WHEN bool_and(tests) THEN 2 WHEN {valid} THEN 1 ELSE 0 END"
    else:
        rule = "any_value(s.split)"
        if split.kind == "time":
            later = (train_end + 1) * events_lib.SECOND
            rule = f"CASE WHEN min(time) < {later} THEN 0 ELSE {rule} END"
    if by_group:
        rule = f"coalesce(nullif({rule}, 0), any_value(c.split), 0)"
    connection.execute(
        "CREATE TABLE edges AS "
        f"SELECT e.item, e.grp, CAST({rule} AS TINYINT) AS split, count(*) AS rows, "
        f"bool_or(tests) AND NOT bool_and(tests) AS of_both FROM ({edges}) e "
        "JOIN items i ON e.item = i.row JOIN groups g ON e.grp = g.row "
        "JOIN group_splits s ON e.grp = s.row LEFT JOIN cold c ON e.item = c.item GROUP BY 1, 2"
    )
    counts, report = dict.fromkeys(SPLITS, 0), {}
    for number, count in connection.execute(
        "SELECT split, count(*) FROM edges GROUP BY 1 ORDER BY 1"
    ).fetchall():
        counts[SPLITS[number]] = count
        report[f"edges, {SPLITS[number]}"] = count
    repeats, of_both = reading.first_row(
        connection, "SELECT sum(rows - 1), count(*) FILTER (of_both) FROM edges"
    )
    report["rows that repeat an edge"] = repeats
    report["edges of training that test rows repeat"] = of_both
    (groups,) = reading.first_row(connection, "SELECT count(*) FROM groups")
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
