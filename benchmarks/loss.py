"""The blocked sampled softmax against a plain one: memory and time, forward and backward.

    python -m benchmarks.loss

At 4,096 pairs, 13,192 negatives and 256 dimensions in float32 (PinnerFormer's 5,000 in-batch and
8,192 random negatives) it prints both versions' temporaries, peak memory and time, and their
ratios; then the peak memory and time of the blocked one at 1,000,000 negatives. Takes some minutes.
"""

import functools
import resource
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp

from pinjax.losses import sampled_softmax

GROUPS, PAIRS, DIM = 128, 32, 256
REPEATS = 7


def plain(queries, positives, negatives, scale, excluded_ids):
    """The same loss with the full matrix of logits."""
    positive = (queries * positives).sum(-1) * scale - negatives.positive_log_q
    logits = jnp.einsum("gpd,nd->gpn", queries, negatives.embeddings) * scale - negatives.log_q
    excluded = (negatives.ids[:, None] == excluded_ids[:, None, :]).any(-1) | (negatives.ids == -1)
    logits = jnp.where(excluded[:, None, :], -jnp.inf, logits)
    return jax.nn.softplus(jax.nn.logsumexp(logits, axis=-1) - positive)


LOSSES = {"plain": plain, "blocked": sampled_softmax.sampled_softmax}


@functools.partial(jax.jit, static_argnums=1)
def vectors(key, count):
    """Random (count, DIM) of norm about 1, drawn in pieces to need no more room."""

    def draw(key):
        return jax.random.normal(key, (8, DIM)) / DIM**0.5

    return jax.lax.map(draw, jax.random.split(key, count // 8)).reshape(count, DIM)


def make_arguments(negatives):
    keys = jax.random.split(jax.random.key(0), 6)
    catalogue = 10 * negatives
    return (
        vectors(keys[0], GROUPS * PAIRS).reshape(GROUPS, PAIRS, DIM),
        vectors(keys[1], GROUPS * PAIRS).reshape(GROUPS, PAIRS, DIM),
        sampled_softmax.Negatives(
            embeddings=vectors(keys[2], negatives),
            ids=jax.random.randint(keys[3], (negatives,), 0, catalogue),
            log_q=jax.random.normal(keys[4], (negatives,)),
            positive_log_q=jnp.zeros((GROUPS, PAIRS)),
        ),
        jnp.float32(20),
        jax.random.randint(keys[5], (GROUPS, PAIRS), 0, catalogue),
    )


def compile_step(name, arguments):
    """The mean loss and its gradients to queries, positives, negatives and scale."""

    def mean_loss(queries, positives, embeddings, scale, negatives, excluded_ids):
        negatives = negatives._replace(embeddings=embeddings)
        return LOSSES[name](queries, positives, negatives, scale, excluded_ids).mean()

    queries, positives, negatives, scale, excluded_ids = arguments
    arguments = (
        *(queries, positives, negatives.embeddings, scale),
        *(negatives._replace(embeddings=None), excluded_ids),
    )
    step = jax.jit(jax.value_and_grad(mean_loss, argnums=(0, 1, 2, 3)))
    return step.lower(*arguments).compile(), arguments


def run(step, arguments):
    start = time.perf_counter()
    result = jax.block_until_ready(step(*arguments))
    return time.perf_counter() - start, result


def resident():
    """This process's peak so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def peak_memory(name, negatives):
    """One step in a process of its own: peak MiB before it and overall, and its seconds."""
    command = [sys.executable, "-m", "benchmarks.loss", name, str(negatives)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [float(figure) for figure in output.split()]


def child(name, negatives):
    step, arguments = compile_step(name, jax.block_until_ready(make_arguments(negatives)))
    before = resident()
    seconds, _ = run(step, arguments)
    print(before, resident(), seconds)


def main():
    negatives = 13_192
    # First, since a process starts with its parent's peak.
    peaks = {name: peak_memory(name, negatives) for name in LOSSES}
    _, peak_of_million, seconds_of_million = peak_memory("blocked", 1_000_000)

    steps = {name: compile_step(name, make_arguments(negatives)) for name in LOSSES}
    results = [run(*step)[1] for step in steps.values()]
    difference = max(
        float(jnp.abs(a - b).max() / jnp.abs(a).max())
        for a, b in zip(*map(jax.tree.leaves, results), strict=True)
    )
    times = {name: [] for name in LOSSES}
    for _ in range(REPEATS):  # interleaved, so that both see the same machine
        for name, step in steps.items():
            times[name].append(run(*step)[0])

    figures = {
        name: (
            step.memory_analysis().temp_size_in_bytes / 2**20,
            peaks[name][1],
            peaks[name][1] - peaks[name][0],
            statistics.median(times[name]),
        )
        for name, (step, _) in steps.items()
    }
    print(f"{GROUPS * PAIRS:,} pairs, {negatives:,} negatives, {DIM} dimensions, float32, ", end="")
    print(f"forward and backward on {jax.devices()[0].device_kind}, median of {REPEATS}")
    print(f"{'':10}{'temporaries MiB':>18}{'peak RSS MiB':>16}{'by the step':>16}{'seconds':>10}")
    for name, (temporaries, peak, added, seconds) in figures.items():
        print(f"{name:10}{temporaries:18.0f}{peak:16.0f}{added:16.0f}{seconds:10.2f}")
    ratios = [b / p for p, b in zip(figures["plain"], figures["blocked"], strict=True)]
    print(f"{'ratio':10}{ratios[0]:18.2f}{ratios[1]:16.2f}{ratios[2]:16.2f}{ratios[3]:10.2f}")
    print(f"largest relative difference of loss and gradients: {difference:.1e}")

    print(
        f"1,000,000 negatives, blocked: peak RSS {peak_of_million / 2**10:.2f} GiB, "
        f"{seconds_of_million:.0f} s"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(sys.argv[1], int(sys.argv[2]))
    else:
        main()
