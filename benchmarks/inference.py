"""Embeds all items of a large random graph by PinSage, layer by layer.

    python -m benchmarks.inference [--items=1000000] [--edges=20000000] [--workdir=work/inference]

Two convolutions of 256 numbers, 50 neighbours, content of 256 numbers, parameters as initialised.
Prints the seconds of the walks and of the embeddings, and the most memory that the process had
(ru_maxrss), which counts the pages of memory-mapped files that it touched. Everything in --workdir
is removed at the end.
"""

import pathlib
import resource
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks import graphs
from pinjax import config_flag
from pinjax.data.spec import Spec
from pinjax.distributed import sharding
from pinjax.graph import csr, neighbourhoods
from pinjax.graph.walks import Walks
from pinjax.systems import layerwise, pinsage

_ITEMS = flags.DEFINE_integer("items", 1_000_000, "of the graph")
_EDGES = flags.DEFINE_integer("edges", 20_000_000, "of the graph")
_WORKDIR = flags.DEFINE_string("workdir", "work/inference", "for the graph and its tables")

DIM, NEIGHBOURS = 256, 50


def main(_):
    pathlib.Path(_WORKDIR.value).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=_WORKDIR.value) as name:
        directory, items = pathlib.Path(name), _ITEMS.value
        graphs.random(_EDGES.value, directory / "graph", _EDGES.value // items)
        graph = csr.read(directory / "graph")
        started = time.perf_counter()
        walks = Walks(number=100, steps=3, restart=0.5, top=NEIGHBOURS)
        neighbourhoods.write(directory / "table", graph, walks, seed=0)
        table = neighbourhoods.open(directory / "table")
        print(f"neighbourhoods of {items:,} items: {time.perf_counter() - started:,.0f} s")

        config = config_flag.load("configs/pinsage.py")
        config.data.update(pairs_from="groups", neighbours=NEIGHBOURS)
        config.model.update(width=DIM, message_width=DIM, embedding_dim=DIM)
        edges = {"train": _EDGES.value, "valid": 0, "test": 0}
        groups = len(graph.groups.offsets) - 1
        spec = Spec(
            *("random", items), num_existing=items, content_dim=DIM, edges=edges, num_groups=groups
        )
        trainable = pinsage.build(config, sharding.make_mesh(), spec)
        params, _ = jax.jit(trainable.init)(jax.random.key(0))
        rng, content = np.random.default_rng(1), np.empty((items, DIM), jnp.bfloat16)
        for start in range(0, items, 2**16):
            part = content[start : start + 2**16]
            part[:] = rng.standard_normal(part.shape, np.float32)
        constants = {
            "content": jnp.asarray(content),
            "log_degree": jnp.zeros(items),
            "texts": None,
        }
        started = time.perf_counter()
        states = layerwise.embed_items(trainable.embedders, params, constants, table, directory)
        seconds = time.perf_counter() - started
        assert np.isfinite(states[-1]).all()
        print(f"embeddings: {seconds:,.0f} s, {items / seconds:,.0f} items a second")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory, with pages of files: {memory:.1f} GiB")


if __name__ == "__main__":
    app.run(main)
