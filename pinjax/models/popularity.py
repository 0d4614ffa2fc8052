"""How popular an item was at the time of a query (`data.popularity_window`). Not the paper's.

Content does not say how popular an item is. Its popularity is measured at several times, and a
query sees the last measurement before it, so nothing later leaks into training. It stands beside
the normalised content, so neither changes the other's scale.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32


def as_of(
    popularity: Float[Array, "*shape measured"],
    times: UInt32[Array, "*shape"] | None,
    measured_at: UInt32[Array, " measured"],
) -> Float[Array, "*shape 1"]:
    """Each item's popularity as last measured before a time; zero if there was no measurement.

    Args:
      popularity: of items, at each of `measured_at`.
      times: unix seconds at which the items are seen; None: after the last measurement.
      measured_at: unix seconds, ascending.
    """
    if times is None:
        return popularity[..., -1:]
    before = jnp.searchsorted(measured_at, times, side="left")[..., None]
    found = jnp.take_along_axis(popularity, jnp.maximum(before - 1, 0), axis=-1)
    return jnp.where(before > 0, found, 0)
