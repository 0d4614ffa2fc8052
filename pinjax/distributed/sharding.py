"""The device mesh, and the sharding of arrays on it."""

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from pinjax.distributed import sharded_table
from pinjax.errors import InputError


def make_mesh(devices: Sequence[jax.Device] | None = None, model: int = 1) -> Mesh:
    """A mesh of devices, by default all of all processes; `model` of them are along axis `model`.

    A batch is sharded over `data`. Only the rules of `of_state` shard arrays over `model`.

    Raises:
      InputError: if the devices do not make such a mesh.
    """
    devices = list(jax.devices() if devices is None else devices)
    if model < 1 or len(devices) % model:
        raise InputError(f"train.model_devices={model} does not divide {len(devices)} devices")
    shape, names = (len(devices) // model, model), ("data", "model")
    mesh = Mesh(np.array(devices).reshape(shape), names)
    # If the chips' network has such axes, neighbours in the mesh are neighbours in the network. But
    # processes read the rows of a batch in their order, so the mesh keeps JAX's order of devices if
    # the network's order would separate the devices of a process.
    with contextlib.suppress(NotImplementedError):
        near = jax.make_mesh(shape, names, (AxisType.Auto, AxisType.Auto), devices=devices)
        processes = [device.process_index for device in near.devices.flat]
        mesh = near if processes == sorted(processes) else mesh
    # Devices that have the same rows of a batch must belong to one process.
    if any(len({device.process_index for device in row}) > 1 for row in mesh.devices):
        raise InputError(f"train.model_devices={model} are not all of one process")
    return mesh


def mesh_of(config: ConfigDict, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of a run; only one that is trained has devices along axis `model`."""
    return make_mesh(devices, config.train.model_devices if "train" in config else 1)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def over_data(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec("data"))


def replicate(mesh: Mesh) -> Callable[[Any], Any]:
    """Replicates arrays over all devices; for use inside a compiled function."""
    return functools.partial(lax.with_sharding_constraint, shardings=replicated(mesh))


def shard_map_rows(
    mesh: Mesh, layout: sharded_table.Layout, function: Callable[..., jax.Array]
) -> Callable[..., jax.Array]:
    """(params, constants, rows) -> function of them, run by each device on its share of the rows.

    It is for functions with flattened ragged arrays inside, which have no axis to shard. Constant
    tables and parameters that are tables have the given layout, other parameters are replicated.
    `rows` and the result are sharded over `data` by their first axis.
    """
    over_data = PartitionSpec("data")

    def place(path, leaf) -> PartitionSpec:
        is_table = re.search(sharded_table.PARAMETERS, path_name(path))
        return layout.spec if is_table else PartitionSpec()

    def apply(params: Any, constants: Any, rows: jax.Array) -> jax.Array:
        of_params = jax.tree_util.tree_map_with_path(place, params)
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(of_params, layout.spec, over_data),
            out_specs=over_data,
            check_vma=False,  # else every scan inside would have to know of the mesh
        )(params, constants, rows)

    return apply


def jit_over_rows(
    mesh: Mesh, function: Callable[[Any, Any, Any], jax.Array], pad: bool = True
) -> Callable[..., Any]:
    """(a, b, rows) -> function(a, b, rows), compiled; the rows are split over the devices.

    It is for functions that compute row by row. The result is replicated. `a` and `b` may have any
    sharding.

    Args:
      mesh: of the devices.
      function: of `a`, `b` and `rows`, a pytree of arrays.
      pad: the arrays of `rows` have the same length, which need not be divisible by the number of
        devices. Without, each has a length that is.
    """

    def split(a, b, rows):
        count = len(jax.tree.leaves(rows)[0])
        more = -count % mesh.shape["data"] if pad else 0
        if more:
            rows = jax.tree.map(
                lambda x: jnp.pad(x, [(0, more), *[(0, 0)] * (x.ndim - 1)], mode="edge"), rows
            )
        result = function(a, b, lax.with_sharding_constraint(rows, over_data(mesh)))
        return result[:count] if more else result

    return jax.jit(split, out_shardings=replicated(mesh))


def run_replicated(mesh: Mesh, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of replicated arguments, which every device computes in full.

    The compiler alone may split the work, and then communication costs more than it saves.
    """
    spec = PartitionSpec()
    return jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)


def path_name(path: Any) -> str:
    """A leaf's path in a pytree, as "params/params/item_input/id/embedding"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def of_state(mesh: Mesh, config: ConfigDict, state: Any) -> Any:
    """The sharding of each array of a train state.

    Arrays are replicated unless the config says otherwise. `shard` is a list of rules,
    "PATTERN = AXES; ...". A rule applies to arrays in whose path, such as
    "params/params/item_input/id/embedding", the regular expression PATTERN is found. AXES are mesh
    axes, one for each dimension: "." is none, "data,model" is both; dots at the end may be left
    out. The first rule that applies counts; the optimiser's moments follow their parameter. With
    `shard_optimizer`, moments without a rule are sharded over `data`, by the first dimension that
    its size divides (ZeRO, Rajbhandari et al., SC 2020, stage 1). With `shard_tables`, learned
    tables are sharded by rows over all devices.

    Args:
      mesh: of `make_mesh`.
      config: the `train` section of a run's config.
      state: a train state, of arrays or shapes.

    Returns:
      pytree of `NamedSharding`.

    Raises:
      InputError: if a rule cannot be read, does not fit an array it applies to, or applies to none.
    """
    rules, used = _rules(mesh, config), {sharded_table.PARAMETERS}

    def place(path, leaf) -> NamedSharding:
        name = path_name(path)
        for pattern, axes in rules:
            if leaf.ndim and re.search(pattern, name):
                used.add(pattern)
                _check_fit(mesh, pattern, axes, name, leaf.shape)
                return NamedSharding(mesh, PartitionSpec(*axes))
        if config.shard_optimizer and name.startswith("opt_state"):
            for dimension, size in enumerate(leaf.shape):
                if size and size % mesh.shape["data"] == 0:
                    return NamedSharding(mesh, PartitionSpec(*[None] * dimension, "data"))
        return replicated(mesh)

    placed = jax.tree_util.tree_map_with_path(place, state)
    for pattern, _ in rules:
        if pattern not in used:
            raise InputError(f"train.shard: no parameter's path has {pattern!r} in it")
    return placed


def _rules(mesh: Mesh, config: ConfigDict) -> list[tuple[str, tuple[Any, ...]]]:
    """The rules in order: a pattern, and the mesh axes of each dimension."""
    rules = []
    for rule in filter(str.strip, config.shard.split(";")):
        pattern, equals, axes = (part.strip() for part in rule.rpartition("="))
        named = [None if axis == "." else tuple(axis.split(",")) for axis in axes.split()]
        names = [name for axis in named if axis for name in axis]
        unknown = set(names) - set(mesh.axis_names)
        if not equals or not named or unknown or len(set(names)) < len(names):
            raise InputError(
                f"train.shard: {rule.strip()!r} is not PATTERN = AXES, for each dimension "
                f"one of {', '.join(mesh.axis_names)} that no other has, or . for none"
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(f"train.shard: {pattern!r} is no pattern: {error}") from None
        rules.append((pattern, tuple(named)))
    return rules + [(sharded_table.PARAMETERS, (mesh.axis_names,))] * config.shard_tables


def _check_fit(
    mesh: Mesh, pattern: str, axes: tuple[Any, ...], name: str, shape: tuple[int, ...]
) -> None:
    """Raises if the axes of a rule do not divide the dimensions of an array."""
    parts = [math.prod(mesh.shape[axis] for axis in part or ()) for part in axes]
    if len(parts) > len(shape) or any(s % p for s, p in zip(shape, parts, strict=False)):
        raise InputError(
            f"train.shard: {pattern!r} cuts {name} {list(shape)} into {parts} parts, which do "
            "not divide it"
        )


def place_batch(mesh: Mesh, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The global batch on the mesh, from each process's share of its rows."""
    sharding, processes = over_data(mesh), jax.process_count()
    return {
        name: jax.make_array_from_process_local_data(
            sharding, rows, (len(rows) * processes, *rows.shape[1:])
        )
        for name, rows in batch.items()
    }


def table_layout(mesh: Mesh, config: ConfigDict) -> sharded_table.Layout:
    """The layout of large tables, by the section `train` of a run's config."""
    return sharded_table.Layout(mesh if config.shard_tables else None)


def place_table(mesh: Mesh, layout: sharded_table.Layout, table: np.ndarray) -> jax.Array:
    """Places a table that every process has on the mesh, with the layout.

    A process makes only the rows of its own devices; `jax.device_put` would first bring the full
    table to all devices of all processes.
    """
    return jax.make_array_from_callback(
        (layout.num_rows(len(table)), *table.shape[1:]),
        layout.sharding or replicated(mesh),
        lambda index: layout.lay_out(table, index[0]),
    )


def place_rows(
    mesh: Mesh,
    layout: sharded_table.Layout,
    shape: tuple[int, ...],
    dtype: Any,
    parts: Iterable[tuple[np.ndarray, np.ndarray]],
) -> jax.Array:
    """Places a table on the mesh, with the layout, of which a process keeps its devices' rows.

    Args:
      mesh: of the devices.
      layout: of the table.
      shape: of the table.
      dtype: of the table.
      parts: (rows, their values), each int64 (n,) and (n, ...). Of a row in several parts the last
        one counts; a row in none is zero.
    """
    shape = (layout.num_rows(shape[0]), *shape[1:])
    place = layout.sharding or replicated(mesh)

    def bounds(index: tuple[slice, ...]) -> tuple[int, int]:
        return index[0].indices(shape[0])[:2]

    own: dict[tuple[int, int], np.ndarray] = {}
    for start, stop in set(map(bounds, place.addressable_devices_indices_map(shape).values())):
        own[start, stop] = np.zeros((stop - start, *shape[1:]), dtype)
    for rows, values in parts:
        at = layout.lies_at(rows, shape[0])
        for (start, stop), table in own.items():
            inside = (start <= at) & (at < stop)
            table[at[inside] - start] = values[inside]
    return jax.make_array_from_callback(shape, place, lambda index: own[bounds(index)])


def abstract(mesh: Mesh, tree: Any) -> Any:
    """The abstract shapes of arrays that are replicated over the mesh."""
    return jax.tree.map(lambda x: _shape(x.shape, x.dtype, replicated(mesh)), tree)


def abstract_batch(mesh: Mesh, like: Any, rows: int) -> Any:
    """The abstract shapes of a batch of `rows` rows on the mesh, from a batch of any size."""
    sharding = over_data(mesh)
    return jax.tree.map(lambda x: _shape((rows, *x.shape[1:]), x.dtype, sharding), like)


def abstract_table(
    mesh: Mesh, layout: sharded_table.Layout, shape: tuple[int, ...], dtype: Any
) -> jax.ShapeDtypeStruct:
    """The abstract shape of a table of `shape` on the mesh."""
    shape = layout.num_rows(shape[0]), *shape[1:]
    return _shape(shape, dtype, layout.sharding or replicated(mesh))


def _shape(shape: tuple[int, ...], dtype: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def check_batch(mesh: Mesh, name: str, size: int) -> None:
    """Raises if the devices do not divide a global batch."""
    devices = mesh.shape["data"]
    if size % devices:
        raise InputError(f"{name}={size} is not divisible by the {devices} devices of the mesh")


def check(mesh: Mesh, config: ConfigDict) -> None:
    """Raises for rules that cannot be read, and for tables that the devices do not divide."""
    _rules(mesh, config)
    if config.shard_tables and sharded_table.STRIPES % mesh.size:
        raise InputError(
            f"train.shard_tables: {mesh.size} devices do not divide a table's "
            f"{sharded_table.STRIPES} stripes; expected a power of two"
        )
