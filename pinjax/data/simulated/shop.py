"""How pinworld's products, searches and engagements are drawn.

Topics, pins and their content vectors are those of `world`. The rest, in this order:

  Words are made of syllables. Every root and every leaf has words of its own; colours, materials
    and patterns each stand for a direction of style; common words carry nothing. Brands and
    merchants have a root, a style and a price level.
  Products are pins: the most popular one of every leaf, and others at random. What counts of a
    product's style is its direction. Its value is a number: quality for the price.
  Texts tell a product's leaf well and its style weakly: title and description mix words of its
    leaf, its root and its looks with common ones. Looks are drawn from p(word) ∝ exp(2 style_word ·
    style), brand and merchant by their root, style and level. Any feature but the title may be
    missing.
  Images tell a product's style well and its leaf noisily: they show its leaf's topic and another
    one's, the same on all images of a product and of up to 1.5 times the weight.
  Image queries are pins from before the start, with the pin's vector. They mean the pin's leaf and
    its style's direction. Text queries are one to four words. What they mean follows from the
    words: a leaf, a root or everything, and the mean direction of their words of style, if any.
    Their vector is a noisy projection of that.
  Engagements come at random times. Query and kind are drawn apart, the query by its popularity. A
    leaf is drawn from p(leaf | query): mostly its own, then its root's, then all, by popularity.
    A product of leaf k at time t is drawn from
      p(i | k, query, kind, t) ∝ popularity_i exp(3 style_i · style_query + b_kind value_i)
      [created_i <= t]   for i in k,
    with b = 0 for the common kinds: the rare ones depend on value too. A pin does not lead to
    itself: where that is drawn, nothing happens.

Texts, images and engagements are drawn a chunk at a time, each from its `World.rng`.
"""

import dataclasses
import functools

import numpy as np

from pinjax.data import pairs
from pinjax.data.simulated import searches
from pinjax.data.simulated.leaf_table import LeafTable
from pinjax.data.simulated.words import (
    COMMON_WORDS,
    LEAF_WORDS,
    ROOT_WORDS,
    Words,
    direction,
    draw_rank,
)
from pinjax.data.simulated.world import END, START, STYLE_DIM, World

CHUNK = 4096  # products whose texts and images are drawn at a time
ENGAGEMENT_CHUNK = 2**17  # engagements drawn at a time

# Images: shares of products with 0, 1, ..., 20.
IMAGES = np.array([0.05, 0.25, 0.18, 0.13, 0.10] + [0.05] * 4 + [0.07 / 11] * 11 + [0.02])
SCENE_WEIGHT = 1.5  # at most, of the other topic on a product's images; uniform from 0
SCENE_NEAR = 0.7  # share of scenes whose other topic is of the product's root
PIN_STYLE = np.float32(np.sqrt(STYLE_DIM))  # length of a pin's style in the mean

# Texts: lengths, and shares of words of the leaf, of the root, of the looks, and common ones.
TITLE_WORDS, TITLE_SHARES = (4, 10), (0.25, 0.15, 0.2, 0.4)
DESCRIPTION_WORDS, DESCRIPTION_SHARES = (10, 30), (0.08, 0.08, 0.1, 0.74)
SHORT_CATEGORY = 0.2  # share of categories that name the root alone
SECOND_COLOUR = 0.4  # share of lists of colours that name two
SIZE_WORDS = ("xs", "s", "m", "l", "xl", "xxl", "34", "36", "38", "40", "42", "44", "46")
SIZE_TYPES = ("regular", "petite", "tall", "plus")

# The text features, and the share of products that have each; only every other root has sizes.
FEATURES = {
    "title": 1.0,
    "description": 0.9,
    "merchant_domain": 0.95,
    "link": 0.95,
    "category": 0.7,
    "product_type": 0.7,
    "brand": 0.7,
    "colours": 0.6,
    "materials": 0.4,
    "patterns": 0.3,
    "size": 0.8,
    "size_type": 0.4,
}

