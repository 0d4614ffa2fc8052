"""A data set on disk: each part is read as it was written."""

import dataclasses
import os
import pathlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from etils import epath

from pinjax import checksums, files
from pinjax.data import catalogue, dataset, pairs, spec, timelines
from pinjax.data.simulated import pinworld
from pinjax.data.text import tokens
from pinjax.errors import InputError
from pinjax.graph import csr

SIZES = {"unigrams": 9, "bigrams": 9, "trigrams": 9}


def ragged(lists):
    offsets = np.cumsum([0, *map(len, lists)])
    return tokens.Ragged(np.concatenate(lists).astype(np.int32), offsets)


@pytest.fixture
def items(rng):
    return catalogue.Items(
        ids=np.array(["a", "b", "c"], object),
        topics=np.array([1, -1, 0], np.int32),
        counts=np.array([5, 0, 2]),
        created=np.array([0, 5, 2**31], np.uint32),
        content=rng.standard_normal((3, 2)).astype(np.float16),
        images=rng.standard_normal((4, 3)).astype(np.float16),
        image_offsets=np.array([0, 3, 3, 4]),
        texts={"title": ragged([[1, 2], [], [0]]), "brand": ragged([[], [4], []])},
    )


@pytest.fixture
def queries(rng):
    return pairs.Queries(
        ids=np.array(["17", "red chair"], object),
        kinds=np.array(["image", "text"], object),
        vectors=rng.standard_normal((2, 3)).astype(np.float16),
        items=np.array([2, -1], np.int32),
    )


DRAWN = np.array([(0, 2, 0, 10), (1, 1, 1, 11), (1, 0, 1, 12)], pairs.PAIR)
USERS = {"train": [3, 10**12], "valid": [], "test": [-7]}  # own ids


def actions_of(user):
    made = np.zeros(abs(user) % 5 + 1, timelines.ACTION)
    made["time"], made["item"] = np.arange(len(made)), user % 3
    return made


def write(directory, items, queries, **fields):
    """A data set with all parts, as `fields` say."""
    vocabulary = tokens.Vocabulary.build(["red chair", "chair"], **SIZES)
    splits = dict(zip(spec.SPLITS, (DRAWN[:1], DRAWN[2:], DRAWN[1:2]), strict=True))
    with files.new_directory(directory) as made:
        with catalogue.writer(made / catalogue.FILE) as add:
            add(items)
        with timelines.writer(made / "timelines") as writer:
            for split, users in USERS.items():
                for user in users:
                    writer.add(split, user, actions_of(user), 1)
        (made / "pairs").mkdir()
        for split, drawn in splits.items():
            pairs.write(made / f"pairs/{split}.parquet", drawn)
        queries.write(made / pairs.QUERIES_FILE)
        vocabulary.save(made / spec.VOCABULARY_FILE)
        csr.write(made / "graph", np.array([(0, 1), (2, 0), (2, 1)]), 3, 2)
        pq.write_table(pa.table({"id": ["x", "y"]}), made / spec.GROUPS_FILE)
        known = spec.Spec(
            name="log",
            num_items=3,
            content_dim=2,
            image_dim=3,
            text_features=tuple(items.texts),
            vocabulary=vocabulary.sizes,
            users={split: len(users) for split, users in USERS.items()},
            integer_users=True,
            actions=(timelines.UNKNOWN, "save"),
            surfaces=(timelines.UNKNOWN,),
            pairs={split: len(drawn) for split, drawn in splits.items()},
            tasks=("image/click", "text/save"),
            num_queries=2,
            query_dim=3,
            edges={"train": 3},
            num_groups=2,
        )
        return spec.write(made, dataclasses.replace(known, **fields))


