"""Embeds all items of a graph layer by layer, each item once a layer (PinSage, §3.4).

The state of an item after a layer is its vector and, beside it, its message to other items in the
next layer, or after the last layer its embedding. A layer reads an item's own vector and its
neighbours' messages from the states below. States are memory-mapped files, so that the graph and
its vectors may be larger than memory.
"""

import functools
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh

from pinjax.data import graph_batches
from pinjax.distributed import batching, sharding
from pinjax.graph import groups
from pinjax.graph.walks import Neighbours
from pinjax.models import importance_pooling, pinsage
from pinjax.systems import node_table, system

_ROWS = 2**12  # items, or groups, at a time


def embedders(
    model: pinsage.PinSage,
    inputs: node_table.NodeTable,
    mesh: Mesh,
    sizes: graph_batches.BatchSizes,
    input_dim: int,
) -> dict[str, system.Embedder]:
    """The functions from the states below to the states of a layer, and to groups' embeddings.

    Args:
      model: of the run.
      inputs: the features of items.
      mesh: of the devices.
      sizes: of items, neighbours, and items of a group.
      input_dim: numbers of an item's features.
    """
    on_device = model.clone(table_layout=model.table_layout.on_device())

    def state(bound: pinsage.PinSage, layer: int, z: jax.Array) -> jax.Array:
        last = layer == model.layers
        return jnp.concatenate([z, bound.head(z) if last else bound.messages(layer, z)], axis=1)

    def of_inputs(params: Any, constants: dict[str, Any], rows: jax.Array) -> jax.Array:
        bound = on_device.bind(params)
        return state(bound, 0, bound.inputs(*inputs.gather(constants, rows)))

    def of_layer(layer: int, params: Any, constants: Any, rows: dict[str, jax.Array]) -> jax.Array:
        bound = on_device.bind(params)
        pooled = importance_pooling.pool(*flat(rows), model.pooling)
        return state(bound, layer, bound.combine(layer - 1, rows["own"], pooled))

    def of_groups(params: Any, constants: Any, rows: dict[str, jax.Array]) -> jax.Array:
        return on_device.bind(params).group(*flat(rows))

    def embedder(function: Callable[..., jax.Array], constants: tuple[str, ...], batch: Any):
        by_device = sharding.shard_map_rows(mesh, model.table_layout, function)
        return system.Embedder(sharding.jit_over_rows(mesh, by_device), constants, batch)

    rows = min(_ROWS, sizes.items)

    def read(number: int, dim: int) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            "others": jax.ShapeDtypeStruct((rows, number, dim), jnp.float32),
            "weights": jax.ShapeDtypeStruct((rows, number), jnp.float32),
        }

    made = {"layer 0": embedder(of_inputs, node_table.NAMES, jax.ShapeDtypeStruct((rows,), "i4"))}
    width = input_dim
    for layer in range(1, model.layers + 1):
        batch = read(sizes.neighbours, model.message_width)
        batch["own"] = jax.ShapeDtypeStruct((rows, width), jnp.float32)
        made[f"layer {layer}"] = embedder(functools.partial(of_layer, layer), (), batch)
        width = model.width
    return made | {"groups": embedder(of_groups, (), read(sizes.group_items, width))}


def flat(rows: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Neighbours' messages, their row indices, and their weights; padding is -1, its weight 0."""
    others, weights = rows["others"], rows["weights"]
    places = jnp.arange(weights.size, dtype=jnp.int32).reshape(weights.shape)
    others = others.reshape(-1, others.shape[-1])
    return others, jnp.where(weights > 0, places, -1), weights


def embed_items(
    functions: dict[str, system.Embedder],
    params: Any,
    constants: dict[str, Any],
    table: Neighbours,
    scratch: epath.PathLike,
) -> np.ndarray:
    """The states of all items after the last layer.

    Args:
      functions: of `embedders`.
      params: of the model.
      constants: of the run.
      table: neighbours of all items.
      scratch: a directory for temporary files.

    Returns:
      float32 (items, vector and embedding), a memory map.
    """
    items, below = len(table.ids), None
    for layer in range(len(functions) - 1):
        embedder = functions[f"layer {layer}"]
        embed = functools.partial(embedder, params, constants)
        with tempfile.TemporaryFile(dir=scratch) as file:  # which a map keeps open
            for start in range(0, items, _ROWS):
                rows = np.arange(start, min(start + _ROWS, items), dtype=np.int32)
                batch = rows
                if layer:
                    own = embedder.batch["own"].shape[1]
                    batch = {
                        "own": below[rows, :own],
                        **read(below[:, own:], table.ids[rows], table.weights[rows]),
                    }
                state = batching.in_batches(embed, batch, min(_ROWS, items))
                file.write(np.asarray(state, np.float32, order="C"))
            file.flush()
            below = np.memmap(file, np.float32, "r", shape=(items, state.shape[1]))
    return below


def embed_groups(
    functions: dict[str, system.Embedder],
    params: Any,
    vectors: np.ndarray,
    members: np.ndarray,
) -> np.ndarray:
    """The embeddings of groups, float32 (groups, dim).

    Args:
      functions: of `embedders`.
      params: of the model.
      vectors: float32 (items, width), of all items after the last layer.
      members: int32 (groups, n), items, padded with -1.
    """
    embed, parts = functools.partial(functions["groups"], params, {}), []
    for start in range(0, len(members), _ROWS):
        ids = members[start : start + _ROWS]
        batch = read(vectors, ids, groups.equal_weights(ids))
        parts.append(batching.in_batches(embed, batch, min(_ROWS, len(members))))
    return np.concatenate(parts)


def read(sent: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> dict[str, np.ndarray]:
    """What the neighbours of some rows send, and their weights."""
    return {"others": sent[np.maximum(ids, 0)], "weights": weights}
