"""PinnerFormer's train step against the same model and loss in PyTorch: time, memory, FLOPs.

    python -m benchmarks.step --config=configs/pinnerformer.py:own [--peer=PYTHON]
    python -m benchmarks.step --config=configs/pinnerformer.py:paper --config.data.users=128

PYTHON has PyTorch; the default is .venv-peers/bin/python, see requirements-peers.txt. The peer,
pytorch_peer.py, uses torch.compile, scaled_dot_product_attention and fused AdamW, autocast if the
config says bfloat16, and recomputes blocks if it says model.remat. Its loss has two forms: plain,
with the full matrix of logits, and chunked, with 1,024 negatives at a time, whose logits are
recomputed in the backward pass. Both sides run on one device, a GPU if there is one.

A step has all of its parts: negatives, count-min sketch, forward, backward, clipping, AdamW. Only
PyTorch's schedule of the learning rate is left out, and on both sides the input: some batches lie
in the device's memory. They are random and have the config's shapes, which are all that the amount
of arithmetic depends on, so no data set is needed.

First, gradients of a smaller batch in float32 without dropout are compared, from the same weights
and negatives; then all take turns, so that they see the same machine. Peak memory is the allocated
memory on a GPU, and on a CPU the process's resident set, with imports and compiling. The matrix
rate is the rate of one large product in the config's type.
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

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from benchmarks import peers
from pinjax import app, config_flag
from pinjax.compiler import programs, rates
from pinjax.distributed import sharding
from pinjax.errors import InputError
from pinjax.systems import pinnerformer, registry
from pinjax.training import step as step_lib

CONFIG = app.run_config()
PEER = flags.DEFINE_string("peer", ".venv-peers/bin/python", "a Python that has PyTorch")
ROUNDS = flags.DEFINE_integer("rounds", 11, "rounds of measurements", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 5, "steps to a measurement", lower_bound=1)

FORMS = ("plain", "chunked")
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
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        source = pathlib.Path(directory, "in.npz")
        targets = {form: pathlib.Path(directory, f"{form}.npz") for form in FORMS}
        them = {}
        # While memory is still empty: a process's peak begins with its parent's.
        for form, target in targets.items():
            peer = peers.Peer(PEER.value, "pytorch_peer.py", source, target, form)
            them[form] = stack.enter_context(peer)
        compare(config, them, source, targets)


def compare(config: ConfigDict, them: dict, source: pathlib.Path, targets: dict) -> None:
    mesh, rng = sharding.make_mesh(jax.devices()[:1]), np.random.default_rng(0)
    trainable = registry.build(config, mesh)
    optimizer = step_lib.make_optimizer(config.train)
    state = jax.jit(functools.partial(step_lib.init_state, trainable, optimizer, 0))()

    def noisy(x):  # much is zero at first, which would hide differences
        return x + 0.02 * rng.standard_normal(x.shape, np.float32)

    state = state.replace(params=jax.tree.map(noisy, state.params))
    constants = simulate_constants(trainable, rng)
    batches = [simulate_batch(trainable, state.params, rng) for _ in range(BATCHES)]

    gradients, inputs = check_step(config, mesh, state, constants, batches[0])
    save(source, config, state, constants, batches, inputs)
    device = {"gpu": "cuda"}.get(jax.default_backend(), "cpu")
    for peer in them.values():
        peer.tell()  # so that all compile at once
    for form, peer in them.items():
        if not (how := peer.hear()).endswith(device):
            raise InputError(f"--peer={PEER.value}: {how}, while JAX has a {jax.default_backend()}")
        with np.load(targets[form]) as file:
            differences = peers.relative_differences(gradients, file)
        worst = max(differences, key=differences.get)
        assert differences[worst] < TOLERANCE, f"PyTorch, {form}, differs by {differences}"
        most = f"{differences[worst]:.1e} at most ({worst})"
        print(f"PyTorch, {form}: {how}; loss and gradients differ by {most}")

    timers, peaks = {"pinjax": make_timer(trainable, optimizer, state, constants, batches)}, {}

    def timer(form):
        seconds, peaks[f"PyTorch, {form}"] = map(float, them[form].ask(str(STEPS.value)).split())
        return seconds

    timers |= {f"PyTorch, {form}": functools.partial(timer, form) for form in FORMS}
    peers.in_turn(timers, 1)
    times = peers.in_turn(timers, ROUNDS.value)
    peaks["pinjax"] = peak_memory()
    flops = programs.train_step(trainable, config.train, mesh).flops
    report(config, trainable, times, peaks, flops, matrix_rate(config.model.dtype))


def simulate_constants(trainable, rng):
    """Content vectors and a corpus of all items."""
    content, corpus = (trainable.constants[name] for name in ("content", "corpus"))
    if content is not None:
        content = jnp.asarray(rng.standard_normal(content.shape, np.float32), content.dtype)
    corpus = jnp.arange(*corpus.shape, dtype=corpus.dtype)
    return {"content": content, "corpus": corpus, "popularity_times": None}


def simulate_batch(trainable, params, rng):
    """Users of 1 to M actions, and labels; one in sixteen is missing, and some are popular."""
    shape, pairs = trainable.batch["item"].shape, trainable.batch["label_item"].shape
    (items,) = trainable.constants["corpus"].shape
    tower = params["params"]["user_tower"]

    def item(shape):
        return (items * rng.random(shape) ** 3).astype(np.int32)

    first = rng.integers(0, shape[1], (shape[0], 1))
    exists = np.arange(shape[1]) >= first
    time = 1_600_000_000 + np.cumsum(rng.exponential(6 * 3600, shape), axis=1)
    batch = {
        "item": np.where(exists, item(shape), -1),
        "time": time * exists,
        "duration": rng.exponential(10, shape) * exists,
        "surface": rng.integers(len(tower["surface"]["embedding"]), size=shape) * exists,
        "action": rng.integers(len(tower["action"]["embedding"]), size=shape) * exists,
        "request_time": time * exists,
        "label_position": rng.integers(first, shape[1], pairs),
        "label_item": np.where(rng.random(pairs) < 1 / 16, -1, item(pairs)),
        "same_user": np.arange(shape[0])[:, None],
    }
    return {name: x.astype(trainable.batch[name].dtype) for name, x in batch.items()}


def check_step(config, mesh, state, constants, batch):
    """Loss and gradients under PyTorch's names, and the batch and negatives they are taken on."""
    config = config.copy_and_resolve_references()
    config.data.users = min(CHECKED, config.data.users)
    config.model.update(dtype="float32", dropout=0.0)
    trainable = registry.build(config, mesh)
    batch = {name: x[: config.data.users] for name, x in batch.items()}
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
    if constants["content"] is not None:
        arrays["content"] = np.asarray(constants["content"]).view(np.int16)
    arrays |= {f"weight.{name}": x for name, x in in_pytorch(state.params).items()}
    np.savez(path, config=config.to_json(), **arrays)


