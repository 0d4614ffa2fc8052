"""pinworld as a data set on disk, against plain loops over what was drawn."""

import collections
import itertools
import tracemalloc

import numpy as np
import pytest

from pinjax.data import catalogue, dataset, spec
from pinjax.data.simulated import pinworld, world
from pinjax.data.simulated import shop as shop_lib
from pinjax.data.simulated.oracle import Oracle
from pinjax.data.text import tokens
from pinjax.errors import InputError
from pinjax.timestamps import DAY

TINY = pinworld.SIZES["tiny"]


def build(where, **changes) -> dict[str, bytes]:
    """Builds a small world; returns the content of each of its files."""
    sizes = dict(train_users=40, eval_users=10, pins=300, roots=3, leaves=6, products=50)
    sizes |= dict(image_queries=30, text_queries=20, engagements=500)
    pinworld.write(pinworld.Size(**(sizes | changes)), "pinworld/test", where)
    files = (path for path in where.rglob("*") if path.is_file())
    return {str(path.relative_to(where)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A data set with several chunks each of users, products and engagements."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pinworld, "CHUNK", 64)
        patch.setattr(shop_lib, "CHUNK", 128)
        patch.setattr(shop_lib, "ENGAGEMENT_CHUNK", 2048)
        yield dataset.load("pinworld/tiny", str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def shop(tiny):
    return pinworld.draw_shop(pinworld.draw_world(TINY), TINY)


@pytest.fixture(scope="module")
def rows(tiny):
    """Per split: {user: actions}."""
    found = {}
    for split in spec.SPLITS:
        chunk = tiny.chunk(split, 0, 1_000)
        timelines = np.split(chunk.records, chunk.offsets[1:-1])
        found[split] = dict(zip(chunk.users, timelines, strict=True))
    return found


def test_the_same_seed_makes_the_same_bytes(tmp_path):
    assert build(tmp_path / "a") == build(tmp_path / "b")


def test_another_seed_makes_another_world(tmp_path):
    first, second = build(tmp_path / "a"), build(tmp_path / "b", seed=1)
    assert first.keys() == second.keys()
    for name in first.keys() - {"timelines/features.json"}:
        assert first[name] != second[name], name


def test_ensure_builds_once_and_in_silence(tmp_path, capfd):
    directory = pinworld.ensure("tiny", tmp_path)
    assert directory == tmp_path / "pinworld" / "tiny" / pinworld.VERSION
    before = {path.name: path.stat().mtime for path in directory.iterdir()}
    assert pinworld.ensure("tiny", tmp_path) == directory
    assert {path.name: path.stat().mtime for path in directory.iterdir()} == before
    assert capfd.readouterr() == ("", "")


def test_ensure_names_the_sizes_there_are(tmp_path):
    with pytest.raises(InputError, match=r"pinworld/huge.*pinworld/tiny, pinworld/small"):
        pinworld.ensure("huge", tmp_path)


def test_of_two_that_build_a_world_at_once_the_first_stays(tmp_path, monkeypatch):
    write, first = spec.write, []

    def write_after_another(*args):
        if not first:
            first.append(True)
            (pinworld.ensure("tiny", tmp_path) / "of the first").touch()
        return write(*args)

    monkeypatch.setattr(spec, "write", write_after_another)
    directory = pinworld.ensure("tiny", tmp_path)
    assert (directory / "of the first").exists()
    assert list(directory.parent.iterdir()) == [directory]


def test_the_spec_is_of_what_is_there(tiny):
    told, items, queries = tiny.spec, tiny.catalogue, tiny.queries
    assert told.name == "pinworld/tiny"
    assert told.parts == spec.PARTS
    assert told.num_items == len(items) == len(set(items.ids.tolist())) == 1_000
    assert told.content_dim == items.content.shape[1]
    assert told.image_dim == items.images.shape[1]
    assert told.text_features == items.text_features
    assert told.vocabulary == tiny.vocabulary.sizes
    assert told.users == {split: len(tiny.timelines(split)) for split in spec.SPLITS}
    assert told.pairs == {split: len(tiny.pairs(split)) for split in spec.SPLITS}
    assert (told.num_queries, told.query_dim) == queries.vectors.shape
    assert told.num_groups == len(tiny.groups) == len(tiny.graph.groups.offsets) - 1
    assert told.edges == {"train": len(tiny.graph.items.neighbours)}
    assert told.train_end + 14 * DAY < world.END


# Timelines.


def test_splits_hold_different_users(rows):
    assert len(rows["train"]) > 290
    assert len(rows["valid"]) > 95
    assert len(rows["test"]) > 95
    assert len(set.union(*(set(part) for part in rows.values()))) == sum(map(len, rows.values()))


def test_every_row_respects_the_schema(tiny, rows):
    told, created = tiny.spec, tiny.catalogue.created
    for actions in itertools.chain(*(part.values() for part in rows.values())):
        assert len(actions)
        assert (np.diff(actions["time"].astype(np.int64)) >= 0).all()
        assert actions["time"].min() >= world.START
        assert actions["time"].max() < world.END
        assert (actions["item"] >= 0).all()
        assert (actions["time"] >= created[actions["item"]]).all()
        assert (actions["action"] > 0).all()
        assert (actions["action"] < len(told.actions)).all()
        assert (actions["surface"] > 0).all()
        assert (actions["surface"] < len(told.surfaces)).all()
        timed = np.isin(actions["action"], [told.actions.index(a) for a in ("closeup", "click")])
        np.testing.assert_array_equal(timed, actions["duration"] > 0)


def test_the_catalogue_counts_training_actions_up_to_the_end_of_training(tiny, rows):
    actions = np.concatenate(list(rows["train"].values()))
    before = actions["item"][actions["time"] <= world.TRAIN_END]
    np.testing.assert_array_equal(tiny.catalogue.counts, np.bincount(before, minlength=1_000))


def test_timelines_are_long_varied_and_mostly_positive(rows, positives):
    lengths = np.array([len(actions) for actions in rows["train"].values()])
    assert 60 < np.median(lengths) < 120
    assert np.quantile(lengths, 0.95) > 4 * np.quantile(lengths, 0.05)
    actions = np.concatenate(list(rows["train"].values()))
    assert len(positives(actions)) / len(actions) == pytest.approx(0.6, abs=0.02)


def test_users_are_drawn_as_they_are_needed():
    huge = pinworld.Size(
        **dict(train_users=10**12, eval_users=10, pins=300, roots=3, leaves=6, products=50),
        **dict(image_queries=30, text_queries=20, engagements=500),
    )
    topics = pinworld.draw_world(huge)
    tracemalloc.start()
    try:
        chunk = next(pinworld.draw_timelines(topics, huge, "train"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(chunk.users) == pinworld.CHUNK
    assert peak < 100e6


# The graph.


def test_boards_hold_what_was_saved_up_to_the_end_of_training(tiny, rows, shop):
    boards = collections.defaultdict(set)
    for split in spec.SPLITS:
        for chunk in pinworld.draw_timelines(shop.world, TINY, split):
            for number, start, end in zip(
                chunk.users, chunk.offsets, chunk.offsets[1:], strict=False
            ):
                actions = rows[split].get(pinworld.user_id(number), chunk.actions[:0])
                for action, leaf in zip(actions, chunk.leaf[start:end], strict=True):
                    saved = tiny.spec.actions[action["action"]] == "save"
                    if saved and action["time"] <= world.TRAIN_END:
                        boards[number, int(leaf)].add(int(action["item"]))
    graph, items = tiny.graph, collections.defaultdict(list)
    assert tiny.groups.tolist() == [number * 24 + leaf for number, leaf in sorted(boards)]
    for row, board in enumerate(sorted(boards)):
        assert graph.groups.of(row).tolist() == sorted(boards[board])
        for item in boards[board]:
            items[item].append(row)
    for item in range(1_000):
        assert graph.items.of(item).tolist() == items[item]
    assert max(map(len, boards.values())) > 10
    assert max(number for number, _ in boards) > 490  # of valid and test, too


# Products, queries, pairs.


def test_products_alone_have_texts_and_images(tiny, shop):
    items = tiny.catalogue
    for name in ("ids", "created", "content"):
        np.testing.assert_array_equal(getattr(items, name), getattr(shop.world, name))
    np.testing.assert_array_equal(items.topics, shop.world.leaf)
    chunks = [shop_lib.draw_texts(shop, chunk) for chunk in shop.product_chunks]
    assert len(chunks) == 3
    texts = {name: [text for chunk in chunks for text in chunk[name]] for name in shop_lib.FEATURES}
    for name, values in texts.items():
        expected = dict(
            zip(shop.pin.tolist(), map(tiny.vocabulary.encode, zip(values)), strict=True)
        )
        found = items.text(name)
        for item, (start, end) in enumerate(itertools.pairwise(found.offsets)):
            own = expected[item].tokens if item in expected else []
            np.testing.assert_array_equal(found.tokens[start:end], own)

    images = [shop_lib.draw_images(shop, chunk) for chunk in shop.product_chunks]
    np.testing.assert_array_equal(items.images, np.concatenate(images))
    counts = np.zeros(1_000, np.int64)
    counts[shop.pin] = shop.images
    np.testing.assert_array_equal(np.diff(items.image_offsets), counts)

    known = (shop.world.created[shop.pin] <= world.TRAIN_END).nonzero()[0]
    assert len(known) < 300
    known = [values[row] for values in texts.values() for row in known]
    vocabulary = tokens.Vocabulary.build(known, **pinworld.VOCABULARY)
    assert vocabulary.digest == tiny.vocabulary.digest


def test_queries_are_pins_and_searches(tiny, shop):
    queries, pin = tiny.queries, shop.queries.pin
    is_text = np.arange(400) >= 200
    np.testing.assert_array_equal(queries.items, pin)
    np.testing.assert_array_equal(queries.kinds, np.where(is_text, "text", "image"))
    np.testing.assert_array_equal(queries.ids[is_text], shop.queries.text[is_text])
    assert queries.ids[:200].tolist() == [str(tiny.catalogue.ids[row]) for row in pin[:200]]
    np.testing.assert_array_equal(queries.vectors, shop.queries.vector)
    np.testing.assert_array_equal(queries.vectors[:200], tiny.catalogue.content[pin[:200]])


def test_pairs_are_split_by_time_and_then_by_query(tiny, shop):
    drawn = [shop_lib.draw_engagements(shop, chunk) for chunk in shop.engagement_chunks]
    assert len(drawn) == 3
    parts = [tiny.pairs(split) for split in spec.SPLITS]
    train, valid, test = parts
    assert train["time"].max() <= world.TRAIN_END
    assert min(valid["time"].min(), test["time"].min()) > world.TRAIN_END
    assert not set(valid["query"].tolist()) & set(test["query"].tolist())
    assert 0.6 < len(valid) / len(test) < 1.6
    for part in parts:
        assert (np.diff(part["time"].astype(np.int64)) >= 0).all()
    everything = np.sort(np.concatenate(parts), order=["time", "query", "item", "task"])
    expected = np.sort(np.concatenate(drawn), order=["time", "query", "item", "task"])
    np.testing.assert_array_equal(everything, expected)
    assert len(set(train["task"].tolist())) == len(tiny.spec.tasks) == 8


def test_the_stored_oracle_is_that_of_the_world(tiny, rows, shop):
    expected = pinworld.make_oracle(shop.world, shop, TINY)
    for name, value in vars(expected).items():
        np.testing.assert_array_equal(getattr(tiny.oracle, name), value)
    assert isinstance(tiny.oracle, Oracle)
    assert set(tiny.oracle.users.tolist()) >= {*rows["valid"], *rows["test"]}
    assert isinstance(tiny.catalogue, catalogue.Catalogue)
