"""The vectors of users in a directory of embeddings, to be kept where users did nothing since."""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from pinjax import config_json, ragged, timestamps
from pinjax.data import catalogue, parquet
from pinjax.data.embeddings import Embeddings
from pinjax.errors import InputError

_TABLE = "users"


class Rows(NamedTuple):
    """Rows of users, one user after the other; each user's in the order in which they were.

    Attributes:
      counts: int64 (users,), rows of each user.
      vectors: float16 or float32 (rows, dim).
      as_of: int64 (rows,), unix seconds, when each was computed.
    """

    counts: np.ndarray
    vectors: np.ndarray
    as_of: np.ndarray


class Kept:
    """The users of a complete directory of embeddings.

    Attributes:
      as_of: unix seconds up to which it knows what users did.
      dim: numbers of a vector; None if it has no users.
    """

    def __init__(self, previous: Embeddings):
        self._paths = previous.paths(_TABLE)
        self._about = f"{previous.directory}: {_TABLE}"
        self.as_of = timestamps.parse(f"{previous.directory}: as_of", previous.manifest["as_of"])
        self.dim, self._text, keys = None, None, [np.zeros(0, np.uint64)]
        for path in self._paths:
            schema = parquet.schema(path)
            self.dim = schema.field("vector").type.list_size
            self._text = not pa.types.is_integer(schema.field("id").type)
            keys.append(_keys(parquet.read(path, ["id"])["id"].to_numpy()))
        self._starts = np.cumsum([len(of_file) for of_file in keys])[:-1]
        keys = np.concatenate(keys)
        self._order = np.argsort(keys, kind="stable")  # a user's rows stay in order
        self._keys = keys[self._order]

    def counts(self, ids: np.ndarray) -> np.ndarray:
        """int64 (users,): the rows of users, by own ids.

        Raises:
          InputError: if the ids here are integers and there text, or the other way round.
        """
        if self._text is not None and self._text != (ids.dtype == object):
            is_text, expected = ("text", "integers")[:: 1 if self._text else -1]
            raise InputError(f"{self._about} have ids that are {is_text}; expected {expected}")
        keys = _keys(ids)
        return np.searchsorted(self._keys, keys, "right") - np.searchsorted(self._keys, keys)

    def rows(self, ids: np.ndarray) -> Rows:
        """The rows of users, by own ids; raises as `counts`."""
        counts = self.counts(ids)
        first = np.searchsorted(self._keys, _keys(ids))
        places = self._order[ragged.positions(first, counts)]
        vectors, as_of = None, np.zeros(len(places), np.int64)
        files = np.searchsorted(self._starts, places, "right") - 1
        for file in np.unique(files):
            where = files == file
            of_file, times = self._read(file)
            if vectors is None:
                vectors = np.zeros((len(places), self.dim), of_file.dtype)
            some = places[where] - self._starts[file]
            vectors[where], as_of[where] = of_file[some], times[some]
        return Rows(counts, np.zeros((0, self.dim or 0)) if vectors is None else vectors, as_of)

    # Users lie in much the same order in both directories.
    @functools.lru_cache(maxsize=4)  # noqa: B019, it lives as long as its command
    def _read(self, file: int) -> tuple[np.ndarray, np.ndarray]:
        table = parquet.read(self._paths[file], ["vector", "as_of"])
        # Parquet has no seconds; it keeps milliseconds.
        times = table["as_of"].cast(pa.timestamp("s", "UTC")).cast(pa.int64())
        return catalogue.vectors(table["vector"]), times.to_numpy()


def check(previous: Embeddings, manifest: Mapping[str, Any]) -> None:
    """Checks that the previous vectors can be mixed with new ones.

    Args:
      previous: the previous embeddings.
      manifest: of the new ones.

    Raises:
      InputError: if they are by other parameters, of another precision, or as of a later time.
    """
    about = f"--since={previous.directory}"
    compared = "system", "checkpoint", "config", "spaces", "precision"
    if different := config_json.first_difference(previous.manifest, manifest, compared):
        name, old, new = different
        raise InputError(
            f"{about} holds embeddings of {name} {old}, not {new}; without it all are computed"
        )
    if previous.manifest["as_of"] > manifest["as_of"]:
        raise InputError(
            f"{about} holds embeddings as of {previous.manifest['as_of']}, which is later than "
            f"{manifest['as_of']}"
        )


def _keys(ids: np.ndarray) -> np.ndarray:
    """Uint64 (n,): integers themselves, and hashes of texts.

    Of n texts two have the same hash with probability n^2 / 2^65: 3e-4 for a hundred million.
    """
    if ids.dtype == object:
        hashes = (xxhash.xxh3_64_intdigest(text.encode()) for text in ids)
        return np.fromiter(hashes, np.uint64, len(ids))
    return ids.astype(np.int64).view(np.uint64)
