"""Writes the embeddings of a run, for an index, a ranker or a notebook.

    python -m pinjax.embed --workdir=DIR --out=DIR

Each table is several Parquet files, OUT/users-00000-of-00004.parquet and so on, with own ids, a
vector each, and the time as of which it was computed; a user of several vectors has a row for each,
the most important first. OUT/manifest.json has the checkpoint, the data set and the config of the
embeddings, and the checksum of each file. After an interruption, repeat the call: it writes the
files that are missing or damaged.

Every day, on the longer log, users who did nothing since the day before keep their vectors:

    python -m pinjax.embed --config=configs/pinnerformer.py --config.data.name=TODAY \
        --workdir=DIR --out=NEW --since=YESTERDAYS --as_of=2026-01-31
"""

import concurrent.futures
import contextlib
import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np
import tqdm
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from pinjax import app, checksums, config_json, files, timestamps
from pinjax.data import dataset, embeddings
from pinjax.data import kept as kept_lib
from pinjax.distributed import processes, sharding
from pinjax.errors import InputError
from pinjax.serving import previous as previous_lib
from pinjax.serving import spaces
from pinjax.systems import embedded as embedded_lib
from pinjax.systems.system import System
from pinjax.training import checkpoint

CONFIG, WORKDIR = app.run_flags(config_required=False)
OUT = flags.DEFINE_string("out", None, "directory to write to", required=True)
AS_OF = app.as_of_flag("embed users as of this time")
SINCE = flags.DEFINE_string(
    "since",
    None,
    "directory of previous embeddings by the same parameters: compute only users who acted since, "
    "and keep the others' vectors and their times",
)
PRECISION = flags.DEFINE_enum("precision", "float16", ["float16", "float32"], "of the vectors")


def main(argv: Sequence[str]) -> int:
    del argv
    out = app.directory("--out", OUT.value)
    config, workdir = app.run_of(CONFIG, WORKDIR)
    mesh = sharding.mesh_of(config)
    system, state, params = previous_lib.bind(workdir, config, mesh, app.verifies())
    as_of = app.as_of_value(AS_OF)
    if as_of is None:
        as_of = system.dataset.spec.train_end
    identity = checkpoint.identity(config, system, params, int(state.step))
    manifest = _manifest(config, identity, as_of)
    kept = None
    if SINCE.value is not None:
        since = _since(config, system, manifest, as_of)
        manifest["since"], kept = since.identity, kept_lib.Kept(since)
    with contextlib.ExitStack() as stack:
        with processes.first_before_others():
            if processes.is_first():
                stack.enter_context(files.only_writer(out))
                written = _claim(out, manifest)
        embedded = embedded_lib.tables(config, system, state.params, as_of, kept)
        names = {name: embeddings.file_names(name, len(x)) for name, x in embedded.items()}
        writer = None
        if processes.is_first():
            written = {file: written.get(file) for table in names.values() for file in table}
            thread = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
            writer = _Writer(out, manifest, written, thread)
        for name, shards in embedded.items():
            paths = [out / file for file in names[name]]
            missing = writer.missing(paths) if writer else [False] * len(paths)
            missing = processes.as_first(np.array(missing))
            progress = tqdm.tqdm(shards, name, unit="file", disable=not writer)
            for path, shard, wanted in zip(paths, progress, missing, strict=True):
                if wanted:
                    part = shard()
                    if writer:
                        writer.write(path, part)
        if writer:
            writer.wait()
    print(f"{out}: {', '.join(embedded)} as of {timestamps.iso(as_of)}, step {manifest['step']:,}")
    flags_of_index = f"--embeddings={shlex.quote(str(out))} --out={shlex.quote(f'{out}-index')}"
    print(f"next  python -m pinjax.index build {flags_of_index}")
    return 0


