"""Columns as they come out of files of each kind."""

import gzip
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinjax.data import tables
from pinjax.errors import InputError


def test_arrays_of_an_npz_file_are_columns(tmp_path, rng):
    arrays = {
        "number": np.arange(4, dtype=np.int32),
        "name": np.array(["a", "b", "c", "d"]),
        "vector": rng.normal(size=(4, 3)).astype(np.float16),
        "images": rng.normal(size=(4, 2, 3)).astype(np.float32),
    }
    np.savez(tmp_path / "a.npz", **arrays, unused=np.zeros(7))
    table = tables.read(tmp_path / "a.npz", list(arrays), ",")
    pq.write_table(table.select(["number", "images"]), tmp_path / "a.parquet")
    again = tables.read(tmp_path / "a.parquet", ["number", "images"], ",")
    assert table.column_names == list(arrays)
    for name, array in arrays.items():
        assert table[name].to_pylist() == array.tolist()
    assert again["images"].to_pylist() == arrays["images"].tolist()


@pytest.mark.parametrize("name", ["a.dat", "a.dat.gz"])
def test_a_delimiter_may_have_several_characters(tmp_path, name):
    lines = '1::"Ah", he: said::x\r\n2::::café\r\n'.encode()
    (tmp_path / name).write_bytes(gzip.compress(lines) if name.endswith("gz") else lines)
    table = tables.read(tmp_path / name, ["text", "id", "last"], "::", ("id", "text", "last"))
    assert table.to_pydict() == {
        "text": ['"Ah", he: said', None],
        "id": ["1", "2"],
        "last": ["x", "café"],
    }


NUMBERS = ("1", "-1.5", "+.5e-7", "1e400", "inf", "-Infinity", "nan", "NaN(a_1)", "12345.")
DAYS = ("2024-01-02", "2024-02-29 03", "2023-12-31T23:59", "1999-11-19T13:14:15.123456")
ZONES = ("Z", "+01", "-0130", "+23:59")
READ_AS = {
    "numbers": (tables.numbers, (), NUMBERS, [pa.float64()]),
    "moments": (
        *(tables.moments, ("",), (*DAYS, *(day + zone for day in DAYS for zone in ZONES))),
        [pa.timestamp("us"), pa.timestamp("us", "UTC")],
    ),
}


@pytest.mark.parametrize("name", READ_AS)
def test_text_is_read_as_arrow_reads_each_row(rng, name):
    """Also where characters were put in, taken out or changed."""
    read, arguments, examples, kinds = READ_AS[name]
    rows = [None, "", *examples, "2023-02-29", "2023-02-29 01:00Z"]
    for _ in range(3_000):
        row = list(rng.choice(examples))
        for _ in range(rng.integers(1, 3)):
            place, removed = rng.integers(0, len(row) + 1), rng.integers(0, 2)
            row[place : place + removed] = rng.choice(["", *"0123456789+-.:eEinfatyTZz_() \n,"])
        rows.append("".join(row))

    def alone(row):
        for kind in kinds:
            try:
                value = pa.array([row], pa.large_string()).cast(kind)
            except pa.ArrowInvalid:
                continue
            value = value if kind == pa.float64() else value.cast(pa.int64())
            return value.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)[0]
        return np.nan

    column = pa.chunked_array([pa.array(rows, pa.large_string())])
    found = read("log.csv", "column", column, *arguments)
    expected = np.array([alone(row) for row in rows], np.float64)
    np.testing.assert_array_equal(found, expected)
    assert np.isnan(expected).sum() > 100
    assert (~np.isnan(expected)).sum() > 100


def broken(tmp_path):
    np.savez(tmp_path / "uneven.npz", a=np.zeros(2), b=np.zeros(3))
    np.savez(tmp_path / "objects.npz", a=np.array([{}], object), b=np.zeros(1))
    np.savez(tmp_path / "other.npz", a=np.zeros(2), bb=np.zeros(2))
    np.savez(tmp_path / "nothing.npz", a=np.zeros(0), b=np.zeros((0, 3)))
    (tmp_path / "text.npz").write_bytes(b"no archive")
    np.save(tmp_path / "array", np.zeros(2))
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    (tmp_path / "latin.dat").write_bytes("a::b\n1::é\n".encode("latin-1"))
    (tmp_path / "ragged.dat").write_text("a::b\n1\n")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("uneven.npz", "not readable as npz"),
        ("objects.npz", "not readable as npz"),
        ("text.npz", "not readable as npz"),
        ("array.npz", "not readable as npz"),
        ("nothing.npz", "has no rows"),
        ("other.npz", "no column 'b' among a, bb; did you mean 'bb'"),
        ("latin.dat", "not readable as CSV.*UTF8"),
        ("ragged.dat", "not readable as CSV"),
    ],
)
def test_refuses_an_unreadable_file(tmp_path, name, message):
    broken(tmp_path)
    with pytest.raises(InputError, match=f"{name}: {message}") as error:
        tables.read(tmp_path / name, ["a", "b"], "::")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [None, 7, 0])
def test_own_tables_are_read_from_memory_of_arrows_own(tmp_path, rng, monkeypatch, size):
    """Of processes that ended right after reading, up to one in six aborted otherwise."""
    path = tmp_path / "a.parquet"
    table = pa.table({"x": rng.normal(size=1000), "y": np.arange(1000)})
    pq.write_table(table, path)
    buffers = []
    reader = pa.BufferReader
    monkeypatch.setattr(pa, "BufferReader", lambda buffer: buffers.append(buffer) or reader(buffer))
    if size is None:
        assert tables.read_own(path).equals(table)
    else:
        os.truncate(path, size)
        with pytest.raises(InputError, match=f"is {size} bytes"):
            tables.read_own(path)
    (buffer,) = buffers
    assert isinstance(buffer, pa.Buffer)
    assert buffer.is_mutable  # as Python's bytes are not


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"", bytes.swapcase])
def test_an_own_table_that_is_damaged_is_named(tmp_path, damage):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": np.arange(1000)}), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=f"^{path}: not readable as Parquet: "):
        tables.read_own(path)
