"""A data set with other vectors is the data set that would have been written with them."""

import dataclasses

import numpy as np
import pytest

from pinjax import checksums
from pinjax.data import catalogue, dataset, embeddings, item_features, overlay, pairs, statistics
from pinjax.data import spec as spec_lib
from pinjax.errors import InputError

DIM = 5


@pytest.fixture
def own(data_dir):
    return dataset.load("pinworld/tiny", data_dir)


@pytest.fixture
def find(tmp_path):
    def find(*names, verify=True):
        return embeddings.find(", ".join(names), tmp_path / "copies", verify)

    return find


def some(rng, ids, share, dim=DIM):
    """A share of ids, in any order, and random vectors of them."""
    chosen = rng.permutation(ids)[: round(share * len(ids))]
    return chosen, rng.standard_normal((len(chosen), dim)).astype(np.float32)


def written_with(own, tables, directory):
    """The data set with vectors as its catalogue and its queries, row by row, and on disk."""
    items = {}
    for ids, vectors in tables["items"]:
        items |= dict(zip(ids.tolist(), vectors.astype(np.float16), strict=True))
    texts = {}
    for ids, vectors in tables["queries"]:
        texts |= dict(zip(ids.tolist(), vectors.astype(np.float16), strict=True))
    nothing = np.zeros(DIM, np.float16)
    ids = own.catalogue.ids.tolist()
    images = [
        [items[i]] if has and i in items else []
        for i, has in zip(ids, np.diff(own.catalogue.image_offsets) > 0, strict=True)
    ]
    made = catalogue.Items(
        ids=own.catalogue.ids,
        topics=own.catalogue.topics,
        counts=own.catalogue.counts,
        created=own.catalogue.created,
        content=np.array([items.get(i, nothing) for i in ids]),
        images=np.array([vector for of_item in images for vector in of_item]),
        image_offsets=np.cumsum([0, *map(len, images)]),
        texts={name: own.catalogue.text(name) for name in own.catalogue.text_features},
    )
    directory.mkdir()
    with catalogue.writer(directory / catalogue.FILE) as write:
        write(made)
    queries = own.queries
    vectors = [
        texts.get(text, nothing) if item < 0 else items.get(ids[item], nothing)
        for text, item in zip(queries.ids, queries.items, strict=True)
    ]
    dataclasses.replace(queries, vectors=np.array(vectors)).write(directory / pairs.QUERIES_FILE)
    return dataset.Dataset(directory, own.spec)


def test_it_is_the_data_set_that_would_have_been_written(own, find, make_embeddings, rng, tmp_path):
    searches = own.queries.ids[own.queries.items < 0]
    first = {"items": some(rng, own.catalogue.ids, 0.8), "queries": some(rng, searches, 0.5)}
    second = {"items": some(rng, own.catalogue.ids, 0.3), "users": some(rng, searches, 1, 3)}
    # Queries that are items have their own vectors in a table, too; the items' count.
    third = {"items": some(rng, own.catalogue.ids, 0.1), "queries": some(rng, own.queries.ids, 0.4)}
    names = [
        make_embeddings(f"{i}", own, tables) for i, tables in enumerate((first, second, third))
    ]
    found = overlay.with_vectors(own, find(*names))
    tables = {
        name: [of[name] for of in (first, second, third) if name in of]
        for name in ("items", "queries")
    }
    expected = written_with(own, tables, tmp_path / "written")

    for name in ("ids", "content", "images", "image_offsets", "created", "counts"):
        left, right = (getattr(x.catalogue, name) for x in (found, expected))
        assert left.dtype == right.dtype, name
        np.testing.assert_array_equal(left, right, name)
    for field in dataclasses.fields(pairs.Queries):
        left, right = (getattr(x.queries, field.name) for x in (found, expected))
        assert left.dtype == right.dtype, field.name
        np.testing.assert_array_equal(left, right, field.name)
    np.testing.assert_array_equal(
        item_features.item_vectors(found), item_features.item_vectors(expected)
    )
    for x in (found.catalogue, expected.catalogue):
        for all_of_them, parts in ((x.content, x.content_parts()), (x.images, x.image_parts())):
            made = np.zeros_like(all_of_them)
            for rows, vectors in parts:
                made[rows] = vectors
            np.testing.assert_array_equal(made, all_of_them)
    measured = statistics.measure(
        expected.directory, own.directory / spec_lib.VOCABULARY_FILE, own.spec.train_end, ()
    )
    assert found.spec == dataclasses.replace(
        own.spec,
        **{"content_dim": DIM, "image_dim": DIM, "query_dim": DIM},
        num_images=measured["num_images"],
    )
    # The rest is the data set's.
    np.testing.assert_array_equal(found.pairs("test"), own.pairs("test"))
    assert found.oracle is not None


