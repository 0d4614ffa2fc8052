"""Files of every kind: what is read from them, and how unreadable ones are refused."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinjax.data.sources import column_map, engine, reading
from pinjax.errors import InputError


def test_arrays_of_an_npz_file_are_columns(rng, write, read):
    arrays = {
        "number": np.arange(4, dtype=np.int32),
        "name": np.array(["a", "b", "c", "d"]),
        "vector": rng.normal(size=(4, 3)).astype(np.float16),
        "images": rng.normal(size=(4, 2, 3)).astype(np.float32),
    }
    path = write("a.npz", {**arrays, "unused": np.zeros(7)})
    _, found = read(path, list(arrays))
    for name, array in arrays.items():
        assert found[name] == array.tolist()


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_a_directory_is_no_column(write, read, kind):
    """Some programs write a column as directories, and read such names as one."""
    path = write(f"x=7[1]/a.{kind}", {"x": ["a", "b"], "y": ["c", "d"]})
    assert read(path, ["x", "y"])[1] == {"x": ["a", "b"], "y": ["c", "d"]}


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz"])
def test_lines_of_json_may_be_packed(write, read, suffix):
    assert read(write(f"a.jsonl{suffix}", {"x": [1, 2]}), ["x"])[1] == {"x": [1, 2]}


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2", ".xz"])
def test_a_delimiter_may_have_several_characters(write, read, suffix):
    import bz2
    import gzip
    import lzma

    lines = '1::"Ah", he: said::x\r\n2::::café\r\n'.encode()
    pack = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}
    path = write(f"a.dat{suffix}", pack.get(suffix, bytes)(lines))
    section = {"delimiter": "::", "quote": "", "header": ("id", "text", "last")}
    _, found = read(path, ["text", "id", "last"], **section)
    assert found == {
        "text": ['"Ah", he: said', None],
        "id": ["1", "2"],
        "last": ["x", "café"],
    }


ROWS = {"plain": ["a", "b c", "d"], "quotes": ['say "ah"', "it's", '"']}


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_lines_may_end_in_any_way(write, read, ending, last):
    lines = ["x,y", "1,a", '2,"b, c"', '3,"say ""ah"""', "4,"]
    text = ending.join(lines) + (ending if last else "")
    _, found = read(write("a.csv", text.encode()), ["x", "y"])
    assert found == {"x": ["1", "2", "3", "4"], "y": ["a", "b, c", 'say "ah"', None]}


def test_a_byte_order_mark_is_no_text(write, read):
    mark = "\ufeff".encode()
    _, found = read(write("a.csv", mark + b"x,y\n1,2\n"), ["x", "y"])
    assert found == {"x": ["1"], "y": ["2"]}
    _, found = read(write("b.csv", mark + b"1,2\n3,4\n"), ["x", "y"], header=("x", "y"))
    assert found == {"x": ["1", "3"], "y": ["2", "4"]}


@pytest.mark.parametrize("name", ["row", "FILE", "it's", 'a "b"', "état", "a.b", "select"])
@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl", "npz"])
def test_a_column_may_have_any_name(write, read, kind, name):
    columns = {name: np.array(["5", "7"]), "other": np.array(["6", "8"])}
    _, found = read(write(f"a.{kind}", columns), [name, "other"])
    assert found == {name: ["5", "7"], "other": ["6", "8"]}


@pytest.mark.parametrize(
    "name", ["a[1].csv", "a*.csv", "a?.parquet", "it's.jsonl", "a b,c.csv", "[ab].npz"]
)
def test_a_file_may_have_any_name(write, read, name):
    write("a1" + os.path.splitext(name)[1], {"x": np.array(["other"])})
    path = write(name, {"x": np.array(["5", "7"])})
    assert reading.expand("events", [path]) == [path]
    _, found = read(path, ["x"])
    assert found == {"x": ["5", "7"]}


def test_json_lines_are_columns(write, read):
    lines = (
        b'{"id": 7, "text": "caf\\u00e9 \\"x\\"", "v": [1, 2.5], '
        b'"tags": ["a, b", "c\\"d", "\\u00e9"], "m": [[1, 2], [3, 4]], "n": 1, "b": true, '
        b'"codes": [7, 10], "mixed": [7, "x"]}\n'
        b'{"text": null, "id": 8, "v": null, "tags": [], "n": 2.5, "b": false}\n'
        b'{"id": 9, "v": [3, 4], "n": null}\n'
    )
    expected = {
        "id": [7, 8, 9],
        "text": ['café "x"', None, None],
        "v": [[1, 2.5], None, [3, 4]],
        "tags": [["a, b", 'c"d', "é"], [], None],
        "m": [[[1, 2], [3, 4]], None, None],
        "n": [1, 2.5, None],
        "b": [True, False, None],
        "codes": [[7, 10], None, None],
        "mixed": [["7", "x"], None, None],
    }
    file, found = read(write("a.jsonl", lines), list(expected))
    assert found == expected
    assert not file.type_of("id").startswith("DOUBLE")
    for suffix in ("ndjson", "json"):
        assert read(write(f"a.{suffix}", lines), ["id"])[1] == {"id": [7, 8, 9]}


