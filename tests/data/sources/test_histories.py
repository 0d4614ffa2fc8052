"""A log that is read as histories has the timelines of the data set that was made of it."""

import numpy as np
import pyarrow as pa
import pytest

from pinjax.data.sources import histories
from pinjax.data.spec import SPLITS
from tests.data.sources import test_events as log


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize("kind", ["time", "leave_one_out"])
def test_a_log_read_as_histories_is_its_timelines(rng, write, prepare, kind, as_file):
    """By the data set's own column map, whose times and ids are not those of the default."""
    columns = log.columns_of(log.random_rows(rng), "text", "int")
    config = log.config_of(split__kind=kind, timelines__min_actions=8)
    made, _ = prepare(config, columns)
    source = write("again.csv", columns) if as_file else pa.table(columns)
    found = histories.read(made, source)
    expected = {}
    for split in SPLITS[: 1 if made.spec.leave_one_out else None]:
        for chunk in made.chunks(split):
            expected |= zip(chunk.users, np.split(chunk.records, chunk.offsets[1:-1]), strict=True)
    assert found.users == sorted(found.users)
    assert set(found.users) == set(columns["user"].to_pylist()) > set(expected)
    own = dict(zip(found.users, np.split(found.records, found.offsets[1:-1]), strict=True))
    for user, records in expected.items():
        np.testing.assert_array_equal(own[user], records)
    assert all(len(records) < 8 for user, records in own.items() if user not in expected)


def test_what_the_data_set_does_not_know_is_left_out_or_unknown(prepare):
    columns = log.columns_of(log.random_rows(np.random.default_rng(0)), "int", "int")
    made, _ = prepare(log.config_of(), columns)
    known = {
        name: [values[5].as_py() if name in ("user", "item") else values[5]] * 3
        for name, values in columns.items()
    }
    known |= {"item": [known["item"][0], 999, known["item"][0]], "ms": [3_000, 2_000, 1_000]}
    known |= {"user": [-5] * 3, "what": ["see", "see", "sing"], "device": [9, 9, 9]}
    found = histories.read(made, pa.table(known))
    assert found.users == [-5]
    as_text = {**known, "item": [str(known["item"][0]), "no number", str(known["item"][0])]}
    again = histories.read(made, pa.table(as_text))
    np.testing.assert_array_equal(again.records, found.records)
    assert found.records["time"].tolist() == [1, 3]
    assert made.catalogue.ids[found.records["item"]].tolist() == known["item"][::2]
    assert found.records["action"].tolist() == [0, made.spec.actions.index("see")]
    assert found.records["surface"].tolist() == [0, 0]
