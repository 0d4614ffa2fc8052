"""Sizes and checksums of written files, so that damage is found before they are used.

A directory has them in its file `checksums.json`; a small JSON file has its own checksum.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import xxhash
from etils import epath

from pinjax.errors import InputError

FILE = "checksums.json"
_OWN = "checksum"


def record(directory: epath.PathLike, but: Iterable[str] = ()) -> None:
    """Writes the sizes and checksums of a directory's files into it.

    Args:
      directory: with its subdirectories.
      but: names of files to leave out, since they are written later.
    """
    directory = epath.Path(directory)
    files = {}
    for path in sorted(_files(directory)):
        if path.name not in (FILE, *but):
            files[str(path.relative_to(directory))] = of_file(path)
    (directory / FILE).write_text(dump({"files": files}))


def verify(directory: epath.PathLike) -> None:
    """Checks a directory against its recorded checksums. Later files are ignored.

    Raises:
      InputError: if a file is missing or changed, or nothing was recorded; the message begins with
        the file.
    """
    directory = epath.Path(directory)
    for name, written in read(directory / FILE)["files"].items():
        verify_file(directory / name, written)


def verify_file(path: epath.Path, written: Mapping[str, int | str]) -> None:
    """Checks a file against the result of `of_file`.

    Raises:
      InputError: if it is missing or changed.
    """
    if not path.is_file():
        raise InputError(f"{path}: damaged: the file is missing")
    size = path.stat().length
    if size != written["size"]:
        raise InputError(f"{path}: damaged: {size:,} bytes, expected {written['size']:,}")
    if of_file(path) != written:
        raise InputError(f"{path}: damaged: its checksum is not that of what was written")


def of_file(path: epath.Path) -> dict[str, int | str]:
    """Size and checksum of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
        return {"size": file.tell(), "xxh3_128": digest}


def dump(content: Mapping[str, Any]) -> str:
    """JSON with its own checksum, for `read`."""
    return json.dumps({**content, _OWN: _of_content(content)}, indent=2, allow_nan=False) + "\n"


def read(path: epath.Path) -> dict[str, Any]:
    """Reads a file with the JSON of `dump`.

    Raises:
      InputError: if it is missing or changed.
    """
    if not path.is_file():
        raise InputError(f"{path}: missing; cut off while it was written, or by an older version")
    try:
        content = json.loads(path.read_bytes())
        written = content.pop(_OWN, None)
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise InputError(f"{path}: damaged: not the JSON that was written") from None
    if written != _of_content(content):
        raise InputError(f"{path}: damaged: its checksum is not that of what was written")
    return content


def _of_content(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def _files(directory: epath.Path) -> Iterator[epath.Path]:
    for path in directory.iterdir():
        if path.is_dir():
            yield from _files(path)
        else:
            yield path
