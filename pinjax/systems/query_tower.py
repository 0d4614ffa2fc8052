"""Towers that embed the texts of searches, and the tables of texts that they read."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from pinjax.data import item_features, statistics
from pinjax.data.dataset import Dataset
from pinjax.data.spec import Spec
from pinjax.data.text import pretrained, word_ids
from pinjax.distributed import sharded_table, sharding
from pinjax.models import bert, features, searchsage
from pinjax.systems import ragged_features, system

# By task, the tokens of a query at each of `statistics.LEVELS`: int (levels,).
Lengths = Mapping[str, np.ndarray]


class Tower(NamedTuple):
    """A query tower.

    Attributes:
      texts: pytree of abstract shapes, its tables of all queries' texts.
      table_layout: layout of these tables and of the tables among the parameters.
      init: (key) -> params.
      apply: (params, texts, rows) -> float32 (rows, dim), on each device.
      of_request: (params, inputs) -> the same, of texts that are in no table; see
        `exports.of_searches`.
      row_meanings: of `system.Trainable`.
    """

    texts: Any
    table_layout: sharded_table.Layout
    init: Callable[[jax.Array], Any]
    apply: Callable[..., jax.Array]
    of_request: Callable[[Any, dict[str, jax.Array]], jax.Array]
    row_meanings: Mapping[str, str]

    def embed(self, mesh: Mesh, params: Any, texts: Any, rows: jax.Array) -> jax.Array:
        """The embeddings of queries, float32 (rows, dim); each device computes its share."""
        return sharding.shard_map_rows(mesh, self.table_layout, self.apply)(params, texts, rows)


def create(config: ConfigDict, mesh: Mesh, spec: Spec, lengths: Lengths) -> Tower:
    """The tower that the section `model` names, with the dimension of the items' vectors.

    Args:
      config: of the run.
      mesh: of the devices.
      spec: of the data set.
      lengths: of `known_lengths` or `lengths_of`.
    """
    make = {"bag": _bag, "bert": _bert}[config.model.encoder]
    room = functools.partial(capacity, config, mesh, spec, lengths)
    tower = make(config, mesh, spec, room)
    return _with_residual(tower, mesh, spec) if config.model.residual else tower


def capacity(config: ConfigDict, mesh: Mesh, spec: Spec, lengths: Lengths, queries: int) -> int:
    """The most tokens that a tower takes of the queries of a device; it gives NaN for more.

    A device's share of a batch exceeds it with a probability below `ragged_features.OVERFLOW` in a
    run. There is always room for one query.
    """
    shares = [weight * statistics.MASSES for _, weight, _ in config.tasks]
    of_tasks = np.concatenate([lengths[task] for task, *_ in config.tasks])
    chance = ragged_features.OVERFLOW / (config.train.steps * mesh.shape["data"])
    room = ragged_features.token_capacity(of_tasks, np.concatenate(shares), queries, chance)
    return max(_longest(config, spec), room)


def _longest(config: ConfigDict, spec: Spec) -> int:
    """The most tokens of a query."""
    return config.model.length if config.model.encoder == "bert" else spec.longest_search


def describe(config: ConfigDict, mesh: Mesh, spec: Spec, lengths: Lengths) -> str:
    """How a batch's texts are packed, in words; "" for the bag, which never pads one."""
    if config.model.encoder != "bert":
        return ""
    queries = config.data.pairs // mesh.shape["data"]
    cells = queries * config.model.length
    tokens = min(cells, capacity(config, mesh, spec, lengths, queries))
    return f"{queries:,} queries on each device in {tokens:,} tokens, with padding {cells:,}"


def num_tokens(config: ConfigDict, texts: Any) -> np.ndarray:
    """The tokens of each query: int64 (queries,)."""
    texts = texts[0] if config.model.residual else texts
    if config.model.encoder == "bert":
        return texts[1].sum(axis=1)
    return np.diff(texts.offsets)[:, 0].astype(np.int64)


def known_lengths(config: ConfigDict, spec: Spec) -> Lengths:
    """What a spec alone tells of the lengths of all training pairs.

    For the bag, whose tokens it does not count by task, each is the longest.
    """
    longest = _longest(config, spec)
    if config.model.encoder == "bert":  # the words, after [CLS]
        return {x: np.minimum(1 + np.array(n), longest) for x, n in spec.search_quantiles.items()}
    return {task: np.full(len(statistics.LEVELS), longest) for task in spec.tasks}


