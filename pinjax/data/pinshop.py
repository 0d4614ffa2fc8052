"""`pinshop`: products and searches of a simulated small Pinterest, and what they led to.

`pinshop_simulation` is the law by which it is drawn, `pinshop_oracle` the best possible ranking.
"""

import dataclasses
import functools
import hashlib
import itertools

import numpy as np
from etils import epath

from pinjax.data import pairs, pinshop_oracle, schema, text
from pinjax.data import pinshop_simulation as simulation
from pinjax.data.pinworld_simulation import END, TRAIN_END
from pinjax.errors import InputError

NAME = "pinshop"
VERSION = "1.1.1"

TASKS = tuple(f"{query}/{kind}" for query in ("image", "text") for kind in simulation.KINDS)
# As published (ItemSage, §4.2); what there is of them is far less.
VOCABULARY = {"unigrams": 200_000, "bigrams": 1_000_000, "trigrams": 64_000}


def ensure(size: str, data_dir: epath.PathLike) -> epath.Path:
    """Builds a shop under `data_dir` unless it is there.

    Args:
      size: the name of one of `pinshop_simulation.SIZES`.
      data_dir: where data sets are kept.

    Returns:
      The directory of the data set.

    Raises:
      InputError: where there is no such size.
    """
    made_of = size_of(size)
    directory = epath.Path(data_dir) / NAME / size / VERSION
    if not directory.exists():
        _build(simulation.Shop(made_of), f"{NAME}/{size}", directory)
    return directory


def size_of(size: str) -> simulation.Size:
    """What a shop of a size is made of.

    Raises:
      InputError: where there is no such size.
    """
    if size not in simulation.SIZES:
        sizes = ", ".join(f"{NAME}/{name}" for name in simulation.SIZES)
        raise InputError(f"data.name: no data set {NAME}/{size}; expected one of {sizes}")
    return simulation.SIZES[size]


def oracle(directory: epath.PathLike) -> pairs.Oracle:
    """p(product | query) of an engagement after training, by task."""
    known = pinshop_oracle.Oracle.load(directory)

    def scores(queries: np.ndarray, task: int) -> np.ndarray:
        kind = task % len(simulation.KINDS)
        return known.scores(queries, kind, TRAIN_END, END - TRAIN_END)

    return scores


def _build(shop: simulation.Shop, name: str, directory: epath.Path) -> None:
    texts = [simulation.draw_texts(shop, chunk) for chunk in shop.product_chunks]
    texts = {
        feature: list(itertools.chain.from_iterable(chunk[feature] for chunk in texts))
        for feature in simulation.FEATURES
    }
    known = shop.created <= TRAIN_END
    vocabulary = text.Vocabulary.build(
        itertools.chain.from_iterable(itertools.compress(t, known) for t in texts.values()),
        **VOCABULARY,
    )
    products = pairs.Products(
        ids=shop.ids,
        topics=shop.leaf,
        created=shop.created,
        images=np.concatenate([simulation.draw_images(shop, c) for c in shop.product_chunks]),
        image_offsets=np.concatenate([[0], np.cumsum(shop.images)]),
        texts={feature: vocabulary.encode(t) for feature, t in texts.items()},
    )
    is_text = shop.queries.pin < 0
    pins = shop.world.ids[shop.queries.pin].astype(str)
    queries = pairs.Queries(
        ids=np.where(is_text, shop.queries.text, pins).astype(object),
        kinds=np.where(is_text, "text", "image").astype(object),
        vectors=shop.queries.vector,
        products=np.full(len(is_text), -1, np.int32),
    )
    drawn = np.concatenate([simulation.draw_engagements(shop, c) for c in shop.engagement_chunks])
    made = np.empty(len(drawn), pairs.PAIR)
    for field in ("query", "product", "time"):
        made[field] = drawn[field]
    made["task"] = drawn["kind"] + len(simulation.KINDS) * is_text[drawn["query"]]

    # Afterwards one half of the queries validates, the other one tests.
    tests = np.random.default_rng([shop.seed, 16]).random(len(queries)) < 0.5
    splits = np.where(made["time"] <= TRAIN_END, 0, 1 + tests[made["query"]]).astype(np.int8)
    settings = f"{VERSION} {shop.seed} {dataclasses.asdict(shop.size)}"
    metadata = pairs.Metadata(
        name=name,
        tasks=TASKS,
        train_end=TRAIN_END,
        digest=hashlib.sha256(settings.encode()).hexdigest()[:16],
        report={
            f"engagements: {split}": int((splits == i).sum())
            for i, split in enumerate(schema.SPLITS)
        },
    )
    save_oracle = functools.partial(pinshop_oracle.Oracle.save, simulation.make_oracle(shop))
    pairs.write(directory, metadata, products, queries, vocabulary, made, splits, save_oracle)
