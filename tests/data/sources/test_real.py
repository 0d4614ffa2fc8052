"""Pairs of the public logs by their column maps, against a plain reading of their files."""

import collections
import datetime
import gzip
import hashlib
import itertools
import pathlib
import runpy

import numpy as np
import pyarrow.parquet as pq
import pytest

from pinjax.data.spec import SPLITS

ROOT = pathlib.Path(__file__).parents[3]
RAW = ROOT.parent / "shared/data"
pytestmark = [
    pytest.mark.skipif(not RAW.exists(), reason="needs the public logs in shared/data"),
    pytest.mark.slow,
]


@pytest.fixture
def prepare_real(prepare):
    def function(name, events, items):
        config = runpy.run_path(str(ROOT / f"configs/prepare/{name}.py"))["get_config"]()
        config.vectors.dim = 8
        events, items = ([str(RAW / name / file) for file in files] for files in (events, items))
        return prepare(config, events, items)[0]

    return function


def tokens(made, feature, item):
    """The tokens of an item's text."""
    rows = made.vocabulary.rows["token"].to_pylist()
    found, offsets = made.catalogue.text(feature)
    row = made.catalogue.ids.tolist().index(item)
    return {rows[token] for token in found[offsets[row] : offsets[row + 1]]}


def test_homedepot_is_the_relevant_rows(prepare_real):
    made = prepare_real("homedepot", ["train.parquet"], ["train.parquet"])
    rows = pq.read_table(RAW / "homedepot/train.parquet")
    counts = [made.spec.pairs[split] for split in SPLITS]
    assert sum(counts) == (rows["relevance"].to_numpy() >= 2.33).sum()
    assert 0.7 < counts[0] / sum(counts) < 0.8  # 0.8 of the searches, less the cold items
    assert made.catalogue.ids.tolist() == sorted(set(rows["product_uid"].to_pylist()))
    assert made.spec.tasks == ("text/relevant",)


def test_instacart_is_neighbours_in_baskets(prepare_real):
    items = ["products.parquet", "aisles.parquet", "departments.parquet"]
    made = prepare_real("instacart", ["order_products__train.parquet"], items)
    rows = pq.read_table(RAW / "instacart/order_products__train.parquet")
    baskets = rows["order_id"].to_numpy()
    assert sum(made.spec.pairs.values()) == len(rows) - len(np.unique(baskets))
    assert made.spec.tasks == ("image/reorder", "image/add")
    reorders = sum((made.pairs(split)["task"] == 0).sum() for split in SPLITS)
    later = rows["add_to_cart_order"].to_numpy() > 1
    assert reorders == rows["reordered"].to_numpy()[later].sum()
    assert {"organic", "bananas"} <= tokens(made, "name", 13176)
    assert {"fresh", "fruits"} <= tokens(made, "aisle", 13176)
    assert "produce" in tokens(made, "department", 13176)
    # The graph is that of baskets: no edge twice, none lost.
    assert made.spec.num_groups == len(np.unique(baskets))
    assert sum(made.spec.edges.values()) == len(
        set(zip(baskets, rows["product_id"].to_numpy(), strict=True))
    )


