"""Users' files of every kind, and data sets of them."""

import bz2
import gzip
import json
import lzma
import os

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinjax.data import dataset
from pinjax.data.sources import column_map, engine, reading
from pinjax.data.sources import prepare as prepare_lib
from pinjax.errors import InputError

_OPEN = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


def _write(path, columns):
    """Writes columns in the format that the suffix names."""
    kind = next(s for s in path.suffixes if s not in _OPEN)
    if kind == ".parquet":
        pq.write_table(pa.table(columns), path)
        return
    if kind == ".npz":
        np.savez(path, **columns)
        return
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    with _OPEN.get(path.suffix, open)(path, "wt", encoding="utf-8", newline="") as file:
        if kind == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in table.to_pylist())
        else:
            frame = pd.DataFrame(table.to_pydict(), dtype=object)
            frame.to_csv(file, index=False, sep="\t" if kind == ".tsv" else ",")


@pytest.fixture
def write(tmp_path):
    """write("e.csv.gz", columns or bytes) writes a file of that name; its path."""

    def function(name, columns):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(columns, bytes):
            path.write_bytes(columns)
        else:
            _write(path, columns)
        return str(path)

    return function


@pytest.fixture
def prepare(tmp_path, write):
    """prepare(config, events, items, queries) makes a data set of columns or of paths.

    It returns the data set and its `Prepared`. Columns become Parquet files e, i and
    q; paths are lists.
    """

    def paths(name, given):
        if given is None:
            return []
        return given if isinstance(given, list) else [write(f"{name}.parquet", given)]

    def function(config, events, items=None, queries=None, out="out", memory=None):
        inputs = prepare_lib.Inputs.find(paths("e", events), paths("i", items), paths("q", queries))
        made = prepare_lib.prepare(inputs, tmp_path / out, config, memory)
        return dataset.open_directory(tmp_path / out), made

    return function


@pytest.fixture
def refuse(tmp_path, prepare):
    """refuse(message, config, events, ...): `prepare` fails in one line and leaves nothing."""

    def function(message, *args, **kwargs):
        with pytest.raises(InputError, match=message) as error:
            prepare(*args, **kwargs)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 1000
        left = [name for name in os.listdir(tmp_path) if name.endswith("unfinished")]
        assert not left
        assert not (tmp_path / kwargs.get("out", "out")).exists()
        return str(error.value)

    return function


@pytest.fixture
def database(tmp_path):
    directory = tmp_path / "database"
    directory.mkdir()
    with engine.open_database(directory, 2**28) as opened:
        yield opened


@pytest.fixture
def read(database):
    """read(path, columns, ...) gives the columns of a file as they are."""

    def function(path, columns, **section):
        settings = column_map.default().events
        settings.update(section)
        (file,) = reading.open_files(database, [str(path)], columns, settings)
        names = ", ".join(engine.name_of(name) for name in columns)
        rows = database.rows(f"SELECT {reading.ROW}, {names} FROM {file.relation}")
        assert [row for row, *_ in rows] == list(range(1, file.rows + 1))
        found = {name: [row[n] for row in rows] for n, name in enumerate(columns, start=1)}
        return file, found

    return function
