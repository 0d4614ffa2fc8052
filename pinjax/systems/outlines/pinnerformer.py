"""PinnerFormer without its data."""

import functools
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.data import sizes, timelines, windows
from pinjax.errors import InputError
from pinjax.systems import outline
from pinjax.systems import pinnerformer as page
from pinjax.systems.outline import Shape


def create(config: ConfigDict, mesh: Mesh, items: int | None) -> outline.Outline:
    """The outline of what `page.create` makes, with another number of items if one is given.

    Raises:
      InputError: where the config does not fit itself, the mesh or the data.
    """
    page.check(config, mesh)
    spec = sizes.of(config.data.name, config.data.dir, items, "timelines").spec
    num_items, users = spec.num_items, config.data.users
    if config.data.content and not spec.content_dim:
        raise InputError(f"data.content: {config.data.name} has no content vectors")
    model = page.make_model(config, spec, mesh)
    popularity = config.data.popularity_times if config.data.popularity_window else 0
    content = None
    if config.data.content:
        page.check_pca_dim(config, spec.content_dim)
        width = (config.data.pca_dim or spec.content_dim) + popularity
        content = outline.table(model.tables, (num_items, width), jnp.bfloat16)
    times = Shape((popularity,), jnp.uint32) if popularity else None
    frozen = page.Frozen(content, Shape((num_items,), jnp.int32), times)
    pairs = windows.labels_per_user(
        config.objective.name, config.data.length, config.objective.labels
    )

    def history(rows: int) -> dict[str, Shape]:
        fields = {name: dtype for name, (dtype, _) in timelines.ACTION.fields.items()}
        fields["request_time"] = fields["time"]
        return {name: Shape((rows, config.data.length), x) for name, x in fields.items()}

    labels = dict.fromkeys(("label_position", "label_item"), Shape((users, pairs), jnp.int32))
    batch = {**history(users), **labels, "same_user": Shape((users, 1), jnp.int32)}
    embed_users, embed_items = page.embedders(model, mesh)
    rows = Shape((min(num_items, 2**14),), jnp.int32)

    def embed(params: Any) -> dict[str, Any]:
        known = {"parameters": params, "feature table": frozen._replace(corpus=None)}
        return {
            "embed users": (embed_users, {**known, "batch": history(config.evaluate.batch)}),
            "embed items": (embed_items, {**known, "batch": rows}),
        }

    return outline.Outline(
        init=functools.partial(page.init, model, config.loss, frozen),
        loss=functools.partial(page.loss, model, config.loss, mesh),
        frozen=frozen,
        batch=batch,
        size=("data.users", users),
        embed=embed,
        search=outline.search(min(num_items, config.evaluate.index_size), model.embedding_dim, 50),
    )
