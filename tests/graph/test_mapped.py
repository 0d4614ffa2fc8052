import pickle

import numpy as np

from pinjax.graph import csr, mapped


def test_a_whole_array_is_pickled_as_its_file(rng, tmp_path):
    array = rng.integers(0, 9, (1_000, 3))
    np.save(tmp_path / "a.npy", array)
    found = mapped.load(tmp_path / "a.npy")
    content = pickle.dumps(found)
    assert len(content) < 500
    again = pickle.loads(content)
    assert isinstance(again, mapped.Mapped)
    np.testing.assert_array_equal(again, array)
    for part, expected in (
        (found[3:9], array[3:9]),
        (found[:, 1], array[:, 1]),
        (found.view(), array),
        (found + 1, array + 1),
        (found[[4, 2]], array[[4, 2]]),
    ):
        copy = pickle.loads(pickle.dumps(part))
        assert type(copy) is np.ndarray
        np.testing.assert_array_equal(copy, expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(again)), array)


def test_a_graph_is_pickled_as_its_files(rng, tmp_path):
    edges = np.unique(rng.integers(0, 50, (2_000, 2)), axis=0)
    csr.write(tmp_path, edges, 50, 50)
    graph = csr.read(tmp_path)
    content = pickle.dumps(graph)
    assert len(content) < 2_000
    np.testing.assert_array_equal(pickle.loads(content).items.neighbours, graph.items.neighbours)
