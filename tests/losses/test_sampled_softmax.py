import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pinjax.losses import sampled_softmax as lib

GROUPS, PAIRS, DIM, NEGATIVES = 3, 4, 8, 40
ARGUMENTS = ("queries", "positives", "embeddings", "scale")


def oracle(
    queries, positives, embeddings, scale, ids, log_q, positive_log_q, excluded_ids, weights
):
    """The weighted loss by its definition, pair by pair in float64, and its gradients by hand."""
    queries, positives, embeddings, log_q, positive_log_q, weights = (
        np.asarray(x, np.float64)
        for x in (queries, positives, embeddings, log_q, positive_log_q, weights)
    )
    scale = float(scale)
    loss = np.zeros(weights.shape)
    grads = [np.zeros_like(queries), np.zeros_like(positives), np.zeros_like(embeddings), 0.0]
    for g, p in np.ndindex(weights.shape):
        seen = [j for j, i in enumerate(ids) if i != -1 and i not in excluded_ids[g]]
        q = queries[g, p]
        candidates = np.concatenate([positives[g, p][None], embeddings[seen]])
        products = candidates @ q
        logits = scale * products - np.append(positive_log_q[g, p], log_q[seen])
        softmax = np.exp(logits - logits.max())
        softmax /= softmax.sum()
        loss[g, p] = -np.log(softmax[0])
        to_logits = weights[g, p] * (softmax - (np.arange(len(softmax)) == 0))
        grads[0][g, p] = scale * to_logits @ candidates
        grads[1][g, p] = scale * to_logits[0] * q
        np.add.at(grads[2], seen, scale * to_logits[1:, None] * q)
        grads[3] += to_logits @ products
    return loss, grads


def problem(rng, negatives=NEGATIVES, dtype=np.float32):
    """Arguments of the oracle: unit vectors, few ids so that masks are frequent, some padding."""

    def unit(*shape):
        x = rng.normal(size=(*shape, DIM))
        return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(dtype)

    return {
        "queries": unit(GROUPS, PAIRS),
        "positives": unit(GROUPS, PAIRS),
        "embeddings": unit(negatives),
        "scale": np.float32(5),
        "ids": rng.integers(-1, 12, negatives).astype(np.int32),
        "log_q": rng.normal(size=negatives).astype(np.float32),
        "positive_log_q": rng.normal(size=(GROUPS, PAIRS)).astype(np.float32),
        "excluded_ids": rng.integers(-1, 12, (GROUPS, 3)).astype(np.int32),
        "weights": rng.random((GROUPS, PAIRS)).astype(np.float32),
    }


@functools.partial(jax.jit, static_argnums=1)
def loss_and_grads(args, block_size):
    def weighted(differentiable):
        a = args | differentiable
        negatives = lib.Negatives(a["embeddings"], a["ids"], a["log_q"], a["positive_log_q"])
        loss = lib.sampled_softmax(
            a["queries"],
            a["positives"],
            negatives,
            a["scale"],
            a["excluded_ids"],
            block_size=block_size,
        )
        return (loss * a["weights"]).sum(), loss

    grads, loss = jax.grad(weighted, has_aux=True)({k: args[k] for k in ARGUMENTS})
    return loss, [grads[k] for k in ARGUMENTS]


def assert_agree(args, block_size, tolerance=2e-5):
    loss, grads = loss_and_grads(jax.tree.map(jnp.asarray, args), block_size)
    true_loss, true_grads = oracle(**args)
    np.testing.assert_allclose(loss, true_loss, rtol=tolerance, atol=tolerance)
    for name, grad, true in zip(ARGUMENTS, grads, true_grads, strict=True):
        assert grad.dtype == args[name].dtype
        atol = tolerance * np.abs(true).max()
        np.testing.assert_allclose(
            np.asarray(grad, np.float64), true, rtol=tolerance, atol=atol, err_msg=name
        )