def lengths_of(config: ConfigDict, spec: Spec, texts: Any, pairs: np.ndarray) -> Lengths:
    """The lengths of the texts of a run's own pairs, by its tokenizer.

    Args:
      config: of the run.
      spec: of the data set.
      texts: of `read`.
      pairs: `pairs.PAIR` (n,), the pairs that the run trains on.
    """
    tokens, found = num_tokens(config, texts), {}
    for row, task in enumerate(spec.tasks):
        count = np.bincount(pairs["query"][pairs["task"] == row], minlength=len(tokens))
        if count.any():
            found[task] = np.array(statistics.quantiles(tokens, [count, count > 0]))
    return found


def read(config: ConfigDict, dataset: Dataset) -> Any:
    """The texts of a data set's queries, in memory, as the tower's `texts`."""
    return _encode(config, dataset, dataset.queries.searches, dataset.queries.vectors)


def encode(config: ConfigDict, dataset: Dataset, searches: list[str]) -> Any:
    """Any texts as the tower's `texts`; the shapes of its arrays depend on their number alone.

    Of a text with more tokens than the data set's longest search the last ones are left out. A text
    that is not among the data set's queries has no vector of its own.
    """
    queries, longest, vectors = dataset.queries, dataset.spec.longest_search, None
    if config.model.residual:
        rows = np.array([queries.row_of.get(text, -1) for text in searches])
        vectors = np.where(rows[:, None] >= 0, queries.vectors[rows], 0)

    def fixed(texts: Any) -> Any:
        if not isinstance(texts, ragged_features.DeviceRagged):
            return texts
        kept = np.minimum(np.diff(texts.offsets)[:, 0], longest)
        values = np.zeros(longest * len(searches), np.int32)
        for row, (start, number) in enumerate(zip(texts.offsets[:, 0], kept, strict=True)):
            values[row * longest :][:number] = texts.values[start : start + number]
        starts = np.arange(len(searches)) * longest
        return ragged_features.DeviceRagged(values, np.c_[starts, starts + kept].astype(np.int32))

    encoded = _encode(config, dataset, searches, vectors)
    return jax.tree.map(
        fixed, encoded, is_leaf=lambda x: isinstance(x, ragged_features.DeviceRagged)
    )


def _encode(
    config: ConfigDict, dataset: Dataset, searches: list[str], vectors: np.ndarray | None
) -> Any:
    model = config.model
    if model.encoder == "bag":
        texts = ragged_features.DeviceRagged.create(*dataset.encode(searches))
    elif model.pretrained:
        texts = pretrained.Tokenizer(model.pretrained, model.length)(searches)
    else:
        words = dataset.vocabulary.encode(searches)
        texts = word_ids.of_texts(words, dataset.vocabulary.sizes[0], model.length)
    return (texts, vectors.astype(jnp.bfloat16)) if model.residual else texts