# Queries.
IMAGE_SHARE = 0.5  # of engagements
QUERY_NOISE = 0.5  # of a text query's vector, where a pin's has 1
TEXT_OFFSET = 10  # popularity of the r-th text: 1 / (r + 10)
OWN_LEAF, OWN_ROOT, ANYWHERE = 0.7, 0.25, 0.05  # chances of the leaves of a query's products

# Engagements.
KINDS = ("click", "save", "add_to_cart", "checkout")
KIND_SHARES = np.array([100, 35, 6, 2]) / 143
STYLE_STRENGTH = 3.0  # log appeal is this times the cosine of styles: deviation 1 within a leaf
VALUE_STRENGTH = np.array([0, 0, 0.7, 1.0])  # by kind; a product's value has deviation 1
TASKS = tuple(f"{query}/{kind}" for query in ("image", "text") for kind in KINDS)

# Streams of random numbers.
_WORDS, _PRODUCTS, _TEXTS, _IMAGES, _QUERIES, _ENGAGEMENTS = range(10, 16)


@dataclasses.dataclass(frozen=True)
class Queries:
    """Image queries, then text queries.

    Attributes:
      pin: int32 (queries,), row of the world's pins, -1 for a text query.
      text: text (queries,), each once, empty for an image query.
      topic: int32 (queries,), topic of the query, numbered as `Words.topic`.
      style: float32 (queries, STYLE_DIM), of norm 1, or zeros for queries without a style.
      popularity: float64 (queries,), sums to 1.
      vector: float16 (queries, CONTENT_DIM), of norm 1.
    """

    pin: np.ndarray
    text: np.ndarray
    topic: np.ndarray
    style: np.ndarray
    popularity: np.ndarray
    vector: np.ndarray