def make_timer(trainable, optimizer, state, constants, batches):
    """() -> the seconds of a step."""
    train_step = jax.jit(step_lib.make_step(trainable, optimizer), donate_argnums=0)
    batches = itertools.cycle(jax.device_put(batches))

    def timer():
        nonlocal state
        start = time.perf_counter()
        for _ in range(STEPS.value):
            state, metrics = train_step(state, constants, next(batches))
        loss = float(metrics["loss"])  # waits for all steps
        seconds = (time.perf_counter() - start) / STEPS.value
        assert np.isfinite(loss), loss
        return seconds

    return timer


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


def report(config, trainable, times, peaks, flops, rate):
    (users, length), (_, pairs) = (trainable.batch[x].shape for x in ("item", "label_item"))
    negatives = (
        min(config.loss.num_in_batch_negatives, users * pairs) + config.loss.num_random_negatives
    )
    print(f"{config_flag.source()}: {users:,} users x {length} actions, ", end="")
    print(f"{pairs} labels each, {negatives:,} negatives")
    print(f"{config.model.dtype}, {flops / 1e9:,.4g} model GFLOPs a step, median of ", end="")
    print(f"{ROUNDS.value} x {STEPS.value} steps; {jax.devices()[0].device_kind}, ", end="")
    print(f"matrix products at {rate / 1e9:,.0f} GFLOP/s")
    print(f"{'':17}{'step ms':>9}{'least to most':>20}{'users/s':>10}{'peak memory':>13}", end="")
    print(f"{'GFLOP/s':>9}{'of rate':>9}{'ratio':>7}")
    ours = statistics.median(times["pinjax"])
    for name, seconds in times.items():
        median = statistics.median(seconds)
        spread = f"{1e3 * min(seconds):,.1f} to {1e3 * max(seconds):,.1f}"
        print(f"{name:17}{1e3 * median:9,.1f}{spread:>20}{users / median:10,.0f}", end="")
        print(f"{rates.size(peaks[name]):>13}{flops / median / 1e9:9,.0f}", end="")
        print(f"{flops / median / rate:9.1%}{median / ours:7.2f}")


if __name__ == "__main__":
    # Otherwise JAX takes most of a GPU's memory at once, and leaves the peers none.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    app.run(main)