def test_globs_are_files_in_order(tmp_path, write):
    paths = [write(f"day={n}.parquet", {"x": [n]}) for n in (10, 2, 1)]
    assert reading.expand("events", [f"{tmp_path}/day=*.parquet"]) == sorted(paths)
    assert reading.expand("events", [paths[1], paths[0]]) == [paths[1], paths[0]]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["{}/a.csv", ""], "--events names an empty file; expected names with commas between"),
        (["{}"], r": is a directory; expected files, as .*/\*\.parquet"),
        (["{}/b.csv"], "b.csv: no such file"),
        (["{}/*.parquet"], r"\*.parquet: no such file"),
        (["s3://bucket/e.parquet"], "s3://bucket/e.parquet: expected a file on this machine"),
        (["https://host/e.csv"], "https://host/e.csv: expected a file on this machine"),
    ],
)
def test_refuses_what_is_no_file(tmp_path, write, names, message):
    write("a.csv", b"x\n1\n")
    with pytest.raises(InputError, match=message) as error:
        reading.expand("events", [name.format(tmp_path) for name in names])
    assert "\n" not in str(error.value)


def broken(directory):
    np.savez(directory / "uneven.npz", a=np.zeros(2), b=np.zeros(3))
    np.savez(directory / "objects.npz", a=np.array([{}], object), b=np.zeros(1))
    np.savez(directory / "other.npz", a=np.zeros(2), bb=np.zeros(2))
    np.savez(directory / "nothing.npz", a=np.zeros(0), b=np.zeros((0, 3)))
    taken = {"a": [1], "b": [2], "file_row_number": [3]}
    pq.write_table(pa.table(taken), directory / "taken.parquet")
    np.savez(directory / "complex.npz", a=np.zeros(2, complex), b=np.zeros(2))
    (directory / "text.npz").write_bytes(b"no archive")
    (directory / "empty.npz").write_bytes(b"")
    np.save(directory / "array", np.zeros(2))
    (directory / "array.npy").rename(directory / "array.npz")
    (directory / "latin.dat").write_bytes("a::b\n1::é\n".encode("latin-1"))
    (directory / "ragged.dat").write_text("a::b\n1\n")
    (directory / "long.csv").write_text("a,b\n1,2\n1,2,3\n")
    (directory / "short.csv").write_text("a,b\n1,2\n1\n1,2\n")
    (directory / "cut.csv").write_text("a,b\n1,2\n1")
    (directory / "cut_quote.csv").write_text('a,b\n1,2\n1,"2')
    (directory / "twice.csv").write_text("a,b,a\n1,2,3\n")
    (directory / "case.csv").write_text("a,b,B\n1,2,3\n")
    (directory / "empty.csv").write_text("")
    (directory / "blank.csv").write_text("\na,b\n1,2\n")
    (directory / "header.csv").write_text("a,b\n")
    (directory / "text.csv.gz").write_text("a,b\n1,2\n")
    (directory / "text.csv.xz").write_text("a,b\n1,2\n")
    (directory / "wide.csv").write_text("a,b\n1," + "x" * 3_000_000 + "\n1,2\n")
    table = pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], ["a", "b", "b"])
    pq.write_table(table, directory / "twice.parquet")
    pq.write_table(pa.table({"a": [1], "b": [2], "B": [3]}), directory / "case.parquet")
    pq.write_table(pa.table({"a": [], "b": []}), directory / "empty.parquet")
    (directory / "text.parquet").write_text("a,b\n1,2\n")
    (directory / "cut.jsonl").write_text('{"a": 1, "b": 2}\n{"a": 1, "b"')
    (directory / "empty.jsonl").write_text("")
    (directory / "array.jsonl").write_text("[1, 2]\n")
    (directory / "other.jsonl").write_text('{"a": 1, "bb": 2}\n')