# One block that is larger than the set, one that fits, several with and without a ragged tail.
@pytest.mark.parametrize("block_size", [128, 40, 10, 16, 39])
def test_loss_and_gradients(rng, block_size):
    assert_agree(problem(rng), block_size)


def test_hard_negatives_of_a_pair_are_in_its_sum_alone(rng):
    args = problem(rng)
    embeddings = rng.normal(size=(GROUPS, PAIRS, 3, DIM)).astype(np.float32)
    ids = rng.integers(-1, 12, (GROUPS, PAIRS, 3)).astype(np.int32)
    ids[0] = -1
    log_q = rng.normal(size=(GROUPS, PAIRS)).astype(np.float32)
    args["excluded_ids"][2] = [*args["ids"][:1], -1, -1]
    args["ids"][1:] = args["ids"][0]  # group 2 has hard negatives alone

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradients(differentiable):
        a = jax.tree.map(jnp.asarray, args) | differentiable
        loss = lib.sampled_softmax(
            a["queries"],
            a["positives"],
            lib.Negatives(a["embeddings"], a["ids"], a["log_q"], a["positive_log_q"]),
            a["scale"],
            a["excluded_ids"],
            hard=lib.HardNegatives(a["hard"], ids, log_q),
            block_size=16,
        )
        return (loss * a["weights"]).sum(), loss

    found, loss = gradients({k: args[k] for k in ARGUMENTS} | {"hard": embeddings})

    # A pair at a time, its own negatives beside the shared ones.
    expected = {k: np.zeros(np.shape(args[k])) for k in ARGUMENTS}
    expected["hard"] = np.zeros(embeddings.shape)
    for g, p in np.ndindex(GROUPS, PAIRS):
        own = {
            "embeddings": np.concatenate([args["embeddings"], embeddings[g, p]]),
            "ids": np.concatenate([args["ids"], ids[g, p]]),
            "log_q": np.append(args["log_q"], np.full(3, log_q[g, p])),
            "weights": args["weights"] * (np.indices((GROUPS, PAIRS)) == [[[g]], [[p]]]).all(0),
        }
        true_loss, true = oracle(**(args | own))
        np.testing.assert_allclose(loss[g, p], true_loss[g, p], rtol=2e-5, atol=1e-6)
        for name, gradient in zip(ARGUMENTS, true, strict=True):
            expected[name] += gradient[:NEGATIVES] if name == "embeddings" else gradient
        expected["hard"][g, p] = true[2][NEGATIVES:]
    for name, true in expected.items():
        np.testing.assert_allclose(found[name], true, rtol=2e-5, atol=2e-5, err_msg=name)


def test_without_correction_and_masks(rng):
    args = problem(rng)
    args |= {k: np.zeros_like(args[k]) for k in ("log_q", "positive_log_q")}
    args |= {
        "excluded_ids": np.full_like(args["excluded_ids"], -1),
        "ids": np.arange(NEGATIVES, dtype=np.int32),
    }
    assert_agree(args, 16)


@pytest.mark.parametrize("scale", [100.0, 0.01])
def test_is_safe_at_extreme_temperatures(rng, scale):
    args = problem(rng) | {"scale": np.float32(scale)}
    assert_agree(args, 16, tolerance=1e-4)


def test_large_logits_do_not_overflow(rng):
    args = problem(rng)
    args["log_q"] -= 500
    assert_agree(args, 16, tolerance=1e-4)
    args["log_q"] += 1000
    loss, grads = loss_and_grads(jax.tree.map(jnp.asarray, args), 16)
    for array in [loss, *grads]:
        np.testing.assert_array_equal(array, np.zeros(array.shape))


def test_bfloat16_sums_in_float32(rng):
    args = problem(rng, dtype=jnp.bfloat16)
    loss, _ = loss_and_grads(jax.tree.map(jnp.asarray, args), 16)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, oracle(**args)[0], rtol=1e-5)
    assert_agree(args, 16, tolerance=2e-2)


