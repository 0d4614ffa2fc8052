"""How large a data set is, as far as a compiled program depends on it, without making it."""

import dataclasses

import numpy as np

from pinjax.data import datasets, pinshop, pinworld, schema
from pinjax.data import pinshop_simulation as shop
from pinjax.data import pinworld_simulation as world
from pinjax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Timelines:
    """Of a data set of timelines.

    Attributes:
      metadata: with the number of items and the vocabularies; nothing else in it means anything.
      content_dim: numbers of an item's content vector; 0: there is none.
    """

    metadata: schema.Metadata
    content_dim: int


@dataclasses.dataclass(frozen=True)
class Engagements:
    """Of a data set of engagements.

    Attributes:
      products: how many.
      engaged: how many of them were engaged with in training, at most.
      queries: how many.
      dim: numbers of an image's and of a query's vector.
      images: of all products together.
      text_tokens: int (n,), the tokens of all texts of a product, of n products.
      words: single words in the vocabulary.
      vocabulary: all its tokens.
      query_tokens: of the longest query.
      same_query: pairs of one query in a batch, at most: the width of the field `excluded`.
    """

    products: int
    engaged: int
    queries: int
    dim: int
    images: int
    text_tokens: np.ndarray
    words: int
    vocabulary: int
    query_tokens: int
    same_query: int


def timelines(name: str, data_dir: str, items: int | None) -> Timelines:
    """Sizes of pinworld without simulating it, or of a prepared directory.

    Args:
      name: as in `datasets.load`. With `items` a directory need not be there: then its
        vocabularies and content vectors are taken to be like pinworld's.
      data_dir: as in `datasets.load`.
      items: another number of items; None: the data set's own.

    Raises:
      InputError: where there is no such data set.
    """
    kind, _, size = name.partition("/")
    found = Timelines(schema.Metadata(name, world.ACTIONS, world.SURFACES, 0, 0), world.CONTENT_DIM)
    number = items
    if kind == pinworld.NAME:
        number = items or pinworld.builder_config(size).pins
    else:
        try:
            dataset = datasets.load(name, data_dir)
        except InputError as error:
            if items is None:
                raise InputError(f"{error}; or say how large it is: --items") from None
        else:
            content = dataset.catalogue.content
            found = Timelines(dataset.metadata, 0 if content is None else content.shape[1])
            number = items or dataset.metadata.num_items
    metadata = dataclasses.replace(found.metadata, num_items=number)
    return dataclasses.replace(found, metadata=metadata)


def engagements(name: str, data_dir: str, items: int | None) -> Engagements:
    """Sizes of pinshop without simulating it, or of a directory: see `timelines`.

    What pinshop draws of texts is not known before. A product is taken to have what one of
    pinshop/tiny has, 284 tokens with a standard deviation of 63, and the vocabulary 30,000 words,
    as many as BERT's, beside all the bigrams and trigrams that it may have.
    """
    kind, _, size = name.partition("/")
    found = Engagements(
        products=items or 0,
        engaged=items or 0,
        queries=items or 0,
        dim=world.CONTENT_DIM,
        images=round((items or 0) * _MEAN_IMAGES),
        text_tokens=np.array([284 - 63, 284 + 63]),
        words=30_000,
        vocabulary=30_000 + pinshop.VOCABULARY["bigrams"] + pinshop.VOCABULARY["trigrams"],
        query_tokens=32,
        same_query=64,
    )
    if kind == pinshop.NAME:
        known = pinshop.size_of(size)
        number = items or known.products  # the queries are as many of each kind
        return dataclasses.replace(
            found,
            products=number,
            engaged=number,
            queries=2 * known.queries,
            images=round(number * _MEAN_IMAGES),
        )
    try:
        dataset = datasets.load_pairs(name, data_dir)
    except InputError as error:
        if items is None:
            raise InputError(f"{error}; or say how large it is: --items") from None
        return found
    products, queries = dataset.products, dataset.queries
    tokens = sum(np.diff(ragged.offsets) for ragged in products.texts.values())
    searches = np.where(queries.kinds == "text", queries.ids, "").tolist()
    factor = (items or len(products)) / len(products)
    return Engagements(
        products=items or len(products),
        engaged=round(len(np.unique(dataset.pairs("train")["product"])) * factor),
        queries=len(queries),
        dim=products.images.shape[1],
        images=round(len(products.images) * factor),
        text_tokens=tokens + np.zeros(len(products), np.int64),
        words=dataset.vocabulary.sizes[0],
        vocabulary=len(dataset.vocabulary),
        query_tokens=int(np.diff(dataset.vocabulary.encode(searches).offsets).max(initial=1)),
        same_query=found.same_query,
    )


_MEAN_IMAGES = float(shop.IMAGES @ np.arange(len(shop.IMAGES)))
