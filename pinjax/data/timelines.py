"""Timelines: the actions of each user, as ArrayRecord files that TFDS reads.

    timelines/
      timelines-train.array_record-00000-of-00016    `timeline_features`, one record a user
      dataset_info.json, features.json               metadata of TFDS
      lengths.npy                                    int32, the actions of each training user until
                                                     the end of training

`tfds.builder_from_directory` opens the directory.
"""

import array
import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from etils import epath
from tensorflow_datasets.proto import tf_example_pb2

from pinjax import ragged
from pinjax.data import statistics
from pinjax.data.spec import SPLITS

UNKNOWN = "unknown"  # row 0 of the vocabularies of action types and surfaces
ROWS_A_FILE = 2**16
# Random access needs groups of one record. Compressed files would be an eighth smaller, but take
# seven times as long to write and three times as long to read.
_OPTIONS = "group_size:1,uncompressed"

# One action of a timeline. Times are unix seconds in UTC (uint32 lasts until 2106); duration is
# in seconds, 0 if the log has none; action and surface are rows of the vocabularies of the
# spec. Packed: one view decodes an entire batch.
ACTION = np.dtype(
    [
        ("item", np.int32),
        ("time", np.uint32),
        ("duration", np.float32),
        ("surface", np.uint16),
        ("action", np.uint8),
    ]
)


def timeline_features() -> tfds.features.FeaturesDict:
    """The features of a timeline: `user`, the user's own id as text, and `actions`, packed."""
    return tfds.features.FeaturesDict(
        {
            "user": tfds.features.Text(),
            "actions": tfds.features.Tensor(
                shape=(None, ACTION.itemsize),
                dtype=np.uint8,
                encoding=tfds.features.Encoding.BYTES,
            ),
        }
    )


def decode(record: bytes) -> tuple[str, np.ndarray]:
    """The user and the packed actions of a record of `timeline_features`; TFDS is slower."""
    fields = tf_example_pb2.Example.FromString(record).features.feature
    user, actions = (fields[name].bytes_list.value[0] for name in ("user", "actions"))
    return user.decode(), np.frombuffer(actions, np.uint8).reshape(-1, ACTION.itemsize)


def pack(actions: np.ndarray) -> np.ndarray:
    """`ACTION` records of shape (n,) as bytes of shape (n, ACTION.itemsize)."""
    return np.ascontiguousarray(actions).view(np.uint8).reshape(len(actions), ACTION.itemsize)


def unpack(rows: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Packed timelines as one array of `ACTION` records and the offsets of each timeline in it.

    Args:
      rows: packed timelines, the i-th of shape (n_i, ACTION.itemsize).

    Returns:
      (records of shape (sum n_i,), offsets int64 of shape (timelines + 1,)).
    """
    rows = list(rows)
    offsets = ragged.offsets_of(np.array([len(row) for row in rows]))
    return np.concatenate(rows).reshape(-1).view(ACTION), offsets


@dataclasses.dataclass(frozen=True)
class Chunk:
    """Timelines of some users, flat: see `unpack`.

    Attributes:
      users: the users' own ids, each an int or text.
      records: `ACTION` (n,).
      offsets: int64 (len(users) + 1,).
    """

    users: list[int | str]
    records: np.ndarray
    offsets: np.ndarray

    @classmethod
    def join(cls, chunks: Sequence["Chunk"]) -> "Chunk":
        """The users of chunks, one after the other."""
        users = [user for chunk in chunks for user in chunk.users]
        lengths = np.concatenate([np.diff(chunk.offsets) for chunk in chunks])
        records = np.concatenate([chunk.records for chunk in chunks])
        return cls(users, records, ragged.offsets_of(lengths))

    def take(self, rows: np.ndarray) -> "Chunk":
        """The users of some rows, int (n,), in their order."""
        lengths = np.diff(self.offsets)[rows]
        records = self.records[ragged.positions(self.offsets[rows], lengths)]
        return Chunk([self.users[row] for row in rows], records, ragged.offsets_of(lengths))


@dataclasses.dataclass(frozen=True)
class MadeUp:
    """Timelines of one action each, like `Dataset.timelines`, for the shapes of batches."""

    def __getitems__(self, rows: list[int]) -> list[dict[str, np.ndarray]]:
        return [{"actions": pack(np.zeros(1, ACTION))} for _ in rows]


@contextlib.contextmanager
def writer(directory: epath.PathLike) -> Iterator["Writer"]:
    """Writes timelines to a new directory; they are complete when the context ends."""
    made = Writer(epath.Path(directory))
    with contextlib.ExitStack() as stack:
        stack.callback(made.close)
        yield made
        made.finish()


class Writer:
    """Writes users split by split, in the order in which they are added.

    Attributes:
      counts: users of each split so far.
    """

    def __init__(self, directory: epath.Path):
        directory.mkdir(parents=True)
        self._directory = directory
        self._files: dict[str, array_record_module.ArrayRecordWriter] = {}
        self.counts = dict.fromkeys(SPLITS, 0)
        self._lengths = array.array("i")
        self._bytes = dict.fromkeys(SPLITS, 0)

    def add(self, split: str, user: int | str, actions: np.ndarray, trained: int) -> None:
        """Adds a user.

        Args:
          split: of the user.
          user: own id.
          actions: `ACTION` (n,), in order of time.
          trained: how many of them are not after the end of training.
        """
        if split == SPLITS[0]:
            self._lengths.append(trained)
        number, place = divmod(self.counts[split], ROWS_A_FILE)
        if not place:
            if split in self._files:
                self._files.pop(split).close()
            path = self._directory / _unfinished(split, number)
            self._files[split] = array_record_module.ArrayRecordWriter(str(path), _OPTIONS)
        # Encodes `timeline_features` as TFDS does, six times as fast.
        example = tf_example_pb2.Example()
        example.features.feature["user"].bytes_list.value.append(str(user).encode())
        example.features.feature["actions"].bytes_list.value.append(pack(actions).tobytes())
        serialized = example.SerializeToString(deterministic=True)
        self._files[split].write(serialized)
        self.counts[split] += 1
        self._bytes[split] += len(serialized)

    def close(self) -> None:
        while self._files:
            self._files.popitem()[1].close()

    def finish(self) -> None:
        """Renames the files by their total number; writes the lengths and the metadata of TFDS."""
        self.close()
        with (self._directory / statistics.LENGTHS_FILE).open("wb") as file:
            np.save(file, np.array(self._lengths, np.int32))
        template = tfds.core.ShardedFileTemplate(
            data_dir=self._directory, dataset_name="timelines", filetype_suffix="array_record"
        )
        infos = []
        for split, users in self.counts.items():
            if not users:  # TFDS knows no empty split
                continue
            lengths = [min(ROWS_A_FILE, users - start) for start in range(0, users, ROWS_A_FILE)]
            of_split = template.replace(split=split)
            for number in range(len(lengths)):
                path = of_split.sharded_filepath(shard_index=number, num_shards=len(lengths))
                (self._directory / _unfinished(split, number)).rename(path)
            infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=lengths,
                    num_bytes=self._bytes[split],
                    filename_template=of_split,
                )
            )
        tfds.folder_dataset.write_metadata(
            data_dir=self._directory,
            features=timeline_features(),
            split_infos=infos,
            filename_template=template,
            description="Timelines of users.",
            check_data=False,
        )


def _unfinished(split: str, number: int) -> str:
    return f"{split}.{number}.unfinished"
