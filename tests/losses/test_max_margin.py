import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinjax.losses import max_margin as lib

PAIRS, DIM, NEGATIVES, HARD, MARGIN = 6, 5, 12, 3, 0.4
ARGUMENTS = ("queries", "positives", "negatives", "hard")


def problem(rng, hard=HARD, dtype=np.float32):
    """Few ids, so that masks are frequent, and some padding."""
    return {
        "queries": rng.normal(size=(PAIRS, DIM)).astype(dtype),
        "positives": rng.normal(size=(PAIRS, DIM)).astype(dtype),
        "negatives": rng.normal(size=(NEGATIVES, DIM)).astype(dtype),
        "hard": rng.normal(size=(PAIRS, hard, DIM)).astype(dtype),
        "negative_ids": rng.integers(-1, 9, NEGATIVES).astype(np.int32),
        "hard_ids": rng.integers(-1, 9, (PAIRS, hard)).astype(np.int32),
        "excluded_ids": rng.integers(-1, 9, (PAIRS, 3)).astype(np.int32),
    }


def oracle(args, weights):
    """The loss by its definition in float64, pair by pair, and the weighted sum's gradients."""
    queries, positives, negatives, hard = (np.asarray(args[k], np.float64) for k in ARGUMENTS)
    loss = np.zeros(PAIRS)
    grads = [np.zeros_like(x) for x in (queries, positives, negatives, hard)]
    for p in range(PAIRS):
        candidates = [
            *zip(args["negative_ids"], negatives, grads[2], strict=True),
            *zip(args["hard_ids"][p], hard[p], grads[3][p], strict=True),
        ]
        valid = [c for c in candidates if c[0] != -1 and c[0] not in args["excluded_ids"][p]]
        for _, vector, gradient in valid:
            violation = queries[p] @ vector - queries[p] @ positives[p] + MARGIN
            if violation > 0:
                weight = weights[p] / len(valid)
                loss[p] += violation / len(valid)
                grads[0][p] += weight * (vector - positives[p])
                grads[1][p] -= weight * queries[p]
                gradient += weight * queries[p]
    return loss, grads


@jax.jit
def loss_and_grads(args, weights):
    @functools.partial(jax.grad, has_aux=True)
    def gradients(differentiable):
        loss = lib.max_margin(**(args | differentiable), margin=MARGIN)
        return (loss * weights).sum(), loss

    grads, loss = gradients({k: args[k] for k in ARGUMENTS})
    return loss, [grads[k] for k in ARGUMENTS]


def assert_agree(args, weights, tolerance=1e-5):
    loss, grads = loss_and_grads(jax.tree.map(jnp.asarray, args), weights)
    true_loss, true_grads = oracle(args, weights)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, true_loss, rtol=1e-5, atol=1e-5)
    for name, grad, true in zip(ARGUMENTS, grads, true_grads, strict=True):
        assert grad.dtype == args[name].dtype
        grad = np.asarray(grad, np.float64)
        np.testing.assert_allclose(grad, true, rtol=tolerance, atol=tolerance, err_msg=name)
    return loss, grads


@pytest.mark.parametrize("hard", [HARD, 0])
def test_loss_and_gradients(rng, hard):
    args = problem(rng, hard)
    loss, _ = assert_agree(args, rng.random(PAIRS).astype(np.float32))
    if not hard:
        shared = {k: jnp.asarray(x) for k, x in args.items() if k not in ("hard", "hard_ids")}
        np.testing.assert_allclose(lib.max_margin(**shared, margin=MARGIN), loss, rtol=1e-5)


def test_rows_without_a_negative_have_no_loss_and_no_gradient(rng):
    args = problem(rng)
    args["negative_ids"][:] = rng.integers(-1, 2, NEGATIVES)
    args["excluded_ids"][1] = [0, 1, 2]
    args["hard_ids"][1] = [-1, 2, 0]
    args["hard_ids"][2] = 8
    loss, (to_queries, to_positives, _, to_hard) = assert_agree(args, np.ones(PAIRS, np.float32))
    for array in (loss, to_queries, to_positives, to_hard):
        np.testing.assert_array_equal(array[1], np.zeros(array[1].shape))
    assert loss.sum() > 0


def test_bfloat16_sums_in_float32(rng):
    args = problem(rng, dtype=jnp.bfloat16)
    assert_agree(args, np.ones(PAIRS, np.float32), tolerance=3e-2)
