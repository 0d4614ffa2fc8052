"""The features of a graph's items, on the devices.

The constants of a step are, by name:

    content     bfloat16 (items, dim), None without content vectors
    log_degree  float32 (items,), None without it
    texts       `DeviceRagged`, a list of the first tokens of each item; None without texts

Tables have a `sharded_table.Layout`.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.data import item_features
from pinjax.data.dataset import Dataset
from pinjax.data.spec import Spec
from pinjax.data.text import tokens as tokens_lib
from pinjax.distributed import sharded_table, sharding
from pinjax.errors import InputError
from pinjax.systems import item_table, ragged_features

NAMES = ("content", "log_degree", "texts")


def check(config: ConfigDict) -> None:
    """Rejects items that nothing is known of, and vectors that are not read."""
    if config.data.vectors and not config.data.content:
        raise InputError("data.vectors: without effect unless data.content is set, too")
    model = config.model
    if not (config.data.content or model.id_dim or model.texts or model.log_degree):
        raise InputError(
            "model.id_dim=0: items have no features; set data.content, model.texts or model.id_dim"
        )


@dataclasses.dataclass(frozen=True)
class NodeTable:
    """The features of items.

    Attributes:
      mesh: of the devices.
      table_layout: layout of the tables.
      content: whether there are content vectors.
      log_degree: whether there are degrees.
      texts: names of text features.
      tokens: of an item's texts, at most.
    """

    mesh: Mesh
    table_layout: sharded_table.Layout
    content: bool
    log_degree: bool
    texts: tuple[str, ...]
    tokens: int

    @classmethod
    def create(cls, config: ConfigDict, mesh: Mesh, spec: Spec) -> "NodeTable":
        """The table that a config describes.

        Raises:
          InputError: if the data set does not have its texts.
        """
        for name in config.model.texts:
            if name not in spec.text_features:
                known = ", ".join(spec.text_features) or "none"
                raise InputError(f"model.texts: {spec.name} has no {name!r}, only {known}")
        table_layout = sharding.table_layout(mesh, config.train)
        model = config.model
        return cls(
            mesh,
            table_layout,
            config.data.content,
            model.log_degree,
            tuple(model.texts),
            model.tokens,
        )

    def abstract(self, spec: Spec) -> dict[str, Any]:
        """The abstract shapes of the constants.

        Raises:
          InputError: if the data set has no content.
        """

        def table(dtype: Any, *shape: int) -> jax.ShapeDtypeStruct:
            return sharding.abstract_table(self.mesh, self.table_layout, shape, dtype)

        content = log_degree = texts = None
        if self.content:
            content = table(jnp.bfloat16, spec.num_items, item_features.content_dim(spec, 0))
        if self.log_degree:
            log_degree = table(jnp.float32, spec.num_items)
        if self.texts:
            values = table(jnp.int32, self._most_tokens(spec))
            texts = ragged_features.DeviceRagged(values, table(jnp.int32, spec.num_items, 2))
        return {"content": content, "log_degree": log_degree, "texts": texts}

    def place(self, dataset: Dataset) -> dict[str, Any]:
        """The constants."""
        content = log_degree = texts = None
        if self.content:
            content = item_table.place_content(self.mesh, self.table_layout, dataset, 0)
        if self.log_degree:
            log_degree = item_features.log_degree(dataset)
        if self.texts:
            joined = tokens_lib.interleave([dataset.text(x) for x in self.texts])
            joined = tokens_lib.Ragged(joined.tokens, joined.offsets[:: len(self.texts)])
            values, offsets = tokens_lib.first(joined, self.tokens)
            more = self._most_tokens(dataset.spec) - len(values)
            texts = ragged_features.DeviceRagged.create(np.pad(values, (0, more)), offsets)
        place = functools.partial(sharding.place_table, self.mesh, self.table_layout)
        return {
            "content": content,
            **jax.tree.map(place, {"log_degree": log_degree, "texts": texts}),
        }

    def gather(self, constants: dict[str, Any], rows: jax.Array) -> tuple[Any, ...]:
        """The arguments of `PinSage.inputs` for some items; on each device."""
        tokens = segments = None
        if self.texts:
            tokens, segments, _ = ragged_features.gather_tokens(
                constants["texts"], rows, len(rows) * self.tokens, self.table_layout.on_device()
            )
        return rows, constants["content"], constants["log_degree"], tokens, segments

    def dim(self, config: ConfigDict, spec: Spec) -> int:
        """The dimension of an item's input."""
        model = config.model
        content = item_features.content_dim(spec, 0) if self.content else 0
        return content + self.log_degree + model.id_dim + bool(self.texts) * model.token_dim

    def made_up(self, spec: Spec) -> tuple[Any, ...]:
        """The arguments of `PinSage.inputs` for one item, to initialise parameters."""

        def one(table: Any) -> jax.Array:
            return jnp.zeros((self.table_layout.num_rows(1), *table.shape[1:]), table.dtype)

        like, row = self.abstract(spec), jnp.zeros(1, jnp.int32)
        content, log_degree = jax.tree.map(one, (like["content"], like["log_degree"]))
        tokens = row if self.texts else None
        return row, content, log_degree, tokens, tokens

    def _most_tokens(self, spec: Spec) -> int:
        """The length of the list of all tokens."""
        total = sum(spec.num_tokens[name] for name in self.texts)
        about = f"model.texts: those of {spec.name}"
        return ragged_features.check_size(about, min(total, spec.num_items * self.tokens), "tokens")
