"""The spec of a data set, and how its directory is completed, whoever made its parts."""

import dataclasses
import hashlib
import json
import pathlib

from etils import epath

from pinjax import checksums, files
from pinjax.errors import InputError

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
      content_dim, image_dim: numbers of a content vector and of an image's; 0 where there are none.
      text_features: names of the catalogue's texts.
      vocabulary: how many unigrams, bigrams and trigrams have an id.
      users: how many of each split have a timeline; none without timelines.
      integer_users: whether their own ids are integers.
      actions, surfaces: the vocabularies of timelines; row 0 is "unknown".
      pairs: how many each split has; none without pairs.
      tasks: names as "KIND OF QUERY/KIND OF ENGAGEMENT".
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
    content_dim: int = 0
    image_dim: int = 0
    text_features: tuple[str, ...] = ()
    vocabulary: tuple[int, int, int] = (0, 0, 0)
    users: dict[str, int] = dataclasses.field(default_factory=dict)
    integer_users: bool = False
    actions: tuple[str, ...] = ()
    surfaces: tuple[str, ...] = ()
    pairs: dict[str, int] = dataclasses.field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    num_queries: int = 0
    query_dim: int = 0
    edges: dict[str, int] = dataclasses.field(default_factory=dict)
    num_groups: int = 0

    @property
    def parts(self) -> tuple[str, ...]:
        """Which of `PARTS` there are."""
        counts = (self.users, self.pairs, self.edges)
        return tuple(part for part, count in zip(PARTS, counts, strict=True) if count)

    @classmethod
    def read(cls, directory: epath.Path) -> "Spec":
        """Reads the spec of a data set.

        Raises:
          InputError: where it cannot be read.
        """
        path = directory / METADATA_FILE
        try:
            content = json.loads(path.read_text())
            fields = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
            return cls(**fields)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not the metadata of a data set: {error}") from error


def finish(made: epath.Path, directory: epath.PathLike, spec: Spec) -> Spec:
    """Writes the spec beside the parts of a data set and gives their directory its name.

    Where another process was first, that one's directory stays.

    Args:
      made: the directory of `files.unfinished`, with all parts in it.
      directory: its name.
      spec: all of it but the digest.

    Returns:
      the spec, with the digest of what was written.

    Raises:
      OSError: where that failed and nothing is in a directory of that name.
    """
    whole = hashlib.sha256(json.dumps(dataclasses.asdict(spec), sort_keys=True).encode())
    for path in sorted(pathlib.Path(made).glob("**/*")):
        if path.is_file() and path.name != SOURCE_FILE:
            checksum = checksums.of_file(path)["xxh3_128"]
            whole.update(f"{path.relative_to(made)} {checksum}".encode())
    spec = dataclasses.replace(spec, digest=whole.hexdigest()[:16])
    content = json.dumps(dataclasses.asdict(spec), indent=2)
    (made / METADATA_FILE).write_text(content + "\n")
    files.finish(made, directory)
    return spec
