"""An index on disk: vectors of items, their ids, and what finds the nearest ones.

    DIR/
      index.json      what it was made from, its backend and setting
      ids.arrow       own ids of the items
      vectors.npy     float32 (items, dim), unless the backend's own file holds them
      ...             files of the backend
      checksums.json

Search is exact wherever an approximate one would be no faster: in few items, or for results that
are a large share of them.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from etils import epath
from jaxtyping import Bool, Float, Int, Int32

from pinjax import checksums, files, ragged
from pinjax import ids as ids_lib
from pinjax.errors import InputError
from pinjax.retrieval import backends, exact, faiss_index, scann_index

EXACT = "exact"
BACKENDS: dict[str, type[backends.Backend] | None] = {
    **{kind.name: kind for kind in (scann_index.Scann, faiss_index.Hnsw, faiss_index.Ivf)},
    EXACT: None,
}
_MANIFEST, _IDS = "index.json", "ids.arrow"
EXACT_QUERIES = 256  # the most that are searched exactly at a time
# Exact search serves so few items, and results that are this share of the items.
_FEW_ITEMS = 2_000
_LARGE_SHARE = 0.05
_DEEPER = 4  # how many times as deep the next search is where results fell short


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Vectors of items, ready for searches.

    Attributes:
      ids: own ids, int64 or text (items,).
      vectors: float32 (items, dim).
      backend: the approximate search; None: all is exact.
      setting: of the approximate search.
      manifest: what `save` was given.
    """

    ids: pa.Array
    vectors: np.ndarray
    backend: backends.Backend | None = None
    setting: backends.Setting = dataclasses.field(default_factory=dict)
    manifest: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def checkpoint(self) -> str | None:
        """Hash of the parameters that the vectors were made by; None if it is not known."""
        return self.manifest.get("embeddings", {}).get("checkpoint")

    def rows_of(self, ids: pa.Array) -> Int[np.ndarray, " ids"]:
        """The first row of each id; -1 for unknown ones.

        Raises:
          InputError: if they are of another type than the index's.
        """
        return ids_lib.rows_of(ids_lib.cast(ids, self.ids.type, "ids"), self.ids)

    def ids_of(self, rows: Int[np.ndarray, "..."]) -> pa.Array:
        """The ids of rows, flattened; null for -1."""
        rows = rows.reshape(-1)
        return self.ids.take(pa.array(rows, mask=rows < 0))

    def search(
        self,
        vectors: Float[np.ndarray, "queries dim"],
        k: int,
        *,
        allowed: Bool[np.ndarray, " items"] | None = None,
        excluded: Int[np.ndarray, "pairs 2"] | None = None,
    ) -> tuple[Float[np.ndarray, "queries {k}"], Int32[np.ndarray, "queries {k}"]]:
        """The k rows with the largest inner product with each vector.

        An approximate search looks deeper where filters leave too few of its results, and what is
        still too few is searched exactly: results are only missing where no more are allowed.

        Args:
          vectors: finite floats of any width.
          k: results of a vector.
          allowed: rows that may be returned; all if None.
          excluded: queries and rows that may not be their results.

        Returns:
          (scores float32, rows int32), best first, equal scores by lower row. If fewer than k rows
          may be returned, the others are -1 with the score -inf.

        Raises:
          InputError: if the vectors are not finite or of another dimension.
        """
        vectors = _checked("the queries' vectors", vectors)
        if vectors.shape[1] != self.vectors.shape[1]:
            raise InputError(
                f"queries have vectors of {vectors.shape[1]} numbers, expected "
                f"{self.vectors.shape[1]}, as the items have"
            )
        scores = np.full((len(vectors), k), -np.inf, np.float32)
        rows = np.full((len(vectors), k), -1, np.int32)
        excluded = np.zeros((0, 2), np.int64) if excluded is None else excluded
        if allowed is not None and allowed.all():
            allowed = None
        eligible = None if allowed is None else np.flatnonzero(allowed)
        number = len(self) if eligible is None else len(eligible)
        # The share of the allowed, and as many more as are excluded.
        depth = math.ceil(k * len(self) / max(number, 1) + len(excluded) / max(len(vectors), 1))
        pending = np.arange(len(vectors))
        approximate = self.backend is not None and number > _FEW_ITEMS
        while approximate and len(pending) and depth <= _LARGE_SHARE * len(self):
            found = self.backend.search(vectors[pending], depth, self.setting)
            found = _filtered(*found, k, allowed, _of(pending, excluded, len(vectors)), len(self))
            scores[pending], rows[pending] = found
            pending = pending[rows[pending, -1] < 0]
            depth *= _DEEPER
        if len(pending):
            excluded = _of(pending, excluded, len(vectors))
            found = self._search_exactly(vectors[pending], k, eligible, excluded)
            scores[pending], rows[pending] = found
        return scores, rows

    def save(self, directory: epath.PathLike, manifest: Mapping[str, Any]) -> "Index":
        """Writes the index to a new directory on this machine.

        Returns:
          The index as it was written.

        Raises:
          OSError: if it cannot be written.
        """
        with files.new_directory(directory) as made:
            if self.backend is not None:
                self.backend.save(made)
            if _vectors_file(self.backend) == backends.VECTORS:
                np.save(made / backends.VECTORS, self.vectors)
            table = pa.table({"id": self.ids})
            with pa.ipc.new_file(str(made / _IDS), table.schema) as writer:
                writer.write_table(table)
            backend = EXACT if self.backend is None else self.backend.name
            manifest = {**manifest, "backend": backend, "setting": dict(self.setting)}
            (made / _MANIFEST).write_text(checksums.dump(manifest))
        return dataclasses.replace(self, manifest=manifest)

    def _search_exactly(
        self, vectors: np.ndarray, k: int, eligible: np.ndarray | None, excluded: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `search`, of the eligible rows, all if None."""
        items, valid = self._on_device, None
        if eligible is not None:
            size = _size(len(eligible))
            items = jnp.asarray(_resized(self.vectors[eligible], size))
            valid = np.arange(size) < len(eligible)
            place = np.searchsorted(eligible, excluded[:, 1])
            there = np.append(eligible, -1)[place] == excluded[:, 1]
            excluded = np.stack([excluded[:, 0], place], axis=1)[there]
        found = []
        for start in range(0, len(vectors), EXACT_QUERIES):
            batch = np.arange(start, min(start + EXACT_QUERIES, len(vectors)))
            size, own = _size(len(batch)), _of(batch, excluded, len(vectors)).astype(np.int32)
            width = (0, _size(len(own)) - len(own)), (0, 0)
            pairs = np.pad(own, width, constant_values=size)
            queries = _resized(vectors[batch], size)
            best = exact.search(queries, items, k, valid=valid, excluded=pairs)
            found.append([np.asarray(x)[: len(batch)] for x in best])
        scores, rows = (np.concatenate(x) for x in zip(*found, strict=True))
        if eligible is not None and len(eligible):
            rows = np.where(rows < 0, -1, eligible[rows]).astype(np.int32)
        return scores, rows

    @functools.cached_property
    def _on_device(self) -> jax.Array:
        return jnp.asarray(self.vectors)


def create(
    ids: pa.Array, vectors: Float[np.ndarray, "items dim"], backend: str, k: int = 10
) -> Index:
    """An index in memory, which searches thoroughly until it is tuned.

    Args:
      ids: own ids (items,).
      vectors: floats of any width; L2-normalised if scores should be cosines.
      backend: a name of `BACKENDS`; exact whatever it is for up to 2,000 items.
      k: results of a search, about.

    Raises:
      InputError: if vectors are not finite, or the backend's library is not installed.
    """
    vectors = _checked("the items' vectors", vectors)
    kind = BACKENDS[backend]
    if kind is None or len(vectors) <= _FEW_ITEMS:
        return Index(ids, vectors)
    built = kind.build(vectors)
    return Index(ids, vectors, built, built.thorough(k))


def open_index(directory: epath.PathLike, verify: bool = True) -> Index:
    """Opens an index that `Index.save` wrote, by memory maps as far as its backend can.

    Args:
      directory: on this machine.
      verify: whether to compare the checksums of its files.

    Raises:
      InputError: if the directory holds no index, one of its files is missing or damaged, or the
        backend's library is not installed.
    """
    directory = epath.Path(directory)
    if not (directory / _MANIFEST).exists():
        raise InputError(f"{directory}: no index by pinjax.index, expected {_MANIFEST} in it")
    if verify:
        checksums.verify(directory)
    manifest = checksums.read(directory / _MANIFEST)
    kind = BACKENDS[manifest["backend"]]
    backend = kind and kind.load(directory)
    vectors = np.load(directory / _vectors_file(kind), mmap_mode="r")
    ids = pa.ipc.open_file(pa.memory_map(str(directory / _IDS))).read_all()["id"]
    return Index(ids.combine_chunks(), vectors, backend, manifest["setting"], manifest)


def _vectors_file(backend: backends.Backend | type[backends.Backend] | None) -> str:
    return backends.VECTORS if backend is None else backend.vectors_file


def _checked(about: str, vectors: np.ndarray) -> np.ndarray:
    """Vectors as contiguous float32.

    Raises:
      InputError: if one is not finite.
    """
    with np.errstate(over="ignore"):  # what exceeds float32 is infinite, and refused
        vectors = np.ascontiguousarray(vectors, np.float32)
    for start in range(0, len(vectors), 2**16):  # without a copy of the size of all of them
        finite = np.isfinite(vectors[start : start + 2**16]).all(axis=1)
        if not finite.all():
            row = start + np.argmin(finite)
            raise InputError(f"row {row} of {about} holds NaN or infinity, expected numbers")
    return vectors


def _filtered(
    scores: np.ndarray,
    rows: np.ndarray,
    k: int,
    allowed: np.ndarray | None,
    excluded: np.ndarray,
    items: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The best k of some results that may be returned, in order."""
    out = np.zeros(rows.shape, bool) if allowed is None else ~allowed[rows]
    if len(excluded):
        pair = np.arange(len(rows), dtype=np.int64)[:, None] * items + rows
        out |= np.isin(pair, excluded[:, 0].astype(np.int64) * items + excluded[:, 1])
    out |= rows < 0
    scores, rows = np.where(out, -np.inf, scores), np.where(out, -1, rows)
    order = np.lexsort((rows, -scores))[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def _of(queries: np.ndarray, excluded: np.ndarray, number: int) -> np.ndarray:
    """The pairs of some of the queries, whose places among them they then have."""
    place = np.full(number, -1)
    place[queries] = np.arange(len(queries))
    pairs = np.stack([place[excluded[:, 0]], excluded[:, 1]], axis=1)
    return pairs[pairs[:, 0] >= 0]


def _size(number: int) -> int:
    """A size that few others differ from, since each is compiled for."""
    return ragged.power_of_two(number) if number else 0


def _resized(rows: np.ndarray, size: int) -> np.ndarray:
    return np.pad(rows, ((0, size - len(rows)), (0, 0)))
