"""The features of all products in device memory, and how a step takes those of some of them."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Int32, Shaped


@struct.dataclass
class ProductFeatures:
    """Ragged features of a catalogue: what lies in memory is what there is, without padding.

    Attributes:
      images: (images, dim), the vectors of all images, product by product.
      image_offsets: int32 (products + 1,), where each product's images begin.
      tokens: int32 (tokens,), of all text features, product by product, feature by feature.
      token_offsets: int32 (products * features + 1,), where each feature's tokens begin.
    """

    # Any, since a tree map may put shardings or shapes in the place of the arrays.
    images: Any
    image_offsets: Any
    tokens: Any
    token_offsets: Any

    @property
    def text_features(self) -> int:
        """Text features of a product."""
        return (len(self.token_offsets) - 1) // (len(self.image_offsets) - 1)


def gather_images(
    features: ProductFeatures, rows: Int32[Array, "products"], slots: int
) -> tuple[Shaped[Array, "products {slots} dim"], Bool[Array, "products {slots}"]]:
    """The first `slots` images of products, and which of the slots hold one."""
    place = features.image_offsets[rows][:, None] + jnp.arange(slots)
    exists = place < features.image_offsets[rows + 1][:, None]
    return features.images[jnp.where(exists, place, 0)], exists


def gather_tokens(
    features: ProductFeatures, rows: Int32[Array, "products"], capacity: int
) -> tuple[Int32[Array, "{capacity}"], Int32[Array, "{capacity}"], Bool[Array, ""]]:
    """The tokens of products, flattened, so that short texts cost no more than they are long.

    Args:
      features: of the catalogue.
      rows: of the products.
      capacity: tokens that fit: see `token_capacity`.

    Returns:
      the tokens; the segment of each, product * text_features + feature, ascending, and one past
      the last for what is left of the capacity; whether all tokens fitted.
    """
    number = features.text_features
    segments = (rows[:, None] * number + jnp.arange(number)).ravel()
    starts = features.token_offsets[segments]
    lengths = features.token_offsets[segments + 1] - starts
    ends = jnp.cumsum(lengths)
    place = jnp.arange(capacity)
    segment = jnp.searchsorted(ends, place, side="right").astype(jnp.int32)
    known = jnp.minimum(segment, len(segments) - 1)
    source = starts[known] + place - (ends - lengths)[known]
    exists = place < ends[-1]
    tokens = features.tokens[jnp.where(exists, source, 0)]
    return tokens, jnp.where(exists, segment, len(segments)), ends[-1] <= capacity


def token_capacity(lengths: np.ndarray, weights: np.ndarray, number: int) -> int:
    """Tokens that so many products have together, at most, but for a miracle.

    Args:
      lengths: int (products,), tokens of each product of the catalogue.
      weights: (products,), how often each is drawn, up to a factor.
      number: products drawn, independently.

    Returns:
      the mean and eight standard deviations, a multiple of 128.
    """
    mean = np.average(lengths, weights=weights)
    deviation = np.sqrt(np.average((lengths - mean) ** 2, weights=weights))
    most = number * mean + 8 * np.sqrt(number) * deviation + lengths.max(initial=0)
    return int(-(-min(most, number * lengths.max(initial=0)) // 128) * 128)


def most_tokens(lengths: np.ndarray, number: int) -> int:
    """Tokens that so many products have together, at most, where the catalogue is read in order.

    The last batch repeats the last product (`batching.in_batches`).
    """
    rows = np.minimum(np.arange(-(-len(lengths) // number) * number), len(lengths) - 1)
    return int(lengths[rows].reshape(-1, number).sum(axis=1).max(initial=0))
