"""PinnerFormer's train step against the same model and loss in PyTorch: time, memory, FLOPs.

    python -m benchmarks.step --config=configs/pinnerformer.py:small --lengths=quarter
    python -m benchmarks.step --config=configs/pinnerformer.py:small --peer=PYTHON
    python -m benchmarks.step --config=configs/pinnerformer.py:paper --config.data.users=128

--lengths says how long the windows of the data.users users are, see short_windows.py. pinjax takes
them packed, several to a row, and for comparison alone, each in a row of its own. So does the peer,
pytorch_peer.py.

PYTHON has PyTorch; the default is .venv-peers/bin/python, see requirements-peers.txt. The peer uses
torch.compile, scaled_dot_product_attention or flex_attention, and fused AdamW, autocast if the
config says bfloat16, and recomputes blocks if it says model.remat. Its loss has two forms: plain,
with the full matrix of logits, and chunked, with 1,024 negatives at a time, whose logits are
recomputed in the backward pass. Both sides run on one device, a GPU if there is one.

A step has all of its parts: negatives, count-min sketch, forward, backward, clipping, AdamW. Only
PyTorch's schedule of the learning rate is left out, and on both sides the input: some batches lie
in the device's memory. They are random and have the config's shapes, which are all that the amount
of arithmetic depends on, so no data set is needed.

First, gradients of a smaller batch in float32 without dropout are compared, from the same weights
and negatives; then all take turns, so that they see the same machine. CPU time is that of all
threads of a process: on a CPU it says more than a step's time where other programs share the
machine. Peak memory is the allocated memory on a GPU, and on a CPU the process's resident set, with
imports and compiling. The matrix rate is the rate of one large product in the config's type.
"""

import contextlib
import functools
import itertools
import os
import pathlib
import re
import resource
import shutil
import statistics
import tempfile
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from benchmarks import peers, short_windows
from pinjax import app, config_flag
from pinjax.compiler import programs, rates
from pinjax.data import packing
from pinjax.distributed import sharding
from pinjax.errors import InputError
from pinjax.systems import pinnerformer
from pinjax.training import step as step_lib

CONFIG = app.run_config()
LENGTHS = flags.DEFINE_enum("lengths", "full", short_windows.KINDS, "of windows")
PEER = flags.DEFINE_string("peer", ".venv-peers/bin/python", "a Python that has PyTorch")
ROUNDS = flags.DEFINE_integer("rounds", 11, "rounds of measurements", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 5, "steps to a measurement", lower_bound=1)

LOSSES = ("plain", "chunked")
BATCHES = 4
CHECKED = 16  # users
TOLERANCE = 1e-3
# The config's values that the peer implements.
EXPECTED = {
    "system": "pinnerformer",
    "data.popularity_window": 0,
    "model.features": ("item", "action", "surface", "duration", "time"),
    "model.positions": True,
    "model.history_sums": False,
    "model.gated_layers": 0,
    "loss.equal_labels": False,
    "loss.terms": "joined",
    "loss.log_q": True,
    "loss.sketch_decay": 1.0,
}


def main(argv):
    del argv
    config = CONFIG.value
    for name, value in EXPECTED.items():
        if (found := functools.reduce(getattr, name.split("."), config)) != value:
            raise InputError(f"{name}={found!r}: the peer in PyTorch knows only {value!r}")
    if shutil.which(PEER.value) is None:
        raise InputError(f"--peer={PEER.value}: no such program; see requirements-peers.txt")
    users, length = config.data.users, config.data.length
    lengths = short_windows.draw(LENGTHS.value, users, length, np.random.default_rng(0))
    layouts = short_windows.layouts_of(config, lengths, 1)
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        them = {}
        # While memory is still empty: a process's peak begins with its parent's.
        for name, loss in itertools.product(layouts, LOSSES):
            source = pathlib.Path(directory, f"{name}.npz")
            target = pathlib.Path(directory, f"{name}, {loss}.npz")
            peer = peers.Peer(PEER.value, "pytorch_peer.py", source, target, loss, name)
            them[name, loss] = stack.enter_context(peer)
        compare(config, lengths, layouts, them, pathlib.Path(directory))