def _bag(config: ConfigDict, mesh: Mesh, spec: Spec, room: Callable[[int], int]) -> Tower:
    """A bag of hashed tokens: the cheap tower."""
    table_layout = sharding.table_layout(mesh, config.train)
    model = searchsage.BagTower(
        num_tokens=sum(spec.vocabulary),
        token_buckets=config.model.token_buckets,
        token_dim=config.model.token_dim,
        width=config.model.width,
        dim=item_features.item_vector_dim(spec),
        dtype=config.model.dtype,
        table_layout=table_layout,
    )
    on_device = model.clone(table_layout=table_layout.on_device())

    def init(key: jax.Array) -> Any:
        one = jnp.zeros(1, jnp.int32)
        return model.init(key, one, one, 1)

    def apply(params: Any, texts: Any, rows: jax.Array) -> jax.Array:
        tokens, segments, fits = ragged_features.gather_tokens(
            texts, rows, room(len(rows)), on_device.table_layout
        )
        return jnp.where(fits, on_device.apply(params, tokens, segments, len(rows)), jnp.nan)

    def of_request(params: Any, inputs: dict[str, jax.Array]) -> jax.Array:
        rows = inputs["known"].shape[0]
        return model.apply(params, inputs["tokens"], inputs["segments"], rows)

    def table(shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        return sharding.abstract_table(mesh, table_layout, shape, jnp.int32)

    number = ragged_features.check_size(f"{spec.name}: searches", spec.num_search_tokens, "tokens")
    texts = ragged_features.DeviceRagged(table((number,)), table((spec.num_queries, 2)))
    return Tower(texts, table_layout, init, apply, of_request, system.TEXTS)


def _bert(config: ConfigDict, mesh: Mesh, spec: Spec, room: Callable[[int], int]) -> Tower:
    """A transformer with the weights in `model.pretrained`, or else from scratch.

    From scratch its tokens are [CLS] and the words of the vocabulary.
    """
    model, length, words = config.model, config.model.length, spec.vocabulary[0]
    table_layout = sharding.table_layout(mesh, config.train)
    weights = None
    if model.pretrained:
        sizes, weights, _ = _read_weights(model.pretrained, length)
    else:
        sizes = {
            "vocabulary": words + 1,
            "positions": length,
            "token_types": 0,
            "layers": model.layers,
            "heads": model.heads,
            "width": model.width,
            "ffn_width": 4 * model.width,
        }
    encoder = bert.Bert(**sizes, dtype=model.dtype)
    tower = searchsage.BertTower(encoder, item_features.item_vector_dim(spec))

    def init(key: jax.Array) -> Any:
        ids, mask = jnp.zeros((1, length), jnp.int32), jnp.zeros((1, length), bool)
        params = tower.init(key, ids, mask)
        if weights is not None:
            params["params"]["encoder"] = jax.tree.map(jnp.asarray, weights)
        return params

    def apply(params: Any, texts: Any, rows: jax.Array) -> jax.Array:
        ids, mask = (table_layout.on_device().gather(table, rows) for table in texts)
        mask &= rows[:, None] >= 0  # of no query nothing is computed
        return tower.apply(params, ids, mask, capacity=room(len(rows)))

    def of_request(params: Any, inputs: dict[str, jax.Array]) -> jax.Array:
        return tower.apply(params, inputs["ids"], inputs["mask"])

    def table(dtype: Any) -> jax.ShapeDtypeStruct:
        return sharding.abstract_table(mesh, table_layout, (spec.num_queries, length), dtype)

    # Pretrained weights have a vocabulary of their own.
    row_meanings = {} if model.pretrained else {"/token/embedding$": "words"}
    texts = table(jnp.int32), table(jnp.bool_)
    return Tower(texts, table_layout, init, apply, of_request, row_meanings)


# A tower is made anew when the lengths of texts are known; its weights need not be read again.
_read_weights = functools.lru_cache(maxsize=1)(pretrained.read)


def _with_residual(tower: Tower, mesh: Mesh, spec: Spec) -> Tower:
    """A tower whose output is added to the queries' own vectors, with an initial gain of zero.

    It is not in the paper. If queries have vectors in the space of items, a query that is not in
    training stays near similar items.
    """
    shape = spec.num_queries, spec.query_dim
    vectors = sharding.abstract_table(mesh, tower.table_layout, shape, jnp.bfloat16)

    def init(key: jax.Array) -> Any:
        return {"tower": tower.init(key), "gain": jnp.zeros(())}

    def added(params: Any, vectors: jax.Array, embedded: jax.Array) -> jax.Array:
        own = features.unit_length(vectors)
        return features.unit_length(features.plus_residual(own, params["gain"], embedded))

    def apply(params: Any, tables: Any, rows: jax.Array) -> jax.Array:
        texts, vectors = tables
        own = tower.table_layout.on_device().gather(vectors, rows)
        return added(params, own, tower.apply(params["tower"], texts, rows))

    def of_request(params: Any, inputs: dict[str, jax.Array]) -> jax.Array:
        own = inputs["vectors"].astype(jnp.bfloat16)  # as in the table
        return added(params, own, tower.of_request(params["tower"], inputs))

    return tower._replace(
        texts=(tower.texts, vectors), init=init, apply=apply, of_request=of_request
    )
