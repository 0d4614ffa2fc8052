"""ItemSage without its data."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.data import sizes
from pinjax.models import product_features
from pinjax.systems import itemsage as page
from pinjax.systems import outline
from pinjax.systems.outline import Shape
from pinjax.training import sharding


def create(config: ConfigDict, mesh: Mesh, items: int | None) -> outline.Outline:
    """The outline of what `page.create` makes, with another number of products if one is given.

    Every product is taken to be drawn equally often.

    Raises:
      InputError: where the config does not fit itself, the mesh or the data.
    """
    page.check(config, mesh)
    size = sizes.engagements(config.data.name, config.data.dir, items)
    page.check_vectors(config, config.data.name, size.dim, size.dim)
    encoder = page.make_encoder(config, size.vocabulary, mesh)
    table = functools.partial(outline.table, encoder.tables)
    tokens = round(size.products * size.text_tokens.mean())
    page.check_tokens(config.data.name, tokens)
    products = {
        "images": product_features.Ragged(
            values=table((size.images, size.dim), jnp.bfloat16),
            offsets=table((size.products, 2), jnp.int32),
        ),
        "texts": product_features.Ragged(
            values=table((tokens,), jnp.int32),
            offsets=table((size.products, max(1, len(config.model.texts)) + 1), jnp.int32),
        ),
    }
    frozen = {
        "products": products,
        "queries": table((size.queries, size.dim), jnp.bfloat16),
        "corpus": Shape((size.engaged,), jnp.int32),
    }

    def capacity(number: int) -> int:
        weights = np.ones(len(size.text_tokens))
        share = number // mesh.shape["data"]
        chance = page.overflow_chance(config, mesh)
        return product_features.token_capacity(size.text_tokens, weights, share, chance)

    capacities = {"positives": capacity(config.data.pairs), "random": capacity(config.loss.random)}
    encode = functools.partial(page.encode, encoder, mesh, capacity(page.ENCODED))

    widths = page.sketch_widths(config.loss, size.engaged, size.queries)

    def embed(params: Any) -> dict[str, Any]:
        arguments = {
            "parameters": params["encoder"],
            "feature table": products,
            "batch": Shape((page.ENCODED,), jnp.int32),
        }
        return {"embed products": (sharding.shared_out(mesh, encode), arguments)}

    return outline.Outline(
        init=functools.partial(page.init, encoder, config.loss, widths, size.dim),
        loss=functools.partial(
            page.loss,
            encoder,
            config.loss,
            mesh,
            capacities,
            tuple(name for name, *_ in config.tasks),
        ),
        frozen=frozen,
        batch=outline.pairs_batch(config.data.pairs, size.same_query),
        size=("data.pairs", config.data.pairs),
        embed=embed,
        search=outline.search(size.products, config.model.dim, 100),
    )