def compare(
    config: ConfigDict,
    lengths: np.ndarray,
    layouts: dict[str, packing.Layout],
    them: dict[tuple[str, str], peers.Peer],
    directory: pathlib.Path,
) -> None:
    mesh, rng = sharding.make_mesh(jax.devices()[:1]), np.random.default_rng(0)
    trainables = {
        name: short_windows.trainable_of(config, mesh, layout) for name, layout in layouts.items()
    }
    trainable = trainables["alone"]
    optimizer = step_lib.make_optimizer(config.train)
    state = jax.jit(functools.partial(step_lib.init_state, trainable, optimizer, 0))()

    def noisy(x):  # much is zero at first, which would hide differences
        return x + 0.02 * rng.standard_normal(x.shape, np.float32)

    state = state.replace(params=jax.tree.map(noisy, state.params))
    constants = simulate_constants(trainable, rng)
    drawn = [simulate_windows(trainable, state.params, some, rng) for some in lengths[:BATCHES]]
    some = {name: x[:CHECKED] for name, x in drawn[0].items()}
    small = short_windows.layouts_of(config, lengths[:1, :CHECKED], 1)

    gradients, batches = {}, {}
    for name, layout in layouts.items():
        batches[name] = [pack(trainables[name], windows, layout) for windows in drawn]
        few = small.get(name, small["alone"])
        checked = pack(trainables[name], some, few)
        gradients[name], inputs = check_step(config, mesh, state, constants, few, checked)
        source = directory / f"{name}.npz"
        save(source, config, state, constants, batches[name], inputs)
    expected = gradients.pop("alone")
    for name, found in gradients.items():
        check(f"pinjax, {name}", expected, found)
    device = {"gpu": "cuda"}.get(jax.default_backend(), "cpu")
    for peer in them.values():
        peer.tell()  # so that all compile at once
    for (name, loss), peer in them.items():
        if not (how := peer.hear()).endswith(device):
            raise InputError(f"--peer={PEER.value}: {how}, while JAX has a {jax.default_backend()}")
        with np.load(directory / f"{name}, {loss}.npz") as file:
            check(f"PyTorch, {name}, {loss}, {how}", expected, file)

    timers = make_timers(trainables, optimizer, state, constants, batches)

    def timer(key):
        return Taken(*map(float, them[key].ask(str(STEPS.value)).split()))

    timers |= {f"PyTorch, {', '.join(key)}": functools.partial(timer, key) for key in them}
    peaks = {name: first.peak for name, (first,) in peers.in_turn(timers, 1).items()}
    taken = peers.in_turn(timers, ROUNDS.value)
    flops = {
        name: programs.train_step(made, config.train, mesh).flops
        for name, made in trainables.items()
    }
    report(config, layouts, lengths[:BATCHES], taken, peaks, flops)


def check(name, expected, found):
    """Prints how far gradients and loss are from pinjax's with windows alone."""
    differences = peers.relative_differences(expected, found)
    worst = max(differences, key=differences.get)
    assert differences[worst] < TOLERANCE, f"{name} differs by {differences}"
    print(f"{name}: loss and gradients differ by {differences[worst]:.1e} at most ({worst})")


def simulate_constants(trainable, rng):
    """Content vectors and a corpus of all items."""
    items, corpus = (trainable.constants[name] for name in ("items", "corpus"))
    items = jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape, np.float32), x.dtype), items
    )
    corpus = jnp.arange(*corpus.shape, dtype=corpus.dtype)
    return {"items": items, "corpus": corpus}


