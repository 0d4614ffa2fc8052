"""Columns of every type: what each is read as, and which are refused."""

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pytest

from pinjax.data.sources import columns
from pinjax.data.sources.columns import Column
from pinjax.errors import InputError


@pytest.mark.parametrize(
    ("values", "integers"),
    [
        (pa.array([7, 8], pa.int8()), True),
        (pa.array([7, 8], pa.uint64()), True),
        (pa.array([7, 2**63], pa.uint64()), False),
        (pa.array([decimal.Decimal(7)], pa.decimal128(38, 0)), True),
        (pa.array([decimal.Decimal(2**63)], pa.decimal128(38, 0)), False),
        (pa.array(["7", "8"]), False),
        (pa.array(["7", "8"], pa.string_view()), False),
        (pa.array(["7", "8"], pa.large_string()), False),
        (pa.array(["7", "8"]).dictionary_encode(), False),
        (pa.array([None, None], pa.int32()), True),
        (pa.array([7, 8]).dictionary_encode(), True),
    ],
)
def test_ids_are_integers_or_text(write, read, database, values, integers):
    file, _ = read(write("a.parquet", {"x": values}), ["x"])
    assert Column(file, "x").is_integer(database) == integers
    ids = Column(file, "x").id(integers)
    found = database.rows(f"SELECT {ids} FROM {file.relation}")
    kind = int if integers else str
    assert [value for (value,) in found] == [
        None if value is None else kind(value) for value in values.to_pylist()
    ]


@pytest.mark.parametrize(
    ("text", "integers"),
    [
        (["7", "8"], True),
        (["7", None], True),
        (["-7", "0"], True),
        (["7", "007"], False),
        (["7", "7.0"], False),
        (["7", " 8"], False),
        (["7", "-0"], False),
        (["7", "+8"], False),
        (["7", "1e3"], False),
        (["7", "99999999999999999999"], False),
        (["7", "a"], False),
    ],
)
def test_ids_without_a_type_are_integers_where_all_are_written_so(
    write, read, database, text, integers
):
    file, _ = read(write("a.csv", {"x": pa.array(text), "y": [1, 2]}), ["x"])
    assert Column(file, "x").is_integer(database) == integers


ONE = {
    "nested": pa.array([[1, 2]]),
    "struct": pa.array([{"a": 1}]),
    "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int32())),
    "binary": pa.array([b"\xff\x00"]),
    "boolean": pa.array([True]),
    "double": pa.array([7.0]),
    "decimal": pa.array([decimal.Decimal("7.5")], pa.decimal128(5, 2)),
    "date": pa.array([datetime.date(2020, 1, 2)]),
    "time": pa.array([datetime.time(1, 2)]),
    "timestamp": pa.array([datetime.datetime(2020, 1, 2)], pa.timestamp("ns")),
    "duration": pa.array([datetime.timedelta(1)], pa.duration("us")),
    "text": pa.array(["7"]),
    "string_view": pa.array(["7"], pa.string_view()),
    "dictionary": pa.array(["7"]).dictionary_encode(),
    "null": pa.array([None], pa.null()),
    "half": pa.array(np.float16([7])),
}
# What each is read as; None: it is refused.
ROLES = {
    "ids": {"text": "7", "string_view": "7", "dictionary": "7", "null": None},
    "numbers": {
        "double": 7.0,
        "half": 7.0,
        "decimal": 7.5,
        "text": 7.0,
        "string_view": 7.0,
        "dictionary": 7.0,
        "null": None,
    },
    "text": {
        "boolean": "true",
        "double": "7",  # as an integer is written in another file
        "half": "7",
        "decimal": "7.50",
        "date": "2020-01-02",
        "time": "01:02:00",
        "timestamp": "2020-01-02 00:00:00",
        "text": "7",
        "string_view": "7",
        "dictionary": "7",
        "null": None,
    },
    "timestamps": {
        "date": 1577923200_000_000,
        "timestamp": 1577923200_000_000,
        "text": None,
        "string_view": None,
        "dictionary": None,
        "null": None,
    },
}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("kind", ONE)
def test_types_are_read_where_they_are_plain_and_refused_elsewhere(
    write, read, database, role, kind
):
    file, _ = read(write("a.parquet", {"x": ONE[kind]}), [])
    column = Column(file, "x")

    def sql():
        match role:
            case "ids":
                return column.id(column.is_integer(database))
            case "numbers":
                return column.number()
            case "text":
                return column.text()
            case "timestamps":
                return column.timestamp("")

    if kind not in ROLES[role]:
        with pytest.raises(InputError, match=r"a.parquet: x is [^;]+; expected ") as error:
            sql()
        assert "\n" not in str(error.value)
        return
    ((value,),) = database.rows(f"SELECT {sql()} FROM {file.relation}")
    assert value == ROLES[role][kind]


def test_a_number_is_one_text_in_every_type(write, read, database):
    numbers = [0.0, -3.0, 2.5, 1e14, 1e300, float("inf"), float("nan"), None]
    file, _ = read(write("a.parquet", {"x": numbers}), ["x"])
    found = database.rows(f"SELECT {Column(file, 'x').text()} FROM {file.relation}")
    expected = ["0", "-3", "2.5", "100000000000000", "1e+300", "inf", "nan", None]
    assert [text for (text,) in found] == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2020-01-02", 1577923200),
        ("2020-01-02 03:04", 1577934240),
        ("2020-01-02T03:04:05.5Z", 1577934245.5),
        ("2020-01-02 04:04:05+01:00", 1577934245),
        ("2020-01-02 04:04:05+01", 1577934245),
        ("1999-11-19T13:14:15.123456-0130", 943022655.123456),
        ("2024-02-29", 1709164800),
        ("2023-02-29", None),
        ("noon", None),
        ("infinity", None),
        ("-infinity", None),
        ("2020-01-02 25:00", None),
        ("", None),
        ("290000-01-01", 2**64),
    ],
)
def test_text_as_timestamps(write, read, database, text, seconds):
    """Values far outside are found by the bounds of `events` and `items`."""
    file, _ = read(write("a.parquet", {"x": [text]}), ["x"])
    timestamp = Column(file, "x").timestamp("")
    query = (
        f"SELECT {timestamp}, {timestamp} BETWEEN 0 AND {columns.LATEST - 1} FROM {file.relation}"
    )
    ((found, within),) = database.rows(query)
    if seconds is None or seconds >= 2**32:
        assert not within
    else:
        assert found == round(seconds * 1e6)


@pytest.mark.parametrize("nanoseconds", [-(2**63) + 1, 2**63 - 1, 0])
def test_timestamps_at_the_end_of_their_type(write, read, database, nanoseconds):
    values = pa.array([nanoseconds], pa.timestamp("ns"))
    file, _ = read(write("a.parquet", {"x": values}), ["x"])
    timestamp = Column(file, "x").timestamp("")
    query = f"SELECT {timestamp} BETWEEN 0 AND {columns.LATEST - 1} FROM {file.relation}"
    ((within,),) = database.rows(query)
    assert bool(within) == (nanoseconds == 0)


def test_floats_of_32_bits_are_no_times(write, read):
    file, _ = read(write("a.parquet", {"x": pa.array([1.6e9], pa.float32())}), ["x"])
    with pytest.raises(InputError, match="x is FLOAT; expected integers or doubles: 32 bits"):
        Column(file, "x").timestamp("s")
