"""PinnerFormer without its data."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.data import schema, sizes, windows
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
    size = sizes.timelines(config.data.name, config.data.dir, items)
    num_items, users = size.metadata.num_items, config.data.users
    if config.data.content and not size.content_dim:
        raise InputError(f"data.content: {config.data.name} has no content vectors")
    model = page.make_model(config, size.metadata)
    width = size.content_dim + config.data.degree
    content = Shape((num_items, width), jnp.bfloat16) if config.data.content else None
    frozen = page.Frozen(content, Shape((num_items,), jnp.int32))
    pairs = windows.labels_per_user(
        config.objective.name, config.data.length, config.objective.labels
    )
    init = functools.partial(page.init, model, config.loss, content)
    params, _ = jax.eval_shape(init, jax.random.key(0))

    def history(rows: int) -> dict[str, Shape]:
        fields = {name: dtype for name, (dtype, _) in schema.ACTION.fields.items()}
        fields["moment"] = fields["time"]
        return {name: Shape((rows, config.data.length), x) for name, x in fields.items()}

    def arguments(batch: Any) -> dict[str, Any]:
        return {"parameters": params, "feature table": content, "batch": batch}

    labels = Shape((users, pairs), jnp.int32)
    return outline.Outline(
        init=init,
        loss=functools.partial(page.loss, model, config.loss, mesh),
        frozen=frozen,
        batch={**history(users), "label_position": labels, "label_item": labels},
        size=("data.users", users),
        others={
            "embed users": (
                functools.partial(page.served, model),
                arguments(history(config.evaluate.batch)),
            ),
            "embed items": (
                functools.partial(model.apply, method="items"),
                arguments(Shape((min(num_items, 2**14),), jnp.int32)),
            ),
            "search": outline.search(num_items, model.dim, 50),
        },
    )
