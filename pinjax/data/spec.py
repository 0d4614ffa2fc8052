"""The spec of a data set, and how its directory is completed, whoever made its parts."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Collection

import numpy as np
from etils import epath

from pinjax import checksums, files
from pinjax.data import statistics
from pinjax.errors import InputError

FORMAT = 3  # of a data set's directory; another one is refused

SPLITS = ("train", "valid", "test")
PARTS = ("timelines", "pairs", "graph")
METADATA_FILE = "metadata.json"
SOURCE_FILE = "source.json"  # what `prepare` made it of; no part of the data set
VOCABULARY_FILE = "vocabulary.parquet"
GROUPS_FILE = "groups.parquet"


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is known about a data set without its rows: enough to compile a system for it.

    Attributes:
      name: as printed in tables.
      num_items: rows of the catalogue.
      train_end: unix seconds; nothing later is trained on or counted. 0 where there are no times.
      leave_one_out: whether the last action of each user tests and the one before validates; then
        all users are in one split, and their times are ranks.
      digest: hash of all that the data set holds; a checkpoint remembers it.
      num_existing: items that existed when the training period ended.
      num_images: images of all items together.
      content_dim, image_dim: numbers of a content vector and of an image's; 0 where there are none.
      text_features: names of the catalogue's texts.
      num_tokens: tokens of all items together, by text feature.
      token_quantiles: how many tokens an item has at each of `statistics.LEVELS`, by text feature
        and for "" (all features together): for the items of each task's training pairs, the more of
        each pair's and each item's, and for "" those of the items with any training pair.
      longest: tokens of the longest item, by text feature and for "".
      num_search_tokens, longest_search: tokens of all searches, and of the longest one.
      vocabulary: how many unigrams, bigrams and trigrams have an id.
      users: how many of each split have a timeline; none without timelines.
      integer_users: whether their own ids are integers.
      actions, surfaces: the vocabularies of timelines; row 0 is "unknown".
      pairs: how many each split has; none without pairs.
      tasks: names as "KIND OF QUERY/KIND OF ENGAGEMENT".
      num_engaged: items with a training pair.
      largest_query: by task, the largest share of its training pairs that one query has.
      num_queries: rows of the queries.
      query_dim: numbers of a query's vector.
      edges: how many are in the graph ("train") and held out; none without a graph.
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
    vocabulary: tuple[int, int, int] = (0, 0, 0)
    users: dict[str, int] = dataclasses.field(default_factory=dict)
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
        """Which of `PARTS` there are."""
        counts = (self.users, self.pairs, self.edges)
        return tuple(part for part, count in zip(PARTS, counts, strict=True) if count)

    def need(self, part: str) -> None:
        """Rejects a data set without a part.

        Raises:
          InputError: naming both.
        """
        if part not in self.parts:
            there = ", ".join(self.parts) or "a catalogue alone"
            raise InputError(f"data.name: {self.name} has no {part}, only {there}")

    def scaled(self, items: int) -> "Spec":
        """The same with another number of items, and as many more images, texts and engagements."""
        factor = items / self.num_items
        fields = ("num_existing", "num_images", "num_engaged")
        return dataclasses.replace(
            self,
            num_items=items,
            num_tokens={name: round(factor * n) for name, n in self.num_tokens.items()},
            **{field: round(factor * getattr(self, field)) for field in fields},
        )

    def tokens_of_items(self, task: str, features: Collection[str]) -> np.ndarray:
        """How many tokens items have in text features: int64 (levels,), see `token_quantiles`.

        Of some features it is as if an item with a long text in one had long ones in the others:
        more of their sum cannot be far from its mean (it is the largest sum in convex order, so
        Chernoff's bound for it holds for any other).

        Args:
          task: whose items; "": all that are engaged with.
          features: names of text features.
        """
        quantiles = self.token_quantiles[task]
        known = [quantiles[name] for name in self._together(features)]
        return np.sum([np.zeros(len(statistics.LEVELS), np.int64), *known], axis=0)

    def longest_item(self, features: Collection[str]) -> int:
        """The tokens that no item has more of in some text features."""
        return sum(self.longest[name] for name in self._together(features))

    def _together(self, features: Collection[str]) -> Collection[str]:
        """The names by which tokens are known: "" for all features."""
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


def finish(made: epath.Path, directory: epath.PathLike, spec: Spec) -> Spec:
    """Writes the spec beside the parts of a data set and gives their directory its name.

    Where another process was first, that one's directory stays.

    Args:
      made: the directory of `files.unfinished`, with all parts in it.
      directory: its name.
      spec: all of it but the digest and what `statistics.measure` counts.

    Returns:
      the spec, with the digest of what was written.

    Raises:
      OSError: if that failed and nothing is in a directory of that name.
    """
    counted = statistics.measure(made, made / VOCABULARY_FILE, spec.train_end, spec.tasks)
    spec = dataclasses.replace(spec, **counted)
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(spec), sort_keys=True).encode())
    for path in sorted(pathlib.Path(made).glob("**/*")):
        if path.is_file() and path.name != SOURCE_FILE:
            checksum = checksums.of_file(path)["xxh3_128"]
            digest.update(f"{path.relative_to(made)} {checksum}".encode())
    spec = dataclasses.replace(spec, digest=digest.hexdigest()[:16])
    content = json.dumps({"format": FORMAT, **dataclasses.asdict(spec)})
    (made / METADATA_FILE).write_text(content + "\n")
    files.finish(made, directory)
    return spec
