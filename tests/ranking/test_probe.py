"""A probe of a world whose answer is known."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.sparse

from pinjax.data import dataset as dataset_lib
from pinjax.errors import InputError
from pinjax.ranking import probe

VALUES = pa.array(["red", "green", "blue", "rare"])


@pytest.fixture
def world(rng):
    """Items near the centre of their colour, which a third of them hides, and words about it."""
    truth = np.r_[rng.choice(3, 900, p=(0.5, 0.3, 0.2)), np.full(10, 3)]
    centres = rng.normal(size=(4, 8))
    vectors = (centres[truth] + 0.1 * rng.normal(size=(910, 8))).astype(np.float32)
    vectors[:5] = 0  # no embedding
    hidden = np.arange(910) % 3 == 0
    code = np.where(hidden, -1, truth)
    # Every other item is named by its colour; all have a word that says nothing.
    words = scipy.sparse.lil_array((910, 4))
    words[np.arange(0, 910, 2), truth[::2]] = 1
    words[np.arange(910), np.full(910, 3)] = 1
    return truth, probe.Attribute(code, VALUES), vectors, words.tocsr()


def test_a_probe_tells_what_the_embedding_knows(world, rng):
    truth, attribute, vectors, words = world
    noise = rng.normal(size=vectors.shape).astype(np.float32)
    found = probe.probe(attribute, {"vectors": vectors, "noise": noise}, words)
    rows = dict(found.rows)
    assert list(rows) == [probe.FREQUENT, probe.WORDS, "vectors", "noise"]
    # The rare colour is left out.
    known = (attribute.code[5:] >= 0) & (attribute.code[5:] < 3)
    assert found.values == 3
    assert sum(found.items) == known.sum()
    assert found.items[1] == round(0.2 * known.sum())

    share = rows[probe.FREQUENT]["accuracy"].value
    assert abs(share - (truth == 0).mean()) < 0.15
    # F1 of the only predicted colour is 2 p / (1 + p), of the others it is 0.
    expected = 2 * share / (1 + share) / 3
    np.testing.assert_allclose(rows[probe.FREQUENT]["macro F1"].value, expected)
    assert rows["vectors"]["accuracy"].value > 0.99
    assert rows["vectors"]["macro F1"].value > 0.99
    # Words tell the colour of half of the items; of the others it is the most frequent.
    assert abs(rows[probe.WORDS]["accuracy"].value - (1 + share) / 2) < 0.1
    assert rows["noise"]["accuracy"].value < share + 0.1
    assert rows["vectors"][f"over {probe.WORDS}"].low > 0
    difference = rows["noise"]["accuracy"].value - share
    np.testing.assert_allclose(rows["noise"][f"over {probe.FREQUENT}"].value, difference)

    np.testing.assert_array_equal(found.missing, np.flatnonzero(attribute.code[5:] < 0) + 5)
    right = found.code == truth[found.missing]
    assert right[truth[found.missing] < 3].all()
    assert (found.probability[right] > 0.9).mean() > 0.95


def test_too_few_values(world):
    _, attribute, vectors, _ = world
    one = probe.Attribute(np.minimum(attribute.code, 0), VALUES)
    with pytest.raises(InputError, match="1 values of the attribute have 20 items"):
        probe.probe(one, {"vectors": vectors}, None)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("ids", [np.array([7, 5, 9, 3]), np.array(["7", "5", "9", "3"], object)])
def test_a_column_is_read_by_ids(tmp_path, kind, ids):
    path = str(tmp_path / f"items.{kind}")
    table = pa.table({"sku": [3, 5, 5, 100, 7], "brand": ["x", None, "y", "z", "x"]})
    if kind == "csv":
        rows = zip(*table.to_pydict().values(), strict=True)
        lines = [f"{sku},{'' if brand is None else brand}" for sku, brand in rows]
        (tmp_path / "items.csv").write_text("\n".join(["sku,brand", *lines]) + "\n")
    else:
        pq.write_table(table, path)
    found = probe.read([path], "brand", "sku", ids)
    values = [None if code < 0 else found.values[code].as_py() for code in found.code]
    assert values == ["x", "y", None, "x"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": [1], "colour": ["x"]}, "no column 'brand' among id, colour"),
        ({"id": [1], "brand": ["x"]}, "no id with a brand is an item of the data set"),
        ({"id": [7], "brand": [["x"]]}, r"brand is VARCHAR\[\]; expected text"),
        ({"id": [6.9], "brand": ["x"]}, "id is DOUBLE; expected integer or text ids"),
    ],
)
def test_wrong_columns(tmp_path, columns, message):
    path = str(tmp_path / "items.parquet")
    pq.write_table(pa.table(columns), path)
    with pytest.raises(InputError, match=message):
        probe.read([path], "brand", "id", np.array([7]))


def test_objects_of_json_lines_are_refused(tmp_path):
    (tmp_path / "items.jsonl").write_text('{"id": 7, "brand": {"name": "x"}}\n')
    with pytest.raises(InputError, match="brand is OBJECT; expected text"):
        probe.read([str(tmp_path / "items.jsonl")], "brand", "id", np.array([7]))


def test_a_column_of_several_types_is_refused(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.parquet", "b.parquet")]
    for path, brand in zip(paths, ("x", 1), strict=True):
        pq.write_table(pa.table({"id": [7], "brand": [brand]}), path)
    with pytest.raises(InputError, match="brand is string, int64; expected one type in all"):
        probe.read(paths, "brand", "id", np.array([7]))


def test_words_are_those_of_all_texts_but_one(data_dir):
    dataset = dataset_lib.load("pinworld/tiny", str(data_dir))
    found = probe.words_of(dataset, "brand")
    kinds = dataset.vocabulary.rows["kind"].to_numpy()
    assert found.shape == (len(dataset.catalogue), (kinds == "unigram").sum())
    names = [name for name in dataset.catalogue.text_features if name != "brand"]
    texts = [dataset.catalogue.text(name) for name in names]
    for item in range(0, len(dataset.catalogue), 97):
        tokens = np.concatenate([x.tokens[x.offsets[item] : x.offsets[item + 1]] for x in texts])
        expected = np.bincount(tokens[kinds[tokens] == "unigram"], minlength=found.shape[1])
        np.testing.assert_array_equal(found[[item]].toarray()[0], expected)