class Shop:
    """A world's products, and the queries that lead to them.

    Attributes:
      world: topics and pins.
      image_queries, text_queries, engagements: the numbers to draw.
      words: the vocabulary.
      pin: int32 (products,), row of the world's pins, ascending.
      leaf: int32 (products,).
      style: float32 (products, STYLE_DIM), of norm 1.
      value: float32 (products,), standard normal.
      images: int64 (products,), number of images.
      leaf_chance: float64 (topics, leaves), p(leaf | topic of a query).
    """

    def __init__(
        self, world: World, products: int, image_queries: int, text_queries: int, engagements: int
    ):
        self.world = world
        self.image_queries, self.text_queries = image_queries, text_queries
        self.engagements = engagements
        leaf = np.arange(len(world.leaf_popularity))
        leaves, roots = len(leaf), len(leaf) // world.leaves_per_root
        self.words = Words(world.rng(_WORDS), roots, leaves)

        rng = world.rng(_PRODUCTS)
        top = world.popularity == world.popularity.max()  # of each leaf; these are old
        others = rng.choice(np.flatnonzero(~top), size=products - leaves, replace=False)
        self.pin = np.sort(np.r_[np.flatnonzero(top), others]).astype(np.int32)
        self.leaf, self.style = world.leaf[self.pin], direction(world.style[self.pin])
        self.value = rng.standard_normal(products, np.float32)
        self.images = rng.choice(len(IMAGES), size=products, p=IMAGES)

        root, everything = leaves + leaf // world.leaves_per_root, leaves + roots
        members = np.zeros((everything + 1, leaves))
        for topic in (leaf, root, everything):
            members[topic, leaf] = world.leaf_popularity
        members /= members.sum(axis=1, keepdims=True)
        parent = np.r_[root, np.arange(leaves, everything + 1)]
        self.leaf_chance = OWN_LEAF * members + OWN_ROOT * members[parent] + ANYWHERE * members[-1]
        self._topics = (members @ world.topic).astype(np.float32)
        self._cumulative_leaf = (
            np.cumsum(self.leaf_chance, axis=1) + np.arange(everything + 1)[:, None]
        ).ravel()
        chance = world.popularity[self.pin] * np.exp(VALUE_STRENGTH[:, None] * self.value)
        self._table = LeafTable(chance, self.leaf, np.argsort(self.leaf, kind="stable"))

    @property
    def product_chunks(self) -> range:
        """The chunks of `draw_texts` and `draw_images`."""
        return range(-(-len(self.pin) // CHUNK))

    @property
    def engagement_chunks(self) -> range:
        """The chunks of `draw_engagements`."""
        return range(-(-self.engagements // ENGAGEMENT_CHUNK))

    @functools.cached_property
    def queries(self) -> Queries:
        rng, world = self.world.rng(_QUERIES), self.world
        old = np.flatnonzero(world.created < START)
        pin = rng.choice(old, size=self.image_queries, replace=False)
        words = searches.draw(world, self.words, rng, self.text_queries)
        topic = self.words.topic[words].min(axis=1).astype(np.int32)  # the narrowest topic
        style = direction(self.words.style[words].sum(axis=1))
        vector = world.observe(rng, self._topics, topic, PIN_STYLE * style, QUERY_NOISE)
        pin_popularity = world.leaf_popularity[world.leaf[pin]] * world.popularity[pin]
        text_popularity = 1 / (1 + np.arange(self.text_queries) + TEXT_OFFSET)
        texts = [" ".join(filter(None, row)) for row in self.words.text[words].tolist()]
        return Queries(
            pin=np.r_[pin, np.full(self.text_queries, -1)].astype(np.int32),
            text=np.array([""] * self.image_queries + texts, object),
            topic=np.r_[world.leaf[pin], topic],
            style=np.r_[direction(world.style[pin]), style],
            popularity=np.r_[
                IMAGE_SHARE * pin_popularity / pin_popularity.sum(),
                (1 - IMAGE_SHARE) * text_popularity / text_popularity.sum(),
            ],
            vector=np.r_[world.content[pin], vector],
        )

    def choose(
        self,
        rng: np.random.Generator,
        topic: np.ndarray,
        style: np.ndarray,
        kind: np.ndarray,
        time: np.ndarray,
    ) -> np.ndarray:
        """Draws p(product | topic and style of a query, kind, time): row of pins, int32 (n,)."""
        place = np.searchsorted(
            self._cumulative_leaf[:-1], topic + rng.random(len(topic)), side="right"
        )
        leaf = place % len(self.world.leaf_popularity)

        # Drawn by popularity and value, then thinned by the similarity of styles.
        products = np.empty(len(topic), np.int64)
        highest = np.linalg.norm(style, axis=1)
        created = self.world.created[self.pin]
        pending = np.arange(len(topic))
        while len(pending):
            drawn = self._table.draw(rng, kind[pending], leaf[pending])
            products[pending] = drawn
            likeness = np.einsum("ns,ns->n", self.style[drawn], style[pending])
            chance = np.exp(STYLE_STRENGTH * (likeness - highest[pending]))
            kept = (rng.random(len(pending)) < chance) & (created[drawn] <= time[pending])
            pending = pending[~kept]
        return self.pin[products]


def draw_texts(shop: Shop, chunk: int) -> dict[str, list[str]]:
    """The texts of a chunk of products, by name of the feature; "" if it is missing."""
    rng, words, rows = shop.world.rng(_TEXTS, chunk), shop.words, rows_of(chunk)
    leaf, style, value = shop.leaf[rows], shop.style[rows], shop.value[rows]
    root, count = leaf // shop.world.leaves_per_root, len(leaf)

    names = ("colours", "colours", "materials", "patterns")
    looks = np.stack([words.look(rng, name, style) for name in names], axis=1)
    brand = words.brands.draw(rng, root, style, value)
    merchant = words.merchants.draw(rng, root, style, value)
    title = _draw_sentences(words, rng, TITLE_WORDS, TITLE_SHARES, leaf, root, looks)

    # The first words of a root and a leaf are their names.
    category = np.stack([words.root + root * ROOT_WORDS, words.leaf + leaf * LEAF_WORDS], axis=1)
    parts = np.where(rng.random(count) < SHORT_CATEGORY, 1, 2)
    colours = np.where(rng.random(count) < SECOND_COLOUR, 2, 1)
    sized = root % 2 == 0
    texts = {
        "title": title,
        "description": _draw_sentences(
            words, rng, DESCRIPTION_WORDS, DESCRIPTION_SHARES, leaf, root, looks
        ),
        "merchant_domain": [f"{name}.com" for name in merchant],
        "link": [
            f"https://{name}.com/{'-'.join(text.split()[:3])}-{number}"
            for name, text, number in zip(
                merchant, title, shop.world.ids[shop.pin[rows]].tolist(), strict=True
            )
        ],
        "category": [
            " > ".join(names[:number])
            for names, number in zip(words.text[category].tolist(), parts.tolist(), strict=True)
        ],
        "product_type": words.text[words.of_leaf(rng, leaf)],
        "brand": brand,
        "colours": words.join(looks[:, :2][np.arange(2) < colours[:, None]], colours),
        "materials": words.text[looks[:, 2]],
        "patterns": words.text[looks[:, 3]],
        "size": np.where(sized, rng.choice(SIZE_WORDS, count), ""),
        "size_type": np.where(sized, rng.choice(SIZE_TYPES, count), ""),
    }
    return {
        name: np.where(rng.random(count) < share, np.array(texts[name], object), "").tolist()
        for name, share in FEATURES.items()
    }


def draw_images(shop: Shop, chunk: int) -> np.ndarray:
    """The images of a chunk of products, by product.

    Returns:
      float16 (sum of the chunk's `Shop.images`, CONTENT_DIM), of norm 1.
    """
    rng, rows, world = shop.world.rng(_IMAGES, chunk), rows_of(chunk), shop.world
    leaf, style, images = shop.leaf[rows], shop.style[rows], shop.images[rows]
    near = rng.random(len(leaf)) < SCENE_NEAR
    per_root = world.leaves_per_root
    scene = leaf // per_root * per_root + rng.integers(per_root, size=len(leaf))
    scene = np.where(near, scene, rng.integers(len(world.topic), size=len(leaf)))
    weight = rng.uniform(0, SCENE_WEIGHT, (len(leaf), 1)).astype(np.float32)
    topics = world.topic[leaf] + weight * world.topic[scene]
    topics /= np.sqrt(1 + weight**2)
    product = np.repeat(np.arange(len(leaf)), images)
    return world.observe(rng, topics, product, PIN_STYLE * style[product])


def draw_engagements(shop: Shop, chunk: int) -> np.ndarray:
    """A chunk of the engagements, `pairs.PAIR` (n,); engagements and chunks are ordered by time."""
    rng, queries, total = shop.world.rng(_ENGAGEMENTS, chunk), shop.queries, shop.engagements
    begin = chunk * ENGAGEMENT_CHUNK
    end = min(begin + ENGAGEMENT_CHUNK, total)
    count = end - begin
    share = np.sort(rng.uniform(begin / total, end / total, count))
    time = START + ((END - START) * share).astype(np.int64)
    cumulative = np.cumsum(queries.popularity)
    query = np.searchsorted(cumulative[:-1], rng.random(count), side="right")
    kind = rng.choice(len(KINDS), size=count, p=KIND_SHARES)

    made = np.empty(count, pairs.PAIR)
    made["query"], made["time"] = query, time
    made["task"] = kind + len(KINDS) * (queries.pin[query] < 0)
    made["item"] = shop.choose(rng, queries.topic[query], queries.style[query], kind, time)
    return made[made["item"] != queries.pin[query]]


def rows_of(chunk: int) -> slice:
    """The products of a chunk."""
    return slice(chunk * CHUNK, (chunk + 1) * CHUNK)


def _draw_sentences(
    words: Words,
    rng: np.random.Generator,
    lengths: tuple[int, int],
    shares: tuple[float, ...],
    leaf: np.ndarray,
    root: np.ndarray,
    looks: np.ndarray,
) -> list[str]:
    """Draws a text for each product from the words of its leaf, root and looks (products, any)."""
    length = rng.integers(*lengths, size=len(leaf), endpoint=True)
    row = np.repeat(np.arange(len(leaf)), length)
    source = rng.choice(4, size=len(row), p=shares)
    choices = [
        words.of_leaf(rng, leaf[row]),
        words.of_root(rng, root[row]),
        looks[row, rng.integers(looks.shape[1], size=len(row))],
        words.common + draw_rank(rng, COMMON_WORDS, len(row)),
    ]
    return words.join(np.choose(source, choices), length)
