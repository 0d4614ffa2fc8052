"""Lengths of windows that scripts here measure on, and PinnerFormer's step on such windows."""

import dataclasses
import functools

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict
from scipy import special

from pinjax.data import batches, packing
from pinjax.data import dataset as dataset_lib
from pinjax.systems import histories, pinnerformer, registry, system

# Windows that training draws by configs/pinnerformer.py:ifdb and :globo, with data.length=256, from
# the public logs as `real_sets.prepare` makes them (globo of all users): at the middles of 32 equal
# shares of windows. A user without labels has a window of 1.
LOGS = {
    "ifdb": (
        *(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1),
        *(1, 2, 3, 3, 4, 5, 7, 8, 10, 13, 17, 23, 31, 46, 82, 215),
    ),
    "globo": (
        *(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2),
        *(3, 3, 3, 3, 3, 4, 5, 5, 6, 7, 8, 9, 11, 14, 19, 33),
    ),
}
KINDS = ("full", "quarter", *LOGS)
BATCHES = 32  # that have to fit into the rows
_MEDIAN = 0.16474  # in windows of M: with it the mean of `quarter` is 0.25, clipped


def draw(
    kind: str, users: int, length: int, rng: np.random.Generator, count: int = BATCHES
) -> np.ndarray:
    """The lengths of the windows of some batches.

    As in training, each batch has a user of each of as many strata as it has users.

    Args:
      kind: full: all of M actions; quarter: log-normal, of deviation 1, with a mean of M / 4;
        ifdb and globo: as in these logs.
      users: of a batch.
      length: M, the longest window.
      rng: for the places in the strata.
      count: of batches.

    Returns:
      int64 (count, users), each from 1 to M, in an order that suits several devices.
    """
    shares = (np.arange(users) + rng.random((count, users))) / users
    if kind == "full":
        lengths = np.full(shares.shape, length)
    elif kind == "quarter":
        lengths = _MEDIAN * length * np.exp(special.ndtri(shares))
    else:
        known = LOGS[kind]
        lengths = np.interp(shares, (np.arange(len(known)) + 0.5) / len(known), known)
    return np.clip(np.rint(lengths), 1, length).astype(np.int64)[:, batches.balanced_order(users)]


def layouts_of(config: ConfigDict, lengths: np.ndarray, groups: int) -> dict[str, packing.Layout]:
    """The layouts of batches, by name: windows and labels packed, if that saves rows, and alone.

    Args:
      config: of PinnerFormer.
      lengths: int (batches, users), of their windows.
      groups: see `packing.Layout`.
    """
    length, (_, users) = config.data.length, lengths.shape
    spec = dataset_lib.spec_of(config.data.name, config.data.dir)
    sampler = pinnerformer.make_sampler(config, spec)
    packed = packing.layout_for(lengths, groups, length)
    packed = packed.with_labels(sampler.most_labels(lengths), sampler.pairs)
    fill = float(lengths.mean()) / length
    alone = {"alone": packing.Layout(groups, users, users, length, fill, users, sampler.pairs)}
    return alone if packed.alone else {"packed": packed, **alone}


def trainable_of(config: ConfigDict, mesh: Mesh, layout: packing.Layout) -> system.Trainable:
    """PinnerFormer's trainable part, with a layout in place of that of the data set's windows."""
    trainable = registry.build(config, mesh)
    spec = dataset_lib.spec_of(config.data.name, config.data.dir)
    model = pinnerformer.make_model(config, spec, mesh)
    loss = functools.partial(pinnerformer.loss, model, config.loss, mesh, layout)
    sampler = pinnerformer.make_sampler(config, spec)
    batch = histories.abstract_batch(sampler, layout, spec, mesh)
    return dataclasses.replace(trainable, loss=loss, batch=batch)
