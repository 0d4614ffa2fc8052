"""Prepares a data set (`pinjax.data.dataset`) from users' files and a column map.

There are two passes: over all rows, for small aggregates (`events`), and over shards of users
(`timelines_part`). DuckDB reads, joins and sorts within a memory budget, and spills to disk.
"""

import dataclasses
import hashlib
import pathlib
import shutil
from collections.abc import Callable, Sequence

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from pinjax import checksums, config_json, files
from pinjax.data import spec as spec_lib
from pinjax.data.sources import (
    column_map,
    content,
    event_columns,
    events,
    graph_part,
    items,
    pairs_part,
    queries,
    reading,
    splits,
    timelines_part,
)
from pinjax.data.sources.columns import Column, are_integers
from pinjax.data.sources.engine import Job, open_database
from pinjax.errors import InputError

VERSION = "4.3.0"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared data set.

    Attributes:
      spec: of the data set.
      report: counts of what was read, dropped, joined and written.
      remarks: warnings.
      is_new: whether it was made by this call.
    """

    spec: spec_lib.Spec
    report: dict[str, int | str]
    remarks: Sequence[str]
    is_new: bool


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The input files of a data set, as local paths.

    Attributes:
      events: of the log.
      items: of the table of items.
      sides: further files to join to items, by name.
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
        """Expands names and globs; the first of `items` are the table.

        Raises:
          InputError: if a name is not a file.
        """
        main = reading.expand("items", items[:1])
        sides = {}
        for path in reading.expand("items", items[1:]):
            name = event_columns.stem(path)
            if name in sides:
                raise InputError(f"--items has {path} and {sides[name][0]}; expected one of a name")
            sides[name] = [path]
        events = reading.expand("events", events)
        return cls(events, main, sides, reading.expand("queries", queries))

    def identity(self, config: ConfigDict) -> str:
        """Hash of the column map, the contents of the files, and this module's version.

        The order of files counts only for a log without times.
        """
        digest = hashlib.sha256(f"{VERSION} {config.to_json(sort_keys=True)}".encode())
        for part in (self.events, self.items, *self.sides.items(), self.queries):
            name, paths = part if isinstance(part, tuple) else ("", part)
            of_files = [
                f"{event_columns.stem(path)} {checksums.of_file(epath.Path(path))['xxh3_128']}"
                for path in paths
            ]
            if config.events.time:
                of_files.sort()
            digest.update(f"{name} {of_files}".encode())
        return digest.hexdigest()[:16]


def prepare(
    inputs: Inputs,
    out: epath.PathLike,
    config: ConfigDict,
    memory: int | None = None,
    begins: Callable[[str], None] = lambda part: None,
) -> Prepared:
    """Prepares a data set, unless `out` already has it.

    Args:
      inputs: its files.
      out: the data set's directory; written under another name, then renamed.
      config: a column map, see `pinjax.data.sources.column_map`.
      memory: approximate budget in bytes; None: half of the machine's.
      begins: called with the name of each part of the work before it.

    Raises:
      InputError: for wrong input; nothing is left behind.
    """
    column_map.check(config, bool(inputs.items), bool(inputs.queries))
    out = epath.Path(out)
    begins("checksums")
    identity = inputs.identity(config)
    if (known := _there(out, identity)) is not None:
        return known
    try:
        with files.new_directory(out) as made:
            staging = pathlib.Path(made) / "staging"
            staging.mkdir()
            report: dict[str, int | str] = {}
            with open_database(staging, memory) as database:
                job = Job(database, config, pathlib.Path(made), report)
                spec, remarks = _make(job, inputs, begins)
            shutil.rmtree(staging)
            source = {"identity": identity, "report": report, "remarks": remarks}
            source["columns"] = config_json.to_json(config)
            (made / spec_lib.SOURCE_FILE).write_text(checksums.dump(source))
            spec = spec_lib.write(made, spec)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror or error}") from error
    _there(out, identity)  # rejects another data set that was written there meanwhile
    return Prepared(spec, report, remarks, is_new=True)


def _there(out: epath.Path, identity: str) -> Prepared | None:
    """The data set in a directory, if it has this identity.

    Raises:
      InputError: if the directory has anything else.
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


def _make(
    job: Job, inputs: Inputs, begins: Callable[[str], None]
) -> tuple[spec_lib.Spec, Sequence[str]]:
    """Makes all parts; returns the spec, and remarks on the log."""
    database, config, parts = job.database, job.config, column_map.parts(job.config)
    named = event_columns.named(config)
    log_files = reading.open_files(database, inputs.events, named, config.events)
    sources = query_files = None
    if inputs.items:
        sources = items.open_sources(database, inputs.items, inputs.sides, config)
    if inputs.queries:
        named = [config.queries.id, config.queries.vector]
        query_files = reading.open_files(database, inputs.queries, named, config.queries)
    ids = [Column(file, config.events.item) for file in log_files]
    ids += [Column(file, config.catalogue.id) for file in (sources.main if sources else ())]
    integers = are_integers(database, ids)
    begins("events")
    log = events.read(job, log_files, integers)
    begins("items")
    if sources:
        items.read(job, sources, integers)
    if query_files:
        queries.read(job, query_files)
    table, own = "".join(inputs.items[:1]), "".join(inputs.queries[:1])
    number = items.join(job, table)
    names = events.make_vocabularies(job)
    shards = events.divide(job, log)
    train_end = splits.train_end(job, log.first, log.last)
    spec = spec_lib.Spec(
        name=config.name,
        num_items=number,
        train_end=train_end,
        leave_one_out=config.split.kind == "leave_one_out",
    )
    counts = np.zeros(number, np.int64)
    if "timelines" in parts:
        begins("timelines")
        users, counts = timelines_part.write(job, shards, number, train_end)
        spec = dataclasses.replace(spec, **names, **users)
    splits.make_cold(job)
    made = content.WordVectors()
    trained = "events > 0"  # items whose texts make the vocabulary
    if config.split.kind == "time":
        trained = f"first < {(train_end + 1) * event_columns.SECOND}"
    if "pairs" in parts:
        begins("pairs")
        pairs_part.find(job)
        queries.check(job, log_files, own)
        pairs_part.split(job, train_end)
        made = content.make_word_vectors(job, table, bool(config.events.query) and not own)
        trained = "row IN (SELECT item FROM split_pairs WHERE split = 0)"
    begins("catalogue")
    vocabulary = None
    if config.catalogue.texts or "pairs" in parts:
        vocabulary = content.make_vocabulary(job, trained, "pairs" in parts)
        spec = dataclasses.replace(spec, vocabulary=vocabulary.sizes)
    of_items = content.write(job, counts, vocabulary, made, table)
    spec = dataclasses.replace(spec, **of_items)
    if "pairs" in parts:
        of_queries = queries.write(job, bool(own), made)
        spec = dataclasses.replace(spec, **of_queries, **pairs_part.write(job))
    if "graph" in parts:
        begins("graph")
        spec = dataclasses.replace(spec, **graph_part.write(job, number, train_end))
    return spec, log.remarks
