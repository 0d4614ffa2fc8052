"""Opens a data set by name: a simulated one, or a directory of one's own."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from pinjax import checksums, files
from pinjax.data import pairs, pinshop, pinworld, schema
from pinjax.errors import InputError

_COPIES = "copies"
_SIMULATED = {pinworld.NAME: pinworld.ensure, pinshop.NAME: pinshop.ensure}


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set on disk, read as it is needed.

    Attributes:
      directory: where it lies.
      metadata: what is known about it.
    """

    directory: epath.Path
    metadata: schema.Metadata

    @functools.cached_property
    def catalogue(self) -> schema.Catalogue:
        return schema.Catalogue.read(self.directory / schema.CATALOGUE_FILE)

    @functools.cached_property
    def oracle(self) -> pinworld.Oracle | None:
        """The best possible ranking, known only of a simulated world."""
        if self.metadata.name.startswith(pinworld.NAME):
            return pinworld.Oracle.load(self.directory)
        return None

    def timelines(self, split: str) -> Any:
        """Random access to the packed timelines of a split: `source[row]["actions"]`.

        Its files are open as long as the data set, or what was returned, is in use.
        """
        return self._sources(split)

    @functools.cached_property
    def _sources(self) -> Callable[[str], Any]:
        return functools.cache(tfds.builder_from_directory(self.directory).as_data_source)

    def chunk(self, split: str, start: int, stop: int) -> "Chunk":
        """The timelines of the rows from `start` to `stop` of a split, as far as there are."""
        source = self.timelines(split)
        rows = source.__getitems__(list(range(start, min(stop, len(source)))))
        records, offsets = schema.unpack(row["actions"] for row in rows)
        return Chunk([row["user"].decode() for row in rows], records, offsets)

    def chunks(self, split: str, users: int = 4096) -> Iterator["Chunk"]:
        """The timelines of a split in order, `users` at a time."""
        for start in range(0, len(self.timelines(split)), users):
            yield self.chunk(split, start, start + users)


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Timelines of some users, flat: see `schema.unpack`.

    Attributes:
      users: the users' own ids, as text.
      records: `schema.ACTION` (n,).
      offsets: int64 (len(users) + 1,).
    """

    users: list[str]
    records: np.ndarray
    offsets: np.ndarray


def ensure(name: str, data_dir: str) -> epath.Path:
    """The directory of a data set on this machine, which is built or copied if need be.

    Args:
      name: `pinworld/SIZE` or `pinshop/SIZE`, where SIZE is tiny, small or base; or a prepared
        directory, absolute or relative to the current directory or to `data_dir`, or on gs://.
      data_dir: where named data sets are kept, and copies of those on gs://.

    Raises:
      InputError: where there is no such data set, or `data_dir` is not a local directory.
    """
    if files.is_remote(data_dir):
        raise InputError(f"data.dir={data_dir}: expected a directory on this machine")
    home = epath.Path(data_dir).expanduser()
    world, _, size = name.partition("/")
    if world in _SIMULATED:
        return _SIMULATED[world](size, home)
    places = [files.path("data.name", name), home / name]
    for place in places:
        if any((place / file).exists() for file in (schema.CATALOGUE_FILE, pairs.PAIRS_FILE)):
            return _copy(place, home / _COPIES) if files.is_remote(place) else place
    looked = " and ".join(map(str, places))
    raise InputError(f"data.name: no prepared data set in {looked}; see pinjax.prepare")


def load(name: str, data_dir: str) -> Dataset:
    """Opens a data set of timelines; the arguments are those of `ensure`.

    Raises:
      InputError: as `ensure`, and where the data set has no timelines.
    """
    directory = ensure(name, data_dir)
    if not (directory / schema.CATALOGUE_FILE).exists():
        raise InputError(f"data.name: {name} has no timelines; expected {schema.CATALOGUE_FILE}")
    builder = tfds.builder_from_directory(directory)
    return Dataset(directory, schema.Metadata.from_tfds(builder.info.metadata))


def load_pairs(name: str, data_dir: str) -> pairs.PairSet:
    """Opens a data set of engagements; the arguments are those of `ensure`.

    Raises:
      InputError: as `ensure`, and where the data set has no engagements.
    """
    directory = ensure(name, data_dir)
    shop = name.partition("/")[0] == pinshop.NAME
    return pairs.read(directory, pinshop.oracle(directory) if shop else None)


def _copy(source: epath.Path, copies: epath.Path) -> epath.Path:
    """A copy of a prepared directory, made once: ArrayRecord reads from local disks alone."""
    identity = os.fspath(source).encode() + (source / checksums.FILE).read_bytes()
    target = copies / f"{source.name}-{hashlib.sha256(identity).hexdigest()[:16]}"
    if not target.exists():
        with files.unfinished(target) as unfinished:
            for path in source.iterdir():
                path.copy(unfinished / path.name)
            checksums.verify(unfinished)
            files.finish(unfinished, target)
    return target
