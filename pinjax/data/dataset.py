"""The one data set: a directory with the parts that its source allows (docs/data-set.md).

    DIR/
      metadata.json       a `spec.Spec`
      items.parquet       the catalogue, see `pinjax.data.catalogue`
      vocabulary.parquet  of the catalogue's tokens and of searches, see `pinjax.data.text.tokens`
      timelines/          the actions of users, see `pinjax.data.timelines`
      queries.parquet     ... and pairs/: queries and the items they led to, see `pinjax.data.pairs`
      groups.parquet      ... and graph/: items and their groups, see `pinjax.graph.csr`
      oracle.npz          the best possible rankings, only of a simulated world
      checksums.json

Parts that the source does not allow are missing. `spec.write` comes last.
"""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from pinjax import checksums, files
from pinjax.data import catalogue, pairs, parquet, statistics, timelines
from pinjax.data import fitted as fitted_lib
from pinjax.data import spec as spec_lib
from pinjax.data.simulated import made_up, oracle, pinworld
from pinjax.data.text import tokens
from pinjax.errors import InputError
from pinjax.graph import csr


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A data set on disk, read lazily.

    Attributes:
      directory: of the data set.
      spec: its sizes and vocabularies.
      fitted: of the model, if it was first trained on an earlier state of the log.
    """

    directory: epath.Path
    spec: spec_lib.Spec
    fitted: fitted_lib.Fitted | None = dataclasses.field(default=None, kw_only=True)

    @functools.cached_property
    def catalogue(self) -> catalogue.Catalogue:
        return catalogue.Catalogue(self.directory / catalogue.FILE)

    @functools.cached_property
    def vocabulary(self) -> tokens.Vocabulary:
        return tokens.Vocabulary.load(self.directory / spec_lib.VOCABULARY_FILE)

    @functools.cached_property
    def token_names(self) -> list[str]:
        """Names of all token ids, kind and token: those that the model knows, then new ones."""
        kinds, rows = (self.vocabulary.rows[name].to_pylist() for name in ("kind", "token"))
        own = [f"{kind} {token}" for kind, token in zip(kinds, rows, strict=True)]
        known = self.fitted.arrays.get("tokens") if self.fitted else None
        return own if known is None else list(dict.fromkeys([*fitted_lib.unpack(known), *own]))

    def text(self, feature: str) -> tokens.Ragged:
        """The token ids of a text feature of all items."""
        return self._with_ids(self.catalogue.text(feature))

    def encode(self, texts: Iterable[str | None]) -> tokens.Ragged:
        """The token ids of texts."""
        return self._with_ids(self.vocabulary.encode(texts))

    def _with_ids(self, texts: tokens.Ragged) -> tokens.Ragged:
        return texts if self.fitted is None else texts._replace(tokens=self.token_ids[texts.tokens])

    @functools.cached_property
    def token_ids(self) -> np.ndarray:
        """Int32 (tokens,): the id of each row of the vocabulary."""
        own = dataclasses.replace(self, fitted=None).token_names
        ids = {name: place for place, name in enumerate(self.token_names)}
        return np.array([ids[name] for name in own], np.int32)

    def names(self, rows: str) -> Sequence[Any]:
        """What rows of a learned table stand for, a name of `Trainable.row_meanings`."""
        match rows:
            case "items":
                return self.catalogue.ids
            case "tokens":
                return self.token_names
            case "words":  # and [CLS]
                words = self.vocabulary.sizes[0]
                return [*self.vocabulary.rows["token"][:words].to_pylist(), "[CLS]"]
        return {"actions": self.spec.actions, "surfaces": self.spec.surfaces}[rows]

    def with_fitted(self, fitted: fitted_lib.Fitted) -> "Dataset":
        """The data set with what the features of a previous model were fitted to."""
        made, vocabulary = dataclasses.replace(self, fitted=fitted), self.spec.vocabulary
        if any(vocabulary):
            *first, _ = vocabulary
            vocabulary = (*first, len(made.token_names) - sum(first))
        return dataclasses.replace(made, spec=dataclasses.replace(self.spec, vocabulary=vocabulary))

    @functools.cached_property
    def oracle(self) -> oracle.Oracle | None:
        """The best possible rankings; None unless the world is simulated."""
        if (self.directory / oracle.FILE).exists():
            return oracle.Oracle.load(self.directory)
        return None

    def timelines(self, split: str) -> Any:
        """Random access to the packed timelines of a split: `source[row]["actions"]`.

        With leave-one-out every split holds all users. The files stay open as long as the data set
        or the result is in use.
        """
        self.spec.need("timelines")
        split = "train" if self.spec.leave_one_out else split
        return self._sources(split) if self.spec.users.get(split) else []

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        """Int32 (users,): the actions of each training user until the end of training."""
        return np.load(self.directory / "timelines" / statistics.LENGTHS_FILE)

    @functools.cached_property
    def _sources(self) -> Callable[[str], Any]:
        builder = tfds.builder_from_directory(self.directory / "timelines")
        return functools.cache(builder.as_data_source)

    def chunk(self, split: str, start: int, stop: int) -> "timelines.Chunk":
        """The timelines of rows `start` to `stop` of a split, or to its end if that is smaller."""
        return self.chunk_of(split, range(start, min(stop, len(self.timelines(split)))))

    def chunk_of(self, split: str, rows: Iterable[int]) -> "timelines.Chunk":
        """The timelines of some rows of a split."""
        found = self.timelines(split).data_source.__getitems__(list(rows))
        users, actions = zip(*map(timelines.decode, found), strict=True)
        records, offsets = timelines.unpack(actions)
        kind = int if self.spec.integer_users else str
        return timelines.Chunk(list(map(kind, users)), records, offsets)

    def chunks(self, split: str, users: int = 4096) -> Iterator["timelines.Chunk"]:
        """The timelines of a split in order, `users` at a time."""
        for start in range(0, len(self.timelines(split)), users):
            yield self.chunk(split, start, start + users)

    @functools.cached_property
    def queries(self) -> pairs.Queries:
        return pairs.Queries.read(self.directory / pairs.QUERIES_FILE)

    @functools.cache  # noqa: B019, a data set lives as long as its command
    def pairs(self, split: str) -> np.ndarray:
        """The pairs of a split, `pairs.PAIR` (n,), in order of time."""
        self.spec.need("pairs")
        return pairs.read(self.directory / "pairs" / f"{split}.parquet")

    @functools.cached_property
    def graph(self) -> csr.Graph:
        self.spec.need("graph")
        return csr.read(self.directory / "graph")

    def held_out_edges(self, split: str) -> np.ndarray:
        """Groups and items of the edges of valid or test: int32 (edges, 2), in this order."""
        self.spec.need("graph")
        if not self.spec.edges.get(split):
            return np.zeros((0, 2), np.int32)
        table = parquet.read(self.directory / "graph" / f"{split}.parquet")
        return np.stack([table[name].to_numpy() for name in ("group", "item")], axis=1)

    @functools.cached_property
    def groups(self) -> np.ndarray:
        """The own ids of the graph's groups, int64 (groups,) or text."""
        return parquet.read(self.directory / spec_lib.GROUPS_FILE)["id"].to_numpy()

    @property
    def frozen(self) -> dict[str, str]:
        """Digests of the frozen tables that a model of pairs depends on."""
        return {
            "query vectors": _digest([self.queries.vectors], *self.queries.vectors.shape),
            "image vectors": self._digest_of_images(),
            "vocabulary": self.vocabulary.digest,
        }

    def _digest_of_images(self) -> str:
        if not self.catalogue.has_images:
            return ""
        number = int(self.catalogue.image_offsets[-1])
        return _digest(self.catalogue.ordered_images(), number, self.spec.image_dim)


