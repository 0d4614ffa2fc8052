"""The constants of a step about items, on the devices: content, popularity rates, and corpus.

They are, by name:

    items   `item_input.ItemFeatures`: content bfloat16 (rows, dim), with a `sharded_table.Layout`,
            and the times at which popularity rates, its last columns, were counted
    corpus  int32 (n,), the items that existed when the training period ended, from which random
            negatives are drawn. Later items are never positives in training
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.data import item_features, popularity
from pinjax.data.dataset import Dataset
from pinjax.data.spec import Spec
from pinjax.distributed import sharded_table, sharding
from pinjax.errors import InputError
from pinjax.models import item_input

Constants = dict[str, Any]


def check(config: ConfigDict) -> None:
    """Rejects items with neither content nor ids, and fields without effect."""
    for name in ("pca_dim", "popularity_window", "vectors"):
        if config.data[name] and not config.data.content:
            raise InputError(f"data.{name}: without effect unless data.content is set, too")
    if not config.data.content and not config.model.id_dim:
        raise InputError(
            "model.id_dim=0: items without data.content are learned ids; expected more than 0"
        )
    if config.model.gated_layers and not config.data.content:
        raise InputError(
            "model.gated_layers: learned ids begin at zero, where a gate passes no gradient; set "
            "data.content, too"
        )


@dataclasses.dataclass(frozen=True)
class ItemTable:
    """Makes the constants for items with content, rates, or neither.

    Attributes:
      mesh: of the devices.
      table_layout: layout of `content`.
      has_content: whether there is `content`.
      pca_dim: PCA dimension of the content; 0: no PCA.
      rates: None without rates.
    """

    mesh: Mesh
    table_layout: sharded_table.Layout
    has_content: bool
    pca_dim: int
    rates: popularity.Popularity | None

    @classmethod
    def create(cls, config: ConfigDict, mesh: Mesh, spec: Spec) -> "ItemTable":
        """From a run's config.

        Raises:
          InputError: if rates are configured and the data set has no times.
        """
        data = config.data
        rates = popularity.Popularity.create(spec, data.popularity_window, data.popularity_times)
        table_layout = sharding.table_layout(mesh, config.train)
        return cls(mesh, table_layout, data.content, data.pca_dim, rates)

    def abstract(self, spec: Spec) -> Constants:
        """The abstract shapes of the constants.

        Raises:
          InputError: if the data set has no content, or fewer dimensions than `pca_dim`.
        """
        content = times = None
        number = self.rates.number if self.rates else 0
        if self.has_content:
            dim = item_features.content_dim(spec, self.pca_dim) + number
            shape = spec.num_items, dim
            content = sharding.abstract_table(self.mesh, self.table_layout, shape, jnp.bfloat16)
        if number:
            times = jax.ShapeDtypeStruct((number,), jnp.uint32)
        corpus = jax.ShapeDtypeStruct((spec.num_existing,), jnp.int32)
        corpus, times = sharding.abstract(self.mesh, (corpus, times))
        return {"items": item_input.ItemFeatures(content, times), "corpus": corpus}

    def place(self, dataset: Dataset) -> Constants:
        """The constants as of the end of the training period."""
        content, times, as_of = None, None, dataset.spec.train_end
        if self.has_content:
            content = place_content(self.mesh, self.table_layout, dataset, self.pca_dim)
        if self.rates:
            times, columns = self.rates.counted(dataset, as_of)
            join = functools.partial(jnp.concatenate, axis=1)
            columns = self._place(columns)
            content = jax.jit(join, out_shardings=content.sharding)([content, columns])
        corpus = np.flatnonzero(dataset.catalogue.created <= as_of).astype(np.int32)
        corpus, times = jax.device_put((corpus, times), sharding.replicated(self.mesh))
        return {"items": item_input.ItemFeatures(content, times), "corpus": corpus}

    def as_of(self, dataset: Dataset, constants: Constants, as_of: int) -> Constants:
        """The constants of `place`, with the rates known as of a time, when an index is built."""
        if self.rates is None or as_of == dataset.spec.train_end:
            return constants
        times, columns = self.rates.counted(dataset, as_of)
        times = jax.device_put(times, sharding.replicated(self.mesh))
        content = _with_last(constants["items"].content, self._place(columns))
        return {**constants, "items": item_input.ItemFeatures(content, times)}

    def _place(self, table: np.ndarray) -> jax.Array:
        return sharding.place_table(self.mesh, self.table_layout, table.astype(jnp.bfloat16))


def of_one(
    items: item_input.ItemFeatures, table_layout: sharded_table.Layout
) -> item_input.ItemFeatures:
    """Made-up features of one item, of the same types as abstract ones of all items."""
    if items.content is not None:
        shape = table_layout.num_rows(1), items.content.shape[1]
        items = items.replace(content=jax.ShapeDtypeStruct(shape, items.content.dtype))
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), items)


def place_content(
    mesh: Mesh, table_layout: sharded_table.Layout, dataset: Dataset, components: int
) -> jax.Array:
    """`item_features.content` on the devices, of which a process keeps its share."""
    shape = len(dataset.catalogue), item_features.content_dim(dataset.spec, components)
    parts = item_features.content(dataset, components)
    return sharding.place_rows(mesh, table_layout, shape, jnp.bfloat16, parts)


def times_of_negatives(
    key: jax.Array, request_times: jax.Array, exists: jax.Array, numbers: tuple[int, int]
) -> list[jax.Array]:
    """Random request times of negatives, drawn from the queries of the batch.

    logQ does not depend on the time, but a label of the batch is more popular at its own request
    time than at others.

    Args:
      key: folded with 1.
      request_times: uint32 (labels,), of the query of each label.
      exists: bool (labels,), False for padding.
      numbers: of in-batch and of random negatives.

    Returns:
      uint32 (negatives,) for each of `numbers`.
    """
    drawn = jax.random.choice(
        jax.random.fold_in(key, 1),
        request_times,
        (sum(numbers),),
        p=exists / jnp.maximum(exists.sum(), 1),
    )
    return jnp.split(drawn, [numbers[0]])


@jax.jit
def _with_last(table: jax.Array, columns: jax.Array) -> jax.Array:
    return table.at[:, -columns.shape[1] :].set(columns)