def test_rows_without_a_negative_have_no_loss_and_no_gradient(rng):
    args = problem(rng)
    # The first block holds padding only; all that group 1 could see after it is excluded.
    args["ids"][:16] = -1
    args["ids"][16:] = rng.integers(0, 3, NEGATIVES - 16)
    args["excluded_ids"] = np.array([[0, -1, -1], [0, 1, 2], [2, 2, 5]], np.int32)
    assert_agree(args, 16)
    loss, (to_queries, to_positives, *_) = loss_and_grads(jax.tree.map(jnp.asarray, args), 16)
    for array in (loss, to_queries, to_positives):
        np.testing.assert_array_equal(array[1], np.zeros(array[1].shape))
        assert np.all(array[0] != 0)


def test_order_of_negatives_does_not_matter(rng):
    args = problem(rng)
    order = rng.permutation(NEGATIVES)
    shuffled = args | {k: args[k][order] for k in ("embeddings", "ids", "log_q")}
    loss, grads = loss_and_grads(jax.tree.map(jnp.asarray, args), 16)
    other_loss, other_grads = loss_and_grads(jax.tree.map(jnp.asarray, shuffled), 16)
    grads[2] = grads[2][order]
    for a, b in zip([loss, *grads], [other_loss, *other_grads], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_joined_and_summed_sets(rng):
    args = problem(rng)

    def loss(args, first, last):
        rows = {k: args[k][first:last] for k in ("embeddings", "ids", "log_q")}
        return loss_and_grads(jax.tree.map(jnp.asarray, args | rows), 16)[0]

    joined, one, other = loss(args, 0, 40), loss(args, 0, 25), loss(args, 25, 40)
    # The odds of all negatives against the positive are the sum of the odds of each set.
    np.testing.assert_allclose(np.expm1(joined), np.expm1(one) + np.expm1(other), rtol=1e-4)
    rows = [
        args | {k: args[k][part] for k in ("embeddings", "ids", "log_q")}
        for part in (slice(25), slice(25, 40))
    ]
    np.testing.assert_allclose(one + other, sum(oracle(**r)[0] for r in rows), rtol=1e-5)


def test_no_gradient_to_the_correction(rng):
    args = jax.tree.map(jnp.asarray, problem(rng))
    embeddings = jnp.asarray(rng.normal(size=(GROUPS, PAIRS, 3, DIM)), jnp.float32)
    ids = jnp.full((GROUPS, PAIRS, 3), 10**6)

    def loss(log_q, positive_log_q, hard_log_q):
        negatives = lib.Negatives(args["embeddings"], args["ids"], log_q, positive_log_q)
        return lib.sampled_softmax(
            *(args["queries"], args["positives"], negatives, args["scale"], args["excluded_ids"]),
            hard=lib.HardNegatives(embeddings, ids, hard_log_q),
        ).sum()

    corrections = args["log_q"], args["positive_log_q"], args["positive_log_q"]
    assert loss(*corrections) != loss(*corrections[:2], 0 * corrections[2])
    for grad in jax.grad(loss, argnums=(0, 1, 2))(*corrections):
        np.testing.assert_array_equal(grad, np.zeros(grad.shape))


@pytest.mark.parametrize(("num_batch", "num_random"), [(512, 0), (0, 512), (256, 256)])
def test_corrected_gradient_approaches_the_full_softmax(rng, num_batch, num_random):
    """Averaged over draws, sampled negatives with logQ estimate the sum over the catalogue."""
    num_items, draws = 30, 256
    items = rng.normal(size=(num_items, DIM)).astype(np.float32)
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    query = items[3] * 0.5 + items[4] * 0.5
    positive, scale = 7, 3.0
    popularity = 1 / np.arange(1, num_items + 1)
    popularity = (popularity / popularity.sum()).astype(np.float32)

    ids = np.concatenate(
        [
            rng.choice(num_items, (draws, num_batch), p=popularity),
            rng.integers(0, num_items, (draws, num_random)),
        ],
        axis=1,
    )

    @jax.jit
    def mean_gradient(ids, corrected):
        log_q = lib.log_expected_count(jnp.log(popularity), num_batch, num_random, num_items)
        log_q *= corrected

        def loss(query, ids):
            negatives = lib.Negatives(
                jnp.asarray(items)[ids], ids, log_q[ids], log_q[positive].reshape(1, 1)
            )
            return lib.sampled_softmax(
                query.reshape(1, 1, DIM),
                jnp.asarray(items[positive]).reshape(1, 1, DIM),
                negatives,
                jnp.float32(scale),
                jnp.full((1, 1), -1),
            ).sum()

        return jax.vmap(jax.grad(loss), in_axes=(None, 0))(jnp.asarray(query), ids).mean(axis=0)

    softmax = np.exp(scale * items @ query)
    softmax /= softmax.sum()
    full = scale * (softmax @ items - items[positive])
    error = np.linalg.norm(mean_gradient(ids, True) - full) / np.linalg.norm(full)
    assert error < 0.02
    if num_batch:  # uniform negatives need no correction
        uncorrected = np.linalg.norm(mean_gradient(ids, False) - full) / np.linalg.norm(full)
        assert uncorrected > 4 * error


def test_memory_does_not_grow_with_negatives():
    pairs, block = 64, 128

    def temporaries(negatives):
        shapes = {
            "queries": (1, pairs, DIM),
            "positives": (1, pairs, DIM),
            "embeddings": (negatives, DIM),
            "scale": (),
            "log_q": (negatives,),
            "positive_log_q": (1, pairs),
            "weights": (1, pairs),
        }
        args = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}
        args["ids"] = jax.ShapeDtypeStruct((negatives,), jnp.int32)
        args["excluded_ids"] = jax.ShapeDtypeStruct((1, 2), jnp.int32)
        compiled = loss_and_grads.lower(args, block).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    small, large = temporaries(2048), temporaries(4096)
    assert small < 4 * (4 * pairs * block)  # a few blocks of logits
    assert large - small < 1024


