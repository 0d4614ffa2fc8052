import os
import pathlib

import numpy as np
import pytest
from etils import epath

from pinjax import checksums, files
from pinjax.data import datasets, pinworld
from pinjax.errors import InputError


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "made"


@pytest.fixture
def bucket(tmp_path, data_dir, monkeypatch):
    """A prepared data set in a directory that passes for a remote one."""
    bucket = epath.Path(tmp_path) / "bucket"
    monkeypatch.setattr(files, "is_remote", lambda path: "bucket" in os.fspath(path))
    source = pinworld.ensure("tiny", epath.Path(data_dir))
    (bucket / "log").mkdir(parents=True)
    for path in source.iterdir():
        path.copy(bucket / "log" / path.name)
    return bucket / "log"


def test_a_remote_data_set_is_read_from_a_copy_made_once(bucket, tmp_path, data_dir):
    expected = datasets.load("pinworld/tiny", data_dir).chunk("train", 0, 5)
    for _ in range(2):
        dataset = datasets.load(os.fspath(bucket), tmp_path / "here")
        assert not files.is_remote(dataset.directory)
        np.testing.assert_array_equal(dataset.chunk("train", 0, 5).records, expected.records)
        for path in bucket.glob("*train*"):
            path.unlink()  # the copy has it
    assert [path.name[:4] for path in (tmp_path / "here/copies").iterdir()] == ["log-"]

    info = bucket / "dataset_info.json"
    info.write_text(info.read_text() + "\n")  # as if it were another one
    checksums.record(bucket)
    datasets.load(os.fspath(bucket), tmp_path / "here")
    assert len(list((tmp_path / "here/copies").iterdir())) == 2


def test_a_copy_that_is_not_what_was_written_is_refused(bucket, tmp_path):
    (bucket / "metadata.json").write_text("{}")
    with pytest.raises(InputError, match=r"metadata.json: damaged: 2 bytes, expected"):
        datasets.load(os.fspath(bucket), tmp_path / "here")
    assert not list((tmp_path / "here/copies").iterdir())


def test_a_data_set_closes_its_files_when_it_is_no_longer_used(data_dir):
    def opened():
        files = pathlib.Path("/proc/self/fd").iterdir()
        return [file for file in map(os.path.realpath, files) if str(data_dir) in file]

    dataset = datasets.load("pinworld/tiny", data_dir)
    assert dataset.timelines("train") is dataset.timelines("train")
    dataset.chunk("train", 0, 5)
    assert len(opened()) == 1
    del dataset
    assert not opened()


@pytest.mark.parametrize("name", ["pinworld/tiny", "log"])
def test_named_data_sets_are_kept_on_this_machine(name):
    with pytest.raises(InputError, match=r"^data.dir=gs://bucket/data: expected a directory on th"):
        datasets.load(name, "gs://bucket/data")