def ensure(name: str, data_dir: str) -> epath.Path:
    """The directory of a data set on this machine; it is built or copied if it is missing.

    Args:
      name: `pinworld/SIZE`, where SIZE is tiny, small or base; or a prepared directory, absolute or
        relative to the current directory or to `data_dir`, or on gs://.
      data_dir: directory of named data sets, and of copies of data sets on gs://.

    Raises:
      InputError: if there is no such data set, or `data_dir` is not a local directory.
    """
    if files.is_remote(data_dir):
        raise InputError(f"data.dir={data_dir}: expected a directory on this machine")
    named = home(data_dir)
    world, _, size = name.partition("/")
    if world == pinworld.NAME:
        return pinworld.ensure(size, named)
    places = [files.path("data.name", name), named / name]
    for place in places:
        if (place / spec_lib.METADATA_FILE).exists():
            return _copy(place, copies(data_dir)) if files.is_remote(place) else place
    looked = " and ".join(map(str, places))
    raise InputError(f"data.name: no prepared data set in {looked}; see pinjax.prepare")


def home(data_dir: str) -> epath.Path:
    """The directory that `data.dir` names."""
    return epath.Path(data_dir).expanduser()


def copies(data_dir: str) -> epath.Path:
    """The directory of copies of what is on gs://."""
    return home(data_dir) / "copies"


def load(name: str, data_dir: str) -> Dataset:
    """Opens a data set; arguments as `ensure`.

    Raises:
      InputError: as `ensure`, or if the data set cannot be read.
    """
    return open_directory(ensure(name, data_dir))


def spec_of(name: str, data_dir: str, items: int | None = None) -> spec_lib.Spec:
    """The spec of a data set, without simulating a pinworld.

    Args:
      name: as in `ensure`. With `items` the data set need not exist; then everything else is
        taken from pinworld.
      data_dir: as in `ensure`.
      items: another number of items, with texts, images and engagements in proportion.

    Raises:
      InputError: if there is no such data set.
    """
    if name.partition("/")[0] == pinworld.NAME:
        return made_up.spec(name, items)
    try:
        spec = spec_lib.Spec.read(ensure(name, data_dir))
    except InputError as error:
        if items is None:
            raise InputError(f"{error}; or say how large it is: --items") from None
        return made_up.spec(name, items)
    return spec.scaled(items) if items else spec


def open_directory(directory: epath.PathLike) -> Dataset:
    """Opens the data set in a directory.

    Raises:
      InputError: if there is none.
    """
    directory = epath.Path(directory)
    return Dataset(directory, spec_lib.Spec.read(directory))


def _copy(source: epath.Path, copies: epath.Path) -> epath.Path:
    """A copy of a prepared directory, made once: ArrayRecord reads only from local disks."""
    identity = os.fspath(source).encode() + (source / checksums.FILE).read_bytes()
    target = copies / f"{source.name}-{hashlib.sha256(identity).hexdigest()[:16]}"
    if not target.exists():
        with files.new_directory(target) as made:
            for name in (*checksums.read(source / checksums.FILE)["files"], checksums.FILE):
                (made / name).parent.mkdir(parents=True, exist_ok=True)
                (source / name).copy(made / name)
            checksums.verify(made)
    return target


def _digest(parts: Iterable[np.ndarray], number: int, dim: int) -> str:
    """Hash of float16 vectors, (number, dim), that come in parts."""
    digest = hashlib.sha256(f"float16 {(number, dim)}".encode())
    for part in parts:
        digest.update(np.ascontiguousarray(part).data)
    return digest.hexdigest()[:16]
