"""The input of both towers of PinnerFormer for an item (Pancha et al., KDD 2022, §3.1)."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float32, Int32, UInt32

from pinjax.distributed import sharded_table
from pinjax.models import features, learned_ids, popularity


@struct.dataclass
class ItemFeatures:
    """What is known of the items of a catalogue; a pytree.

    Attributes:
      content: (items, dim), with the layout of large tables; None if items have only learned
        vectors. With `popularity_times`, its last columns are the popularity of items at these
        times.
      popularity_times: uint32 (times,), unix seconds, ascending; None: items have no popularity.
    """

    # Any, since a tree map may replace the arrays by shardings or shapes.
    content: Any = None
    popularity_times: Any = None


class ItemInput(nn.Module):
    """An item's content vector.

    Optionally its popularity and a learned vector are appended, which is not in the paper.

    Attributes:
      num_items: rows of the catalogue.
      id_dim: dimension of the learned vector; 0: none.
      table_layout: layout of content and learned vectors.
    """

    num_items: int
    id_dim: int
    table_layout: sharded_table.Layout

    @nn.compact
    def __call__(
        self,
        items: ItemFeatures,
        rows: Int32[Array, "*shape"],
        times: UInt32[Array, "*shape"] | None = None,
    ) -> Float32[Array, "*shape features"]:
        """The input vectors of catalogue rows; -1 is padding and zero.

        Args:
          items: of the catalogue; `content` is laid out as `table_layout` says.
          rows: of the catalogue.
          times: unix seconds of the as-of popularity; None: the last of `popularity_times`.

        Raises:
          ValueError: there is neither content nor a learned vector.
        """
        parts = []
        if items.content is not None:
            vectors, measured = self.table_layout.gather(items.content, rows), None
            if items.popularity_times is not None:
                dim = vectors.shape[-1] - len(items.popularity_times)
                vectors, measured = jnp.split(vectors, [dim], axis=-1)
            # Content may have any scale. The other features have a root mean square of 1.
            parts.append(features.unit_length(vectors) * math.sqrt(vectors.shape[-1]))
            if measured is not None:
                parts.append(popularity.as_of(measured, times, items.popularity_times))
        if self.id_dim:
            ids = learned_ids.LearnedIds(self.num_items, self.id_dim, self.table_layout, name="id")
            parts.append(ids(rows))
        if not parts:
            raise ValueError("items have neither content vectors nor id_dim > 0: nothing is known")
        return jnp.where(rows[..., None] >= 0, jnp.concatenate(parts, axis=-1), 0)
