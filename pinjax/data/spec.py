"""The spec of a data set, and the completion of its directory."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Collection

import numpy as np
from etils import epath

from pinjax import checksums
from pinjax.data import statistics
from pinjax.errors import InputError

FORMAT = 4  # of a data set's directory; others are rejected

SPLITS = ("train", "valid", "test")
PARTS = ("timelines", "pairs", "graph")
METADATA_FILE = "metadata.json"
SOURCE_FILE = "source.json"  # the inputs of `prepare`; no part of the data set
VOCABULARY_FILE = "vocabulary.parquet"
GROUPS_FILE = "groups.parquet"


@dataclasses.dataclass(frozen=True)
class Spec:
    """The sizes and vocabularies of a data set: enough to compile a system for it.

    Attributes:
      name: as printed in tables.
      num_items: rows of the catalogue.
      train_end: unix seconds; nothing later is trained on or counted. 0 without times, and
        with `leave_one_out` the last rank.
      leave_one_out: whether the last action of each user tests and the one before validates; then
        all users are in one split, and their times are ranks.
      digest: hash of the data set; a checkpoint stores it.
      num_existing: items that existed when the training period ended.
      num_images: total number of images.
      content_dim, image_dim: dimensions of content and image vectors; 0 if there are none.
      text_features: names of the catalogue's texts.
      num_tokens: total number of tokens, by text feature.
      token_quantiles: tokens of an item at each of `statistics.LEVELS`, by text feature
        and for "" (all features together): for the items of each task's training pairs, the more of
        each pair's and each item's, and for "" those of the items with any training pair.
      longest: tokens of the longest item, by text feature and for "".
      num_search_tokens, longest_search: tokens of all searches, and of the longest one.
      search_quantiles: words of a query's text at each of `statistics.LEVELS`, by task, for its
        training pairs: the more of each pair's and each query's.
      vocabulary: numbers of unigrams, bigrams and trigrams.
      users: number of timelines of each split; empty without timelines.
      length_quantiles: the actions of a training user until the end of training, at each of
        `statistics.LENGTH_SHARES`.
      integer_users: whether the users' own ids are integers.
      actions, surfaces: the vocabularies of timelines; row 0 is "unknown".
      pairs: number of pairs of each split; empty without pairs.
      tasks: names as "KIND OF QUERY/KIND OF ENGAGEMENT".
      num_engaged: items with a training pair.
      largest_query: by task, the largest share of its training pairs that one query has.
      num_queries: rows of the queries.
      query_dim: dimension of a query's vector.
      edges: number of edges in the graph ("train") and held out; empty without a graph.
      num_groups: groups of the graph.
    """

    name: str
    num_items: int
    train_end: int = 0
    leave_one_out: bool = False
    digest: str = ""
    num_existing: int = 0
    content_dim: int = 0
    image_dim: int = 0
    num_images: int = 0
    text_features: tuple[str, ...] = ()
    num_tokens: dict[str, int] = dataclasses.field(default_factory=dict)
    token_quantiles: dict[str, dict[str, list[int]]] = dataclasses.field(default_factory=dict)
    longest: dict[str, int] = dataclasses.field(default_factory=dict)
    num_search_tokens: int = 0
    longest_search: int = 0
    search_quantiles: dict[str, list[int]] = dataclasses.field(default_factory=dict)
    vocabulary: tuple[int, int, int] = (0, 0, 0)
    users: dict[str, int] = dataclasses.field(default_factory=dict)
    length_quantiles: tuple[int, ...] = ()
    integer_users: bool = False
    actions: tuple[str, ...] = ()
    surfaces: tuple[str, ...] = ()
    pairs: dict[str, int] = dataclasses.field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    num_engaged: int = 0
    largest_query: dict[str, float] = dataclasses.field(default_factory=dict)
    num_queries: int = 0
    query_dim: int = 0
    edges: dict[str, int] = dataclasses.field(default_factory=dict)
    num_groups: int = 0

    @property
    def parts(self) -> tuple[str, ...]:
        """The `PARTS` that the data set has."""
        counts = (self.users, self.pairs, self.edges)
        return tuple(part for part, count in zip(PARTS, counts, strict=True) if count)

    def need(self, part: str) -> None:
        """Rejects a data set without a part.

        Raises:
          InputError: it names the data set and the part.
        """
        if part not in self.parts:
            there = ", ".join(self.parts) or "a catalogue alone"
            raise InputError(f"data.name: {self.name} has no {part}, only {there}")

    def scaled(self, items: int) -> "Spec":
        """The spec scaled to `items`, with images, texts and engagements in proportion."""
        factor = items / self.num_items
        fields = ("num_existing", "num_images", "num_engaged")
        return dataclasses.replace(
            self,
            num_items=items,
            num_tokens={name: round(factor * n) for name, n in self.num_tokens.items()},
            **{field: round(factor * getattr(self, field)) for field in fields},
        )

    def tokens_of_items(self, task: str, features: Collection[str]) -> np.ndarray:
        """Quantiles of the tokens of an item in text features: int64 (levels,).

        For several features it is the sum of their quantiles, as if an item with a long text in one
        had long texts in the others. This sum is the largest in convex order, so Chernoff's bound
        for it holds for the true one.

        Args:
          task: of the items; "": all items that are engaged with.
          features: names of text features.
        """
        quantiles = self.token_quantiles[task]
        known = [quantiles[name] for name in self._together(features)]
        return np.sum([np.zeros(len(statistics.LEVELS), np.int64), *known], axis=0)

    def longest_item(self, features: Collection[str]) -> int:
        """An upper bound on the tokens of an item in some text features."""
        return sum(self.longest[name] for name in self._together(features))

    def _together(self, features: Collection[str]) -> Collection[str]:
        """The names of statistics of tokens: "" if these are all features."""
        return [""] if set(features) == set(self.text_features) else features

    @classmethod
    def read(cls, directory: epath.Path) -> "Spec":
        """Reads the spec of a data set.

        Raises:
          InputError: if it cannot be read.
        """
        path = directory / METADATA_FILE
        try:
            content = json.loads(path.read_text())
            found = content.pop("format", "of an older version")
            if found == FORMAT:
                fields = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
                return cls(**fields)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not the metadata of a data set: {error}") from error
        raise InputError(f"{path}: its format is {found}; expected {FORMAT}: prepare it anew")


def write(directory: epath.Path, spec: Spec) -> Spec:
    """Writes the spec beside all parts of a data set.

    Args:
      directory: of `files.new_directory`, with the parts.
      spec: without the digest and the fields of `statistics.measure`.

    Returns:
      the complete spec.
    """
    vocabulary = directory / VOCABULARY_FILE
    counted = statistics.measure(directory, vocabulary, spec.train_end, spec.tasks)
    spec = dataclasses.replace(spec, **counted)
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(spec), sort_keys=True).encode())
    for path in sorted(pathlib.Path(directory).glob("**/*")):
        if path.is_file() and path.name != SOURCE_FILE:
            checksum = checksums.of_file(path)["xxh3_128"]
            digest.update(f"{path.relative_to(directory)} {checksum}".encode())
    spec = dataclasses.replace(spec, digest=digest.hexdigest()[:16])
    content = json.dumps({"format": FORMAT, **dataclasses.asdict(spec)})
    (directory / METADATA_FILE).write_text(content + "\n")
    return spec
