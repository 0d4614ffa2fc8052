"""How large a data set is, as far as a compiled program depends on it, without making it."""

import dataclasses

import numpy as np

from pinjax.data import dataset as dataset_lib
from pinjax.data.simulated import pinworld, shop, world
from pinjax.data.spec import Spec
from pinjax.errors import InputError

_PRODUCT_IMAGES = float(shop.IMAGES @ np.arange(len(shop.IMAGES)))


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of a data set.

    Attributes:
      spec: without counts of users, pairs and edges.
      images: of all items together.
      tokens: in all texts of all items together.
      item_tokens: int (n,), in all texts of an item, of n items that are engaged with.
      engaged: items that are engaged with in training, at most.
      query_tokens: of the longest search.
      same_query: pairs of one query in a batch, at most: the width of the field `excluded`.
    """

    spec: Spec
    images: int
    tokens: int
    item_tokens: np.ndarray
    engaged: int
    query_tokens: int
    same_query: int = 64


def of(name: str, data_dir: str, items: int | None, part: str) -> Sizes:
    """Sizes of pinworld without simulating it, or of a prepared directory.

    Args:
      name: as in `dataset.load`. With `items` a directory need not be there: then all else is taken
        to be like pinworld, with as many queries and products as items.
      data_dir: as in `dataset.load`.
      items: another number of items; None: the data set's own.
      part: one of `spec.PARTS`, which is needed.

    Raises:
      InputError: where there is no such data set, or not that part.
    """
    kind, _, size = name.partition("/")
    if kind == pinworld.NAME:
        known = pinworld.size_of(size)
        queries = known.image_queries + known.text_queries
        return _like_pinworld(name, items or known.pins, items or known.products, queries)
    try:
        dataset = dataset_lib.load(name, data_dir)
        dataset.need(part)
    except InputError as error:
        if items is None:
            raise InputError(f"{error}; or say how large it is: --items") from None
        return _like_pinworld(name, items, items, items)
    spec, catalogue = dataset.spec, dataset.catalogue
    factor = (items or spec.num_items) / spec.num_items
    engaged, query_tokens = np.arange(spec.num_items), 1
    if spec.pairs:
        queries = dataset.queries
        searches = np.where(queries.kinds == "text", queries.ids, "").tolist()
        query_tokens = int(np.diff(dataset.vocabulary.encode(searches).offsets).max(initial=1))
        engaged = np.unique(dataset.pairs("train")["item"])
    tokens = np.zeros(spec.num_items, np.int64)
    for feature in spec.text_features:
        tokens += np.diff(catalogue.text(feature).offsets)
    return Sizes(
        spec=dataclasses.replace(spec, num_items=round(spec.num_items * factor)),
        images=round(int(catalogue.image_offsets[-1]) * factor),
        tokens=round(int(tokens.sum()) * factor),
        item_tokens=tokens[engaged],
        engaged=round(len(engaged) * factor),
        query_tokens=query_tokens,
    )


def _like_pinworld(name: str, items: int, products: int, queries: int) -> Sizes:
    """Sizes of a world of which so many items are products.

    What it draws of texts is not known before. A product is taken to have what one of pinworld/tiny
    has, 284 tokens with a standard deviation of 63, and the vocabulary 30,000 words, as many as
    BERT's, beside all the bigrams and trigrams that it may have.
    """
    return Sizes(
        spec=Spec(
            name=name,
            num_items=items,
            content_dim=world.CONTENT_DIM,
            image_dim=world.CONTENT_DIM,
            text_features=tuple(shop.FEATURES),
            vocabulary=(30_000, pinworld.VOCABULARY["bigrams"], pinworld.VOCABULARY["trigrams"]),
            actions=world.ACTIONS,
            surfaces=world.SURFACES,
            tasks=shop.TASKS,
            num_queries=queries,
            query_dim=world.CONTENT_DIM,
        ),
        images=round(products * _PRODUCT_IMAGES),
        tokens=284 * products,
        item_tokens=np.array([284 - 63, 284 + 63]),
        engaged=products,
        query_tokens=32,
    )
