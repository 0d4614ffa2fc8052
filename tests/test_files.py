"""Files and directories that appear complete or not at all."""

import errno
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from pinjax import checksums, files
from pinjax.errors import InputError


def test_the_first_to_finish_gives_the_name(tmp_path):
    directory = tmp_path / "a"
    with files.new_directory(directory) as last, files.new_directory(directory) as first:
        (last / "file").write_text("last")
        (first / "file").write_text("first")
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a" / "file").read_text() == "first"
    checksums.verify(tmp_path / "a")


def test_a_rename_that_fails_is_not_taken_for_a_lost_one(tmp_path):
    (tmp_path / "a").touch()
    with pytest.raises(OSError, match=r"a'$"), files.new_directory(tmp_path / "a"):
        pass
    assert os.listdir(tmp_path) == ["a"]


def test_a_directory_too_deep_to_be_made_is_an_error_of_the_disk(tmp_path):
    """The 1,000 levels of directories would not fit Python's stack."""
    with pytest.raises(OSError, match="File name too long"):
        files.make_directory(tmp_path / "/".join(1_000 * "a"))
    assert not any(tmp_path.iterdir())


HOLDS = """
import sys, time
from pinjax import files
with getattr(files, sys.argv[1])(sys.argv[2]):
    print("inside", flush=True)
    time.sleep(3600)
"""


@pytest.fixture
def holder():
    """Starts another process that is inside one of the context managers of `files`."""
    started = []

    def start(name, directory):
        command = [sys.executable, "-c", HOLDS, name, directory]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline() == "inside\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_what_another_call_has_just_removed_is_passed_over(tmp_path, monkeypatch):
    gone = tmp_path / ".a.0.unfinished"
    monkeypatch.setattr(pathlib.Path, "glob", lambda *_: [gone])
    with files.new_directory(tmp_path / "a") as made:
        assert [path.name for path in tmp_path.iterdir()] == [made.name]


def test_the_next_call_removes_what_a_killed_process_left_and_only_that(tmp_path, holder):
    directory = tmp_path / "a[1]"
    killed, writing = (holder("new_directory", directory) for _ in range(2))
    (tmp_path / ".b.0.unfinished").mkdir()  # of another directory's
    before = set(os.listdir(tmp_path))
    assert len(before) == 3
    killed.kill()
    killed.wait()
    with files.new_directory(directory) as made:
        left = set(os.listdir(tmp_path)) - {made.name}
        assert len(left) == 2
        assert left < before
        assert writing.poll() is None


def test_one_process_writes_and_the_others_hear_which(tmp_path, holder):
    other = holder("only_writer", tmp_path)
    refused = f"process {other.pid} on .* is writing there"
    with pytest.raises(InputError, match=refused), files.only_writer(tmp_path):
        pass
    other.kill()
    other.wait()
    with files.only_writer(tmp_path):
        pass
    assert not os.listdir(tmp_path)


def test_many_at_once_enter_one_after_the_other(tmp_path):
    script = """
import sys, time
from pinjax import files
from pinjax.errors import InputError
for _ in range(20):
    while True:
        try:
            with files.only_writer(sys.argv[1]):
                path = sys.argv[1] + "/count"
                count = int(open(path).read() or 0)
                open(path, "w").write(str(count + 1))
            break
        except InputError:
            time.sleep(0.001)
"""
    (tmp_path / "count").touch()
    command = [sys.executable, "-c", script, tmp_path]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "count").read_text() == "60"


def test_a_file_is_replaced_only_by_a_complete_one(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), files.replacing(path) as file:  # noqa: PT012
        file.write(b"ne")
        raise KeyError
    with pytest.raises(OSError, match=f"No space left on device: '{path}'"), files.replacing(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_bytes() == b"old"
    with files.replacing(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["file"]


def test_writers_of_one_file_take_turns(tmp_path):
    path, started, may_end = tmp_path / "file", threading.Event(), threading.Event()

    def write_later():
        started.set()
        with files.replacing(path) as file:
            may_end.wait()
            file.write(b"other")

    other = threading.Thread(target=write_later)
    with files.replacing(path) as file:
        file.write(b"one")
        file.flush()
        other.start()
        started.wait()
        other.join(0.1)
    assert path.read_bytes() == b"one"
    may_end.set()
    other.join()
    assert path.read_bytes() == b"other"
    assert os.listdir(tmp_path) == ["file"]


def test_what_is_no_file_is_never_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (tmp_path, pipe, ".", "/"):
        with pytest.raises(InputError, match=rf"^{path}: expected a file"), files.replacing(path):
            pass
    assert pipe.is_fifo()


def test_errors_of_the_disk_get_a_type_and_a_path():
    text = "Error writing x: write() failed: No space left on device; at byte 7"
    with pytest.raises(OSError, match="No space left on device: 'made'") as info:  # noqa: SIM117
        with files.writing_to("made"):
            raise RuntimeError(text)
    assert info.value.errno == errno.ENOSPC
    with pytest.raises(RuntimeError, match="another"), files.writing_to("made"):
        raise RuntimeError("another")
