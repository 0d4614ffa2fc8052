"""A learned vector for each item (`model.id_dim`). Not in the paper.

PinnerFormer embeds items only from content, so it can embed items that are not in training. A log
without content needs learned ids; with content they distinguish similar items.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pinjax.distributed import sharded_table


class LearnedIds(nn.Module):
    """A table with a row for each item, initially zero: unseen items have only their content.

    Attributes:
      num_items: items are 0 to num_items - 1.
      dim: dimension of a vector.
      table_layout: layout of the table.
    """

    num_items: int
    dim: int
    table_layout: sharded_table.Layout = sharded_table.REPLICATED

    @nn.compact
    def __call__(self, items: Int[Array, "*shape"]) -> Float[Array, "*shape {self.dim}"]:
        """The items' vectors; -1 is padding and zero."""
        shape = self.table_layout.num_rows(self.num_items), self.dim
        table = self.param("embedding", nn.initializers.zeros, shape)
        exists = items >= 0
        rows = self.table_layout.gather(table, jnp.where(exists, items, 0))
        # Adam moves each number of a table by about the learning rate: too slow for rare rows,
        # so rows are scaled up when they are read.
        return jnp.where(exists[..., None], rows * self.dim**0.5, 0)
