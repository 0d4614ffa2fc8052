"""Trains ranking models, one for each method and seed, on the same rows."""

import functools
from collections.abc import Iterator

import jax
import numpy as np
import optax

from pinjax.models import ranker
from pinjax.ranking.rows import Rows
from pinjax.ranking.vectors import Vectors

BATCH = 256
EPOCHS = 100  # at most
PATIENCE = 3  # epochs without improvement
HELD_OUT = 0.1  # of the training rows, the latest, whose loss ends training
_BLOCK = 2**14  # rows whose features are gathered at once
_SAMPLE = 2**15  # rows whose mean and deviation scale the features
_OPTIMIZER = optax.adamw(1e-3, weight_decay=1e-2)
_TABLES = (("users", "user_row"), ("items", "item_row"))

Arrays = dict[str, jax.Array]


class Features:
    """The features of rows by a method, gathered on the device.

    Attributes:
      arrays: on the device: `counts`, float32 (rows, counts), and the fields of `Vectors`.
    """

    def __init__(self, counts: np.ndarray, vectors: Vectors | None):
        """Puts what a method knows of rows on the device; vectors None: counts alone."""
        names = [] if vectors is None else [name for pair in _TABLES for name in pair]
        arrays = {"counts": counts} | {name: getattr(vectors, name) for name in names}
        self.arrays: Arrays = jax.device_put(arrays)

    def blocks(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """The features of rows in their order, float32 (some rows, features) at a time."""
        for some in _blocks(rows):
            yield np.asarray(_gather(self.arrays, some))


def train(features: Features, rows: Rows, seed: int) -> np.ndarray:
    """Trains a model, and predicts the test rows.

    The latest training rows are held out: the parameters are those after the epoch with the lowest
    loss on them.

    Args:
      features: of all rows.
      rows: with labels, and which of them test.
      seed: of the parameters and the batches.

    Returns:
      float32 (test rows, types), logits.
    """
    training = np.flatnonzero(~rows.test)
    training = training[np.argsort(rows.time[training], kind="stable")]
    kept = min(round(len(training) * (1 - HELD_OUT)), len(training) - 1)
    fitted, held_out = training[:kept], training[kept:]
    rng, key = np.random.default_rng(seed), jax.random.key(seed)
    sample = np.concatenate(list(features.blocks(rng.permutation(fitted)[:_SAMPLE])))
    scale = sample.std(axis=0)
    scaling = sample.mean(axis=0), np.where(scale > 0, scale, 1).astype(np.float32)
    scaling, first = jax.device_put((scaling, sample[:1]))
    params = _model(rows).init(key, first, *scaling)
    state = params, _OPTIMIZER.init(params)
    labels = jax.device_put(rows.labels.astype(np.float32))

    def predict(params, rows_):
        blocks = [
            _predict(_model(rows), params, features.arrays, scaling, x) for x in _blocks(rows_)
        ]
        return np.concatenate([np.zeros((0, len(rows.types)), np.float32), *blocks])

    def held_out_loss(params):
        logits = predict(params, held_out)
        return float(optax.sigmoid_binary_cross_entropy(logits, rows.labels[held_out]).mean())

    best, least, waited = params, np.inf, 0
    batch = min(BATCH, len(fitted))
    for epoch in range(EPOCHS):
        order = rng.permutation(fitted)[: len(fitted) // batch * batch].reshape(-1, batch)
        epoch_key = jax.random.fold_in(key, epoch)
        state = _epoch(_model(rows), state, features.arrays, scaling, labels, order, epoch_key)
        loss = held_out_loss(state[0])
        best, least, waited = (state[0], loss, 0) if loss < least else (best, least, waited + 1)
        if waited == PATIENCE:
            break
    return predict(best, np.flatnonzero(rows.test))


def _model(rows: Rows) -> ranker.Ranker:
    return ranker.Ranker(len(rows.types))


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK))


@jax.jit
def _gather(arrays: Arrays, rows: jax.Array) -> jax.Array:
    vectors = (arrays[name][arrays[row][rows]] for name, row in _TABLES if name in arrays)
    return ranker.features(arrays["counts"][rows], *vectors)


@functools.partial(jax.jit, static_argnums=0)
def _predict(model, params, arrays: Arrays, scaling, rows: jax.Array) -> jax.Array:
    return model.apply(params, _gather(arrays, rows), *scaling)


@functools.partial(jax.jit, static_argnums=0)
def _epoch(model, state, arrays: Arrays, scaling, labels: jax.Array, batches: jax.Array, key):
    """The state after the batches of an epoch, int (batches, rows of a batch)."""

    def loss(params, rows, key):
        logits = model.apply(
            params, _gather(arrays, rows), *scaling, train=True, rngs={"dropout": key}
        )
        return optax.sigmoid_binary_cross_entropy(logits, labels[rows]).mean()

    def step(state, batch):
        params, opt_state = state
        gradient = jax.grad(loss)(params, *batch)
        updates, opt_state = _OPTIMIZER.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    keys = jax.random.split(key, len(batches))
    return jax.lax.scan(step, state, (batches, keys))[0]
