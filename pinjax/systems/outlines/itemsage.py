"""ItemSage without its data."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.data import sizes
from pinjax.distributed import sharding
from pinjax.models import product_features
from pinjax.systems import itemsage as page
from pinjax.systems import outline
from pinjax.systems.outline import Shape


def create(config: ConfigDict, mesh: Mesh, items: int | None) -> outline.Outline:
    """The outline of what `page.create` makes, with another number of items if one is given.

    All items that are engaged with are taken to be drawn equally often.

    Raises:
      InputError: where the config does not fit itself, the mesh or the data.
    """
    page.check(config, mesh)
    size = sizes.of(config.data.name, config.data.dir, items, "pairs")
    spec = size.spec
    page.check_vectors(config, spec)
    encoder = page.make_encoder(config, sum(spec.vocabulary), mesh)
    table = functools.partial(outline.table, encoder.tables)
    page.check_tokens(spec.name, size.tokens)
    products = {
        "texts": product_features.Ragged(
            values=table((size.tokens,), jnp.int32),
            offsets=table((spec.num_items, max(1, len(config.model.texts)) + 1), jnp.int32),
        ),
    }
    if config.model.image_slots:
        products["images"] = product_features.Ragged(
            values=table((size.images, spec.image_dim), jnp.bfloat16),
            offsets=table((spec.num_items, 2), jnp.int32),
        )
    frozen = {
        "products": products,
        "queries": table((spec.num_queries, spec.query_dim), jnp.bfloat16),
        "corpus": Shape((size.engaged,), jnp.int32),
    }

    def capacity(number: int) -> int:
        weights = np.ones(len(size.item_tokens))
        share = number // mesh.shape["data"]
        chance = page.overflow_chance(config, mesh)
        return product_features.token_capacity(size.item_tokens, weights, share, chance)

    capacities = {
        "positives": capacity(config.data.pairs),
        "random": capacity(config.loss.num_random_negatives),
    }
    encode = functools.partial(page.encode, encoder, mesh, capacity(page.ENCODED))

    widths = page.sketch_widths(config.loss, size.engaged, spec.num_queries)

    def embed(params: Any) -> dict[str, Any]:
        arguments = {
            "parameters": params["encoder"],
            "feature table": products,
            "batch": Shape((page.ENCODED,), jnp.int32),
        }
        return {"embed products": (sharding.shared_out(mesh, encode), arguments)}

    return outline.Outline(
        init=functools.partial(page.init, encoder, config.loss, widths, spec.image_dim),
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
        search=outline.search(spec.num_items, config.model.embedding_dim, 100),
    )