@pytest.mark.parametrize("rows_a_group", [2, catalogue.ROWS_A_GROUP])
def test_what_is_written_is_read(items, queries, tmp_path, monkeypatch, rows_a_group):
    monkeypatch.setattr(catalogue, "ROWS_A_GROUP", rows_a_group)
    written = write(tmp_path / "log", items, queries)
    found = dataset.load("log", tmp_path)
    assert found.spec == written
    assert found.spec.parts == spec.PARTS
    for expected, part in ((items, found.catalogue), (queries, found.queries)):
        assert len(part) == len(expected)
        for name, value in vars(expected).items():
            if name != "texts":
                np.testing.assert_array_equal(getattr(part, name), value)
    for parts, expected in (
        (found.catalogue.content_parts(), items.content),
        (found.catalogue.image_parts(), items.images),
    ):
        rows, vectors = map(np.concatenate, zip(*parts, strict=True))
        np.testing.assert_array_equal(rows, np.arange(len(expected)))
        np.testing.assert_array_equal(vectors, expected)
    assert found.catalogue.text_features == ("title", "brand")
    for name, expected in items.texts.items():
        for a, b in zip(found.catalogue.text(name), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    for split, users in USERS.items():
        chunks = list(found.chunks(split, users=1))
        assert [chunk.users for chunk in chunks] == [[user] for user in users]
        for user, chunk in zip(users, chunks, strict=True):
            np.testing.assert_array_equal(chunk.records, actions_of(user))
    drawn = [found.pairs(split) for split in ("train", "test", "valid")]
    np.testing.assert_array_equal(np.concatenate(drawn), DRAWN)
    assert [found.graph.items.of(item).tolist() for item in range(3)] == [[1], [], [0, 1]]
    assert [found.graph.groups.of(group).tolist() for group in range(2)] == [[2], [0, 2]]
    assert found.groups.tolist() == ["x", "y"]
    assert found.oracle is None
    assert found.frozen["vocabulary"] == found.vocabulary.digest


def test_a_catalogue_may_have_ids_alone(items, queries, tmp_path):
    none = dict(content=None, images=None, image_offsets=None, texts={})
    items = dataclasses.replace(items, ids=np.array([7, -1, 2**40]), **none)
    write(tmp_path / "log", items, queries)
    found = dataset.load("log", tmp_path).catalogue
    assert found.ids.tolist() == [7, -1, 2**40]
    assert found.content is None
    assert found.images is None
    assert found.text_features == ()
    assert found.image_offsets.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("part", "fields", "there"),
    [
        ("timelines", {"users": {}}, "pairs, graph"),
        ("pairs", {"pairs": {}}, "timelines, graph"),
        ("graph", {"edges": {}}, "timelines, pairs"),
        ("graph", {"edges": {}, "pairs": {}, "users": {}}, "a catalogue alone"),
    ],
)
def test_a_part_that_is_missing_is_named(items, queries, tmp_path, part, fields, there):
    write(tmp_path / "log", items, queries, **fields)
    found = dataset.load("log", tmp_path)
    message = f"^data.name: log has no {part}, only {there}$"
    with pytest.raises(InputError, match=message):
        found.spec.need(part)
    read = {"timelines": found.timelines, "pairs": found.pairs}.get(part, lambda _: found.graph)
    with pytest.raises(InputError, match=message):
        read("train")


def test_all_splits_have_all_users_where_actions_are_left_out(items, queries, tmp_path):
    write(tmp_path / "log", items, queries, leave_one_out=True)
    found = dataset.load("log", tmp_path)
    everybody = [chunk.users for chunk in found.chunks("train")]
    assert everybody == [[3, 10**12]]
    assert [chunk.users for chunk in found.chunks("valid")] == everybody
    assert [chunk.users for chunk in found.chunks("test")] == everybody


def test_identity_tells_frozen_tables_apart(items, queries, tmp_path):
    digests = {write(tmp_path / "a", items, queries).digest}
    queries.vectors[0, 0] += 1
    digests.add(write(tmp_path / "b", items, queries).digest)
    a, b = (dataset.load(name, tmp_path).frozen for name in "ab")
    assert {name for name in a if a[name] != b[name]} == {"query vectors"}
    assert len(digests) == 2


def test_images_are_identified_without_holding_them_all(items, queries, tmp_path, monkeypatch):
    write(tmp_path / "a", items, queries)
    whole = dataset.load("a", tmp_path).frozen["image vectors"]
    monkeypatch.setattr(catalogue, "ROWS_A_GROUP", 1)
    monkeypatch.delattr(catalogue.Catalogue, "images")
    assert dataset.load("a", tmp_path).frozen["image vectors"] == whole
    items.images[-1, -1] += 1
    write(tmp_path / "b", items, queries)
    assert dataset.load("b", tmp_path).frozen["image vectors"] != whole


def test_of_two_that_write_at_once_the_first_stays(items, queries, tmp_path):
    first = write(tmp_path / "log", items, queries)
    queries.vectors[0, 0] += 1
    assert write(tmp_path / "log", items, queries).digest != first.digest
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert dataset.load("log", tmp_path).spec == first


