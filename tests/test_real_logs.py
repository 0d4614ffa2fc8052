"""The column maps of configs/prepare on their data sets, compared with the raw files."""

import collections
import datetime
import functools
import gzip
import hashlib
import itertools
import json
import os
import pathlib
import re
import runpy
import shlex

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest

from pinjax import config_flag, settings
from pinjax.data import dataset as dataset_lib
from pinjax.data import parquet, windows
from pinjax.data.sources import prepare
from pinjax.data.spec import SPLITS
from pinjax.distributed import sharding
from pinjax.systems import registry
from pinjax.training import checkpoint, loop

ROOT = pathlib.Path(__file__).parents[1]
RAW = ROOT.parent / "shared/data"
FOLDERS = {"kuairand": "kuairand_like_hate"}  # if their name is not their map's
SETS = ("ifdb", "globo", "kuairand", "movielens_1m", "amazon_beauty")
SETS += ("instacart", "homedepot", "pinterest_graph", "gowalla")
pytestmark = [
    pytest.mark.skipif(not RAW.exists(), reason=f"needs the public logs in {RAW}"),
    pytest.mark.slow,
]


def documented(name):
    """A map's config, and the commands and the code of its docstring."""
    module = runpy.run_path(str(ROOT / f"configs/prepare/{name}.py"))
    text = module["__doc__"].replace("\\\n", " ")
    commands = re.findall(r"^python -m pinjax\.((?:.+\n)(?: .+\n)*)", text, re.MULTILINE)
    code = re.findall(r"^    (import (?:.*\n)+?    ''')", text, re.MULTILINE)
    return module["get_config"](), list(map(shlex.split, commands)), code


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(a map's name) -> what its documented command makes, once a module."""

    @functools.cache
    def make(name):
        config, ((command, *flags), *_), _ = documented(name)
        assert command == "prepare"
        flags = dict(flag[2:].split("=") for flag in flags)
        assert (flags["config"], flags["out"]) == (f"configs/prepare/{name}.py", "DIR")
        folder = RAW / FOLDERS.get(name, name)
        if name == "amazon_beauty":
            folder = reshaped(folder, tmp_path_factory.mktemp("reshaped"))
        events, items = (
            [str(folder / file) for file in flags.get(kind, "").split(",") if file]
            for kind in ("events", "items")
        )
        config.vectors.dim = 8  # for vectors of words; more take long
        out = tmp_path_factory.mktemp(name) / "out"
        done = prepare.prepare(prepare.Inputs.find(events, items), out, config)
        assert not done.remarks
        return dataset_lib.open_directory(out), done.report

    return make


def reshaped(folder, target):
    """Runs the code in the docstring of amazon_beauty.py in a directory."""
    for path in folder.iterdir():
        (target / path.name).symlink_to(path)
    (code,) = documented("amazon_beauty")[2]
    before = os.getcwd()
    os.chdir(target)
    try:
        exec(code.replace("\n    ", "\n") + ")")
    finally:
        os.chdir(before)
    return target


def rows_of(name, file):
    table = pq.read_table(RAW / name / file)
    return {column: table[column].to_numpy() for column in table.column_names}


def actions(dataset):
    """(user's own id, item's own id, `timelines.ACTION`) of all actions, by user, in order."""
    splits = SPLITS[:1] if dataset.spec.leave_one_out else SPLITS
    chunks = [dataset.chunk(split, 0, 10**7) for split in splits]
    assert [len(chunk.users) for chunk in chunks] == [dataset.spec.users[s] for s in splits]
    user = np.concatenate([np.repeat(c.users, np.diff(c.offsets)) for c in chunks])
    records = np.concatenate([chunk.records for chunk in chunks])
    order = np.argsort(user, kind="stable")
    return user[order], dataset.catalogue.ids[records["item"]][order], records[order]


def check_timelines(dataset, user, item, time=None):
    """Every action is there once, in order of time, and then in order of rows."""
    order = np.argsort(user, kind="stable") if time is None else np.lexsort((time, user))
    found = actions(dataset)
    np.testing.assert_array_equal(found[0], user[order])
    np.testing.assert_array_equal(found[1], item[order])
    return found[2], order


def hashed_split(key):
    """The split of a user, a search or a basket, with a tenth in valid and one in test."""
    hashed = hashlib.blake2b(f"0:{key}".encode(), digest_size=8).digest()
    share = int.from_bytes(hashed, "little") / 2**64
    return "test" if share < 0.1 else "valid" if share < 0.2 else "train"


def pair_counts(dataset, *more, splits=SPLITS):
    """(query's own id, item's own id, *more columns): how often."""
    found = collections.Counter()
    for split in splits:
        pairs = dataset.pairs(split)
        assert len(pairs) == dataset.spec.pairs[split]
        columns = [dataset.queries.ids[pairs["query"]], dataset.catalogue.ids[pairs["item"]]]
        columns += [pairs[name] for name in more]
        found.update(zip(*(column.tolist() for column in columns), strict=True))
    return found


def edges(dataset, split):
    """Pairs of a group's own id and an item's own id; both sides hold the same training pairs."""
    if split == "train":
        sides = [dataset.graph.items, dataset.graph.groups]
        item, group = (np.repeat(np.arange(len(x.offsets) - 1), np.diff(x.offsets)) for x in sides)
        found = set(zip(sides[0].neighbours.tolist(), item.tolist(), strict=True))
        assert found == set(zip(group.tolist(), sides[1].neighbours.tolist(), strict=True))
        assert len(found) == len(item)
    else:
        table = parquet.read(dataset.directory / f"graph/{split}.parquet")
        found = set(zip(*(table[name].to_pylist() for name in ("group", "item")), strict=True))
        assert len(found) == len(table)
    assert len(found) == dataset.spec.edges[split]
    groups, items = dataset.groups.tolist(), dataset.catalogue.ids.tolist()
    return {(groups[group], items[item]) for group, item in found}


def words(dataset, feature, item):
    """The tokens of an item's text."""
    rows = dataset.vocabulary.rows["token"].to_pylist()
    found, offsets = dataset.catalogue.text(feature)
    row = dataset.catalogue.ids.tolist().index(item)
    return {rows[token] for token in found[offsets[row] : offsets[row + 1]]}


@pytest.mark.parametrize("name", SETS)
def test_documented_trainings_fit_the_data_set(made, name):
    dataset, _ = made(name)
    for command, *flags in documented(name)[1][1:]:
        values = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
        config = config_flag.load(str(ROOT / values.pop("config")))
        values["config.data.name"] = str(dataset.directory)
        for field, value in values.items():
            settings.override(config, field.removeprefix("config."), value)
        if config.system == "itemsage" and not documented(name)[0].catalogue.images:
            assert config.model.embedding_dim == documented(name)[0].vectors.dim
            config.model.embedding_dim = dataset.spec.query_dim  # 8
        assert command == "train"
        registry.create(config, sharding.make_mesh(jax.devices()[:1]))


def train(variant, dataset, workdir, content=False, **model):
    config = config_flag.load(f"{ROOT}/configs/pinnerformer.py:{variant}")
    config.data.update(name=str(dataset.directory), users=16, length=8, content=content)
    config.data.popularity_window = 0
    config.objective.labels = 4
    config.model.update(layers=1, width=16, heads=2, embedding_dim=8, pin_hidden=16, **model)
    config.loss.update(num_in_batch_negatives=32, num_random_negatives=64, sketch_width=2**10)
    config.train.update(steps=6, warmup_steps=2, learning_rate=1e-2)
    config.evaluate.update(window_starts=(0,), users=50, batch=50)
    mesh = sharding.make_mesh(jax.devices()[:1])
    system = registry.create(config, mesh)
    with checkpoint.Checkpoints(workdir) as checkpoints:
        result = loop.train(system, config.train, mesh, workdir, checkpoints)
    assert result.stopped is None
    (row,) = system.evaluate(result.state.params, "valid").rows
    assert 0 <= row.metrics["R@10"][0] <= 1
    return jax.tree.map(np.shape, result.state.params["params"])


def ifdb_rows():
    """User, game, time and whether it was played, of the dated rows of both files."""
    parts = [rows_of("ifdb", f"{name}.parquet") for name in ("playedgames", "wishlists")]
    names = ("userid", "gameid", "date_added")
    columns = [np.concatenate([part[name] for part in parts]) for name in names]
    columns.append(np.repeat([True, False], [len(part["userid"]) for part in parts]))
    dated = columns[2] >= np.datetime64("2007-01-01")
    return [column[dated] for column in columns]


def test_ifdb_timelines_are_the_dated_rows_of_both_files(made):
    dataset, report = made("ifdb")
    user, game, time, played = ifdb_rows()
    assert report["rows read"] == 71_033 + 48_303
    assert report["actions"] == len(user) == 117_527
    assert sum(dataset.spec.users.values()) == len(np.unique(user)) == 3_700
    records, order = check_timelines(dataset, user, game, time)
    np.testing.assert_array_equal(records["time"], time[order].astype("datetime64[s]").astype(int))
    kinds = np.array(dataset.spec.actions)[records["action"]]
    np.testing.assert_array_equal(kinds, np.where(played[order], "played", "wish-listed"))


def test_ifdb_graph_is_games_and_their_tags(made):
    dataset, _ = made("ifdb")
    tags = rows_of("ifdb", "gametags.parquet")
    expected = {
        (tag.strip(), game) for game, tag in zip(tags["gameid"], tags["tag"], strict=True)
    } - {("", game) for game in tags["gameid"]}
    assert edges(dataset, "train") == expected
    has = dataset.catalogue.content.astype(np.float32).any(axis=1)
    assert set(dataset.catalogue.ids[has]) == {game for _, game in expected}
    lengths = np.linalg.norm(dataset.catalogue.content.astype(np.float32), axis=1)
    np.testing.assert_allclose(lengths[has], 1, atol=2e-3)


def test_ifdb_pairs_are_neighbours_in_time_with_documents(made):
    dataset, _ = made("ifdb")
    documents = rows_of("ifdb", "game_docs_retrieval.parquet")
    user, game, time, played = ifdb_rows()
    known = np.isin(game, documents["gameid"])
    order = np.lexsort((time[known], user[known]))
    rows = zip(*(column[known][order].tolist() for column in (user, game, played)), strict=True)
    seconds = time[known][order].astype("datetime64[s]").astype(int).tolist()
    expected = collections.Counter(
        (before, later, dataset.spec.tasks.index(f"image/{'played' if did else 'wish-listed'}"), at)
        for ((one, before, _), (other, later, did)), at in zip(
            itertools.pairwise(rows), seconds[1:], strict=True
        )
        if one == other and before != later
    )
    assert pair_counts(dataset, "task", "time") == expected
    end = int(np.datetime64("2023-01-01", "s").astype(int))
    for split in SPLITS:
        pairs = dataset.pairs(split)
        assert ((pairs["time"] <= end) == (split == "train")).all()
        assert (dataset.catalogue.created[pairs["item"]] <= pairs["time"]).all()
    first = {}
    for one, at in zip(ifdb_rows()[1].tolist(), ifdb_rows()[2].tolist(), strict=True):
        first[one] = min(first.get(one, at), at)
    since = [
        first[one].replace(tzinfo=datetime.UTC).timestamp() if one in first else 0
        for one in dataset.catalogue.ids
    ]
    np.testing.assert_array_equal(dataset.catalogue.created, np.floor(since))
    (circle,) = documents["gameid"][documents["title"] == "Square Circle"]
    assert words(dataset, "title", circle) >= {"square", "circle"}
    assert words(dataset, "tags", circle) >= {"dystopia", "prison"}


@pytest.mark.parametrize(("content", "id_dim"), [(False, 8), (True, 0), (True, 8)])
def test_ifdb_items_are_ids_tag_vectors_or_both(made, tmp_path, content, id_dim):
    params = train("ifdb", made("ifdb")[0], tmp_path, content, id_dim=id_dim)
    assert params["pin_tower"]["hidden"]["kernel"][0] == 64 * content + id_dim


def test_kuairand_sees_hate_and_never_asks_for_it(made, tmp_path):
    dataset, report = made("kuairand")
    rows = rows_of("kuairand_like_hate", "log.parquet")
    assert report["rows read"] == 41_828
    kinds = np.select(
        [rows["label"] == 0, *(rows[f"is_{x}"] == 1 for x in ("follow", "forward", "comment"))],
        ["hate", "follow", "forward", "comment"],
        "like",
    )
    keys = np.rec.fromarrays([rows["user_id"], rows["video_id"], rows["time_ms"], kinds])
    first = np.sort(np.unique(keys, return_index=True)[1])
    assert report["repeated rows dropped"] == 41_828 - len(first) == 124
    rows = {name: column[first] for name, column in rows.items()}
    columns = (rows[name] for name in ("user_id", "video_id", "time_ms"))
    records, order = check_timelines(dataset, *columns)
    found = np.array(dataset.spec.actions)[records["action"]]
    np.testing.assert_array_equal(found, kinds[first][order])
    np.testing.assert_allclose(records["duration"], rows["play_time_ms"][order] / 1e3, rtol=1e-6)
    config = config_flag.load(f"{ROOT}/configs/pinnerformer.py:kuairand").data
    positives = windows.Positives.create(dataset.spec, config.positives, config.surfaces)
    np.testing.assert_array_equal(positives(records), found != "hate")
    train("kuairand", dataset, tmp_path, id_dim=8)


def test_globo_has_surfaces_of_three_columns(made, tmp_path):
    dataset, report = made("globo")
    rows = rows_of("globo", "clicks.parquet")
    assert report["rows read"] == report["actions"] == 2_988_181
    assert report["users"] == 322_897
    assert dataset.spec.num_items == 46_033
    columns = (rows[name] for name in ("user_id", "click_article_id", "click_timestamp"))
    records, order = check_timelines(dataset, *columns)
    np.testing.assert_array_equal(records["time"], rows["click_timestamp"][order] // 1000)
    for row in (0, 1_000_000, 2_988_180):
        names = ("click_deviceGroup", "click_os", "click_referrer_type")
        surface = "|".join(str(rows[name][order][row]) for name in names)
        assert dataset.spec.surfaces[records["surface"][row]] == surface
    articles = rows_of("globo", "articles.parquet")
    kept = np.isin(articles["article_id"], rows["click_article_id"])
    names = articles["category_id"][kept].astype(str)  # in order of articles, as the catalogue
    np.testing.assert_array_equal(
        dataset.catalogue.topics, np.unique(names, return_inverse=True)[1]
    )
    train("globo", dataset, tmp_path, id_dim=8)


def movielens_rows():
    lines = gzip.decompress((RAW / "movielens_1m/ml-1m.txt.gz").read_bytes()).split()
    return np.array(lines, np.int64).reshape(-1, 2).T


def test_movielens_leaves_the_last_two_films_of_everybody_out(made):
    dataset, report = made("movielens_1m")
    user, film = movielens_rows()
    assert report["actions"] == len(user) == 999_611
    assert dataset.spec.users == {"train": 6_040, "valid": 0, "test": 0}
    assert dataset.spec.num_items == 3_416
    records, _ = check_timelines(dataset, user, film)
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    lengths = np.diff(np.append(starts, len(user)))
    np.testing.assert_array_equal(records["time"], np.concatenate(list(map(np.arange, lengths))))
    trained = records["time"] < np.repeat(lengths, lengths) - 2
    counts = np.bincount(records["item"][trained], minlength=3_416)
    np.testing.assert_array_equal(dataset.catalogue.counts, counts)


def test_movielens_is_neighbours_of_users_with_posters(made):
    dataset, _ = made("movielens_1m")
    folder = RAW / "movielens_1m"
    lines = (folder / "sas_to_original_items.txt").read_text().splitlines()
    original = dict(tuple(map(int, line.split())) for line in lines)
    with np.load(folder / "poster_features.npz") as posters:
        vectors = dict(zip(posters["movie_id"].tolist(), posters["features"], strict=True))
    ids = dataset.catalogue.ids.tolist()
    expected = [vectors[original[film]] for film in ids if original[film] in vectors]
    np.testing.assert_array_equal(dataset.catalogue.images, expected)
    queries = [vectors[original[int(film)]] for film in dataset.queries.ids]
    np.testing.assert_array_equal(dataset.queries.vectors, queries)

    user, film = (column.tolist() for column in movielens_rows())
    left = collections.Counter(user)  # of each user's films
    expected = {split: collections.Counter() for split in SPLITS}
    for (one, before), (other, later) in itertools.pairwise(zip(user, film, strict=True)):
        left[one] -= 1
        if one == other and original[before] in vectors:
            split = {1: "test", 2: "valid"}.get(left[one], "train")
            expected[split][str(before), later] += 1
    assert dataset.spec.tasks == ("image/rated",)
    for split in SPLITS:
        assert pair_counts(dataset, splits=[split]) == expected[split]

    film = next(film for film, movie in original.items() if movie == 1)
    assert {"toy", "story", "toy story"} <= words(dataset, "title", film)
    assert {"tom", "hanks"} <= words(dataset, "cast", film)
    assert {"woody", "buzz"} <= words(dataset, "plot", film)
    assert "animation" in words(dataset, "genres", film)


def test_amazon_beauty_is_its_lines_and_attributes(made):
    dataset, report = made("amazon_beauty")
    lines = (RAW / "amazon_beauty/Beauty.txt").read_text().splitlines()
    rows = [list(map(int, line.split())) for line in lines]
    user = np.repeat([row[0] for row in rows], [len(row) - 1 for row in rows])
    check_timelines(dataset, user, np.concatenate([row[1:] for row in rows]))
    assert report["actions"] == 198_502
    assert dataset.spec.users == {"train": 22_363, "valid": 0, "test": 0}
    assert dataset.spec.num_items == 12_101
    attributes = json.loads((RAW / "amazon_beauty/Beauty_item2attributes.json").read_text())
    expected = {(str(tag), int(item)) for item, tags in attributes.items() for tag in tags}
    assert edges(dataset, "train") == expected


def test_instacart_is_neighbours_in_baskets_and_the_graph_of_them(made):
    dataset, _ = made("instacart")
    rows = rows_of("instacart", "order_products__train.parquet")
    assert len(rows["order_id"]) == 1_384_617
    assert dataset.spec.num_groups == len(np.unique(rows["order_id"])) == 131_209
    order = np.lexsort((rows["add_to_cart_order"], rows["order_id"]))
    basket, product, again = (rows[name][order] for name in ("order_id", "product_id", "reordered"))
    same = basket[1:] == basket[:-1]
    tasks = np.where(again == 1, *map(dataset.spec.tasks.index, ("image/reorder", "image/add")))
    columns = (product[:-1][same].astype(str), product[1:][same], tasks[1:][same])
    expected = collections.Counter(zip(*(column.tolist() for column in columns), strict=True))
    assert pair_counts(dataset, "task") == expected
    assert expected.total() == 1_384_617 - 131_209

    by_split = {split: edges(dataset, split) for split in SPLITS}
    everything = set(zip(basket.tolist(), product.tolist(), strict=True))
    assert set.union(*by_split.values()) == everything
    assert sum(map(len, by_split.values())) == len(everything)
    warm = {item for _, item in by_split["train"]}
    splits = {basket: hashed_split(basket) for basket in dataset.groups.tolist()}
    for split, found in by_split.items():  # cold items are held out of every basket
        assert {splits[b] for b, item in found if item in warm or splits[b] != "train"} == {split}
    pairs = dataset.pairs("train")
    both = np.append(pairs["item"], dataset.queries.items[pairs["query"]])
    assert set(dataset.catalogue.ids[both].tolist()) <= warm  # an item is cold for both
    assert {"organic", "bananas"} <= words(dataset, "name", 13176)
    assert {"fresh", "fruits"} <= words(dataset, "aisle", 13176)
    assert "produce" in words(dataset, "department", 13176)


def test_homedepot_is_the_relevant_rows(made):
    dataset, report = made("homedepot")
    rows = rows_of("homedepot", "train.parquet")
    assert report["rows read"] == 74_067
    assert dataset.spec.num_items == 54_667
    relevant = rows["relevance"] >= 2.33
    searches = [text.strip() for text in rows["search_term"][relevant]]
    expected = collections.Counter(zip(searches, rows["product_uid"][relevant], strict=True))
    assert pair_counts(dataset) == expected
    assert dataset.spec.num_queries == len(set(searches))
    assert dataset.spec.tasks == ("text/relevant",)
    # 0.8 of the searches, less the cold items.
    assert 0.7 < dataset.spec.pairs["train"] / expected.total() < 0.8


@pytest.mark.parametrize(
    ("name", "item", "users", "items", "merged"),
    [
        ("pinterest_graph", "pin", 37_501, 9_836, (15_736, 1_076, 8_743)),
        ("gowalla", "item", 29_858, 40_981, (0, 0, 0)),
    ],
)
def test_graphs_have_the_published_split(made, name, item, users, items, merged):
    dataset, report = made(name)
    rows = rows_of(name, "edges.parquet")
    assert (dataset.spec.num_groups, dataset.spec.num_items) == (users, items)
    parts = []
    for tests in (False, True):
        of_part = rows["is_test"] == tests
        columns = (rows[column][of_part].tolist() for column in ("user", item))
        parts.append(set(zip(*columns, strict=True)))
        assert of_part.sum() - len(parts[-1]) == merged[tests]
    train, test = parts
    assert len(train & test) == report["edges of training that test rows repeat"] == merged[2]
    assert report["rows that repeat an edge"] == sum(merged)
    assert edges(dataset, "test") == test - train
    valid = edges(dataset, "valid")
    assert edges(dataset, "train") == train - valid
    assert valid < train
    assert abs(len(valid) / len(train) - 0.1) < 0.002
