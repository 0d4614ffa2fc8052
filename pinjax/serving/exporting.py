"""Writes what a service needs of a trained run, in the format of `exported`."""

import re
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath
from jax import export
from ml_collections import ConfigDict
from safetensors import numpy as safetensors

from pinjax import checksums, files
from pinjax.data import catalogue
from pinjax.distributed import sharded_table, sharding
from pinjax.errors import InputError
from pinjax.serving import exported
from pinjax.systems import exports, registry
from pinjax.systems import system as system_lib

PLATFORMS = ("cpu", "cuda", "tpu")


def write(
    out: epath.Path,
    config: ConfigDict,
    system: system_lib.System,
    params: Any,
    as_of: int,
    identity: Mapping[str, Any],
) -> exports.Exports:
    """Writes a directory, which appears complete or not at all.

    Args:
      out: the directory.
      config: of the run.
      system: of the run.
      params: of the run.
      as_of: unix seconds, of what is known of items.
      identity: of the run, for the manifest.

    Raises:
      InputError: if the directory exists, or the system has nothing to export.
    """
    if system.export is None:
        raise InputError(f"system={config.system!r} has nothing to export; embed by it")
    if out.exists():
        raise InputError(f"{out} exists; choose another --out")
    if config.train.shard_tables:
        system, params = _unsharded(config, system, params)
    made = system.export(params, as_of)
    if "items" not in made.programs:
        made.tables[exported.ITEM_VECTORS] = _item_vectors(system, params, as_of)
    leaves = jax.tree.leaves_with_path(params)
    flat = {sharding.path_name(path): np.asarray(x) for path, x in leaves}
    with files.new_directory(out) as directory:
        (directory / exported.PARAMS).write_bytes(safetensors.save(flat))
        for name, program in made.programs.items():
            tables = {table: made.tables[table] for table in program.tables}
            serialized = _export(program, flat, tables)
            (directory / exported.PROGRAM.format(name)).write_bytes(serialized)
        for name, table in made.tables.items():
            np.save(directory / exported.TABLE.format(name), table)
        for name, ids in {"items": system.dataset.catalogue.ids, **made.ids}.items():
            column = pa.table({"id": catalogue.id_array(ids)})
            pq.write_table(column, directory / exported.IDS.format(name))
        for name, source in made.files.items():
            shutil.copyfile(source, directory / name)
        manifest = {
            "format": exported.FORMAT,
            **identity,
            "jax": jax.__version__,
            "platforms": PLATFORMS,
            "inputs": made.inputs,
            "tables": {name: str(table.dtype) for name, table in made.tables.items()},
        }
        (directory / exported.MANIFEST).write_text(checksums.dump(manifest))
    return made


def _export(
    program: exports.Program, params: dict[str, np.ndarray], tables: dict[str, np.ndarray]
) -> bytes:
    """A program as bytes, for all platforms, of flat parameters."""
    scope = export.SymbolicScope()
    inputs = {
        name: jax.ShapeDtypeStruct(export.symbolic_shape(shape, scope=scope), dtype)
        for name, (shape, dtype) in program.inputs.items()
    }

    def function(params: dict[str, jax.Array], *arguments: Any) -> jax.Array:
        return program.function(_nested(params), *arguments)

    abstract = jax.eval_shape(lambda *arrays: arrays, params, tables)
    made = export.export(jax.jit(function), platforms=PLATFORMS)(*abstract, inputs)
    return made.serialize()


def _item_vectors(system: system_lib.System, params: Any, as_of: int) -> np.ndarray:
    """The vectors of all items by row: float32 (items, dim), zeros where there is none."""
    items = system.serve(params, as_of).items
    vectors = items.embed(items.rows)
    found = np.zeros((len(system.dataset.catalogue), vectors.shape[1]), np.float32)
    found[items.rows] = vectors
    return found


def _unsharded(
    config: ConfigDict, system: system_lib.System, params: Any
) -> tuple[system_lib.System, Any]:
    """The system without `train.shard_tables`, and parameters with rows in their own order."""
    layout = sharding.table_layout(sharding.mesh_of(config), config.train)
    config = config.copy_and_resolve_references()
    config.train.update(shard_tables=False, model_devices=1)
    mesh = sharding.make_mesh(jax.devices()[:1])
    system = registry.create(config, mesh, verify=False, fitted=system.dataset.fitted)
    like, _ = jax.eval_shape(system.trainable.init, jax.random.key(0))

    def in_order(path: Any, leaf: jax.Array, like: jax.ShapeDtypeStruct) -> np.ndarray:
        leaf = np.asarray(leaf)
        if not re.search(sharded_table.PARAMETERS, sharding.path_name(path)):
            return leaf
        return leaf[layout.lies_at(np.arange(len(like)), len(leaf))]

    return system, jax.tree.map_with_path(in_order, params, like)


def _nested(flat: dict[str, jax.Array]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, leaf in flat.items():
        *parents, last = name.split("/")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = leaf
    return nested