def simulate_windows(trainable, params, lengths, rng):
    """Windows of these lengths, and their labels.

    A window has at most one label an action; one in sixteen is missing, and some are popular.
    """
    users = len(lengths)
    length, labels = (trainable.batch[name].shape[1] for name in ("item", "label_item"))
    (items,) = trainable.constants["corpus"].shape
    tower = params["params"]["user_tower"]

    def item(*shape):
        return (items * rng.random(shape) ** 3).astype(np.int32)

    first = length - lengths[:, None]
    exists = np.arange(length) >= first
    time = 1_600_000_000 + np.cumsum(rng.exponential(6 * 3600, exists.shape), axis=1)
    has_label = np.arange(labels) < lengths[:, None]
    has_label &= rng.random(has_label.shape) >= 1 / 16
    return {
        "item": np.where(exists, item(users, length), -1),
        "time": time * exists,
        "duration": rng.exponential(10, exists.shape) * exists,
        "surface": rng.integers(len(tower["surface"]["embedding"]), size=exists.shape) * exists,
        "action": rng.integers(len(tower["action"]["embedding"]), size=exists.shape) * exists,
        "request_time": time * exists,
        "label_position": rng.integers(first, length, has_label.shape),
        "label_item": np.where(has_label, item(users, labels), -1),
    }


def pack(trainable, windows, layout):
    """The batch of some windows."""
    batch = packing.pack(windows, layout)
    return {name: x.astype(trainable.batch[name].dtype) for name, x in batch.items()}


def check_step(config, mesh, state, constants, layout, batch):
    """Loss and gradients under PyTorch's names, and the batch and negatives they are taken on."""
    config = config.copy_and_resolve_references()
    config.model.update(dtype="float32", dropout=0.0)
    trainable = short_windows.trainable_of(config, mesh, layout)
    key = jax.random.key(1)
    with jax.default_matmul_precision("highest"):
        step = jax.jit(jax.value_and_grad(trainable.loss, has_aux=True))
        (loss, _), gradients = step(state.params, constants, state.sketches, batch, key)
    # As the step draws them.
    choice_key, random_key, _ = jax.random.split(key, 3)
    labels = jnp.ravel(batch["label_item"])
    chosen = labels[pinnerformer.choose(choice_key, labels, config.loss.num_in_batch_negatives)]
    shape, items = (config.loss.num_random_negatives,), len(constants["corpus"])
    random = constants["corpus"][jax.random.randint(random_key, shape, 0, items)]
    inputs = {f"check.{name}": x for name, x in batch.items()}
    return {**in_pytorch(gradients), "loss": loss}, {**inputs, "chosen": chosen, "random": random}