def _manifest(config: ConfigDict, identity: dict[str, int | str], as_of: int) -> dict[str, Any]:
    """What the embeddings are made from."""
    manifest = {**identity, "as_of": timestamps.iso(as_of), "precision": PRECISION.value}
    if config.data.vectors:
        found = embeddings.find(config.data.vectors, dataset.copies(config.data.dir), verify=False)
        manifest["spaces"] = embeddings.spaces(found)
    return manifest


def _since(
    config: ConfigDict, system: System, manifest: dict[str, Any], as_of: int
) -> embeddings.Embeddings:
    """The embeddings of --since.

    Raises:
      InputError: if they cannot be mixed with those of the manifest.
    """
    with processes.first_before_others():
        since = app.directory("--since", SINCE.value)
        if since.resolve() == app.directory("--out", OUT.value).resolve():
            raise InputError(f"--since={since} is --out, too; expected another directory")
        copies = dataset.copies(config.data.dir)
        previous = embeddings.open_directory(since, copies, app.verifies())
    kept_lib.check(previous, manifest)
    if system.trainable is None:  # all data sets have the same checkpoint then
        spaces.check_since(previous, system, as_of)
    return previous


def _claim(out: epath.Path, manifest: dict[str, int | str]) -> dict[str, Any]:
    """The files of a manifest from the same run; otherwise writes a new manifest."""
    path = out / embeddings.MANIFEST
    if path.exists():
        found = checksums.read(path)
        written = found.pop("files")
        if different := config_json.first_difference(found, manifest, found | manifest):
            name, old, new = different
            raise InputError(
                f"{out} holds embeddings of {name} {old}, not {new}; choose another --out"
            )
        return written
    # A killed process may have left the lock, or a manifest that was not yet renamed.
    # On gs:// there are no empty directories.
    found = {file.name for file in out.iterdir()} if out.exists() else set()
    if found - {files.LOCK_FILE, f"{embeddings.MANIFEST}.tmp"}:
        raise InputError(
            f"{out} is not empty and holds no {embeddings.MANIFEST}; choose another --out"
        )
    files.write_json(out / embeddings.MANIFEST, {**manifest, "files": {}})
    return {}


class _Writer:
    """Writes files in another thread while the next ones are computed, and the manifest with each.

    Only the first process has one.
    """

    def __init__(
        self,
        out: epath.Path,
        manifest: dict[str, Any],
        written: dict[str, Any],
        thread: concurrent.futures.Executor,
    ):
        """Writes the manifest.

        Args:
          out: the directory.
          manifest: without the files.
          written: by name of all files, the checksum; None of those that are not there.
          thread: in which one file at a time is written.
        """
        self._out, self._manifest, self._written = out, manifest, written
        self._thread = thread
        self._write_manifest()
        self._writing = thread.submit(lambda: None)

    def missing(self, paths: list[epath.Path]) -> list[bool]:
        """Whether files do not agree with the manifest; by checksums, if these are compared."""
        self.wait()
        return [not self._is_there(path) for path in paths]

    def write(self, path: epath.Path, part: embedded_lib.Part) -> None:
        """Begins to write a file, once the one before is written."""
        self.wait()
        self._writing = self._thread.submit(self._write, path, part)

    def wait(self) -> None:
        """Waits until the last file is written, and raises its error."""
        self._writing.result()

    def _write(self, path: epath.Path, part: embedded_lib.Part) -> None:
        table = embeddings.to_arrow(*part, PRECISION.value)
        with files.replacing(path) as file:
            embeddings.write(table, file)
        self._written[path.name] = checksums.of_file(path)
        self._write_manifest()

    def _write_manifest(self) -> None:
        content = {**self._manifest, "files": self._written}
        files.write_json(self._out / embeddings.MANIFEST, content)

    def _is_there(self, path: epath.Path) -> bool:
        if not self._written[path.name]:
            return False
        if not app.verifies():
            return path.exists()
        try:
            checksums.verify_file(path, self._written[path.name])
        except InputError:
            return False
        return True


if __name__ == "__main__":
    app.run(main)
