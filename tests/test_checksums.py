"""Damage is found in any byte."""

import json
import os

import pytest
import xxhash

from pinjax import checksums
from pinjax.errors import InputError


@pytest.fixture
def directory(tmp_path, rng):
    """A directory with its checksums recorded."""
    (tmp_path / "below/deeper").mkdir(parents=True)
    for name in ("one", "below/two", "below/deeper/three"):
        (tmp_path / name).write_bytes(rng.bytes(rng.integers(1, 5_000)))
    (tmp_path / "empty").touch()
    checksums.record(tmp_path, but=["late"])
    (tmp_path / "late").write_text("written after")
    return tmp_path


def test_sizes_and_checksums_are_those_of_the_files(directory):
    content = json.loads((directory / checksums.FILE).read_text())
    assert sorted(content["files"]) == ["below/deeper/three", "below/two", "empty", "one"]
    for name, written in content["files"].items():
        data = (directory / name).read_bytes()
        assert written == {"size": len(data), "xxh3_128": xxhash.xxh3_128_hexdigest(data)}
    checksums.verify(directory)


def test_every_flipped_bit_is_found_and_its_file_named(directory, rng):
    names = ["one", "below/two", "below/deeper/three", checksums.FILE]
    for _ in range(40):
        path = directory / names[rng.integers(len(names))]
        kept = path.read_bytes()
        data = bytearray(kept)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        if path.name != checksums.FILE or not same_json(kept, data):
            with pytest.raises(InputError, match=f"^{directory}.*: damaged") as info:
                checksums.verify(directory)
            assert str(path if path.name != checksums.FILE else directory) in str(info.value)
        path.write_bytes(kept)
    checksums.verify(directory)


def same_json(a, b):
    """Whether a flip is between characters that mean the same, as a space and a tab."""
    try:
        return json.loads(a) == json.loads(bytes(b))
    except ValueError:
        return False


@pytest.mark.parametrize("length", [0, 1])
def test_a_file_cut_off_or_gone_is_found(directory, length):
    os.truncate(directory / "below/two", length)
    with pytest.raises(InputError, match=f"^{directory}/below/two: damaged: {length} bytes, expec"):
        checksums.verify(directory)
    (directory / "below/two").unlink()
    with pytest.raises(InputError, match=f"^{directory}/below/two: damaged: the file is missing"):
        checksums.verify(directory)
    (directory / "below/two").mkdir()
    with pytest.raises(InputError, match=f"^{directory}/below/two: damaged: the file is missing"):
        checksums.verify(directory)
    (directory / checksums.FILE).unlink()
    with pytest.raises(InputError, match=f"^{directory}/checksums.json: missing; cut off"):
        checksums.verify(directory)
    (directory / checksums.FILE).mkdir()
    with pytest.raises(InputError, match=f"^{directory}/checksums.json: missing; cut off"):
        checksums.verify(directory)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "3", "[" * 100_000, '{"a": 1}', '{"a": 1, "checksum": "x"}']
)
def test_json_that_is_not_as_written_is_refused(tmp_path, content):
    path = tmp_path / "run.json"
    path.write_text(checksums.dump({"a": 1, "b": {"c": [2.5, None]}}))
    assert checksums.read(path) == {"a": 1, "b": {"c": [2.5, None]}}
    path.write_text(content)
    with pytest.raises(InputError, match=f"^{path}: damaged"):
        checksums.read(path)
