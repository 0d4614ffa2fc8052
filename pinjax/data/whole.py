"""Directories that are there whole or not at all, whoever else makes them at the same time."""

import contextlib
import uuid
from collections.abc import Iterator

from etils import epath


@contextlib.contextmanager
def unfinished(directory: epath.PathLike) -> Iterator[epath.Path]:
    """A new directory beside `directory`, to make in it what `finish` then gives that name.

    It is this call's alone, and is removed at the end, also of a failure. A process that is killed
    leaves it behind, as `.NAME.RANDOM.unfinished`: a name that no data set has, so that nothing
    reads it. Nor does anything remove it, since it cannot be told from one that is being written,
    perhaps by another machine: that is left to people.

    Raises:
      OSError: where it cannot be written.
    """
    directory = epath.Path(directory)
    made = directory.parent / f".{directory.name}.{uuid.uuid4().hex[:8]}.unfinished"
    made.mkdir(parents=True)
    try:
        yield made
    finally:
        if made.exists():
            made.rmtree()


def finish(made: epath.Path, directory: epath.PathLike) -> None:
    """Gives a directory its name, unless another process was first: then that one's stays.

    Raises:
      OSError: where that failed and nothing is in a directory of that name.
    """
    directory = epath.Path(directory)
    try:
        made.rename(directory)
    except OSError:
        if not directory.is_dir() or not any(directory.iterdir()):
            raise
