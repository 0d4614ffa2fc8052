"""Tables of items, and the catalogue that they make with a log."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinjax.data import column_map, items, logs, schema

TAGS = {
    "a": ["sea", "war"],
    "b": ["sea"],
    "c": ["sea", "tea", "war"],
    "d": [],
    "e": ["tea"],
    "f": ["sea", "war"],
}


def make_log(ids, item, time):
    records = np.zeros(len(item), schema.ACTION)
    records["item"], records["time"] = item, time
    return logs.Log(
        pa.array([1]),
        pa.array(ids),
        records,
        np.array([0, len(item)]),
        ("unknown",),
        ("unknown",),
        {},
    )


def lsa(dim):
    """TF-IDF and a dense SVD, in the scikit-learn convention; similarities, not coordinates."""
    names = sorted({tag for tags in TAGS.values() for tag in tags})
    matrix = np.array([[tag in tags for tag in names] for tags in TAGS.values()], float)
    matrix *= np.log((1 + len(matrix)) / (1 + matrix.sum(0))) + 1
    matrix /= np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-9)
    left, scale, _ = np.linalg.svd(matrix, full_matrices=False)
    vectors = (left * scale)[:, :dim]
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.where(lengths > 1e-9, vectors / np.maximum(lengths, 1e-9), 0)
    return vectors @ vectors.T


@pytest.mark.parametrize("separator", ["", ", "])
@pytest.mark.parametrize("dim", [2, 64])
def test_vectors_from_tags_equal_a_dense_svd(tmp_path, separator, dim):
    if separator:
        pairs = [(item, separator.join(tags)) for item, tags in TAGS.items()]
    else:  # one tag a row, one of them twice; an item without tags has a null
        pairs = [(item, tag) for item, tags in TAGS.items() for tag in tags or [None]]
        pairs.append(("a", "sea"))
    ids, tags = zip(*pairs, strict=True)
    pq.write_table(pa.table({"item": ids, "tags": tags}), tmp_path / "i.parquet")
    config = column_map.default()
    config.catalogue.update(tags="tags", tag_separator=separator, tag_dim=dim)
    table = items.read(tmp_path / "i.parquet", config)
    assert table.ids.to_pylist() == list(TAGS)
    vectors = table.content.astype(np.float64)
    np.testing.assert_allclose(vectors @ vectors.T, lsa(dim), atol=5e-3)
    # The commonest tag is "sea": of a, b, c and f; "tea" is e's only one.
    assert len(set(table.topics[[0, 1, 2, 5]])) == 1
    assert table.topics[3] == -1
    assert table.topics[4] not in (-1, table.topics[0])


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.float64()), pa.list_(pa.float32(), 3), pa.large_list(pa.int64())]
)
def test_content_and_topics_are_read_as_they_stand(tmp_path, kind):
    content = pa.array([[1, 2, 3], None, [4, 5, 6]], kind)
    table = pa.table({"item": [5, 3, 9], "v": content, "kind": ["x", None, "x"]})
    pq.write_table(table, tmp_path / "i.parquet")
    config = column_map.default()
    config.catalogue.update(content="v", topic="kind")
    read = items.read(tmp_path / "i.parquet", config)
    assert read.content.tolist() == [[1, 2, 3], [0, 0, 0], [4, 5, 6]]
    assert read.topics.tolist() == [0, -1, 0]


@pytest.mark.parametrize("keep_unseen", [True, False])
def test_join_orders_and_dates_the_items(keep_unseen):
    table = items.Items(
        ids=pa.array(["10", "11", "12"]),
        created=np.array([100, 999, np.nan]),
        topics=np.array([1, 2, 3], np.int32),
        content=np.ones((3, 2), np.float16),
    )
    config = column_map.default()
    config.catalogue.keep_unseen = keep_unseen
    log = make_log([77, 11, 10], item=[0, 1, 2, 0, 1], time=[500, 510, 520, 400, 505])
    catalogue, rows, report = items.join(table, log, config)
    kept = ["10", "11", "12"] if keep_unseen else ["10", "11"]
    assert catalogue.ids.tolist() == [*kept, "77"]
    assert [catalogue.ids[row] for row in rows] == ["77", "11", "10"]
    # The table's date, unless it was acted on before; never seen and undated: from the start.
    created = dict(zip(catalogue.ids, catalogue.created.tolist(), strict=True))
    assert {**created, "12": 0} == {"10": 100, "11": 505, "12": 0, "77": 400}
    assert created.get("12", 0) == 0
    assert catalogue.topics[-1] == -1
    assert not catalogue.content[-1].any()
    assert report["items not in the table"] == report["items without content"] == 1


def test_join_without_a_table_takes_the_log_alone():
    log = make_log([7, 5], item=[0, 1, 0], time=[30, 20, 10])
    catalogue, rows, _ = items.join(None, log, column_map.default())
    assert catalogue.ids.tolist() == [7, 5]
    assert catalogue.ids.dtype == np.int64
    assert catalogue.created.tolist() == [10, 20]
    assert rows.tolist() == [0, 1]
    assert catalogue.content is None