def in_pytorch(params):
    """A tree of pinjax's parameters, or of their gradients, under PyTorch's names and shapes."""
    named = {}

    def add(name, x):
        layer, _, kind = name.rpartition(".")
        if kind == "kernel":  # from the axes of what goes in, all but of attention's output one
            axes = 2 if layer.endswith("attention_out") else 1
            x = x.reshape(np.prod(x.shape[:axes]), -1).T
        elif kind == "bias":
            x = x.ravel()
        elif name in ("action.embedding", "surface.embedding"):
            x[0] = 0  # "unknown"
        kind = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(kind, kind)
        named[f"{layer}.{kind}".strip(".")] = x

    for path, x in jax.tree_util.tree_flatten_with_path(params["params"])[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        name = re.sub(r"\b(user_tower|transformer|item_input|temperature)\.", "", name)
        if name.startswith("blocks."):
            for i, of_block in enumerate(np.array(x)):
                add(name.replace("blocks", f"blocks.{i}"), of_block)
        else:
            add(name, np.array(x))
    return named


def save(path, config, state, constants, batches, inputs):
    """What pytorch_peer.py reads."""
    arrays = {"items": len(constants["corpus"]), "batches": len(batches), **inputs}
    arrays |= {"multipliers": state.sketches.multipliers, "offsets": state.sketches.offsets}
    for i, batch in enumerate(batches):
        arrays |= {f"batch.{i}.{name}": x for name, x in batch.items()}
    # PyTorch has few operations on unsigned integers.
    arrays = {
        name: np.asarray(x, np.float32 if np.asarray(x).dtype.kind == "f" else np.int64)
        for name, x in arrays.items()
    }
    if constants["items"].content is not None:
        arrays["content"] = np.asarray(constants["items"].content).view(np.int16)
    arrays |= {f"weight.{name}": x for name, x in in_pytorch(state.params).items()}
    np.savez(path, config=config.to_json(), **arrays)


class Taken(NamedTuple):
    """What a step took.

    Attributes:
      seconds: by the clock.
      cpu: seconds of all threads.
      peak: bytes of memory, at most so far.
    """

    seconds: float
    cpu: float
    peak: float


def make_timers(trainables, optimizer, state, constants, batches):
    """() -> `Taken` by name, of steps that all continue the same state."""
    batches = {name: itertools.cycle(jax.device_put(some)) for name, some in batches.items()}

    def timer(train_step, batches):
        nonlocal state
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(STEPS.value):
            state, metrics = train_step(state, constants, next(batches))
        loss = float(metrics["loss"])  # waits for all steps
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        assert np.isfinite(loss), loss
        return Taken(seconds / STEPS.value, cpu / STEPS.value, peak_memory())

    return {
        f"pinjax, {name}": functools.partial(
            timer, jax.jit(step_lib.make_step(made, optimizer), donate_argnums=0), batches[name]
        )
        for name, made in trainables.items()
    }


def peak_memory():
    """Of this process, or of what it allocated on the accelerator, in bytes."""
    if stats := jax.devices()[0].memory_stats():
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10


def matrix_rate(dtype):
    """FLOPs a second of the fastest of some large matrix products."""
    size, repeats = (2048, 1) if jax.default_backend() == "cpu" else (8192, 20)
    matrix = jax.random.normal(jax.random.key(0), (size, size), dtype)
    multiply = jax.jit(jnp.dot)
    seconds = []
    for _ in range(6):  # the first one compiles
        start = time.perf_counter()
        jax.block_until_ready([multiply(matrix, matrix) for _ in range(repeats)])
        seconds.append((time.perf_counter() - start) / repeats)
    return 2 * size**3 / min(seconds)


def report(config, layouts, lengths, taken, peaks, flops):
    users, actions = lengths.shape[1], lengths.sum(axis=1).mean()
    labels = config.objective.labels
    negatives = min(config.loss.num_in_batch_negatives, users * labels)
    negatives += config.loss.num_random_negatives
    rate = matrix_rate(config.model.dtype)
    print(
        f"{config_flag.source()}, --lengths={LENGTHS.value}: {actions:,.0f} actions a step, ",
        end="",
    )
    print(f"at most {labels} labels a user and {negatives:,} negatives")
    for name, layout in layouts.items():
        print(f"{name}: {layout.describe()}, {flops[name] / 1e9:,.4g} model GFLOPs a step")
    print(f"{config.model.dtype}, median of {ROUNDS.value} x {STEPS.value} steps; ", end="")
    print(f"{jax.devices()[0].device_kind}, matrix products at {rate / 1e9:,.0f} GFLOP/s")
    print(f"{'':24}{'step ms':>9}{'least to most':>20}{'CPU ms':>9}{'users/s':>10}", end="")
    print(f"{'actions/s':>11}{'peak memory':>13}{'of rate':>9}{'ratio':>7}{'of CPU':>8}")
    medians = {
        name: Taken(*map(statistics.median, zip(*of_rounds, strict=True)))
        for name, of_rounds in taken.items()
    }
    ours = next(iter(medians.values()))
    for name, (seconds, cpu, _) in medians.items():
        layout = name.split(", ")[1]
        times = [1e3 * of_round.seconds for of_round in taken[name]]
        spread = f"{min(times):,.1f} to {max(times):,.1f}"
        print(f"{name:24}{1e3 * seconds:9,.1f}{spread:>20}{1e3 * cpu:9,.1f}", end="")
        print(f"{users / seconds:10,.0f}{actions / seconds:11,.0f}", end="")
        print(f"{rates.size(peaks[name]):>13}{flops[layout] / seconds / rate:9.1%}", end="")
        print(f"{seconds / ours.seconds:7.2f}{cpu / ours.cpu:8.2f}")


if __name__ == "__main__":
    # Otherwise JAX takes most of a GPU's memory at once, and leaves the peers none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    app.run(main)
