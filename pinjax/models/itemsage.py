"""The product tower of ItemSage (Baltescu et al., KDD 2022), and the encoders of its comparison."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int

from pinjax.distributed import sharded_table
from pinjax.models import features, hash_embedding, mlp, transformer

ENCODERS = ("transformer", "sum", "sum_mlp", "mlp_concat_mlp")


class ItemSage(nn.Module):
    """Products as vectors of unit length, each made of a set of feature vectors.

    A product has slots: those of its images, then one for each text feature. Empty slots, masked
    images and texts without tokens have no influence. The encoder of the other slots is one of:

      transformer     a linear map by group to `width`, a learned [CLS] vector beside them,
                      transformer blocks, and an MLP on the output at [CLS];
      sum             a linear map by group to `embedding_dim`, summed over the slots;
      sum_mlp         a linear map by group to `width`, summed, then an MLP;
      mlp_concat_mlp  an MLP by group to `embedding_dim`, concatenated over the slots, then an MLP.

    With `residual`, which is not in the paper, a product is the mean of its images plus the
    encoder's output, with an initial gain of zero: if image vectors and queries share a space, a
    product without engagements stays near similar queries.

    Attributes:
      image_slots: images of a product, at most; all share the weights of their map.
      text_features: (name, group) of each feature that is a text. Features of one group share the
        weights of their map.
      num_tokens: size of the vocabulary of all texts.
      token_buckets: rows of the hash embedding of tokens; 0: one for each token.
      token_dim: dimension of a text's vector, the sum over its tokens.
      width: of the transformer, and hidden width of every MLP.
      embedding_dim: embedding dimension.
      layers: transformer blocks, at least 1.
      heads: attention heads; they divide the width.
      encoder: one of `ENCODERS`.
      residual: whether the encoder's output is added to the images, whose vectors are then
        `embedding_dim` long.
      dtype: of the arithmetic. Parameters, normalisation, softmax and outputs are float32.
      table_layout: how the hash embedding of tokens lies on the devices.
    """

    image_slots: int
    text_features: tuple[tuple[str, str], ...]
    num_tokens: int
    token_buckets: int
    token_dim: int
    width: int
    embedding_dim: int
    layers: int
    heads: int
    encoder: str = "transformer"
    residual: bool = False
    dtype: Any = jnp.float32
    table_layout: sharded_table.Layout = sharded_table.REPLICATED

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "products images image_dim"] | None,
        image_mask: Bool[Array, "products images"] | None,
        tokens: Int[Array, " tokens"] | None,
        segments: Int[Array, " tokens"] | None,
        num_products: int | None = None,
    ) -> Float32[Array, "products {self.embedding_dim}"]:
        """Embeds products.

        Args:
          images: their vectors, of any scale; None without image slots.
          image_mask: False where there is no image.
          tokens: of all texts, one text after the other; None if there are no text features.
          segments: product * len(text_features) + text feature of each token, ascending; past the
            last segment for padding.
          num_products: how many there are; needed only where there are no images to tell.

        Raises:
          ValueError: an attribute is out of its range, or the arrays are not those of the features.
        """
        self._check(images, image_mask, tokens, segments)
        slots, masks = [], []  # a feature each: (name of its map, vectors), and which of them exist
        if images is not None:
            num_products = images.shape[0]
            # Before anything is computed, since not even a NaN may come through.
            vectors = features.unit_length(jnp.where(image_mask[..., None], images, 0))
            image_sum = vectors.sum(axis=1, dtype=jnp.float32)
            # To a root mean square of 1, as `item_input.ItemInput` does.
            vectors *= math.sqrt(images.shape[-1])
            slots.append(("image_image", vectors))  # a name that checkpoints have
            masks.append(image_mask)
        if num_products is None:
            raise ValueError("without images, num_products says how many products there are")
        if tokens is not None:
            shape = (num_products, len(self.text_features))
            vectors = hash_embedding.HashEmbeddingBag(
                self.num_tokens,
                self.token_buckets,
                self.token_dim,
                table_layout=self.table_layout,
                name="text",
            )(tokens, segments, math.prod(shape)).reshape(*shape, self.token_dim)
            for i, (_, group) in enumerate(self.text_features):
                slots.append((f"text_{group}", vectors[:, i : i + 1]))
            filled = jnp.zeros(math.prod(shape), bool)
            filled = filled.at[segments].set(True, mode="drop", indices_are_sorted=True)
            masks.append(filled.reshape(shape))
        mask = jnp.concatenate(masks, axis=1)

        def mapped(make):
            """Every slot through the module that `make` makes for its group."""
            maps = {name: make(name=name) for name in dict(slots)}
            return jnp.concatenate([maps[name](vectors) for name, vectors in slots], axis=1)

        def linear(out):
            return lambda name: nn.Dense(out, dtype=self.dtype, name=name)

        def perceptron(name):
            return mlp.MLP(self.width, self.embedding_dim, self.dtype, name=name)

        def summed(x):
            return jnp.where(mask[..., None], x, 0).sum(axis=1, dtype=jnp.float32)

        if self.encoder == "transformer":
            x = perceptron("head")(self._transformer(mapped(linear(self.width)), mask))
        elif self.encoder == "sum":
            x = summed(mapped(linear(self.embedding_dim)))
        elif self.encoder == "sum_mlp":
            x = perceptron("head")(summed(mapped(linear(self.width))))
        else:
            x = jnp.where(mask[..., None], mapped(perceptron), 0)
            x = perceptron("head")(x.reshape(num_products, -1))
        if self.residual:
            gain = self.param("gain", nn.initializers.zeros, ())
            x = features.plus_residual(features.unit_length(image_sum), gain, x)
        return features.unit_length(x)

    def _check(self, images, image_mask, tokens, segments):
        if self.encoder not in ENCODERS:
            raise ValueError(f"unknown encoder {self.encoder!r}, expected one of {ENCODERS}")
        if self.layers < 1 or self.width % self.heads:
            raise ValueError(
                f"{self.layers} layers of width {self.width} and {self.heads} heads, expected "
                "at least 1, and heads that divide the width"
            )
        if not self.image_slots and not self.text_features:
            raise ValueError("neither image slots nor text features: nothing is known of a product")
        for kind, number, arrays in (
            ("image slots", self.image_slots, (images, image_mask)),
            ("text features", len(self.text_features), (tokens, segments)),
        ):
            given = [array is not None for array in arrays]
            if given != [number > 0] * 2:
                raise ValueError(
                    f"{number} {kind} and {sum(given)} of their 2 arrays, expected both arrays "
                    f"where there are {kind}, else None"
                )
        if self.residual and (images is None or images.shape[-1] != self.embedding_dim):
            size = "no images" if images is None else f"images of {images.shape[-1]} numbers"
            raise ValueError(
                f"a residual of {size}, expected {self.embedding_dim}, those of an embedding"
            )
        if images is not None and images.shape[1] != self.image_slots:
            raise ValueError(f"{images.shape[1]} images a product, expected {self.image_slots}")

    def _transformer(self, x, mask):
        """The output at [CLS]: (products, width)."""
        cls = self.param("cls", nn.initializers.normal(0.02), (self.width,)).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, self.width)), x], axis=1)
        mask = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        batch, length = mask.shape
        visible = jnp.broadcast_to(mask[:, None, None], (batch, 1, length, length))
        for layer in range(self.layers - 1):
            x, _ = transformer.Block(
                self.heads, 0.0, self.dtype, deterministic=True, name=f"block_{layer}"
            )(x, visible)
        x = LastBlock(self.heads, self.dtype, name=f"block_{self.layers - 1}")(x, mask)
        return nn.LayerNorm(dtype=self.dtype, name="norm")(x)


class LastBlock(nn.Module):
    """`transformer.Block` without dropout, for the first position only.

    With one query per product, keys and values need not be computed: with k_j = K y_j,
    <q, k_j> = <Kᵀq, y_j>, and the mean of values V y_j under the softmax is V times the mean of
    y_j. The output is the same for a fraction of the work. A bias of the keys would add the same
    number to all logits of a softmax, so there is none.

    Attributes: see `transformer.Block`.
    """

    heads: int
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch length width"], mask: Bool[Array, "batch length"]
    ) -> Float[Array, "batch width"]:
        """Runs the block; positions with a False mask are not attended to."""
        width = x.shape[-1]
        heads = (self.heads, width // self.heads)
        init = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
        y = nn.LayerNorm(dtype=self.dtype, name="attention_norm")(x)
        x = x[:, 0]
        query = nn.DenseGeneral(heads, dtype=self.dtype, name="query")(y[:, 0])
        key = self.param("key", init, (width, *heads)).astype(self.dtype)
        value = self.param("value", init, (width, *heads)).astype(self.dtype)
        bias = self.param("value_bias", nn.initializers.zeros, heads).astype(self.dtype)
        query = jnp.einsum("bhd,whd->bhw", query * heads[1] ** -0.5, key)
        logits = jnp.einsum("bhw,blw->bhl", query, y, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(jnp.where(mask[:, None], logits, -jnp.inf)).astype(self.dtype)
        mean = jnp.einsum("bhl,blw->bhw", weights, y)
        mean = jnp.einsum("bhw,whd->bhd", mean, value) + bias
        x += nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, name="attention_out")(mean)

        y = nn.LayerNorm(dtype=self.dtype, name="ffn_norm")(x)
        y = nn.Dense(4 * width, dtype=self.dtype, name="ffn_in")(y)
        return x + nn.Dense(width, dtype=self.dtype, name="ffn_out")(nn.gelu(y))