def test_without_vectors_of_its_own_a_data_set_gets_content(
    other_data, data_dir, find, make_embeddings, rng
):
    name = other_data(without=("content", "images"), content_dim=0, image_dim=0, num_images=0)
    own = dataset.load(name, data_dir)
    ids, vectors = some(rng, own.catalogue.ids, 0.5)
    found = overlay.with_vectors(own, find(make_embeddings("x", own, {"items": (ids, vectors)})))
    assert (found.spec.content_dim, found.spec.image_dim, found.spec.num_images) == (DIM, 0, 0)
    assert found.catalogue.images is None
    row = own.catalogue.ids.tolist().index(ids[0])
    np.testing.assert_array_equal(found.catalogue.content[row], vectors[0].astype(np.float16))
    assert found.catalogue.content.any(axis=1).sum() == len(ids)


def test_without_its_rows_a_spec_has_the_dimensions(own, find, make_embeddings, rng):
    name = make_embeddings("x", own, {"items": some(rng, own.catalogue.ids, 1)})
    found = overlay.spec_with(own.spec, find(name))
    assert (found.content_dim, found.image_dim, found.query_dim) == (DIM, DIM, DIM)
    assert found.num_images == own.spec.num_items  # of which each may have one


def append(path):
    path.write_bytes(path.read_bytes() + b"?")


def edit(path):
    path.write_text(path.read_text().replace("2025", "2024"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: append(d / "items-00001-of-00002.parquet"), "items-00001.*: damaged: .* bytes"),
        (lambda d: (d / "items-00000-of-00002.parquet").unlink(), "damaged: the file is missing"),
        (lambda d: edit(d / "manifest.json"), "manifest.json: damaged: its checksum is not"),
        (lambda d: (d / "manifest.json").unlink(), "no embeddings by pinjax.embed"),
    ],
)
def test_a_damaged_directory_is_refused(own, find, make_embeddings, rng, tmp_path, change, message):
    name = make_embeddings("x", own, {"items": some(rng, own.catalogue.ids, 1)})
    change(tmp_path / "x")
    with pytest.raises(InputError, match=message):
        find(name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": "0123"}, "holds embeddings of data set 0123; expected those of pinworld/tiny"),
        ({"as_of": "2026-01-01T00:00:00+00:00"}, "as of 2026.*, after the training period ends"),
        ({"files": {}}, "incomplete: any file is not there yet; repeat pinjax.embed"),
        ({"files": {"items-00000-of-00001.parquet": None}}, "incomplete: items-00000-of-00001"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(own, find, make_embeddings, rng, fields, message):
    tables = {"items": some(rng, own.catalogue.ids, 1)}
    name = make_embeddings("x", own, tables, **fields)
    with pytest.raises(InputError, match=message):
        overlay.with_vectors(own, find(name))


def test_tables_that_do_not_fit_are_refused(own, find, make_embeddings, rng):
    items = some(rng, own.catalogue.ids, 0.1)

    def refused(message, *names):
        with pytest.raises(InputError, match=message):
            overlay.with_vectors(own, find(*names))

    one = make_embeddings("one", own, {"items": items})
    other = make_embeddings("other", own, {"items": some(rng, own.catalogue.ids, 0.1, 4)})
    refused(r"have \[4, 5\] numbers; expected as many in all", one, other)
    queries = make_embeddings("queries", own, {"queries": items})
    refused("queries has no vectors of items", queries)
    text = make_embeddings("text", own, {"items": (items[0].astype(str).astype(object), items[1])})
    refused("text: items have ids of type large_string; expected int64", text)
    unknown = make_embeddings("unknown", own, {"items": (np.append(items[0][1:], 7), items[1])})
    refused("unknown: items: id 7 is not in the data set", unknown)


def test_checksums_are_only_compared_if_wanted(own, find, make_embeddings, rng, tmp_path):
    name = make_embeddings("x", own, {"items": some(rng, own.catalogue.ids, 1)})
    path = tmp_path / "x/manifest.json"
    manifest = checksums.read(path)
    manifest["files"]["items-00000-of-00002.parquet"]["xxh3_128"] = "0"
    path.write_text(checksums.dump(manifest))
    find(name, verify=False)
    with pytest.raises(InputError, match="its checksum is not that of what was written"):
        find(name)


def test_identity_is_of_what_embeddings_were_made_from(own, find, make_embeddings, rng):
    tables = {"items": some(rng, own.catalogue.ids, 1)}
    names = [make_embeddings(name, own, tables) for name in ("a", "b")]
    same = make_embeddings("c", own, {"items": tables["items"]}, checkpoint="a")
    identities = [embeddings.identity(find(name)) for name in (*names, same)]
    assert identities[0] == identities[2] != identities[1]
    assert embeddings.identity(find(*names)) == ", ".join(identities[:2])
