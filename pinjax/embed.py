"""Writes the embeddings of a run: what an index, a ranker or a notebook takes.

    python -m pinjax.embed --config=configs/pinnerformer.py --workdir=DIR --out=DIR

Each table is a number of Parquet files, OUT/users-00000-of-00004.parquet and so on, with the own
ids, a vector each, and the moment that the vectors know the past of. OUT/manifest.json names the
checkpoint, the data set and the config that they come from. A call that was cut off is made again:
it writes only the files that are missing.
"""

import datetime
import hashlib
import json
from collections.abc import Sequence

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tqdm
from absl import flags
from etils import epath

from pinjax import app
from pinjax.data import schema, tables
from pinjax.errors import InputError
from pinjax.systems import registry
from pinjax.systems import system as system_lib
from pinjax.training import checkpoint, processes, sharding

CONFIG, WORKDIR = app.run_flags()
OUT = flags.DEFINE_string("out", None, "directory to write to", required=True)
MOMENT = flags.DEFINE_string(
    "moment", None, "what users did up to then counts: ISO 8601, UTC; default: all of training"
)
PRECISION = flags.DEFINE_enum("precision", "float16", ["float16", "float32"], "of the vectors")


def main(argv: Sequence[str]) -> int:
    del argv
    config, workdir, out = CONFIG.value, app.workdir_of(WORKDIR), app.directory("--out", OUT.value)
    mesh = sharding.make_mesh(model=config.train.model_devices)
    system = registry.create(config, mesh)
    moment = system.embed_moment
    if MOMENT.value is not None:
        moment = tables.moment("--moment", MOMENT.value)
        if not 0 <= moment < 2**32:
            raise InputError(f"--moment is {MOMENT.value!r}; expected one from 1970 to 2106")
    state = checkpoint.load_chosen(workdir, config, system, mesh)
    manifest = {
        "step": int(state.step),
        "checkpoint": _hash_of_arrays(state.params),
        **system.identity,
        "config": hashlib.sha256(config.to_json(sort_keys=True).encode()).hexdigest(),
        "moment": _iso(moment),
        "precision": PRECISION.value,
    }
    with processes.first_before_others():
        _claim(out, manifest)
    embedded = system.embed(state.params, moment)
    for name, shards in embedded.items():
        paths = [
            out / f"{name}-{number:05d}-of-{len(shards):05d}.parquet"
            for number in range(len(shards))
        ]
        missing = processes.as_first(np.array([not path.exists() for path in paths]))
        progress = tqdm.tqdm(shards, name, unit="file", disable=not processes.is_first())
        for path, shard, wanted in zip(paths, progress, missing, strict=True):
            if wanted:
                _write(path, shard, moment)
    print(f"{out}: {', '.join(embedded)} as of {_iso(moment)}, step {manifest['step']:,}")
    return 0


def _write(path: epath.Path, shard: system_lib.Shard, moment: int) -> None:
    ids, vectors = shard()
    if not processes.is_first():
        return
    table = pa.table(
        {
            "id": pa.array(ids),
            "vector": schema.vector_array(vectors.astype(PRECISION.value)),
            "moment": pa.array(np.full(len(ids), moment), pa.timestamp("s", tz="UTC")),
        }
    )
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        pq.write_table(table, file)
    temporary.replace(path)


def _claim(out: epath.Path, manifest: dict[str, str | int]) -> None:
    """Writes the manifest, or checks that what is there comes from the same."""
    path = out / "manifest.json"
    if path.exists():
        found = json.loads(path.read_text())
        for name, value in manifest.items():
            if found.get(name) != value:
                raise InputError(
                    f"{out} holds embeddings of {name} {found.get(name)}, not {value}; choose "
                    "another --out"
                )
        return
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} is not empty and holds no {path.name}; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(manifest, indent=2) + "\n")
    temporary.replace(path)


def _hash_of_arrays(tree) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(processes.whole(leaf).tobytes())
    return digest.hexdigest()


def _iso(moment: int) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat()


if __name__ == "__main__":
    app.run(main)
