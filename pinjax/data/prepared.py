"""Prepared logs: a log's files in, a data set on disk out (see `pinjax.data.schema`)."""

import contextlib
import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from pinjax import files
from pinjax.data import column_map, logs, schema, tables
from pinjax.data import items as items_lib
from pinjax.errors import InputError

_DAY = 24 * 60 * 60


class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes a log's timelines.

    Args:
      log: the log, its items as catalogue rows.
      splits: {split: int (users,), rows of `log.users`}.
      metadata: what is known about it.
      data_dir: where the data set's own directory goes.
    """

    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self,
        log: logs.Log,
        splits: dict[str, np.ndarray],
        metadata: schema.Metadata,
        data_dir: epath.PathLike,
    ):
        self.name = "prepared"
        self._log, self._splits, self._metadata = log, splits, metadata
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Timelines of the log {self._metadata.name}.",
            features=schema.timeline_features(),
            metadata=self._metadata.to_tfds(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        return {split: self._generate_examples(rows) for split, rows in self._splits.items()}

    def _generate_examples(self, rows: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        records, offsets = self._log.records, self._log.offsets
        users = self._log.users.to_pylist()
        for row in rows.tolist():
            actions = schema.pack(records[offsets[row] : offsets[row + 1]])
            yield row, {"user": str(users[row]), "actions": actions}


def prepare(
    events: Sequence[epath.PathLike],
    items: epath.PathLike | None,
    out: epath.PathLike,
    config: ml_collections.ConfigDict,
) -> tuple[schema.Metadata, bool]:
    """Prepares a log, unless `out` already holds just this.

    Args:
      events: files of actions, in the order of the log.
      items: a file of items, or None.
      out: the data set's directory; written under another name, then renamed.
      config: a column map, see `pinjax.data.column_map`.

    Returns:
      (what is known about the data set, whether it was made now).

    Raises:
      InputError: for wrong input; nothing is left behind.
    """
    column_map.check(config)
    out = epath.Path(out)
    digest = digest_of([*events, *([items] if items else [])], config, str(Prepared.VERSION))
    if is_there(out, digest):
        content = json.loads((out / "metadata.json").read_text())
        return schema.Metadata.from_tfds(content), False

    log = logs.read(events, config)
    table = items_lib.read(items, config) if items else None
    catalogue, rows, report = items_lib.join(table, log, config)
    log.records["item"] = rows[log.records["item"]]
    splits = _splits(log, config.split)
    by_time = config.split.kind == "time"
    time = log.records["time"]
    train_end = train_end_of(time, config.split) if by_time else int(time.max())
    counted = _trained_on(log, splits["train"], train_end, config.split)
    counts = np.bincount(log.records["item"][counted], minlength=len(catalogue))
    catalogue = dataclasses.replace(catalogue, counts=counts)
    metadata = schema.Metadata(
        name=config.name,
        actions=log.actions,
        surfaces=log.surfaces,
        num_items=len(catalogue),
        train_end=train_end,
        leave_one_out=not by_time,
        digest=digest,
        report={**_report(log, splits, train_end, config.split), **report},
    )
    _write(out, log, splits, metadata, catalogue)
    is_there(out, digest)  # refuses what another process has written there meanwhile
    return metadata, True


def is_there(out: epath.Path, digest: str) -> bool:
    """Whether a directory holds the data set of this digest.

    Raises:
      InputError: where it holds anything else.
    """
    known = out / "metadata.json"
    if known.exists() and digest in known.read_text():
        return True
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: holds something else; expected a new or an empty directory")
    return False


def split_of(user: int | str, split: ml_collections.ConfigDict) -> str:
    """The split of a user: by a hash of the id, so that it stays when the log grows."""
    hashed = hashlib.blake2b(f"{split.seed}:{user}".encode(), digest_size=8).digest()
    share = int.from_bytes(hashed, "little") / 2**64
    if share < split.test:
        return "test"
    return "valid" if share < split.test + split.valid else "train"


def digest_of(
    paths: Sequence[epath.PathLike], config: ml_collections.ConfigDict, version: str
) -> str:
    """Hash of the column map, the files' names, all that they hold, and the format's version."""
    whole = hashlib.sha256(f"{version} {config.to_json(sort_keys=True)}".encode())
    for path in map(epath.Path, paths):
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        with path.open("rb") as file:
            whole.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:16]


def _splits(log: logs.Log, split: ml_collections.ConfigDict) -> dict[str, np.ndarray]:
    if split.kind == "leave_one_out":
        return dict.fromkeys(schema.SPLITS, np.arange(len(log.users)))
    names = np.array([split_of(user, split) for user in log.users.to_pylist()])
    splits = {name: np.flatnonzero(names == name) for name in schema.SPLITS}
    for name, rows in splits.items():
        if not len(rows):
            shares = f"split.valid={split.valid:g} and split.test={split.test:g}"
            raise InputError(f"no user of {len(names)} falls into {name} with {shares}")
    return splits


def train_end_of(time: np.ndarray, split: ml_collections.ConfigDict) -> int:
    """The moment after which nothing is trained on, unix seconds.

    Args:
      time: unix seconds of all actions.
      split: the `split` section of a column map.

    Raises:
      InputError: where it is not between the first and the last action.
    """
    first, last = int(time.min()), int(time.max())
    if split.train_end:
        train_end = tables.moment("split.train_end", split.train_end)
    else:
        train_end = last - round(split.test_days * _DAY)
    if not first <= train_end < last:
        between = f"between the log's first and last action, {iso(first)} and {iso(last)}"
        raise InputError(f"train_end is {iso(train_end)}; expected a moment {between}")
    return train_end


def _trained_on(
    log: logs.Log, train: np.ndarray, train_end: int, split: ml_collections.ConfigDict
) -> np.ndarray:
    """Bool (n,): the actions of training users that are not held out."""
    lengths = np.diff(log.offsets)
    if split.kind == "leave_one_out":
        return np.repeat(log.offsets[1:], lengths) - np.arange(len(log.records)) > 2
    training = np.zeros(len(log.users), bool)
    training[train] = True
    return np.repeat(training, lengths) & (log.records["time"] <= train_end)


def _report(
    log: logs.Log, splits: dict[str, np.ndarray], train_end: int, split: ml_collections.ConfigDict
) -> dict[str, int | str]:
    by_time = split.kind == "time"
    report = {**log.report, "actions": len(log.records)}
    if by_time:
        report["first action"] = iso(log.records["time"].min())
        report["train_end"] = iso(train_end)
        report["last action"] = iso(log.records["time"].max())
    of_type = np.bincount(log.records["action"], minlength=len(log.actions))
    report |= {f"actions: {name}": int(of_type[row]) for row, name in enumerate(log.actions)}
    report |= {"surfaces": len(log.surfaces) - 1, "users": len(log.users)}
    if by_time:
        report |= {f"users: {name}": len(users) for name, users in splits.items()}
    return report


def iso(seconds: int) -> str:
    """Unix seconds as people read them, in UTC."""
    return str(np.datetime64(int(seconds), "s")).replace("T", " ")


def _write(
    out: epath.Path,
    log: logs.Log,
    splits: dict[str, np.ndarray],
    metadata: schema.Metadata,
    catalogue: schema.Catalogue,
) -> None:
    tfds.disable_progress_bar()
    try:
        with files.unfinished(out) as unfinished:
            builder = Prepared(log, splits, metadata, unfinished)
            with contextlib.redirect_stdout(io.StringIO()):  # where TFDS says what it downloads
                builder.download_and_prepare()
            catalogue.write(builder.data_path / schema.CATALOGUE_FILE)
            files.finish(builder.data_path, out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        tfds.enable_progress_bar()
