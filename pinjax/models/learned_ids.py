"""A learned vector for each item (`model.id_dim`). It is not the paper's.

PinnerFormer knows items by their content alone, and so embeds items that training has not seen. A
log without content needs learned ids; beside content they tell apart items that look alike.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pinjax.distributed import sharded_table


class LearnedIds(nn.Module):
    """A table with a row for each item, zero at first: an unseen item is its content alone.

    Attributes:
      num_items: items are 0 to num_items - 1.
      dim: numbers of a vector.
      tables: how the table lies on the devices.
    """

    num_items: int
    dim: int
    tables: sharded_table.Layout = sharded_table.REPLICATED

    @nn.compact
    def __call__(self, items: Int[Array, "*shape"]) -> Float[Array, "*shape {self.dim}"]:
        """The items' vectors; -1 is padding and zero."""
        shape = self.tables.num_rows(self.num_items), self.dim
        table = self.param("embedding", nn.initializers.zeros, shape)
        exists = items >= 0
        rows = self.tables.gather(table, jnp.where(exists, items, 0))
        # Adam moves each number of a table by about the learning rate: too slow for rows that are
        # seldom seen, unless what is read is larger than what is stored.
        return jnp.where(exists[..., None], rows * self.dim**0.5, 0)
