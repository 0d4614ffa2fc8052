"""The spec of a pinworld without simulating it, to compile for it."""

import numpy as np

from pinjax.data import statistics
from pinjax.data.simulated import pinworld, shop, world
from pinjax.data.spec import Spec

# Mean and standard deviation of the number of tokens of a product, as in pinworld/tiny.
_TOKENS = {
    "title": 52,
    "description": 138,
    "merchant_domain": 11,
    "link": 51,
    "category": 9,
    "product_type": 5,
    "brand": 5,
    "colours": 6,
    "materials": 3,
    "patterns": 2,
    "size": 1,
    "size_type": 1,
}
_DEVIATION = 63
_IMAGES = float(shop.IMAGES @ np.arange(len(shop.IMAGES)))  # of a product
_UNIGRAMS = 30_000  # as many as BERT's
_LONGEST_SEARCH = 32
_LARGEST_QUERY = 1e-4  # share of a task's pairs
# Actions of a training user until the end of training, at equal shares of users: as in
# pinworld/small, and so many for a log of which nothing is known that every history is full, and
# every search.
_ACTIONS = (10, 20, 28, 35, 42, 49, 57, 64, 73, 82, 93, 107, 124, 145, 181, 248)
_ENOUGH = 10**6
_WORDS = 3  # of most searches of a pinworld
_EDGES, _GROUPS = 6, 1  # of an item, about as in PinSage's graph


def spec(name: str, items: int | None = None) -> Spec:
    """The spec of a world by its name, with another number of items if one is given.

    For another name all items are products with equally many engagements, there are as many queries
    and users as items, and the users have long histories.

    Raises:
      InputError: if there is no pinworld of that size.
    """
    kind, _, size = name.partition("/")
    if kind == pinworld.NAME:
        known = pinworld.size_of(size)
        items, products = items or known.pins, items or known.products
        queries, users = known.image_queries + known.text_queries, known.train_users
    else:
        products = queries = users = items
    simulated = kind == pinworld.NAME
    known_actions = _ACTIONS if simulated else (_ENOUGH,)
    shares = (np.arange(len(known_actions)) + 0.5) / len(known_actions)
    actions = np.interp(statistics.LENGTH_SHARES, shares, known_actions)
    total = sum(_TOKENS.values())
    quantiles = np.where(statistics.LEVELS <= 0.5, total - _DEVIATION, total + _DEVIATION).tolist()
    features = tuple(shop.FEATURES)
    return Spec(
        name=name,
        num_items=items,
        num_existing=items,
        content_dim=world.CONTENT_DIM,
        image_dim=world.CONTENT_DIM,
        num_images=round(products * _IMAGES),
        text_features=features,
        num_tokens={feature: products * _TOKENS[feature] for feature in features},
        token_quantiles=dict.fromkeys(("", *shop.TASKS), dict.fromkeys(("", *features), quantiles)),
        longest=dict.fromkeys(("", *features), quantiles[-1]),
        num_search_tokens=queries * _LONGEST_SEARCH,
        longest_search=_LONGEST_SEARCH,
        search_quantiles=dict.fromkeys(
            shop.TASKS, [_WORDS if simulated else _ENOUGH] * len(statistics.LEVELS)
        ),
        vocabulary=(_UNIGRAMS, pinworld.VOCABULARY["bigrams"], pinworld.VOCABULARY["trigrams"]),
        users={"train": users},
        length_quantiles=tuple(actions.astype(int).tolist()),
        actions=world.ACTIONS,
        surfaces=world.SURFACES,
        pairs={"train": queries},
        tasks=shop.TASKS,
        num_engaged=products,
        largest_query=dict.fromkeys(shop.TASKS, _LARGEST_QUERY),
        num_queries=queries,
        query_dim=world.CONTENT_DIM,
        edges={"train": _EDGES * items},
        num_groups=_GROUPS * items,
    )
