"""The neighbourhoods of all items on disk, for graphs whose table is larger than memory.

    NAME/
      ids.npy      int32 (items, T)
      weights.npy  float32 (items, T)

The name of a table tells what it was made of, so that none is used for anything else.
"""

import dataclasses
import hashlib
import json

import numpy as np
from etils import epath

from pinjax import checksums, files, signals
from pinjax.graph import csr, mapped
from pinjax.graph.walks import Neighbours, Walks, neighbourhoods

ROWS_AT_A_TIME = 2**16
_VERSION = 1  # of the walks: counts up when they draw other neighbours


def ensure(
    directory: epath.PathLike, graph: csr.Graph, digest: str, walks: Walks, seed: int
) -> Neighbours:
    """The neighbourhoods of all items as memory maps, made unless they are there.

    Args:
      directory: of tables.
      graph: both sides of it.
      digest: of the graph.
      walks: how to walk.
      seed: of the walks.

    Raises:
      InputError: if what is there is damaged.
      OSError: if they cannot be written.
    """
    made_of = json.dumps([_VERSION, digest, dataclasses.asdict(walks), seed], sort_keys=True)
    name = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    table = epath.Path(directory) / f"neighbourhoods-{name}"
    if table.exists():
        checksums.verify(table)
    else:
        write(table, graph, walks, seed)
    return open(table)


def write(
    directory: epath.PathLike,
    graph: csr.Graph,
    walks: Walks,
    seed: int,
    rows_at_a_time: int = ROWS_AT_A_TIME,
) -> None:
    """Writes the neighbourhoods of all items; if another process was first, its table stays.

    Args:
      directory: appears once it is complete.
      graph: both sides of it.
      walks: how to walk.
      seed: of the walks.
      rows_at_a_time: items whose neighbourhoods are in memory at once.

    Raises:
      OSError: if they cannot be written.
    """
    items = len(graph.items.offsets) - 1
    with files.new_directory(directory) as made:
        table = Neighbours(
            *(
                np.lib.format.open_memmap(made / f"{name}.npy", "w+", dtype, (items, walks.top))
                for name, dtype in (("ids", np.int32), ("weights", np.float32))
            )
        )
        for start in range(0, items, rows_at_a_time):
            signals.check()
            nodes = np.arange(start, min(start + rows_at_a_time, items), dtype=np.int32)
            rows = neighbourhoods(graph, nodes, walks, seed)
            for whole, part in zip(table, rows, strict=True):
                whole[start : start + len(nodes)] = part
        for whole in table:
            whole.flush()


def open(directory: epath.PathLike) -> Neighbours:
    """The memory maps of what `write` wrote."""
    directory = epath.Path(directory)
    return Neighbours(*(mapped.load(directory / f"{name}.npy") for name in Neighbours._fields))
