"""When an embedding is requested (`request_time` in `model.features`). Not in the paper.

The paper's user embedding depends on the time of the last action, but not on its request time. This
matters if interests change within hours, as for news. The request time is an input of the user
tower's head, after the transformer.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float32, UInt32

from pinjax.models import features


class RequestTime(nn.Module):
    """Encodes a request time, and the time that has passed since the user's last action."""

    @nn.compact
    def __call__(
        self, requested: UInt32[Array, "*shape"], acted: UInt32[Array, "*shape"]
    ) -> Float32[Array, "*shape features"]:
        """Encodes request times.

        Args:
          requested: unix seconds, not before `acted`.
          acted: unix seconds of the last action.
        """
        absolute = features.TimeEncoding(features.ABSOLUTE_PERIODS, name="absolute")(requested)
        since = features.TimeEncoding(features.RELATIVE_PERIODS, name="since")(requested - acted)
        return jnp.concatenate([absolute, since], axis=-1)
