"""Exports of all systems on pinworld/tiny."""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np

from pinjax.data import dataset as dataset_lib
from pinjax.data import fitted
from pinjax.distributed import sharding
from pinjax.serving import exported, exporting
from pinjax.systems import embedded, registry

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"
DAY = 86_400


def write(out, config, system, params, as_of):
    """Exports, with no checks of annotations: the symbolic size of a batch is no int."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        exporting.write(
            out, config, system, params, as_of, {"step": 0, "as_of": "now", "checkpoint": "this"}
        )
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def random_params(system):
    """Parameters without zeros, such as gains have at first, by which a fault would not show."""
    like, _ = jax.eval_shape(system.trainable.init, jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(0.1 * rng.standard_normal(x.shape, "f4")), like)


def random_state(system):
    """Random parameters and empty sketches; to compile their `init` would take longer."""
    sketches = jax.jit(lambda key: system.trainable.init(key)[1])
    return random_params(system), sketches(jax.random.key(1))


class Run:
    """A system on pinworld/tiny with random parameters, and its export."""

    def __init__(self, name, data_dir, out, **model):
        self.config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]("test")
        self.config.data.dir = str(data_dir)
        self.config.model.update(model)
        if name == "pinnerformer":  # all options that are not the paper's, and 16 bits
            self.config.data.update(pca_dim=4, popularity_window=30 * DAY)
            self.config.model.update(history_sums=True, gated_layers=2)
            self.config.model.features = (*self.config.model.features, "request_time")
        earlier = None
        if model == {"encoder": "bag"}:  # it went on from a run with another vocabulary
            names = dataset_lib.load(self.config.data.name, data_dir).token_names
            arrays = {"tokens": fitted.pack(["unigram xyz", *names[::-2]])}
            earlier = fitted.Fitted(arrays, former="x")
        mesh = sharding.make_mesh(jax.devices()[:1])
        self.system = registry.create(self.config, mesh, fitted=earlier)
        self.dataset = self.system.dataset
        self.params = random_params(self.system)
        self.as_of = self.system.dataset.spec.train_end
        write(out, self.config, self.system, self.params, self.as_of)
        self.exported = exported.load(out)

    def embedded(self, table):
        """Own ids and vectors of a table, by training's code."""
        tables = embedded.tables(self.config, self.system, self.params, self.as_of)
        shards = [shard()[:2] for shard in tables[table]]
        ids, vectors = (np.concatenate(x) for x in zip(*shards, strict=True))
        return ids.tolist(), vectors


def histories_of(dataset, as_of):
    """(user, raw history) of all users who had acted by then, with some actions of later."""
    spec, ids = dataset.spec, dataset.catalogue.ids
    for split in ("train", "valid", "test"):
        chunk = dataset.chunk(split, 0, 2**20)
        for user, start, stop in zip(chunk.users, chunk.offsets, chunk.offsets[1:], strict=False):
            records = chunk.records[start:stop]
            if (records["time"] <= as_of).any():
                yield (
                    user,
                    [
                        {
                            "item": ids[record["item"]].item(),
                            "action": spec.actions[record["action"]],
                            "surface": spec.surfaces[record["surface"]],
                            "time": int(record["time"]),
                            "duration": float(record["duration"]),
                        }
                        for record in records
                    ],
                )
