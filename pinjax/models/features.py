"""Encodings of the fields of an action other than its item: time, duration, categories."""

import math
from fractions import Fraction

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Float32, Int32, Integer, Shaped, UInt32

from pinjax.timestamps import DAY, HOUR

# PinnerFormer (Pancha et al., KDD 2022), §3.1, in seconds.
ABSOLUTE_PERIODS = (
    *(HOUR * 2.0**power for power in range(-2, 5)),  # 15 minutes to 16 hours
    *(DAY * float(days) for days in (1, 7, 28, 365)),
)
RELATIVE_PERIODS = tuple(float(period) for period in np.geomspace(1, 28 * DAY, 32))


def turns(
    t: UInt32[Array, "*shape"], periods: tuple[float, ...]
) -> Float32[Array, "*shape periods"]:
    """The phase of t / period in turns, modulo full turns.

    A unix timestamp has more digits than float32, and t modulo a real period is not an integer. So
    1 / period is a 64-bit fixed-point fraction of a turn, computed on the host. Multiplying it by t
    in uint32 drops full turns by overflow.

    Args:
      t: seconds.
      periods: seconds, each at least 1.

    Returns:
      Phases in [-0.5, 0.5], off by at most 2^-31 turns and float32's own rounding.
    """
    inverses = [round(2**64 / Fraction(period)) for period in periods]
    high = jnp.asarray([inverse >> 32 & 0xFFFFFFFF for inverse in inverses], jnp.uint32)
    low = jnp.asarray([inverse & 0xFFFFFFFF for inverse in inverses], jnp.uint32)
    t = t[..., None]
    phase = t * high + _high_word(t, low)  # in 2^-32 turns
    return lax.bitcast_convert_type(phase, jnp.int32).astype(jnp.float32) * 2.0**-32


def _high_word(a: UInt32[Array, "..."], b: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """The upper 32 bits of the 64-bit product a * b, in arithmetic of 32 bits."""
    a_high, a_low, b_high, b_low = a >> 16, a & 0xFFFF, b >> 16, b & 0xFFFF
    # Neither sum overflows: (2^16 - 1)^2 + 2 * (2^16 - 1) = 2^32 - 1.
    middle = a_high * b_low + (a_low * b_low >> 16)
    carry = a_low * b_high + (middle & 0xFFFF)
    return a_high * b_high + (middle >> 16) + (carry >> 16)


class TimeEncoding(nn.Module):
    """Periodic encoding of a time, with learned phases (PinnerFormer, §3.1).

    P periods make 2P + 1 numbers of a time t:

      cos(2π t / p_i + φ_2i-1), sin(2π t / p_i + φ_2i) for each i, and log(1 + t) / 4.

    The phases start at zero. The logarithm is of 1 + t, so that 0 seconds give 0. Its divisor,
    which is not in the paper, gives it the scale of the other features.

    Attributes:
      periods: p_i, in seconds, each at least 1.
    """

    periods: tuple[float, ...]

    @nn.compact
    def __call__(self, t: UInt32[Array, "*shape"]) -> Float32[Array, "*shape features"]:
        """Encodes times in seconds, which may be unix timestamps."""
        phases = self.param("phases", nn.initializers.zeros, (2, len(self.periods)))
        angles = 2 * math.pi * turns(t, self.periods)
        cosines = jnp.cos(angles + phases[0])
        sines = jnp.sin(angles + phases[1])
        return jnp.concatenate([cosines, sines, 4 * log_seconds(t)], axis=-1)


def log_seconds(seconds: Shaped[Array, "*shape"]) -> Float32[Array, "*shape 1"]:
    """log(1 + seconds) / 16, which is 0 for 0 and 1 for a hundred days."""
    return jnp.log1p(seconds.astype(jnp.float32))[..., None] / 16


def relative_times(
    time: UInt32[Array, "rows length"], end: Int32[Array, "rows length"]
) -> tuple[UInt32[Array, "rows length"], UInt32[Array, "rows length"]]:
    """Seconds to the last action of the window, and from the previous one (0 for the first).

    Args:
      time: unix seconds.
      end: the windows in the rows, see `attention`.
    """
    last = jnp.take_along_axis(time, jnp.maximum(end, 0), axis=1)
    previous = jnp.roll(time, 1, axis=1)
    has_previous = (jnp.roll(end, 1, axis=1) == end).at[:, 0].set(False)
    return last - time, jnp.where(has_previous, time - previous, 0)


class CategoryEmbedding(nn.Module):
    """A small learned table; unknown values have no row.

    Attributes:
      num_categories: size of the vocabulary, with its row 0, "unknown".
      dim: embedding dimension.
    """

    num_categories: int
    dim: int

    @nn.compact
    def __call__(self, rows: Integer[Array, "*shape"]) -> Float[Array, "*shape {self.dim}"]:
        """Embeds rows of the vocabulary. Row 0, and any row that is not in it, is zero."""
        rows = rows.astype(jnp.int32)
        init = nn.initializers.normal(1.0)
        table = self.param("embedding", init, (self.num_categories, self.dim))
        known = (rows > 0) & (rows < self.num_categories)
        return jnp.where(known[..., None], table[jnp.where(known, rows, 0)], 0)


def unit_length(x: Float[Array, "*shape dim"]) -> Float32[Array, "*shape dim"]:
    """L2-normalises the last axis, in float32.

    A vector shorter than 1e-6, as one of zeros, is multiplied by 1e6, and so is its gradient.
    """
    x = x.astype(jnp.float32)
    return x * lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-12))


def plus_residual(
    own: Float32[Array, "*shape dim"], gain: Float32[Array, ""], x: Float[Array, "*shape dim"]
) -> Float32[Array, "*shape dim"]:
    """Own vectors plus a residual times a learned gain, which begins at 0.

    Where there is no own vector the residual stands alone. The gain would have the gradient of a
    vector of zeros there, see `unit_length`.
    """
    known = own.any(axis=-1, keepdims=True)
    return own + jnp.where(known, gain, 1) * x.astype(jnp.float32)
