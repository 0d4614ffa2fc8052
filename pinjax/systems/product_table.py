"""The texts and images of all products, on the devices, and the token capacity of a step."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.data import batches, statistics
from pinjax.data.dataset import Dataset
from pinjax.data.spec import Spec
from pinjax.data.text import tokens as tokens_lib
from pinjax.distributed import sharded_table, sharding
from pinjax.errors import InputError
from pinjax.models import itemsage
from pinjax.systems import ragged_features

Products = dict[str, ragged_features.DeviceRagged]


def check(config: ConfigDict, spec: Spec) -> None:
    """Rejects a config that does not fit the vectors and texts of the data set."""
    name, dim, slots = spec.name, config.model.embedding_dim, config.model.image_slots
    if spec.query_dim != dim:
        raise InputError(
            f"model.embedding_dim={dim}: query vectors of {name} have {spec.query_dim} numbers"
        )
    if slots and not spec.image_dim:
        raise InputError(f"model.image_slots={slots}: {name} has no images; expected 0")
    if config.model.residual and spec.image_dim != dim:
        raise InputError(
            f"model.residual: images of {name} have {spec.image_dim} numbers, queries {dim}"
        )
    for feature in _features(config):
        if feature not in spec.text_features:
            known = ", ".join(spec.text_features) or "images"
            raise InputError(f"model.texts: {name} has no {feature!r}, only {known}")


def abstract(
    config: ConfigDict, mesh: Mesh, table_layout: sharded_table.Layout, spec: Spec
) -> Products:
    """The abstract shapes of `read`, on the devices.

    Raises:
      InputError: if the texts or the images are too many.
    """
    names = _features(config)
    tokens = sum(spec.num_tokens[name] for name in names)
    ragged_features.check_size(f"model.texts: those of {spec.name}", tokens, "tokens")

    def table(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
        return sharding.abstract_table(mesh, table_layout, shape, dtype)

    offsets = table((spec.num_items, max(1, len(names)) + 1), jnp.int32)
    made = {"texts": ragged_features.DeviceRagged(table((tokens,), jnp.int32), offsets)}
    if config.model.image_slots:
        about = f"model.image_slots: items of {spec.name}"
        number = ragged_features.check_size(about, spec.num_images, "images")
        images = table((number, spec.image_dim), jnp.bfloat16)
        offsets = table((spec.num_items, 2), jnp.int32)
        made["images"] = ragged_features.DeviceRagged(images, offsets)
    return made


def read(config: ConfigDict, dataset: Dataset) -> Products:
    """The texts of all items that the config names.

    Of their images, if the tower uses images, only the offsets; `place` reads the others.
    """
    catalogue = dataset.catalogue
    none = tokens_lib.Ragged(np.zeros(0, np.int32), np.zeros(len(catalogue) + 1, np.int64))
    texts = [dataset.text(name) for name in _features(config)] or [none]
    made = {"texts": ragged_features.DeviceRagged.create(*tokens_lib.interleave(texts), len(texts))}
    if config.model.image_slots:
        made["images"] = ragged_features.DeviceRagged.create(None, catalogue.image_offsets)
    return made


def place(
    products: Products, dataset: Dataset, mesh: Mesh, table_layout: sharded_table.Layout
) -> Products:
    """The result of `read` on the devices, and the images, of which a process keeps its share."""
    placed = jax.tree.map(functools.partial(sharding.place_table, mesh, table_layout), products)
    if "images" in placed:
        shape, images = (dataset.spec.num_images, dataset.spec.image_dim), placed["images"]
        parts = dataset.catalogue.image_parts()
        values = sharding.place_rows(mesh, table_layout, shape, jnp.bfloat16, parts)
        placed["images"] = images.replace(values=values)
    return placed


def gather(
    encoder: itemsage.ItemSage,
    products: Products,
    rows: jax.Array,
    capacity: int,
) -> tuple[tuple[Any, ...], jax.Array | bool]:
    """The encoder's inputs for some products, and whether their tokens fit in the capacity."""
    images = image_mask = tokens = segments = None
    fits = True
    if encoder.image_slots:
        images, image_mask = ragged_features.gather_images(
            products["images"], rows, encoder.image_slots, encoder.table_layout
        )
    if encoder.text_features:
        tokens, segments, fits = ragged_features.gather_tokens(
            products["texts"], rows, capacity, encoder.table_layout
        )
    return (images, image_mask, tokens, segments, len(rows)), fits


def num_values(feature: ragged_features.DeviceRagged) -> np.ndarray:
    """The number of tokens, or images, of each item: int32 (items,)."""
    return feature.offsets[:, -1] - feature.offsets[:, 0]


def findable(products: Products) -> np.ndarray:
    """Bool (items,): whether an item has a token or an image that the tower uses."""
    return sum(map(num_values, products.values())) > 0


def with_products(
    config: ConfigDict,
    spec: Spec,
    products: Products,
    train_batches: batches.PairBatches,
    corpus: np.ndarray,
) -> Spec:
    """A spec with the number of a run's own products, and with the lengths of their texts.

    Args:
      config: of the run.
      spec: of the data set, whose lengths are of all training pairs: without caps.
      products: of `read`.
      train_batches: of the run.
      corpus: int (products,), the items that are random negatives.
    """
    names, texts = _features(config), products["texts"]
    lengths = dict(zip(names, np.diff(texts.offsets, axis=1).T, strict=False))
    if set(names) == set(spec.text_features):
        lengths = {"": num_values(texts)}
    drawn = {"": np.isin(np.arange(spec.num_items), corpus)}
    pairs = train_batches.pairs
    for row, task in train_batches.tasks.items():
        visits = np.where(pairs["task"] == row, train_batches.visits, 0)
        drawn[task.name] = np.bincount(pairs["item"], visits, spec.num_items)
    found = {
        task: {name: statistics.quantiles(x, [weights]) for name, x in lengths.items()}
        for task, weights in drawn.items()
    }
    return dataclasses.replace(spec, num_engaged=len(corpus), token_quantiles=found)


def token_capacities(
    config: ConfigDict, mesh: Mesh, spec: Spec, train_batches: batches.PairBatches
) -> dict[str, int]:
    """The capacities for tokens of the products that a device encodes at once.

    A batch of a run exceeds them with a probability below `ragged_features.OVERFLOW`. A device's
    share of a batch is drawn without replacement from the pairs of the tasks, in proportion to
    their shares. When a catalogue is embedded, its products are packed into the capacity.
    """
    names, devices = _features(config), mesh.shape["data"]
    at_once = ragged_features.rows_at_once(mesh)
    # For the tokens of one device in one step.
    chance = ragged_features.OVERFLOW / (2 * config.train.steps * devices)

    def capacity(shares: dict[str, float], products: int) -> int:
        lengths = [spec.tokens_of_items(task, names) for task in shares]
        weights = [share * statistics.MASSES for share in shares.values()]
        lengths, weights = np.concatenate(lengths), np.concatenate(weights)
        return ragged_features.token_capacity(lengths, weights, products // devices, chance)

    shares = {spec.tasks[task]: count for task, count in train_batches.shares.items()}
    return {
        "positives": capacity(shares, config.data.pairs),
        "random": capacity({"": 1.0}, config.loss.num_random_negatives),
        "catalogue": max(capacity({"": 1.0}, at_once), spec.longest_item(names)),
    }


def _features(config: ConfigDict) -> list[str]:
    """The names of the tower's text features."""
    return [name for name, _ in config.model.texts]
