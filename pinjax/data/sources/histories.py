"""Histories of users who need not be in a data set, read as its log was."""

import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from ml_collections import ConfigDict

from pinjax import checksums
from pinjax.data import catalogue, timelines
from pinjax.data import spec as spec_lib
from pinjax.data.dataset import Dataset
from pinjax.data.sources import column_map, event_columns, events, reading, timelines_part
from pinjax.data.sources.columns import Column, are_integers
from pinjax.data.sources.engine import Job, open_database
from pinjax.data.sources.event_columns import SECOND
from pinjax.ids import rows_of


def read(dataset: Dataset, source: str | pa.Table) -> timelines.Chunk:
    """Histories as timelines of a data set's items and vocabularies.

    The columns are those of the data set's column map (see `column_map.of_histories`), and rows are
    checked as those of its log. If files of the log name its actions (`action_by_file`) and these
    have other names, a column `action` does, or the action is the only one there is. Rows of items
    that are not in the catalogue are left out; an unknown action or surface is "unknown". Users
    come in order of their ids.

    Args:
      dataset: of the items and vocabularies.
      source: names of files, with commas between; or a table.

    Raises:
      InputError: for wrong input.
    """
    dataset.spec.need("timelines")
    path = dataset.directory / spec_lib.SOURCE_FILE
    columns = checksums.read(path).get("columns") if path.exists() else None
    config = column_map.of_histories(columns)
    with tempfile.TemporaryDirectory() as scratch, open_database(pathlib.Path(scratch), None) as db:
        if isinstance(source, pa.Table):
            _find_action(config, ["histories"])
            files = [reading.of_table(db, "histories", source)]
        else:
            paths = reading.expand("histories", source.split(","))
            _find_action(config, paths)
            files = reading.open_files(db, paths, event_columns.named(config), config.events)
        ids = catalogue.id_array(dataset.catalogue.ids)
        integers = pa.types.is_integer(ids.type)
        if integers and not are_integers(db, [Column(file, config.events.item) for file in files]):
            integers, ids = False, ids.cast(pa.string())
        events.read(Job(db, config, pathlib.Path(scratch), {}), files, integers)
        table = db.table("SELECT * FROM rows ORDER BY user, time, place")
    item = _codes(table["item"], ids)
    known = item >= 0
    table, item = table.filter(known), item[known]
    user = table["user"].combine_chunks().dictionary_encode()
    records = np.zeros(len(table), timelines.ACTION)
    records["item"] = item
    for name, names in (("action", dataset.spec.actions), ("surface", dataset.spec.surfaces)):
        records[name] = np.maximum(_codes(table[name], pa.array(names)), 0)
    records["duration"] = table["duration"].cast(pa.float32()).fill_null(0).to_numpy()
    row = user.indices.to_numpy()
    repeats = np.zeros(len(table), bool)
    if config.events.time:
        time = table["time"].to_numpy()
        records["time"] = time // SECOND
        repeats = timelines_part.repeated(row, time, records)
    row, records = row[~repeats], records[~repeats]
    offsets = np.searchsorted(row, np.arange(len(user.dictionary) + 1))
    if dataset.spec.leave_one_out:
        records["time"] = np.arange(len(records)) - offsets[row]
    return timelines.Chunk(user.dictionary.to_pylist(), records, offsets)


def _find_action(config: ConfigDict, paths: Sequence[str]) -> None:
    """Says where the action is if files have other names than those of the log."""
    types = dict(config.events.action_by_file)
    names = {event_columns.stem(path) for path in paths}
    if not types or names <= types.keys():
        return
    if len(actions := set(types.values())) == 1:
        config.events.action_by_file = tuple((name, *actions) for name in sorted(names))
    else:
        config.events.update(action_by_file=(), action="action")


def _codes(values: pa.ChunkedArray, names: pa.Array) -> np.ndarray:
    """Int (n,): the place of each value among names, -1 where there is none."""
    return rows_of(values.cast(names.type), names)