@pytest.mark.parametrize("file", [catalogue.FILE, pairs.QUERIES_FILE, "pairs/test.parquet"])
def test_what_is_no_parquet_is_named(items, queries, tmp_path, file):
    write(tmp_path / "log", items, queries)
    (tmp_path / "log" / file).write_text("id,topic")
    found = dataset.load("log", tmp_path)
    with pytest.raises(InputError, match=f"{file}: not readable as Parquet"):
        _ = found.catalogue, found.queries, found.pairs("test")


@pytest.mark.parametrize("ids", [[1, 2**40], ["a", "x" * 10_000], []])
def test_ids_keep_their_type(ids):
    for dtype, kind in ((np.int64, pa.int64()), (object, pa.large_string())):
        if not ids or isinstance(ids[0], int) == (dtype is np.int64):
            found = catalogue.id_array(np.array(ids, dtype))
            assert found.to_pylist() == ids
            assert found.type == kind


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "not the metadata of a data set"),
        ("[]", "not the metadata of a data set"),
        ('{"format": 4, "num_actions": 3}', "not the metadata of a data set"),
        ('{"name": "log", "num_items": 3}', "its format is of an older version; expected 4"),
        ('{"format": 5, "name": "log"}', "its format is 5; expected 4: prepare it anew"),
    ],
)
def test_other_metadata_are_refused(tmp_path, content, message):
    (tmp_path / spec.METADATA_FILE).write_text(content)
    with pytest.raises(InputError, match=f"metadata.json: {message}"):
        dataset.load(str(tmp_path), tmp_path)


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "made"


@pytest.fixture
def bucket(tmp_path, data_dir, monkeypatch):
    """A prepared data set in a directory that is treated as remote."""
    bucket = epath.Path(tmp_path) / "bucket"
    monkeypatch.setattr(files, "is_remote", lambda path: "bucket" in os.fspath(path))
    shutil.copytree(pinworld.ensure("tiny", epath.Path(data_dir)), bucket / "log")
    return bucket / "log"


def test_a_remote_data_set_is_read_from_a_copy_made_once(bucket, tmp_path, data_dir):
    expected = dataset.load("pinworld/tiny", data_dir).chunk("train", 0, 5)
    for _ in range(2):
        found = dataset.load(os.fspath(bucket), tmp_path / "here")
        assert not files.is_remote(found.directory)
        np.testing.assert_array_equal(found.chunk("train", 0, 5).records, expected.records)
        for path in bucket.glob("timelines/*train*"):
            path.unlink()  # the copy has it
    assert [path.name[:4] for path in (tmp_path / "here/copies").iterdir()] == ["log-"]

    metadata = bucket / spec.METADATA_FILE
    metadata.write_text(metadata.read_text() + "\n")  # as if it were another one
    checksums.record(bucket)
    dataset.load(os.fspath(bucket), tmp_path / "here")
    assert len(list((tmp_path / "here/copies").iterdir())) == 2


def test_a_copy_that_is_not_what_was_written_is_refused(bucket, tmp_path):
    (bucket / spec.METADATA_FILE).write_text("{}")
    with pytest.raises(InputError, match=r"metadata.json: damaged: 2 bytes, expected"):
        dataset.load(os.fspath(bucket), tmp_path / "here")
    assert not list((tmp_path / "here/copies").iterdir())


def test_a_data_set_closes_its_files_when_it_is_no_longer_used(data_dir):
    def opened():
        files = pathlib.Path("/proc/self/fd").iterdir()
        return [file for file in map(os.path.realpath, files) if str(data_dir) in file]

    found = dataset.load("pinworld/tiny", data_dir)
    assert found.timelines("train") is found.timelines("train")
    found.chunk("train", 0, 5)
    assert len(opened()) == 1
    del found
    assert not opened()


@pytest.mark.parametrize("name", ["pinworld/tiny", "log"])
def test_named_data_sets_are_kept_on_this_machine(name):
    with pytest.raises(InputError, match=r"^data.dir=gs://bucket/data: expected a directory on th"):
        dataset.load(name, "gs://bucket/data")


@pytest.mark.parametrize("name", ["nowhere", "pinworld/huge"])
def test_unknown_data_sets_are_refused(tmp_path, name):
    with pytest.raises(InputError, match=name):
        dataset.load(name, tmp_path)
