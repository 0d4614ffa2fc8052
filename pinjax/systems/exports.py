"""What a service needs of a trained system: functions of one device, and how their inputs are made.

`pinjax.serving.exporting` writes them to a directory, `pinjax.serving.exported` runs them. They are
those that the embeddings are made by, except that a request brings its own texts and images, which
in training are rows of tables.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from pinjax.data import spec as spec_lib
from pinjax.data.dataset import Dataset
from pinjax.distributed import sharded_table
from pinjax.models import hash_embedding, item_input, itemsage, pinnerformer, pinsage
from pinjax.systems import histories, layerwise, query_tower

# The tokens of all texts of a request and the text of each, as `gather_tokens` returns them. They
# come in blocks, as the hash embedding sums them: so their number may be unknown.
_BLOCK = hash_embedding.BLOCK_SIZE
_TOKENS = {name: (f"{_BLOCK} * blocks", np.int32) for name in ("tokens", "segments")}
_KNOWN = {"known": ("rows", bool)}  # whether anything is known of a row


class Program(NamedTuple):
    """A function that a service runs.

    Attributes:
      function: (params, tables, inputs) -> float32 (rows, dim).
      inputs: by name, (shape, dtype). A shape is text, "rows, 64", with a name for each dimension
        that is known only when the function is called.
      tables: names of the tables that it reads.
    """

    function: Callable[..., jax.Array]
    inputs: Mapping[str, tuple[str, Any]]
    tables: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Exports:
    """What a service needs beside the parameters.

    Attributes:
      programs: by what they embed: users, items, texts, products or groups.
      inputs: by program, JSON of what its inputs are made from; see `pinjax.serving.exported`.
      tables: arrays that programs, or the preparation of their inputs, read, by name.
      ids: own ids of what has rows in tables, beside items, by name.
      files: to copy, by name.
    """

    programs: dict[str, Program]
    inputs: dict[str, Any]
    tables: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    ids: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    files: dict[str, os.PathLike] = dataclasses.field(default_factory=dict)


def of_timelines(
    model: pinnerformer.PinnerFormer,
    served: Callable[..., jax.Array],
    constants: dict[str, Any],
    spec: spec_lib.Spec,
) -> Exports:
    """Users from their histories, and items from their rows.

    Attention is XLA's: JAX cannot lower a kernel in a program for several platforms at once.

    Args:
      model: of the run.
      served: (model, alone, params, constants, packed histories) -> user embeddings.
      constants: of `item_table`, with popularity as of the time of the export.
      spec: of the data set.
    """
    model = model.clone(kernels=False, mesh=None, table_layout=sharded_table.REPLICATED)
    read = {name: x for name, x in vars(constants["items"]).items() if x is not None}

    def users(params: Any, tables: dict[str, jax.Array], history: dict[str, jax.Array]):
        features = {"items": item_input.ItemFeatures(**tables)}
        return served(model, False, params, features, histories.unpacked(history))

    def items(params: Any, tables: dict[str, jax.Array], inputs: dict[str, jax.Array]):
        features = item_input.ItemFeatures(**tables)
        return model.apply(params, features, inputs["item"], method="items")

    history = {
        name: (f"rows, {model.length}", field.dtype)
        for name, field in histories.made_up(model.length).items()
    }
    about = {
        "length": model.length,
        "actions": spec.actions,
        "surfaces": spec.surfaces,
        "has_times": not spec.leave_one_out,
    }
    return Exports(
        programs={
            "users": Program(users, history, tuple(read)),
            "items": Program(items, {"item": ("rows", np.int32)}, tuple(read)),
        },
        inputs={"users": about, "items": {}},
        tables={name: np.asarray(value) for name, value in read.items()},
    )


def of_products(encoder: itemsage.ItemSage, dataset: Dataset) -> Exports:
    """Products from their texts and images."""
    encoder = encoder.clone(table_layout=sharded_table.REPLICATED)
    texts, dim = [name for name, _ in encoder.text_features], dataset.spec.image_dim
    slots = encoder.image_slots

    def products(params: Any, tables: dict[str, jax.Array], inputs: dict[str, jax.Array]):
        images = mask = tokens = segments = None
        if slots:
            mask = inputs["image_mask"]
            images = inputs["images"].astype(jnp.bfloat16)  # as they lie in the table of a run
        if texts:
            tokens, segments = inputs["tokens"], inputs["segments"]
        rows = inputs["known"].shape[0]
        return encoder.apply(params["encoder"], images, mask, tokens, segments, rows)

    shapes = dict(_KNOWN)
    if slots:
        shapes["images"] = f"rows, {slots}, {dim}", np.float32
        shapes["image_mask"] = f"rows, {slots}", bool
    if texts:
        shapes |= _TOKENS
    about = {"texts": texts, "image_slots": slots, "image_dim": dim, "block": _BLOCK}
    return Exports(
        {"products": Program(products, shapes)},
        {"products": about},
        tables=_token_ids(dataset) if texts else {},
        files=_vocabulary(dataset) if texts else {},
    )


def of_searches(tower: query_tower.Tower, config: ConfigDict, dataset: Dataset) -> Exports:
    """Searches from their texts, and with `model.residual` their own vectors."""
    model, dim, kind = config.model, dataset.spec.query_dim, "bag"
    if model.encoder == "bert":
        kind = "pretrained" if model.pretrained else "words"

    def texts(params: Any, tables: dict[str, jax.Array], inputs: dict[str, jax.Array]):
        return tower.of_request(params["tower"], inputs)

    tables, ids, files = _token_ids(dataset), {}, _vocabulary(dataset)
    shapes = _KNOWN | _TOKENS
    if kind != "bag":
        tables = {}
        shape = f"rows, {model.length}"
        shapes = {"ids": (shape, np.int32), "mask": (shape, bool)}
    if kind == "pretrained":
        files = {"tokenizer.json": os.path.join(model.pretrained, "tokenizer.json")}
    about = {"kind": kind, "block": _BLOCK, "longest": dataset.spec.longest_search}
    about |= {"words": dataset.spec.vocabulary[0], "length": model.length}
    if model.residual:
        shapes["vectors"] = f"rows, {dim}", np.float32
        searches = dataset.queries.kinds == "text"
        tables["query_vectors"] = dataset.queries.vectors[searches]
        ids["searches"] = dataset.queries.ids[searches]
    return Exports({"texts": Program(texts, shapes)}, {"texts": about}, tables, ids, files)


def of_groups(model: pinsage.PinSage, states: np.ndarray, number: int) -> Exports:
    """Groups from the items that are in them.

    Items are only looked up: to embed one takes its neighbours' vectors in every layer, which the
    walks over the graph choose.

    Args:
      model: of the run.
      states: float32 (items, width), of all items after the last layer.
      number: of items that are read of a group.
    """
    model = model.clone(table_layout=sharded_table.REPLICATED)

    def groups(params: Any, tables: dict[str, jax.Array], inputs: dict[str, jax.Array]):
        exists = inputs["item"] >= 0
        weights = exists / jnp.maximum(exists.sum(axis=1, keepdims=True), 1)
        members = tables["states"][jnp.maximum(inputs["item"], 0)]
        rows = {"others": members, "weights": weights.astype(jnp.float32)}
        return model.apply(params, *layerwise.flat(rows), method="group")

    shapes = {"item": (f"rows, {number}", np.int32)}
    return Exports(
        {"groups": Program(groups, shapes, ("states",))},
        {"groups": {"length": number}},
        {"states": states},
    )


def _vocabulary(dataset: Dataset) -> dict[str, os.PathLike]:
    return {spec_lib.VOCABULARY_FILE: dataset.directory / spec_lib.VOCABULARY_FILE}


def _token_ids(dataset: Dataset) -> dict[str, np.ndarray]:
    """The ids of the vocabulary's tokens, if a model of an earlier vocabulary went on from it."""
    return {} if dataset.fitted is None else {"token_ids": dataset.token_ids}
