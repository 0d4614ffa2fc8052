"""A data set with the vectors of another system in place of its own (`data.vectors`).

An item's vector replaces its content, and its images if it has any. So the same items have images,
and the index that a system is evaluated on stays the same. A query that is an item has the item's
vector, a search that of its text. Whatever has no vector keeps none of the data set's, since those
lie in another space: content and queries are zeros, images are missing. Several directories are
merged: an item or a search has the vector of the last one that knows it.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from etils import epath

from pinjax import ragged
from pinjax.data import catalogue, embeddings, pairs
from pinjax.data.dataset import Dataset
from pinjax.data.embeddings import Embeddings
from pinjax.data.spec import Spec
from pinjax.errors import InputError
from pinjax.ids import rows_of


def spec_with(spec: Spec, found: list[Embeddings]) -> Spec:
    """The spec of a data set with embeddings, without its rows.

    As to images it assumes a vector for every item, at most as many as there are images.
    """
    dim = embeddings.dim(found)
    return dataclasses.replace(
        spec,
        content_dim=dim,
        image_dim=dim if spec.image_dim else 0,
        num_images=min(spec.num_images, spec.num_items),
        query_dim=dim if spec.num_queries else 0,
    )


def with_vectors(dataset: Dataset, found: list[Embeddings]) -> Dataset:
    """A data set with embeddings in place of its vectors.

    Raises:
      InputError: as `embeddings.check`.
    """
    embeddings.check(found, dataset.spec)
    items = _Catalogue(dataset.directory / catalogue.FILE, found)
    spec = spec_with(dataset.spec, found)
    if spec.image_dim:
        spec = dataclasses.replace(spec, num_images=int(items.image_offsets[-1]))
    return _Dataset(dataset.directory, spec, items, found)


@dataclasses.dataclass(frozen=True, eq=False)
class _Dataset(Dataset):
    items: "_Catalogue"
    found: list[Embeddings]

    @property
    def catalogue(self) -> catalogue.Catalogue:
        return self.items

    @functools.cached_property
    def queries(self) -> pairs.Queries:
        own = pairs.Queries.read(self.directory / pairs.QUERIES_FILE)
        vectors = np.zeros((len(own), self.spec.query_dim), np.float16)
        is_item = own.items >= 0
        vectors[is_item] = self.items.content[own.items[is_item]]
        searches = np.flatnonzero(~is_item)
        texts = pa.array(own.ids[searches], pa.large_string())
        for directory, rows in _rows(self.found, embeddings.QUERIES, texts, of_all=False):
            for some, given in _by_row(directory, embeddings.QUERIES, rows):
                vectors[searches[some]] = given
        return dataclasses.replace(own, vectors=vectors)


class _Catalogue(catalogue.Catalogue):
    """A catalogue whose content and images are embeddings."""

    def __init__(self, path: epath.PathLike, found: list[Embeddings]):
        super().__init__(path)
        self._found = found

    @functools.cached_property
    def content(self) -> np.ndarray:
        """float16 (n, dim), zeros where there is none."""
        vectors = np.zeros((len(self), embeddings.dim(self._found)), np.float16)
        for rows, some in self.content_parts():
            vectors[rows] = some
        return vectors

    def content_parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for directory, rows in self._rows_of_items:
            yield from _by_row(directory, embeddings.ITEMS, rows)

    @functools.cached_property
    def images(self) -> np.ndarray | None:
        return self.content[np.diff(self.image_offsets) > 0] if self.has_images else None

    def image_parts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if self.has_images:
            has = np.diff(self.image_offsets) > 0
            for rows, some in self.content_parts():
                yield self.image_offsets[rows[has[rows]]], some[has[rows]]

    def ordered_images(self) -> Iterator[np.ndarray]:
        yield self.images  # embeddings are in an order of their own

    @functools.cached_property
    def image_offsets(self) -> np.ndarray:
        """int64 (n + 1,); an item that has images has one, unless it has no vector."""
        own = catalogue.Catalogue(self.path)  # whose images are not kept
        known = np.zeros(len(self), bool)
        for _, rows in self._rows_of_items:
            known[rows] = True
        has = (np.diff(own.image_offsets) > 0) & known
        return ragged.offsets_of(has)

    @functools.cached_property
    def _rows_of_items(self) -> list[tuple[Embeddings, np.ndarray]]:
        """Of each directory, the rows of its items."""
        ids = catalogue.id_array(self.ids)
        return list(_rows(self._found, embeddings.ITEMS, ids, of_all=True))


def _rows(
    found: list[Embeddings], table: str, ids: pa.Array, of_all: bool
) -> Iterator[tuple[Embeddings, np.ndarray]]:
    """(embeddings, the row of each, int64 (n,), -1 where the id has none).

    Args:
      found: where the embeddings are.
      table: of them.
      ids: own ids by row.
      of_all: whether each embedding has to be of one of the ids.

    Raises:
      InputError: if it is not.
    """
    for directory in found:
        if (given := directory.ids(table)) is None:
            continue
        about = f"{os.fspath(directory.directory)}: {table}"
        if given.type != ids.type:
            raise InputError(f"{about} have ids of type {given.type}; expected {ids.type}")
        rows = rows_of(given, ids)
        if of_all and (rows < 0).any():
            raise InputError(f"{about}: id {given[int(rows.argmin())]} is not in the data set")
        yield directory, rows


def _by_row(
    directory: Embeddings, table: str, rows: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows, vectors) of the embeddings that have a row, file by file."""
    start = 0
    for vectors in directory.vectors(table):
        of_file = rows[start : start + len(vectors)]
        yield of_file[of_file >= 0], vectors[of_file >= 0]
        start += len(vectors)