def test_movielens_is_neighbours_of_users_with_posters(prepare_real):
    items = ["sas_to_original_items.txt", "movies_extrainfos.dat", "poster_features.npz"]
    made = prepare_real("movielens_1m", ["ml-1m.txt.gz"], items)
    folder = RAW / "movielens_1m"
    original = dict(line.split() for line in (folder / items[0]).read_text().splitlines())
    with np.load(folder / items[-1]) as posters:
        vectors = dict(zip(posters["movie_id"].astype(str), posters["features"], strict=True))
    films = [original[str(item)] for item in made.catalogue.ids]
    expected = [vectors[film] for film in films if film in vectors]
    np.testing.assert_array_equal(made.catalogue.images, expected)
    queries = [vectors[original[item]] for item in made.queries.ids]
    np.testing.assert_array_equal(made.queries.vectors, queries)

    timelines = collections.defaultdict(list)
    for line in gzip.decompress((folder / "ml-1m.txt.gz").read_bytes()).decode().splitlines():
        user, item = line.split()
        timelines[user].append(item)
    counts = collections.Counter()
    for user, own in timelines.items():
        hashed = hashlib.blake2b(f"0:{user}".encode(), digest_size=8).digest()
        share = int.from_bytes(hashed, "little") / 2**64
        split = "test" if share < 0.1 else "valid" if share < 0.2 else "train"
        for place, (before, _) in enumerate(itertools.pairwise(own), start=1):
            if original[before] in vectors and (split != "train" or place < len(own) - 2):
                counts[split] += 1
    assert made.spec.pairs == counts
    assert made.spec.tasks == ("image/rated",)
    assert made.spec.users["train"] == len(timelines)
    for chunk in itertools.islice(made.chunks("train"), 1):
        ids = made.catalogue.ids[chunk.records["item"]].astype(str).tolist()
        for user, start, end in zip(chunk.users, chunk.offsets, chunk.offsets[1:], strict=False):
            assert ids[start:end] == timelines[str(user)]
    item = next(int(item) for item, film in original.items() if film == "1")
    assert {"toy", "story", "toy story"} <= tokens(made, "title", item)
    assert {"tom", "hanks"} <= tokens(made, "cast", item)
    assert {"woody", "buzz"} <= tokens(made, "plot", item)
    assert "animation" in tokens(made, "genres", item)


def test_ifdb_pairs_are_neighbours_in_time(prepare_real):
    files = ["playedgames.parquet", "wishlists.parquet"]
    made = prepare_real("ifdb", files, ["gametags.parquet", "game_docs_retrieval.parquet"])
    games = pq.read_table(RAW / "ifdb/game_docs_retrieval.parquet", columns=["gameid", "title"])
    titles = dict(zip(*(games[name].to_pylist() for name in ("gameid", "title")), strict=True))
    tagged = set(pq.read_table(RAW / "ifdb/gametags.parquet")["gameid"].to_pylist())
    sequences, first = collections.defaultdict(list), {}
    for name in files:
        for row in pq.read_table(RAW / "ifdb" / name).to_pylist():
            game, time = row["gameid"], row["date_added"].replace(tzinfo=datetime.UTC)
            if time.year >= 2007:
                first[game] = min(first.get(game, time), time)
                if game in titles and game in tagged:
                    sequences[row["userid"]].append((time, game, name))
    expected = collections.Counter()
    for rows in sequences.values():
        rows.sort(key=lambda row: row[0])
        for (_, before, _), (time, game, name) in itertools.pairwise(rows):
            if game != before:
                task = "image/played" if name == files[0] else "image/wish-listed"
                expected[before, game, task, int(time.timestamp())] += 1
    written = collections.Counter()
    ids, tasks = made.catalogue.ids, made.spec.tasks
    assert set(tasks) == {"image/played", "image/wish-listed"}
    train_end = datetime.datetime(2023, 1, 1, tzinfo=datetime.UTC).timestamp()
    for split in SPLITS:
        part = made.pairs(split)
        assert len(part) > 5_000
        assert ((part["time"] <= train_end) == (split == "train")).all()
        assert (made.catalogue.created[part["item"]] <= part["time"]).all()
        query, item = made.queries.ids[part["query"]], ids[part["item"]]
        task = np.array(tasks)[part["task"]].tolist()
        written.update(zip(query, item, task, part["time"].tolist(), strict=True))
    assert written == expected
    since = [int(first[game].timestamp()) if game in first else 0 for game in ids]
    assert made.catalogue.created.tolist() == since
    game = next(game for game, title in titles.items() if title == "Square Circle")
    assert tokens(made, "title", game) >= {"square", "circle"}
    assert tokens(made, "tags", game) >= {"dystopia", "prison"}
