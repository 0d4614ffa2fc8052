"""Directories of embeddings, which `pinjax.embed` writes and `data.vectors` names.

    DIR/
      items-00000-of-00002.parquet   a table in several files: own ids, a vector each, and the time
      items-00001-of-00002.parquet   as of which it was computed; likewise users, queries and groups
      manifest.json                  what the embeddings were made from, and each file's checksum

The manifest names all files from the start, and those that are not yet written have no checksum.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from etils import epath

from pinjax import checksums, files, timestamps
from pinjax.data import catalogue, parquet
from pinjax.data.spec import Spec
from pinjax.errors import InputError

MANIFEST = "manifest.json"
ITEMS, QUERIES = "items", "queries"  # the tables that may replace vectors of a data set


def file_names(table: str, number: int) -> list[str]:
    """The names of a table's files."""
    return [f"{table}-{i:05d}-of-{number:05d}.parquet" for i in range(number)]


def to_arrow(
    ids: np.ndarray, vectors: np.ndarray, as_of: int | np.ndarray, precision: str
) -> pa.Table:
    """The content of a file.

    Args:
      ids: own ids, int64 (rows,) or text as objects.
      vectors: float32 (rows, dim).
      as_of: unix seconds, of all or int64 (rows,).
      precision: float16 or float32.
    """
    as_of = np.broadcast_to(np.int64(as_of), len(ids))
    return pa.table(
        {
            "id": catalogue.id_array(ids),
            "vector": catalogue.vector_array(vectors, precision),
            "as_of": pa.array(as_of, pa.timestamp("s", tz="UTC")),
        }
    )


def write(table: pa.Table, file: BinaryIO) -> None:
    """Writes a table as Parquet: plain, since vectors hardly repeat and do not compress."""
    pq.write_table(table, file, use_dictionary=False, compression="none", write_statistics=False)


@dataclasses.dataclass(frozen=True, eq=False)
class Embeddings:
    """A complete directory on this machine.

    Attributes:
      directory: of the files.
      manifest: as it was written.
    """

    directory: epath.Path
    manifest: Mapping[str, Any]

    @property
    def identity(self) -> str:
        """Hash of what the embeddings were made from."""
        made_from = {name: value for name, value in self.manifest.items() if name != "files"}
        return xxhash.xxh3_64_hexdigest(checksums.dump(made_from).encode())

    def dims(self) -> set[int]:
        """The dimensions of the vectors of items and queries."""
        paths = [path for table in (ITEMS, QUERIES) for path in self.paths(table)]
        return {parquet.schema(path).field("vector").type.list_size for path in paths}

    def ids(self, table: str) -> pa.ChunkedArray | None:
        """The ids of a table in the order of `vectors`; None if there is no such table."""
        found = [parquet.read(path, ["id"]) for path in self.paths(table)]
        return pa.concat_tables(found)["id"] if found else None

    def vectors(self, table: str) -> Iterator[np.ndarray]:
        """The vectors of a table, file by file: float16 or float32 (rows, dim)."""
        for path in self.paths(table):
            yield catalogue.vectors(parquet.read(path, ["vector"])["vector"])

    def paths(self, table: str) -> list[epath.Path]:
        """The files of a table, in order; none if there is no such table."""
        names = [name for name in self.manifest["files"] if name.startswith(f"{table}-")]
        return [self.directory / name for name in sorted(names)]


def find(names: str, copies: epath.Path, verify: bool) -> list[Embeddings]:
    """The directories that `data.vectors` names.

    Args:
      names: of directories, here or on gs://, separated by commas.
      copies: directory of copies of those on gs://.
      verify: whether checksums are compared.

    Raises:
      InputError: as `open_directory`, or if a directory has no items.
    """
    found = []
    for name in names.split(","):
        directory = files.path("data.vectors", name.strip())
        embeddings = open_directory(directory, copies, verify)
        if embeddings.ids(ITEMS) is None:
            raise InputError(f"data.vectors: {directory} has no vectors of items")
        found.append(embeddings)
    return found


def open_directory(directory: epath.Path, copies: epath.Path, verify: bool) -> Embeddings:
    """The embeddings in a directory; the other arguments as for `find`.

    Raises:
      InputError: if it has no manifest, or files that are missing or damaged.
    """
    if not (directory / MANIFEST).exists():
        raise InputError(f"{directory}: no embeddings by pinjax.embed")
    manifest = checksums.read(directory / MANIFEST)
    written = manifest["files"]
    missing = [file for file, checksum in written.items() if not checksum]
    if missing or not written:
        file = (missing or ["any file"])[0]
        raise InputError(f"{directory}: incomplete: {file} is not there yet; repeat pinjax.embed")
    embeddings = Embeddings(directory, manifest)
    if files.is_remote(directory):
        embeddings = _copy(embeddings, copies)
    for file, checksum in written.items() if verify else ():
        checksums.verify_file(embeddings.directory / file, checksum)
    return embeddings


def check(found: list[Embeddings], spec: Spec) -> None:
    """Checks that embeddings are of a data set, of its training period, and of one dimension.

    Raises:
      InputError: otherwise.
    """
    for embeddings in found:
        about, manifest = f"data.vectors: {embeddings.directory}", embeddings.manifest
        check_dataset(embeddings, spec)
        if timestamps.parse(f"{about}: as_of", manifest["as_of"]) > spec.train_end:
            raise InputError(
                f"{about} holds embeddings as of {manifest['as_of']}, after the training period "
                "ends; training must not know what comes later"
            )
    dim(found)


def check_dataset(embeddings: Embeddings, spec: Spec) -> None:
    """Checks that embeddings are of a data set.

    Raises:
      InputError: otherwise.
    """
    digest = embeddings.manifest.get("dataset")
    if digest != spec.digest:
        raise InputError(
            f"{embeddings.directory} holds embeddings of data set {digest}; expected those of "
            f"{spec.name}, {spec.digest}"
        )


def dim(found: list[Embeddings]) -> int:
    """The dimension of all vectors.

    Raises:
      InputError: if there are several.
    """
    dims = set.union(*(embeddings.dims() for embeddings in found))
    if len(dims) > 1:
        names = ", ".join(str(embeddings.directory) for embeddings in found)
        raise InputError(
            f"data.vectors: vectors of {names} have {sorted(dims)} numbers; expected as many in all"
        )
    return dims.pop()


def identity(found: list[Embeddings]) -> str:
    """Hash of what the embeddings of several directories were made from."""
    return ", ".join(embeddings.identity for embeddings in found)


def spaces(found: list[Embeddings]) -> str:
    """Hashes of the parameters by which embeddings were made: equal if their spaces are."""
    return ", ".join(embeddings.manifest["checkpoint"] for embeddings in found)


def _copy(source: Embeddings, copies: epath.Path) -> Embeddings:
    target = copies / f"{source.directory.name}-{source.identity}"
    if not target.exists():
        with files.new_directory(target) as made:
            for name, checksum in source.manifest["files"].items():
                (source.directory / name).copy(made / name)
                checksums.verify_file(made / name, checksum)
    return Embeddings(target, source.manifest)
