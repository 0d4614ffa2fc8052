"""Directories that several make at once."""

import os

import pytest

from pinjax.data import whole


def test_the_first_to_finish_gives_the_name(tmp_path):
    with whole.unfinished(tmp_path / "a") as one, whole.unfinished(tmp_path / "a") as other:
        (one / "file").write_text("one")
        (other / "file").write_text("other")
        whole.finish(other, tmp_path / "a")
        whole.finish(one, tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a" / "file").read_text() == "other"


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path):
    killed = whole.unfinished(tmp_path / "a")
    left = killed.__enter__()
    (left / "file").touch()
    with whole.unfinished(tmp_path / "a") as made:
        whole.finish(made, tmp_path / "a")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / left.name, tmp_path / "a"])
    assert not os.listdir(tmp_path / "a")


def test_a_rename_that_fails_is_not_taken_for_a_lost_one(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(OSError), whole.unfinished(tmp_path / "a") as made:  # noqa: PT011
        whole.finish(made, tmp_path / "a")
    assert os.listdir(tmp_path) == ["a"]
