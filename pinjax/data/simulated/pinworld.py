"""`pinworld`: a simulated small Pinterest whose best possible rankings are known.

`world` draws pins, users and timelines, `shop` products, searches and engagements, and `oracle`
ranks. The data set has all parts: timelines on all pins, pairs of searches or pins and the products
that they led to, and the graph of pins and boards. Users, texts, images and engagements are drawn
and written in chunks.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from pinjax import files
from pinjax.data import catalogue, pairs, timelines
from pinjax.data import spec as spec_lib
from pinjax.data.simulated import shop as shop_lib
from pinjax.data.simulated import world as world_lib
from pinjax.data.simulated.oracle import Oracle
from pinjax.data.simulated.shop import Shop
from pinjax.data.simulated.world import TRAIN_END, Users, World
from pinjax.data.text import tokens
from pinjax.errors import InputError
from pinjax.graph import csr

NAME = "pinworld"
VERSION = "4.0.0"
CHUNK = 1024  # users drawn at a time

# As published (ItemSage, §4.2); pinworld has far fewer tokens.
VOCABULARY = {"unigrams": 200_000, "bigrams": 1_000_000, "trigrams": 64_000}

# Streams of random numbers: users of the first split, and the split of queries.
_USERS, _HELD_OUT = 1, 16


@dataclasses.dataclass(frozen=True)
class Size:
    """The size of a world.

    Attributes:
      train_users: users of the split train; the few who never act are not in the log.
      eval_users: the same for each of valid and test.
      pins: items of the catalogue.
      roots: topics at the top of the tree.
      leaves: topics at the bottom, a multiple of `roots`.
      products: pins that are products, at least one per leaf.
      image_queries: pins that are queries, of the six in seven that are old enough.
      text_queries: searches.
      engagements: of all kinds; the few of a pin with itself are left out.
      seed: of all draws.
    """

    train_users: int
    eval_users: int
    pins: int
    roots: int
    leaves: int
    products: int
    image_queries: int
    text_queries: int
    engagements: int
    seed: int = 0


SIZES = {  # in the order of the attributes
    "tiny": Size(300, 100, 1_000, 6, 24, 300, 200, 200, 5_000),
    "small": Size(20_000, 2_000, 10_000, 12, 96, 5_000, 8_000, 20_000, 400_000),
    "base": Size(996_000, 2_000, 1_000_000, 35, 350, 300_000, 300_000, 300_000, 10_000_000),
}


class Chunk(NamedTuple):
    """The actions of some users.

    Attributes:
      users: numbers of the users, including those who never act.
      offsets: int64 (len(users) + 1,), where each user's actions begin.
      actions: `timelines.ACTION` (n,), in order of time for each user.
      leaf: int64 (n,), leaf of the session of each action.
    """

    users: range
    offsets: np.ndarray
    actions: np.ndarray
    leaf: np.ndarray


class Boards(NamedTuple):
    """Boards and the pins on them.

    Attributes:
      ids: int64 (boards,), ascending: number of the user * leaves + leaf.
      degrees: int64 (boards,), number of pins.
      pins: int32 (edges,), by board, ascending within a board.
    """

    ids: np.ndarray
    degrees: np.ndarray
    pins: np.ndarray


def ensure(size: str, data_dir: epath.PathLike) -> epath.Path:
    """Builds a world under `data_dir` unless it exists.

    Args:
      size: the name of one of `SIZES`.
      data_dir: where data sets are kept.

    Returns:
      The directory of the data set.

    Raises:
      InputError: if there is no such size.
    """
    made_of = size_of(size)
    directory = epath.Path(data_dir) / NAME / size / VERSION
    if not directory.exists():
        write(made_of, f"{NAME}/{size}", directory)
    return directory


def size_of(name: str) -> Size:
    """The size of a world by its name.

    Raises:
      InputError: if there is no such size.
    """
    if name not in SIZES:
        sizes = ", ".join(f"{NAME}/{size}" for size in SIZES)
        raise InputError(f"data.name: no data set {NAME}/{name}; expected one of {sizes}")
    return SIZES[name]


def write(size: Size, name: str, directory: epath.PathLike) -> None:
    """Simulates a world and writes it as a data set to a new directory."""
    world = draw_world(size)
    shop = draw_shop(world, size)
    queries = shop.queries
    with files.new_directory(directory) as made:
        users, counts, boards = _write_timelines(made / "timelines", world, size)
        _write_graph(made, boards, size.pins)
        vocabulary = tokens.Vocabulary.build(_known_texts(shop), **VOCABULARY)
        vocabulary.save(made / spec_lib.VOCABULARY_FILE)
        _write_catalogue(made / catalogue.FILE, shop, counts, vocabulary)
        is_text = queries.pin < 0
        pairs.Queries(
            ids=np.where(is_text, queries.text, world.ids[queries.pin].astype(str)),
            kinds=np.where(is_text, "text", "image").astype(object),
            vectors=queries.vector,
            items=queries.pin,
        ).write(made / pairs.QUERIES_FILE)
        engagements = _write_pairs(made / "pairs", shop)
        make_oracle(world, shop, size).save(made)
        spec = spec_lib.Spec(
            name=name,
            num_items=size.pins,
            train_end=TRAIN_END,
            content_dim=world_lib.CONTENT_DIM,
            image_dim=world_lib.CONTENT_DIM,
            text_features=tuple(shop_lib.FEATURES),
            vocabulary=vocabulary.sizes,
            users=users,
            actions=world_lib.ACTIONS,
            surfaces=world_lib.SURFACES,
            pairs=engagements,
            tasks=shop_lib.TASKS,
            num_queries=len(is_text),
            query_dim=world_lib.CONTENT_DIM,
            edges={"train": len(boards.pins)},
            num_groups=len(boards.ids),
        )
        spec_lib.write(made, spec)


def draw_world(size: Size) -> World:
    return World(size.pins, size.roots, size.leaves, size.seed)


def draw_shop(world: World, size: Size) -> Shop:
    return Shop(world, size.products, size.image_queries, size.text_queries, size.engagements)


def draw_timelines(world: World, size: Size, split: str) -> Iterator[Chunk]:
    """The actions of the users of a split, `CHUNK` users at a time."""
    for numbers, users, rng in _draw_users(world, size, split):
        user, actions, leaf = world_lib.draw_actions(world, users, rng)
        offsets = np.searchsorted(user, np.arange(len(numbers) + 1))
        yield Chunk(numbers, offsets, actions, leaf)


def boards_of(chunk: Chunk, leaves: int, pins: int) -> Boards:
    """The boards of some users, with the pins saved up to the end of training."""
    saved = chunk.actions["action"] == world_lib.ACTIONS.index("save")
    saved &= chunk.actions["time"] <= TRAIN_END
    user = np.repeat(np.array(chunk.users, np.int64), np.diff(chunk.offsets))
    board = user[saved] * leaves + chunk.leaf[saved]
    board, pin = np.divmod(np.unique(board * pins + chunk.actions["item"][saved]), pins)
    return Boards(*np.unique(board, return_counts=True), pin.astype(np.int32))


def make_oracle(world: World, shop: Shop, size: Size) -> Oracle:
    """The rankings for the users of valid and test, and for the queries."""
    ids, parts = [], []
    for split in ("valid", "test"):
        for numbers, users, _ in _draw_users(world, size, split):
            parts.append(dataclasses.replace(users, burst_user=users.burst_user + len(ids)))
            ids += map(user_id, numbers)
    fields = [field.name for field in dataclasses.fields(Users)]
    users = Users(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))
    return Oracle.of(world, shop, ids, users)


def user_id(number: int) -> str:
    return f"u{number:08d}"


def _draw_users(
    world: World, size: Size, split: str
) -> Iterator[tuple[range, Users, np.random.Generator]]:
    """The users of a split, `CHUNK` at a time: numbers, latent state, generator of actions."""
    sizes = (size.train_users, size.eval_users, size.eval_users)
    number = spec_lib.SPLITS.index(split)
    first = sum(sizes[:number])
    for start in range(0, sizes[number], CHUNK):
        rng = world.rng(_USERS + number, start // CHUNK)
        numbers = range(first + start, first + min(start + CHUNK, sizes[number]))
        yield numbers, world_lib.draw_users(world, rng, len(numbers)), rng


def _write_timelines(
    directory: epath.Path, world: World, size: Size
) -> tuple[dict[str, int], np.ndarray, Boards]:
    """Returns the users of each split, the counts of items, int64 (pins,), and all boards."""
    counts, boards = np.zeros(size.pins, np.int64), []
    with timelines.writer(directory) as writer:
        for split in spec_lib.SPLITS:
            for chunk in draw_timelines(world, size, split):
                boards.append(boards_of(chunk, size.leaves, size.pins))
                bounds = itertools.pairwise(chunk.offsets.tolist())
                for number, (start, end) in zip(chunk.users, bounds, strict=True):
                    if start < end:
                        own = chunk.actions[start:end]
                        trained = int((own["time"] <= TRAIN_END).sum())
                        writer.add(split, user_id(number), own, trained)
                if split == "train":
                    seen = chunk.actions["time"] <= TRAIN_END
                    np.add.at(counts, chunk.actions["item"][seen], 1)
    return writer.counts, counts, Boards(*map(np.concatenate, zip(*boards, strict=True)))


def _write_graph(made: epath.Path, boards: Boards, pins: int) -> None:
    pq.write_table(pa.table({"id": boards.ids}), made / spec_lib.GROUPS_FILE, use_dictionary=False)
    (made / "graph").mkdir()
    csr.write_side(made / "graph", "group", boards.degrees, [boards.pins])
    board = np.repeat(np.arange(len(boards.ids), dtype=np.int32), boards.degrees)
    board = board[np.argsort(boards.pins, kind="stable")]
    csr.write_side(made / "graph", "item", np.bincount(boards.pins, minlength=pins), [board])


def _known_texts(shop: Shop) -> Iterator[str]:
    """All texts of the products that exist at the end of training."""
    for chunk in shop.product_chunks:
        known = shop.world.created[shop.pin[shop_lib.rows_of(chunk)]] <= TRAIN_END
        for texts in shop_lib.draw_texts(shop, chunk).values():
            yield from itertools.compress(texts, known)


def _write_catalogue(
    path: epath.Path, shop: Shop, counts: np.ndarray, vocabulary: tokens.Vocabulary
) -> None:
    world = shop.world
    bounds = np.r_[0, shop.pin[shop_lib.CHUNK :: shop_lib.CHUNK], len(world.ids)]
    with catalogue.writer(path) as write_items:
        for chunk in shop.product_chunks:  # with the pins up to the first product of the next chunk
            rows, products = slice(*bounds[chunk : chunk + 2]), shop_lib.rows_of(chunk)
            place = shop.pin[products] - rows.start
            texts = {}
            for name, text in shop_lib.draw_texts(shop, chunk).items():
                encoded = vocabulary.encode(text)
                offsets = _offsets(np.diff(encoded.offsets), place, rows)
                texts[name] = tokens.Ragged(encoded.tokens, offsets)
            items = catalogue.Items(
                ids=world.ids[rows],
                topics=world.leaf[rows],
                counts=counts[rows],
                created=world.created[rows],
                content=world.content[rows],
                images=shop_lib.draw_images(shop, chunk),
                image_offsets=_offsets(shop.images[products], place, rows),
                texts=texts,
            )
            write_items(items)


def _offsets(lengths: np.ndarray, place: np.ndarray, rows: slice) -> np.ndarray:
    """Offsets of lists of some rows, which are empty except in some places: int64 (rows + 1,)."""
    offsets = np.zeros(rows.stop - rows.start + 1, np.int64)
    offsets[1 + place] = lengths
    return np.cumsum(offsets)


def _write_pairs(directory: epath.Path, shop: Shop) -> dict[str, int]:
    """Returns the number of pairs of each split."""
    drawn = [shop_lib.draw_engagements(shop, chunk) for chunk in shop.engagement_chunks]
    drawn = np.concatenate(drawn)
    # After training, half of the queries validate, and the other half test.
    tests = shop.world.rng(_HELD_OUT).random(len(shop.queries.pin)) < 0.5
    split = np.where(drawn["time"] <= TRAIN_END, 0, 1 + tests[drawn["query"]])
    directory.mkdir()
    for number, name in enumerate(spec_lib.SPLITS):
        pairs.write(directory / f"{name}.parquet", drawn[split == number])
    counts = np.bincount(split, minlength=len(spec_lib.SPLITS))
    return dict(zip(spec_lib.SPLITS, counts.tolist(), strict=True))
