"""Preparing: users' files and a column map in, one data set out (`pinjax.data.dataset`).

Two passes. The first (`events`) goes over all rows for what is small, the second (`parts`) over
shards of users. DuckDB reads, joins and sorts within the memory that is given, and spills to disk.
"""

import dataclasses
import hashlib
import itertools
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse
from etils import epath
from ml_collections import ConfigDict

from pinjax import checksums, files
from pinjax.data import catalogue, pairs
from pinjax.data import spec as spec_lib
from pinjax.data.sources import column_map, events, items, parts, reading, vectors
from pinjax.data.text import tokens
from pinjax.errors import InputError

VERSION = "2.0.0"
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
        self._space: vectors.WordSpace | None = None  # in which searches have vectors
        self._of_words: np.ndarray | None = None  # images that are made, float16 (items, dim)

    def run(self) -> tuple[spec_lib.Spec, dict[str, int | str], list[str]]:
        connection, config = self._connection, self._config
        log_files = reading.open_files(
            connection, self._inputs.events, events.columns(config), config.events
        )
        sources = queries = None
        if self._inputs.items:
            sources = items.open_sources(connection, self._inputs.items, self._inputs.sides, config)
        if self._inputs.queries:
            queries = reading.open_files(
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
        if queries:
            items.read_queries(connection, queries, config)
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
        if "pairs" in self._parts:
            parts.find_pairs(connection, config)
            self._check_pairs(log_files)
            parts.split_pairs(connection, train_end, config)
        spec = dataclasses.replace(spec, **self._catalogue(counts))
        if "pairs" in self._parts:
            spec = dataclasses.replace(spec, **self._pairs())
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
            "SELECT CAST(row_number() OVER (ORDER BY id) - 1 AS INTEGER) AS row, * FROM "
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

    def _check_pairs(self, log_files: Sequence[reading.File]) -> None:
        """Drops pairs whose query has no vector.

        Raises:
          InputError: where there are none, or more than are tolerated are unusable.
        """
        connection, config = self._connection, self._config
        total, unknown = reading.first_row(
            connection, "SELECT sum(events), sum(events) FILTER (NOT described) FROM items"
        )
        if (unknown or 0) > config.tolerance * total:
            (place,) = reading.first_row(
                connection,
                "SELECT min(place) FROM events e JOIN items i ON e.item = i.row "
                "WHERE NOT described",
            )
            number, row = events.place_of(place)
            share = f"{unknown} of {total} rows are bad, tolerance is {config.tolerance:g}"
            expected = "an id of the table of items, and a text or image there, for pairs"
            raise reading.bad_row(
                connection, log_files[number], row, config.events.item, expected, share
            )
        self._report["events in no pair: no text or image"] = unknown or 0
        (count,) = reading.first_row(connection, "SELECT count(*) FROM found")
        if not count:
            column = (
                config.events.query
                or config.events[{"user": "user", "group": "group"}[config.pairs.sequence]]
            )
            raise InputError(f"no pair: nothing leads to an item by {column}")
        lacking = "false"
        if self._inputs.queries:
            lacking, where = "query NOT IN (SELECT id FROM own_vectors)", self._inputs.queries[0]
        elif config.catalogue.images:
            shown = f"len({items.SHOWN}) > 0"
            with_image = f"SELECT i.row FROM items i JOIN given g ON i.id = g.id WHERE {shown}"
            lacking = f"source IS NOT NULL AND source NOT IN ({with_image})"
            where = f"column {config.catalogue.images}"
        without = reading.first_row(
            connection,
            "SELECT count(*), min(place), arg_min(kind, place), arg_min(query, place) FROM found "
            f"WHERE {lacking}",
        )
        if without[0] > config.tolerance * count:
            place, kind, query = without[1:]
            number, row = events.place_of(place)
            share = f"{without[0]} of {count} pairs have none, tolerance is {config.tolerance:g}"
            expected = f"a query with its vector in {where}"
            if kind == "text":
                column = config.events.query
                raise reading.bad_row(connection, log_files[number], row, column, expected, share)
            raise InputError(
                f"{log_files[number].path}: row {row}: item {query} leads to its item and has no "
                f"vector in {where}; expected one of each query ({share})"
            )
        self._report["pairs dropped for a query without a vector"] = without[0]
        connection.execute(f"DELETE FROM found WHERE {lacking}")

    def _catalogue(self, counts: np.ndarray) -> dict[str, Any]:
        """Writes the catalogue and the vocabulary: what the spec says of them."""
        connection, config = self._connection, self._config
        table, number = config.catalogue, len(counts)
        texts = [f"text {feature}" for feature, _ in table.texts] if self._inputs.items else []
        content, topics = None, None
        if table.tags:
            content, topics = self._of_tags(number)
        if table.topic:
            topics = self._topics(number)
        spec: dict[str, Any] = {"text_features": tuple(feature for feature, _ in table.texts)}
        if texts or "pairs" in self._parts:
            trained = "first IS NOT NULL"
            if "pairs" in self._parts:
                trained = "row IN (SELECT item FROM split_pairs WHERE split = 0)"
            lines = itertools.chain.from_iterable(
                column.to_pylist() for piece in self._texts(texts, trained) for column in piece
            )
            vocabulary = tokens.Vocabulary.build(lines, **config.vocabulary)
            vocabulary.save(self._made / spec_lib.VOCABULARY_FILE)
            spec["vocabulary"] = vocabulary.sizes
            kinds = zip(tokens.KINDS, vocabulary.sizes, strict=True)
            self._report |= {f"{kind}s": size for kind, size in kinds}
        if "pairs" in self._parts:
            self._make_word_vectors(texts, number)
        selected = [name for name in ("created", "content", "images") if table[name]]
        columns = [f'g."{name}"' for name in (*selected, *texts)]
        join = "LEFT JOIN given g ON i.id = g.id" if self._inputs.items else ""
        found = connection.sql(
            f"SELECT {', '.join(['i.row', 'i.id', 'i.first', *columns])} FROM items i {join} "
            "ORDER BY i.row"
        )
        dims = {name: self._dim(name) for name in ("content", "images") if table[name]}
        empty = 0
        with catalogue.writer(self._made / catalogue.FILE) as write:
            for piece in parts.pieces(found, catalogue.ROWS_A_GROUP):
                rows = piece["row"].to_numpy()
                some = slice(rows[0], rows[-1] + 1)
                of_piece = {}
                if table.content:
                    of_piece["content"] = _first_vectors(piece["content"], dims["content"])
                elif content is not None:
                    of_piece["content"] = content[some]
                if table.images:
                    vectors_, offsets = _flat_vectors(piece["images"], dims["images"])
                    of_piece |= {"images": vectors_, "image_offsets": offsets}
                elif self._of_words is not None:
                    has = self._of_words[some].any(axis=1)
                    offsets = np.concatenate([[0], np.cumsum(has)])
                    of_piece |= {"images": self._of_words[some][has], "image_offsets": offsets}
                if "content" in of_piece:
                    empty += int((~of_piece["content"].any(axis=1)).sum())
                    spec["content_dim"] = of_piece["content"].shape[1]
                if "images" in of_piece:
                    spec["image_dim"] = of_piece["images"].shape[1]
                write(
                    catalogue.Items(
                        ids=piece["id"].to_numpy(),
                        topics=np.full(len(rows), -1, np.int32) if topics is None else topics[some],
                        counts=counts[some],
                        created=self._created(piece),
                        texts={
                            name.removeprefix("text "): vocabulary.encode(piece[name].to_pylist())
                            for name in texts
                        },
                        **of_piece,
                    )
                )
        if "content_dim" in spec:
            self._report["items without content"] = empty
        return spec

    def _of_tags(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Content vectors and topics of items by their tags, see `vectors`."""
        found = self._connection.execute(
            "SELECT i.row, CAST(dense_rank() OVER (ORDER BY tag) - 1 AS INTEGER) AS code "
            "FROM tags t JOIN items i ON t.id = i.id ORDER BY ALL"
        ).fetchnumpy()
        item, tag = found["row"], found["code"]
        if min(number, len(np.unique(tag))) < 2:
            table, tags = self._inputs.items[0], len(np.unique(tag))
            raise InputError(f"{table}: {tags} tags on {number} items; expected 2 or more of each")
        made = vectors.of_tags(item, tag, number, self._config.catalogue.tag_dim)
        return made, vectors.commonest_tags(item, tag, number)

    def _topics(self, number: int) -> np.ndarray:
        """The main topics of items as numbers of their names in order, int32 (items,)."""
        topics = np.full(number, -1, np.int32)
        found = self._connection.execute(
            "SELECT i.row, CAST(dense_rank() OVER (ORDER BY topic) - 1 AS INTEGER) AS topic "
            "FROM given g JOIN items i ON g.id = i.id WHERE topic IS NOT NULL"
        ).fetchnumpy()
        topics[found["row"]] = found["topic"]
        return topics

    def _texts(self, names: Sequence[str], where: str) -> Iterator[pa.Table]:
        """Texts of items for which a condition holds, in order of rows; nothing without texts."""
        if names:
            columns = ", ".join(f'g."{name}"' for name in names)
            yield from parts.pieces(
                self._connection.sql(
                    f"SELECT {columns} FROM items i LEFT JOIN given g ON i.id = g.id "
                    f"WHERE {where} ORDER BY i.row"
                ),
                2**14,
            )

    def _make_word_vectors(self, texts: Sequence[str], number: int) -> None:
        """Makes the space in which searches have vectors, and images where none are given."""
        config = self._config
        searches = config.events.query and not self._inputs.queries
        if not searches and config.catalogue.images:
            return
        names = [f"text {name}" for name in config.vectors.texts]
        # Of all items: a word that no engaged one has says what an item is near, too.
        lines = itertools.chain.from_iterable(
            column.to_pylist() for piece in self._texts(names, "true") for column in piece
        )
        sizes = {**config.vocabulary, "bigrams": 0, "trigrams": 0}
        vocabulary = tokens.Vocabulary.build(lines, **sizes)
        space = vectors.WordSpace(vocabulary, config.vectors.language)
        counts = scipy.sparse.vstack(
            [
                space.counts([column.to_pylist() for column in piece])
                for piece in self._texts(names, "true")
            ]
        ).tocsr()
        if min(counts.shape) < 2:
            found = f"{counts.shape[1]} words on {number} items"
            table = self._inputs.items[0]
            raise InputError(f"{table}: {found}; expected 2 or more of each to make vectors from")
        made = space.fit(counts, config.vectors.dim)
        if searches:
            self._space = space
        if not config.catalogue.images:
            self._of_words = made

    def _dim(self, name: str) -> int:
        """Numbers of a column of vectors."""
        query = f"SELECT len({name}[1]) FROM given WHERE len({name}) > 0 LIMIT 1"
        return reading.first_row(self._connection, query)[0]

    def _created(self, piece: pa.Table) -> np.ndarray:
        """From when items exist: their date or their first event, uint32 (n,), 0 if unknown."""
        if self._config.split.kind == "leave_one_out" or not self._config.events.time:
            return np.zeros(len(piece), np.uint32)
        first = _seconds(piece["first"])
        if "created" in piece.column_names:
            first = np.fmin(first, _seconds(piece["created"]))
        return np.nan_to_num(first).astype(np.uint32)

    def _pairs(self) -> dict[str, Any]:
        """Writes queries and pairs: what the spec says of them."""
        connection, config = self._connection, self._config
        connection.execute(
            "CREATE TABLE queries AS "
            "SELECT CAST(row_number() OVER (ORDER BY kind, item, id) - 1 AS INTEGER) AS row, * "
            "FROM (SELECT DISTINCT kind, query AS id, source AS item FROM split_pairs)"
        )
        own = bool(self._inputs.queries)
        vector = "v.vector" if own else "CAST(NULL AS FLOAT[][])"
        join = "LEFT JOIN own_vectors v ON q.id = v.id" if own else ""
        if not own and config.catalogue.images:
            vector = f"CASE WHEN q.item IS NOT NULL THEN [{items.SHOWN}[1]] END"
            join = "LEFT JOIN items i ON q.item = i.row LEFT JOIN given g ON i.id = g.id"
        found = connection.sql(
            f"SELECT q.*, {vector} AS vector FROM queries q {join} ORDER BY q.row"
        )
        dims = self._query_dims()
        made = {name: [] for name in ("ids", "kinds", "items", "vectors")}
        for piece in parts.pieces(found):
            of_piece = _first_vectors(piece["vector"], dims)
            of_text = piece["item"].is_null().to_numpy()
            item = piece["item"].fill_null(-1).to_numpy().astype(np.int32)
            ids = piece["id"].to_numpy()
            if not own and self._space is not None and of_text.any():
                of_piece[of_text] = self._space.vectors(ids[of_text].tolist())
            if not own and self._of_words is not None:
                of_piece[~of_text] = self._of_words[item[~of_text]]
            for name, values in zip(
                made, (ids, piece["kind"].to_numpy(), item, of_piece), strict=True
            ):
                made[name].append(values)
        queries = pairs.Queries(**{name: np.concatenate(values) for name, values in made.items()})
        empty = int((~queries.vectors.any(axis=1)).sum())
        if empty == len(queries):
            told = "no query has a vector: no search has a word of the items' texts"
            raise InputError(f"{told}; expected --queries, or other config.vectors.texts")
        queries.write(self._made / pairs.QUERIES_FILE)
        names, counts, report = parts.write_pairs(connection, self._made / "pairs")
        self._report |= {"queries": len(queries), "queries without a vector": empty, **report}
        return {
            "tasks": names,
            "pairs": counts,
            "num_queries": len(queries),
            "query_dim": queries.vectors.shape[1],
        }

    def _query_dims(self) -> int:
        """Numbers of a query's vector.

        Raises:
          InputError: where searches and items have other numbers.
        """
        if self._inputs.queries:
            query = "SELECT len(vector[1]) FROM own_vectors LIMIT 1"
            return reading.first_row(self._connection, query)[0]
        dims = {self._space.dim} if self._space else set()
        if self._config.pairs.sequence:
            made = self._of_words is not None
            dims.add(self._of_words.shape[1] if made else self._dim("images"))
        if len(dims) > 1:
            raise InputError(
                f"config.vectors.dim: searches have vectors of {self._space.dim} numbers, items as "
                f"queries {self._dim('images')}; expected --queries, or no column of images"
            )
        return dims.pop()


def _iso(seconds: int) -> str:
    """Unix seconds as people read them, in UTC."""
    return str(np.datetime64(int(seconds), "s")).replace("T", " ")


def _seconds(column: pa.ChunkedArray) -> np.ndarray:
    """Microseconds as whole seconds, float64, NaN where unknown."""
    return np.floor(column.cast(pa.float64()).to_numpy() / events.SECOND)


def _first_vectors(column: pa.ChunkedArray, dim: int) -> np.ndarray:
    """The first vector of each list of them, float16 (n, dim), zeros where there is none."""
    made = np.zeros((len(column), dim), np.float16)
    known = column.is_valid().to_numpy()
    flat = column.combine_chunks().filter(pa.array(known)).flatten().flatten()
    if len(flat):
        made[known] = flat.to_numpy().reshape(-1, dim)
    return made


def _flat_vectors(column: pa.ChunkedArray, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """All vectors of lists that are not zero, float16 (m, dim), and where each list begins."""
    lists = column.combine_chunks()
    lengths = pc.list_value_length(lists).fill_null(0).to_numpy()
    flat = lists.flatten().flatten().to_numpy().reshape(-1, dim).astype(np.float16)
    shown = flat.any(axis=1)
    row = np.repeat(np.arange(len(lists)), lengths)[shown]
    counts = np.bincount(row, minlength=len(lists))
    return flat[shown], np.concatenate([[0], np.cumsum(counts)])