def test_pairs_shard_over_devices_without_moving(rng):
    mesh = Mesh(jax.devices(), ("data",))
    args = problem(rng)
    groups = {k: np.concatenate([args[k]] * 8) for k in args if args[k].shape[:1] == (GROUPS,)}
    args |= groups
    everywhere = jax.tree.map(jnp.asarray, args)
    sharded = {
        k: jax.device_put(x, NamedSharding(mesh, PartitionSpec("data" if k in groups else None)))
        if np.ndim(x)
        else jax.device_put(x, NamedSharding(mesh, PartitionSpec()))
        for k, x in args.items()
    }
    loss, grads = loss_and_grads(everywhere, 16)
    compiled = loss_and_grads.lower(sharded, 16).compile()
    other_loss, other_grads = compiled(sharded)
    assert other_loss.sharding.spec == PartitionSpec("data")
    assert other_grads[0].sharding.spec == PartitionSpec("data")
    for a, b in zip([loss, *grads], [other_loss, *other_grads], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    program = compiled.as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in program


def test_log_expected_count():
    probability = np.array([0.5, 0.1, 1e-6, 0.0])
    log_probability = jnp.asarray(
        np.log(probability, where=probability > 0, out=np.full(4, -np.inf))
    )
    log_probability = log_probability.astype(jnp.float32)
    np.testing.assert_allclose(
        lib.log_expected_count(log_probability, 50, 80, 1000),
        np.log(50 * probability + 80 / 1000),
        rtol=1e-5,
    )
    np.testing.assert_allclose(
        lib.log_expected_count(log_probability, 0, 80, 1000), np.full(4, np.log(0.08)), rtol=1e-6
    )
    np.testing.assert_allclose(
        lib.log_expected_count(log_probability, 50, 0, 1000),
        np.log(50) + np.asarray(log_probability),
        rtol=1e-5,
    )
