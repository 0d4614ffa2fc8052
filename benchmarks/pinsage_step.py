"""PinSage's train step against the same in PyTorch: seconds on a CPU.

    GLIBC_TUNABLES=glibc.malloc.hugetlb=1 python -m benchmarks.pinsage_step [PYTHON]

PYTHON is one that has PyTorch, .venv-peers/bin/python if it is not given: see
requirements-peers.txt. Two convolutions of width 256 with importance pooling over 20 and over 50
neighbours, 512 pairs with 500 shared negatives, 20,000 nodes of the input with content of 256,
float32, max-margin loss and Adam. Both get the same weights and batch; their losses and gradients
are compared. PyTorch pools by `embedding_bag`, eager and compiled, and by compiled gathers. They
take turns; of two steps the second is timed, as the first gets its memory from the system anew.
One ReLU whose input is zero but for rounding makes a relative difference of gradients of 1e-3.
"""

import itertools
import pathlib
import statistics
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import peers
from pinjax.losses import max_margin
from pinjax.models import importance_pooling, pinsage

NODES, PAIRS, NEGATIVES, WIDTH, MARGIN, RATE = 20_000, 512, 500, 256, 0.1, 1e-3
NEIGHBOURS = (20, 50)
ROUNDS = 5
FORMS = ("bag", "eager"), ("bag", "compiled"), ("select", "compiled")

MODEL = pinsage.PinSage(
    num_items=NODES, layers=2, width=WIDTH, message_width=WIDTH, embedding_dim=WIDTH
)


def make_batch(rng, count):
    """Content and, for each layer, its nodes, their neighbours and weights.

    A node's neighbours are random, the first rows being popular: node r has r^-1/2 of the edges.
    """
    neighbours = (NODES * rng.random((NODES, count)) ** 2).astype(np.int32)
    weights = rng.random((NODES, count), np.float32)
    weights /= weights.sum(axis=1, keepdims=True)
    last = rng.choice(NODES, 2 * PAIRS + NEGATIVES, replace=False)
    needed = [np.arange(NODES), np.union1d(last, neighbours[last]), last]  # by each layer
    layers = []
    for below, nodes in itertools.pairwise(needed):
        place = np.zeros(NODES, np.int32)
        place[below] = np.arange(len(below))
        layers.append((place[nodes], place[neighbours[nodes]], weights[nodes]))
    return rng.standard_normal((NODES, WIDTH), np.float32), layers


def loss_of(params, content, layers):
    """The mean max-margin loss of the batch."""
    h = MODEL.apply(params, jnp.arange(NODES), content, method="inputs")
    for layer, (nodes, neighbours, weights) in enumerate(layers):
        messages = MODEL.apply(params, layer, h, method="messages")
        pooled = importance_pooling.pool(messages, neighbours, weights, MODEL.pooling)
        h = MODEL.apply(params, layer, h[nodes], pooled, method="combine")
    z = MODEL.apply(params, h, method="head")
    queries, positives, negatives = jnp.split(z, [PAIRS, 2 * PAIRS])
    ids = jnp.arange(len(z))
    excluded = jnp.stack([ids[:PAIRS], ids[PAIRS : 2 * PAIRS]], axis=1)
    return max_margin.max_margin(
        queries, positives, negatives, ids[2 * PAIRS :], excluded, MARGIN
    ).mean()


def in_pytorch(params):
    """pinjax's parameters, or their gradients, under PyTorch's names and shapes."""
    params = jax.tree.map(np.asarray, params["params"])
    layers = {"hidden": params["item_head"]["hidden"], "out": params["item_head"]["out"]}
    for name in ("message", "update"):
        layers |= {f"{name}.{i}": params[f"{name}_{i}"] for i in range(MODEL.layers)}
    named = {f"{name}.weight": layer["kernel"].T for name, layer in layers.items()}
    return named | {f"{name}.bias": x["bias"] for name, x in layers.items() if "bias" in x}


def save(path, params, content, layers):
    """What pytorch_pinsage.py reads."""
    arrays = {"content": content, "layers": len(layers)}
    for i, (nodes, neighbours, weights) in enumerate(layers):
        arrays |= {f"nodes.{i}": nodes.astype(np.int64), f"weights.{i}": weights}
        arrays |= {f"neighbours.{i}": neighbours.astype(np.int64)}
    arrays |= {f"weight.{name}": x for name, x in in_pytorch(params).items()}
    np.savez(path, pairs=PAIRS, margin=MARGIN, rate=RATE, **arrays)


def measure(python, count):
    content, layers = make_batch(np.random.default_rng(0), count)
    params = jax.jit(MODEL.init)(jax.random.key(0), jnp.arange(8), content)
    optimizer = optax.adam(RATE)

    def step(params, state, content, layers):
        loss, gradients = jax.value_and_grad(loss_of)(params, content, layers)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, loss

    on_device = jax.device_put((content, layers))
    our_loss, gradients = jax.jit(jax.value_and_grad(loss_of))(params, *on_device)
    compiled = jax.jit(step, donate_argnums=(0, 1))

    with tempfile.TemporaryDirectory() as directory:
        source = pathlib.Path(directory, "in.npz")
        save(source, params, content, layers)
        trained = params, optimizer.init(params)

        def seconds():
            nonlocal trained
            for _ in range(2):
                start = time.perf_counter()
                *trained, loss = compiled(*trained, *on_device)
                jax.block_until_ready(loss)
            return time.perf_counter() - start

        seconds()  # compiles
        timers, running = {"pinjax": seconds}, []
        try:
            for form in FORMS:
                target = pathlib.Path(directory, "-".join(form))
                peer = peers.Peer(python, "pytorch_pinsage.py", source, f"{target}.npz", *form)
                running.append(peer)
                peer.ask()  # a step that warms it up
                timers[" ".join(("PyTorch", *form))] = lambda peer=peer: float(peer.ask())
            times = peers.in_turn(timers, ROUNDS)
        finally:
            for peer in running:
                peer.__exit__(None, None, None)
        theirs = [dict(np.load(f"{pathlib.Path(directory, '-'.join(form))}.npz")) for form in FORMS]

    ours = in_pytorch(gradients) | {"loss": np.asarray(our_loss)}
    sizes = " of ".join(str(len(nodes)) for nodes, *_ in reversed(layers))
    print(f"{count} neighbours, layers of {sizes} of {NODES} nodes, median of {ROUNDS} (least)")
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, seconds in times.items():
        ratio = medians[name] / medians["pinjax"]
        print(f"  {name:24} {medians[name]:6.3f} s ({min(seconds):.3f}), {ratio:.2f} of pinjax's")
    difference = max(max(peers.relative_differences(ours, their).values()) for their in theirs)
    print(f"  largest relative difference of losses and gradients: {difference:.1e}")


def main(python=".venv-peers/bin/python"):
    for count in NEIGHBOURS:
        measure(python, count)


if __name__ == "__main__":
    main(*sys.argv[1:])
