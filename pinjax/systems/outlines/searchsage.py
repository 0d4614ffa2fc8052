"""SearchSage without its data."""

import functools
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.data import pretrained, sizes
from pinjax.models import product_features, tables
from pinjax.systems import outline
from pinjax.systems import searchsage as page
from pinjax.systems.outline import Shape
from pinjax.training import sharding


def create(config: ConfigDict, mesh: Mesh, items: int | None) -> outline.Outline:
    """The outline of what `page.create` makes, with another number of items if one is given.

    Raises:
      InputError: where the config does not fit itself, the mesh or the data.
    """
    page.check(config, mesh)
    size = sizes.engagements(config.data.name, config.data.dir, items)
    layout = sharding.table_layout(mesh, config.train)
    tower = (_bag if config.model.encoder == "bag" else _bert)(config, size, layout)
    if config.model.residual:
        own = outline.table(layout, (size.queries, size.dim), jnp.bfloat16)
        tower = page.with_residual(tower, own)
    vectors = outline.table(layout, (size.products, size.dim), jnp.float32)

    def embed(params: Any) -> dict[str, Any]:
        arguments = {
            "parameters": params["tower"],
            "feature table": tower.texts,
            "batch": Shape((page.ENCODED,), jnp.int32),
        }
        function = sharding.shared_out(mesh, functools.partial(tower.embed, mesh))
        return {"embed queries": (function, arguments)}

    return outline.Outline(
        init=functools.partial(page.init, tower, config.loss),
        loss=functools.partial(page.loss, tower, config.loss, mesh),
        frozen={"items": vectors, "texts": tower.texts},
        batch=outline.pairs_batch(config.data.pairs, size.same_query),
        size=("data.pairs", config.data.pairs),
        embed=embed,
        search=outline.search(size.products, size.dim, 100),
    )


def _bag(config: ConfigDict, size: sizes.Engagements, layout: tables.Tables) -> page.Tower:
    texts = product_features.Ragged(
        values=outline.table(layout, (size.queries * size.query_tokens,), jnp.int32),
        offsets=outline.table(layout, (size.queries, 2), jnp.int32),
    )
    return page.bag_tower(config.model, texts, layout, size.vocabulary, size.query_tokens, size.dim)


def _bert(config: ConfigDict, size: sizes.Engagements, layout: tables.Tables) -> page.Tower:
    model = config.model
    if model.pretrained:
        made_of, *_ = pretrained.read(model.pretrained, model.length)
    else:
        made_of = page.bert_sizes(model, size.words)
    shape = size.queries, model.length
    texts = outline.table(layout, shape, jnp.int32), outline.table(layout, shape, jnp.bool_)
    return page.bert_tower(made_of, model.dtype, texts, layout, size.dim)
