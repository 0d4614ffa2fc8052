"""Preparing: users' files and a column map in, one data set out (`pinjax.data.dataset`).

Two passes. The first (`events`) goes over all rows for what is small, the second (`parts`) over
shards of users. DuckDB reads, joins and sorts within the memory that is given, and spills to disk.
"""

import dataclasses
import hashlib
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from etils import epath
from ml_collections import ConfigDict

from pinjax import checksums, files
from pinjax.data import catalogue, pairs
from pinjax.data import spec as spec_lib
from pinjax.data.sources import column_map, content, events, items, parts, queries, reading
from pinjax.data.text import tokens
from pinjax.errors import InputError

VERSION = "3.0.0"
_EXAMPLES = 3
_DAY = 24 * 60 * 60


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A data set that was prepared.

    Attributes:
      spec: of it.
      report: what was read, dropped and joined, and what was made.
      remarks: what looks wrong.
      is_new: whether it was made now.
    """

    spec: spec_lib.Spec
    report: dict[str, int | str]
    remarks: list[str]
    is_new: bool


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The files of a data set, each as a path of this machine.

    Attributes:
      events: of the log.
      items: of the table of items.
      sides: of what is looked up for items, by name.
      queries: of queries' own vectors.
    """

    events: list[str]
    items: list[str]
    sides: dict[str, list[str]]
    queries: list[str]

    @classmethod
    def find(
        cls, events: Sequence[str], items: Sequence[str] = (), queries: Sequence[str] = ()
    ) -> "Inputs":
        """Finds the files that names and globs stand for; of `items` the first are the table.

        Raises:
          InputError: for what is no file.
        """
        main = reading.expand("items", items[:1])
        sides = {}
        for path in reading.expand("items", items[1:]):
            name = pathlib.Path(path).name.split(".")[0]
            if name in sides:
                raise InputError(f"--items has {path} and {sides[name][0]}; expected one of a name")
            sides[name] = [path]
        events = reading.expand("events", events)
        return cls(events, main, sides, reading.expand("queries", queries))

    def identity(self, config: ConfigDict) -> str:
        """Hash of the column map, what the files hold, and this module's version.

        The order in which files are named counts only where it is all that orders a log.
        """
        whole = hashlib.sha256(f"{VERSION} {config.to_json(sort_keys=True)}".encode())
        for part in (self.events, self.items, *self.sides.items(), self.queries):
            name, paths = part if isinstance(part, tuple) else ("", part)
            of_files = [
                f"{pathlib.Path(path).name.split('.')[0]} "
                f"{checksums.of_file(epath.Path(path))['xxh3_128']}"
                for path in paths
            ]
            if config.events.time:
                of_files.sort()
            whole.update(f"{name} {of_files}".encode())
        return whole.hexdigest()[:16]


def prepare(
    inputs: Inputs, out: epath.PathLike, config: ConfigDict, memory: int | None = None
) -> Prepared:
    """Prepares a data set, unless `out` already holds just this.

    Args:
      inputs: its files.
      out: the data set's directory; written under another name, then renamed.
      config: a column map, see `pinjax.data.sources.column_map`.
      memory: bytes, about, that may be used; None: half of the machine's.

    Raises:
      InputError: for wrong input; nothing is left behind.
    """
    column_map.check(config, bool(inputs.items), bool(inputs.queries))
    out = epath.Path(out)
    identity = inputs.identity(config)
    if (known := _there(out, identity)) is not None:
        return known
    try:
        with files.unfinished(out) as made:
            staging = pathlib.Path(made) / "staging"
            staging.mkdir()
            with reading.database(staging, memory) as connection:
                work = _Work(connection, pathlib.Path(made), staging, inputs, config)
                spec, report, remarks = work.run()
            shutil.rmtree(staging)
            source = {"identity": identity, "report": report, "remarks": remarks}
            (made / spec_lib.SOURCE_FILE).write_text(checksums.dump(source))
            spec = spec_lib.finish(made, out, spec)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror or error}") from error
    _there(out, identity)  # refuses what another process has written there meanwhile
    return Prepared(spec, report, remarks, is_new=True)


def _there(out: epath.Path, identity: str) -> Prepared | None:
    """What a directory holds, if it was prepared of the same.

    Raises:
      InputError: where it holds anything else.
    """
    source = out / spec_lib.SOURCE_FILE
    if source.exists():
        content = checksums.read(source)
        if content["identity"] == identity:
            spec = spec_lib.Spec.read(out)
            return Prepared(spec, content["report"], content["remarks"], is_new=False)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: holds something else; expected a new or an empty directory")
    return None


