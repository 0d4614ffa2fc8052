"""Writes the embeddings of a run, for an index, a ranker or a notebook.

    python -m pinjax.embed --config=configs/pinnerformer.py --workdir=DIR --out=DIR

Each table is several Parquet files, OUT/users-00000-of-00004.parquet and so on, with own ids, a
vector each, and the time as of which it was computed; a user of several vectors has a row for each,
the most important first. OUT/manifest.json has the checkpoint, the data set and the config of the
embeddings, and the checksum of each file. After an interruption, repeat the call: it writes the
files that are missing or damaged.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import tqdm
from absl import flags
from etils import epath

from pinjax import app, checksums, files, timestamps
from pinjax.data import embeddings
from pinjax.distributed import processes, sharding
from pinjax.errors import InputError
from pinjax.systems import embedded as embedded_lib
from pinjax.systems import registry
from pinjax.training import checkpoint

CONFIG, WORKDIR = app.run_flags()
OUT = flags.DEFINE_string("out", None, "directory to write to", required=True)
AS_OF = flags.DEFINE_string(
    "as_of", None, "embed users as of this time: ISO 8601, UTC; default: the end of training"
)
PRECISION = flags.DEFINE_enum("precision", "float16", ["float16", "float32"], "of the vectors")


def main(argv: Sequence[str]) -> int:
    del argv
    config, workdir, out = CONFIG.value, app.workdir_of(WORKDIR), app.directory("--out", OUT.value)
    mesh = sharding.mesh_of(config)
    system = registry.create(config, mesh, app.verifies())
    as_of = system.as_of
    if AS_OF.value is not None:
        as_of = timestamps.parse("--as_of", AS_OF.value)
    state = checkpoint.load_chosen(workdir, config, system, mesh, app.verifies())
    manifest = {
        **checkpoint.identity(config, system, state.params, int(state.step)),
        "as_of": timestamps.iso(as_of),
        "precision": PRECISION.value,
    }
    with contextlib.ExitStack() as stack:
        with processes.first_before_others():
            if processes.is_first():
                stack.enter_context(files.only_writer(out))
                written = _claim(out, manifest)
        embedded = embedded_lib.tables(config, system, state.params, as_of)
        names = {name: embeddings.file_names(name, len(x)) for name, x in embedded.items()}
        if processes.is_first():
            written = {file: written.get(file) for table in names.values() for file in table}
            _write_manifest(out, {**manifest, "files": written})
        for name, shards in embedded.items():
            paths = [out / file for file in names[name]]
            missing = [False] * len(paths)
            if processes.is_first():
                missing = [not _is_there(path, written) for path in paths]
            missing = processes.as_first(np.array(missing))
            progress = tqdm.tqdm(shards, name, unit="file", disable=not processes.is_first())
            for path, shard, wanted in zip(paths, progress, missing, strict=True):
                if not wanted:
                    continue
                ids, vectors = shard()
                if processes.is_first():
                    with files.replacing(path) as file:
                        table = embeddings.to_arrow(ids, vectors, as_of, PRECISION.value)
                        pq.write_table(table, file)
                    written[path.name] = checksums.of_file(path)
                    _write_manifest(out, {**manifest, "files": written})
    print(f"{out}: {', '.join(embedded)} as of {timestamps.iso(as_of)}, step {manifest['step']:,}")
    return 0


def _claim(out: epath.Path, manifest: dict[str, int | str]) -> dict[str, Any]:
    """The files of a manifest from the same run; otherwise writes a new manifest."""
    path = out / embeddings.MANIFEST
    if path.exists():
        found = checksums.read(path)
        written = found.pop("files")
        for name in found | manifest:
            if found.get(name) != manifest.get(name):
                raise InputError(
                    f"{out} holds embeddings of {name} {found.get(name)}, not "
                    f"{manifest.get(name)}; choose another --out"
                )
        return written
    # A killed process may have left the lock, or a manifest that was not yet renamed.
    others = {file.name for file in out.iterdir()} - {files.LOCK_FILE, f"{embeddings.MANIFEST}.tmp"}
    if others:
        raise InputError(
            f"{out} is not empty and holds no {embeddings.MANIFEST}; choose another --out"
        )
    _write_manifest(out, {**manifest, "files": {}})
    return {}


def _write_manifest(out: epath.Path, manifest: dict[str, Any]) -> None:
    with files.replacing(out / embeddings.MANIFEST) as file:
        file.write(checksums.dump(manifest).encode())


def _is_there(path: epath.Path, written: dict[str, Any]) -> bool:
    """Whether a file agrees with the manifest; by its checksum, if checksums are compared."""
    if not written[path.name]:
        return False
    if not app.verifies():
        return path.exists()
    try:
        checksums.verify_file(path, written[path.name])
    except InputError:
        return False
    return True


if __name__ == "__main__":
    app.run(main)