BROKEN = {
    "uneven.npz": "not readable as npz",
    "objects.npz": "not readable as npz",
    "complex.npz": "not readable as npz",
    "taken.parquet": "not readable as Parquet: .*file_row_number",
    "text.npz": "not readable as npz",
    "empty.npz": "not readable as npz",
    "array.npz": "not readable as npz",
    "nothing.npz": "has no rows",
    "other.npz": "no column 'b' among a, bb; did you mean 'bb'",
    "latin.dat": "not readable as CSV.*(?i:utf-?8)",
    "ragged.dat": "not readable as CSV.*Line: 2",
    "long.csv": "not readable as CSV.*Line: 3",
    "short.csv": "not readable as CSV.*Line: 3",
    "cut.csv": "not readable as CSV.*Line: 3",
    "cut_quote.csv": "not readable as CSV.*Line: 3",
    "twice.csv": "has columns 'a' and 'a'; expected each name once",
    "case.csv": "has columns 'b' and 'B'; expected each name once",
    "empty.csv": "not readable as CSV: it is empty",
    "blank.csv": "not readable as CSV: it is empty, or begins with an empty line",
    "header.csv": "has no rows",
    "text.csv.gz": "not readable as CSV",
    "text.csv.xz": "not readable as CSV",
    "wide.csv": "not readable as CSV",
    "twice.parquet": "has columns 'b' and 'b'; expected each name once",
    "case.parquet": "has columns 'b' and 'B'; expected each name once",
    "empty.parquet": "has no rows",
    "text.parquet": "not readable as Parquet",
    "cut.jsonl": "not readable as JSON lines",
    "empty.jsonl": "has no rows",
    "array.jsonl": "no column 'a'",
    "other.jsonl": "no column 'b' among a, bb; did you mean 'bb'",
}


@pytest.mark.parametrize("name", BROKEN)
def test_refuses_an_unreadable_file(tmp_path, read, name):
    broken(tmp_path)
    with pytest.raises(InputError, match=f"{name}: {BROKEN[name]}") as error:
        read(tmp_path / name, ["a", "b"], delimiter="::" if name.endswith(".dat") else ",")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_refuses_a_file_in_which_a_quote_joins_lines(write, read):
    """A field that begins with a stray quote swallows rows, whether its column is used or not."""
    lines = [f"{n}\tscreen {n}" for n in range(1000)]
    lines[300], lines[700] = '300\t"32 inch screen', '700\t"40 inch screen'
    path = write("a.tsv", ("id\tname\n" + "\n".join(lines) + "\n").encode())
    with pytest.raises(InputError) as error:
        read(path, ["id"], delimiter="\t")
    assert str(error.value).startswith(f"{path}: ")
    assert "302" in str(error.value)
    _, found = read(path, ["id", "name"], delimiter="\t", quote="")
    assert found["name"][300] == '"32 inch screen'
    assert len(found["id"]) == 1000


def test_quoted_line_breaks_are_read_where_the_map_allows_them(write, read):
    path = write("a.csv", b'x,y\n1,"two\nlines"\n2,one\n')
    with pytest.raises(InputError, match=r"line 2: a field in \" does not end on its line"):
        read(path, ["x", "y"])
    _, found = read(path, ["x", "y"], multiline=True)
    assert found == {"x": ["1", "2"], "y": ["two\nlines", "one"]}


@pytest.mark.parametrize("columns", [("x",), ("x", "y")])
def test_empty_lines_are_no_rows(write, read, columns):
    lines = [",".join(columns), *(",".join(str(n) for _ in columns) for n in range(3))]
    path = write("a.csv", ("\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:]) + "\n\n").encode())
    _, found = read(path, list(columns))
    assert found == {name: ["0", "1", "2"] for name in columns}


def test_rows_are_numbered_as_they_lie_in_large_files(write, read):
    """Also where several threads read them."""
    n = 400_000
    numbers = np.arange(n)
    for kind in ("parquet", "csv", "npz"):
        path = write(f"a.{kind}", {"x": numbers})
        _, found = read(path, ["x"])
        assert (np.array(found["x"]).astype(int) == numbers).all()


def test_too_little_memory_is_said_in_one_line(tmp_path):
    (tmp_path / "small").mkdir()
    query = "SELECT list(range) FROM range(10000000) GROUP BY range % 2"
    with (
        pytest.raises(InputError, match="--memory: 16 MiB are too little: ") as error,
        engine.open_database(tmp_path / "small", 2**24) as database,
    ):
        database.run(query)
    assert "\n" not in str(error.value)


def test_a_file_that_is_damaged_within_is_refused_where_it_is_read(write, refuse):
    table = pa.table(
        {"user": np.arange(10_000) % 50, "item": np.arange(10_000), "time": np.arange(10_000) * 99}
    )
    path = write("e.parquet", table)
    with open(path, "r+b") as file:
        file.seek(1000)
        file.write(b"x" * 2000)
    config = column_map.default()
    config.events.update(user="user", time="time", time_unit="s")
    refuse("e.parquet", config, [path])