class _Work:
    """The parts of one data set, made one after the other."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        made: pathlib.Path,
        staging: pathlib.Path,
        inputs: Inputs,
        config: ConfigDict,
    ):
        self._connection, self._made, self._staging = connection, made, staging
        self._inputs, self._config = inputs, config
        self._parts = column_map.parts(config)
        self._report: dict[str, int | str] = {}

    def run(self) -> tuple[spec_lib.Spec, dict[str, int | str], list[str]]:
        connection, config = self._connection, self._config
        log_files = reading.open_files(
            connection, self._inputs.events, events.columns(config), config.events
        )
        sources = query_files = None
        if self._inputs.items:
            sources = items.open_sources(connection, self._inputs.items, self._inputs.sides, config)
        if self._inputs.queries:
            query_files = reading.open_files(
                connection,
                self._inputs.queries,
                [config.queries.id, config.queries.vector],
                config.queries,
            )
        integers = all(
            [reading.are_integers(connection, file, config.events.item) for file in log_files]
            + [
                reading.are_integers(connection, file, config.catalogue.id)
                for file in (sources.main if sources else ())
            ]
        )
        log = events.read(connection, self._staging, log_files, integers, config)
        self._report |= log.report
        if sources:
            self._report |= items.read(connection, sources, integers, config)
        if query_files:
            items.read_queries(connection, query_files, config)
        number = self._make_items()
        names = self._make_vocabularies()
        shards = events.divide(connection, self._staging, log, config)
        train_end = self._train_end(log)
        spec = spec_lib.Spec(
            name=config.name,
            num_items=number,
            train_end=train_end,
            leave_one_out=config.split.kind == "leave_one_out",
        )
        counts = np.zeros(number, np.int64)
        if "timelines" in self._parts:
            users, counts = self._timelines(shards, number, train_end)
            spec = dataclasses.replace(spec, **names, **users)
        parts.make_cold(connection, config)
        own, made = "".join(self._inputs.queries[:1]), content.WordVectors()
        if "pairs" in self._parts:
            parts.find_pairs(connection, config)
            self._report |= queries.check(connection, log_files, own, config)
            parts.split_pairs(connection, train_end, config)
            searches = bool(config.events.query) and not own
            made = content.make_word_vectors(connection, self._inputs.items[0], searches, config)
        spec = dataclasses.replace(spec, **self._catalogue(counts, made))
        if "pairs" in self._parts:
            path = self._made / pairs.QUERIES_FILE
            of_queries, report = queries.write(connection, path, bool(own), made, config)
            self._report |= report
            tasks, numbers, report = parts.write_pairs(connection, self._made / "pairs")
            self._report |= report
            spec = dataclasses.replace(spec, tasks=tasks, pairs=numbers, **of_queries)
        if "graph" in self._parts:
            groups, edges, report = parts.write_graph(
                connection, self._made / "graph", number, train_end, config
            )
            parts.write_ids(connection, self._made / spec_lib.GROUPS_FILE, "groups")
            self._report |= report
            spec = dataclasses.replace(spec, num_groups=groups, edges=edges)
        return spec, self._report, log.remarks

    def _make_items(self) -> int:
        """Makes the table `items` of row, id, first (us), events, known and described.

        Known is an item that the user's table has, and described one with a text or an image there.

        Rows are in order of ids, so that they do not depend on the order of anybody's rows.

        Raises:
          InputError: where events and table have no item in common.
        """
        connection, given = self._connection, bool(self._inputs.items)
        rows = (
            "SELECT item AS id, min(time) AS first, count(*) AS events, false AS known, "
            "false AS described FROM rows GROUP BY 1"
        )
        if given:
            rows += (
                f" UNION ALL SELECT id, NULL, 0, true, {items.described(self._config)} FROM given g"
            )
        known, described = (
            f"bool_or({name})" if given else "true" for name in ("known", "described")
        )
        kept = "" if self._config.catalogue.keep_unseen else "WHERE events > 0"
        connection.execute(
            "CREATE TABLE items AS "
            f"SELECT {reading.numbered('id')}, * FROM "
            f"(SELECT id, min(first) AS first, sum(events) AS events, {known} AS known, "
            f"{described} AS described FROM ({rows}) GROUP BY id) {kept}"
        )
        (number, acted, found) = reading.first_row(
            connection,
            "SELECT count(*), count(*) FILTER (events > 0), sum(events) FILTER (known) FROM items",
        )
        self._report |= {"items": number, "items of the events": acted}
        if given:
            total = self._report["events"]
            strangers, unseen = (
                self._examples(condition) for condition in ("NOT known", "events = 0")
            )
            table = self._inputs.items[0]
            if not found:
                raise InputError(
                    f"{table}: no item of the events is in it; the events have {strangers}, the "
                    f"table {self._examples('known')}: expected ids that are written alike"
                )
            self._report |= {"events whose item is in the table": f"{found / total:.1%}"}
            if strangers:
                self._report |= {"items that the table lacks, as": strangers}
            if unseen:
                (count,) = reading.first_row(
                    connection, "SELECT count(*) FROM items WHERE events = 0"
                )
                self._report |= {"items without an event": count, "of them": unseen}
        return number

    def _examples(self, condition: str) -> str:
        query = f"SELECT id FROM items WHERE {condition} ORDER BY row LIMIT {_EXAMPLES}"
        return ", ".join(repr(value) for (value,) in self._connection.execute(query).fetchall())

    def _train_end(self, log: events.Log) -> int:
        """The moment after which nothing is trained on, unix seconds; 0 without times.

        Raises:
          InputError: where it is not between the first and the last event.
        """
        split = self._config.split
        if split.kind != "time":
            return 0
        first, last = log.first // events.SECOND, log.last // events.SECOND
        if split.train_end:
            train_end = reading.parse_moment("split.train_end", split.train_end)
        else:
            train_end = last - round(min(split.test_days * _DAY, last))
        if not first <= train_end < last:
            between = f"between the first and the last event, {_iso(first)} and {_iso(last)}"
            raise InputError(f"train_end is {_iso(train_end)}; expected a moment {between}")
        self._report |= {
            "first event": _iso(first),
            "train_end": _iso(train_end),
            "last event": _iso(last),
        }
        return train_end

    def _make_vocabularies(self) -> dict[str, tuple[str, ...]]:
        """Makes the tables `actions` and `surfaces` of names and codes; the names by table."""
        events_map, names = self._config.events, {}
        sizes = {"action": events_map.max_actions, "surface": events_map.max_surfaces}
        for column, (found, rest) in events.vocabularies(self._connection, sizes).items():
            names[f"{column}s"] = found
            self._report[f"{column}s outside the vocabulary"] = rest
            codes = pa.array(range(len(found)), pa.uint16())
            parts.make_table(self._connection, f"{column}s", name=pa.array(found), code=codes)
        return names

    def _timelines(
        self, shards: int, number: int, train_end: int
    ) -> tuple[dict[str, Any], np.ndarray]:
        """Writes timelines: what the spec says of users, and int64 (items,) training actions."""
        connection, config = self._connection, self._config
        users, counts, report = parts.write_timelines(
            connection, self._made / "timelines", shards, number, train_end, config
        )
        longest = report.pop("longest timeline")
        self._report |= report
        (kind,) = connection.sql("SELECT id FROM users LIMIT 0").types
        spec = {"users": users, "integer_users": str(kind) == "BIGINT"}
        if config.split.kind == "leave_one_out":
            spec["train_end"] = longest - 1  # of ranks
        return spec, counts

    def _catalogue(self, counts: np.ndarray, made: content.WordVectors) -> dict[str, Any]:
        """Writes the catalogue and the vocabulary: what the spec says of them."""
        connection, config = self._connection, self._config
        vocabulary, spec = None, {}
        if config.catalogue.texts or "pairs" in self._parts:
            trained = "first IS NOT NULL"
            if "pairs" in self._parts:
                trained = "row IN (SELECT item FROM split_pairs WHERE split = 0)"
            vocabulary = content.make_vocabulary(connection, trained, config)
            vocabulary.save(self._made / spec_lib.VOCABULARY_FILE)
            spec["vocabulary"] = vocabulary.sizes
            self._report |= {
                f"{kind}s": size for kind, size in zip(tokens.KINDS, vocabulary.sizes, strict=True)
            }
        path, table = self._made / catalogue.FILE, "".join(self._inputs.items[:1])
        more, report = content.write(connection, path, counts, vocabulary, made, table, config)
        self._report |= report
        return spec | more


def _iso(seconds: int) -> str:
    """Unix seconds as people read them, in UTC."""
    return str(np.datetime64(int(seconds), "s")).replace("T", " ")
