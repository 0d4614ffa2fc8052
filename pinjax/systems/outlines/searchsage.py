"""SearchSage without its data."""

import functools
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.data import sizes
from pinjax.data.text import pretrained
from pinjax.distributed import sharded_table, sharding
from pinjax.models import product_features
from pinjax.systems import outline
from pinjax.systems import searchsage as page
from pinjax.systems.outline import Shape


def create(config: ConfigDict, mesh: Mesh, items: int | None) -> outline.Outline:
    """The outline of what `page.create` makes, with another number of items if one is given.

    Raises:
      InputError: where the config does not fit itself, the mesh or the data.
    """
    page.check(config, mesh)
    size = sizes.of(config.data.name, config.data.dir, items, "pairs")
    spec = size.spec
    page.check_spec(config, spec)
    layout = sharding.table_layout(mesh, config.train)
    tower = (_bag if config.model.encoder == "bag" else _bert)(config, size, layout)
    if config.model.residual:
        own = outline.table(layout, (spec.num_queries, spec.query_dim), jnp.bfloat16)
        tower = page.with_residual(tower, own)
    vectors = outline.table(layout, (spec.num_items, page.item_dim(spec)), jnp.float32)

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
        search=outline.search(spec.num_items, page.item_dim(spec), 100),
    )


def _bag(config: ConfigDict, size: sizes.Sizes, layout: sharded_table.Layout) -> page.Tower:
    texts = product_features.Ragged(
        values=outline.table(layout, (size.spec.num_queries * size.query_tokens,), jnp.int32),
        offsets=outline.table(layout, (size.spec.num_queries, 2), jnp.int32),
    )
    num_tokens, dim = sum(size.spec.vocabulary), page.item_dim(size.spec)
    return page.bag_tower(config.model, texts, layout, num_tokens, size.query_tokens, dim)


def _bert(config: ConfigDict, size: sizes.Sizes, layout: sharded_table.Layout) -> page.Tower:
    model = config.model
    if model.pretrained:
        made_of, *_ = pretrained.read(model.pretrained, model.length)
    else:
        made_of = page.bert_sizes(model, size.spec.vocabulary[0])
    shape = size.spec.num_queries, model.length
    texts = outline.table(layout, shape, jnp.int32), outline.table(layout, shape, jnp.bool_)
    return page.bert_tower(made_of, model.dtype, texts, layout, page.item_dim(size.spec))
