"""`python -m pinjax.index`: from embeddings to neighbours."""

import re
import shlex
import types

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinjax.data import embeddings
from pinjax.retrieval import index as index_lib
from tests import commands

ITEMS, USERS, DIM = 2_500, 300, 8
OF = types.SimpleNamespace(spec=types.SimpleNamespace(digest="0"))


@pytest.fixture(scope="module")
def command():
    pytest.importorskip("faiss")
    with commands.Command("index", JAX_DISABLE_MOST_OPTIMIZATIONS="1") as command:
        yield command


@pytest.fixture
def embedded(rng, make_embeddings):
    """(directory of embeddings, vectors of items, vectors of users)."""
    items, users = (rng.standard_normal((n, DIM)).astype(np.float32) for n in (ITEMS, USERS))
    ids = np.arange(ITEMS) * 3 + 1
    names = np.array([f"user {i}" for i in range(USERS)], object)
    return (
        make_embeddings("made", OF, {"items": (ids, items), "users": (names, users)}),
        items,
        users,
    )


def run(command, *arguments, code=0):
    found, out, err = command(*arguments)
    assert found == code, err
    assert code == 0 or re.fullmatch("error: .+\n", err), err
    return out if code == 0 else err


def test_an_index_reaches_its_recall_and_finds_neighbours(command, embedded, rng, tmp_path):
    directory, items, users = embedded
    made = tmp_path / "index"
    build = "build", f"--embeddings={directory}", f"--out={made}"
    out = run(command, *build, "--backend=faiss_ivf", "--recall=0.8", "--k=5")
    recall, within, number = re.search(r"recall@5 (\S+) ± (\S+) on (\d+) other", out).groups()
    assert float(recall) + 2 * float(within) > 0.8
    assert int(number) == USERS // 2
    assert out.splitlines()[-1] == f"  python -m pinjax.index query --index={made} --ids=1"
    manifest = index_lib.open_index(made).manifest
    assert (manifest["embeddings"]["checkpoint"], manifest["k"]) == ("made", 5)
    assert manifest["setting"]["lists"] > 0
    assert "is there already" in run(command, *build, code=2)
    several = "build", build[1], f"--out={tmp_path}/fastest", "--backend=exact,faiss_ivf"
    run(command, *several, "--recall=0.8")
    assert index_lib.open_index(tmp_path / "fastest").manifest["backend"] in ("exact", "faiss_ivf")

    found = run(command, "query", f"--index={made}", "--ids=7,1", "--k=3")
    cells = [line.split("\t") for line in found.splitlines()]
    assert [(cell[0], cell[3]) for cell in cells] == [(i, r) for i in "71" for r in "123"]
    assert all(cell[0] != cell[1] for cell in cells)

    np.save(tmp_path / "users.npy", users)
    table = embeddings.to_arrow(np.array(["a", "b"], object), users[:2], 0, "float32")
    pq.write_table(table, tmp_path / "users.parquet")
    for name, number, first in (("users.npy", USERS, 0), ("users.parquet", 2, "a")):
        flags = f"--vectors={tmp_path / name}", "--k=5", f"--out={tmp_path}/found.parquet"
        run(command, "query", f"--index={made}", *flags)
        found = pq.read_table(tmp_path / "found.parquet")
        assert found.column_names == ["query", "item", "score", "rank"]
        assert (len(found), found["query"][0].as_py()) == (5 * number, first)
        rows = found["item"].to_numpy().reshape(-1, 5) // 3
        expected = np.argsort(-users[:number].astype(np.float64) @ items.T, axis=1)[:, :5]
        found = (rows[:, :, None] == expected[:, None]).any(axis=2).mean()
        assert found > (0.7 if number == USERS else 0.2)  # of two queries it is mostly chance


def test_an_id_of_any_text_is_printed_as_it_is_read(command, rng, make_embeddings, tmp_path):
    ids = np.array(['a, "b"', "c", "d"], object)
    made = make_embeddings("texts", OF, {"items": (ids, rng.standard_normal((3, DIM)))})
    build = "build", f"--embeddings={made}", f"--out={tmp_path}/index", "--backend=exact"
    printed = shlex.split(run(command, *build).splitlines()[-1])
    found = run(command, *printed[3:], "--k=1")
    assert found.startswith('a, "b"\t')


def test_of_an_empty_table_of_users_there_are_no_queries(command, rng, make_embeddings, tmp_path):
    items = rng.standard_normal((50, DIM)).astype(np.float32)
    none = np.array([], object), np.zeros((0, DIM), np.float32)
    tables = {"items": (np.arange(50), items), "users": none}
    made = make_embeddings("nobody", OF, tables)
    build = "build", f"--embeddings={made}", f"--out={tmp_path}/index", "--backend=exact"
    assert re.search(r"recall@10 1\.0000 ± 0\.0000 on 25 other queries", run(command, *build))
    build = "build", build[1], f"--out={tmp_path}/users", "--backend=exact", "--table=users"
    assert f"{made}: table users is empty; expected vectors" in run(command, *build, code=2)
    assert not (tmp_path / "users").exists()


def test_several_vectors_of_an_id_are_refused(command, rng, make_embeddings, tmp_path):
    vectors = rng.standard_normal((50, DIM)).astype(np.float32)
    several = np.array(["a", "b"] * 25, object)
    made = make_embeddings("several", OF, {"items": (np.arange(50), vectors)})
    users = make_embeddings("users", OF, {"users": (several, vectors)})
    flags = "--backend=exact", f"--out={tmp_path}/index"
    error = run(command, "build", f"--embeddings={users}", "--table=users", *flags, code=2)
    assert f"{users}: table users has several vectors of an id" in error
    run(command, "build", f"--embeddings={made}", *flags)
    table = embeddings.to_arrow(several, vectors, 0, "float32")
    pq.write_table(table, tmp_path / "users.parquet")
    flags = f"--index={tmp_path}/index", f"--vectors={tmp_path}/users.parquet"
    assert "has several vectors of an id" in run(command, "query", *flags, code=2)


def test_a_backend_that_cannot_be_built_is_named(embedded, tmp_path):
    (tmp_path / "faiss.py").write_text("raise ModuleNotFoundError")
    build = "build", f"--embeddings={embedded[0]}", f"--out={tmp_path}/index"
    with commands.Command("index", PYTHONPATH=str(tmp_path)) as command:
        out = run(command, *build, "--backend=exact,faiss_hnsw")
        assert "faiss_hnsw, faiss_ivf" in run(command, *build[:2], "--out=x", "--backend=", code=2)
    assert "\n2,500 items by exact: " in out
    assert out.startswith("left out: "), out
    assert "FAISS" in out.splitlines()[0]


def test_the_curve_of_several_backends_is_printed_and_drawn(command, embedded, tmp_path):
    page = tmp_path / "curve.html"
    flags = f"--embeddings={embedded[0]}", "--backend=faiss_ivf,exact", f"--draw={page}"
    out = run(command, "tune", *flags)
    assert re.search(r"^faiss_ivf, 2,500 items, built in \S+ s\n +recall@10 +queries/s", out)
    assert re.search(r"^ +1\.0000 .* lists \d+$", out, re.MULTILINE)
    assert "python -m pinjax.index build" in out.splitlines()[-1]
    assert "faiss_ivf" in page.read_text()


@pytest.mark.slow
def test_a_query_that_is_indexed_is_no_result_of_its_own(command, rng, make_embeddings):
    """Else the least effort would find the only result of each user, the user."""
    users = rng.standard_normal((ITEMS, DIM)).astype(np.float32)
    users /= np.linalg.norm(users, axis=1, keepdims=True)
    directory = make_embeddings("users", OF, {"users": (np.arange(ITEMS), users)})
    flags = f"--embeddings={directory}", "--table=users", "--backend=faiss_ivf", "--k=1"
    for queries in ((), (f"--queries={directory}",)):
        out = run(command, "tune", *flags, *queries)
        recalls = re.findall(r"^ +([01]\.\d{4}) ", out, re.MULTILINE)
        assert float(recalls[0]) < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected build, tune, query before the flags"),
        (["--k=3"], "expected build, tune, query before the flags"),
        (["query", "stray"], "unexpected argument 'stray'"),
        (["query", "--recall=0.9"], "query takes no --recall"),
        (["query"], "flag --index must be given"),
        (["build", "--embeddings=.", "--out="], "--out is empty"),
        (["build", "--embeddings=.", "--out=new"], "no embeddings by pinjax.embed"),
        (["tune", "--embeddings={}", "--backend="], "--backend is empty; expected some of scann"),
        (["tune", "--embeddings={}", "--backend=flat"], "expected one of scann, faiss_hnsw"),
        (["tune", "--embeddings={}", "--backend=exact", "--draw="], "--draw is empty"),
        (["tune", "--embeddings={}", "--table=groups"], "no table groups among ['items', 'users']"),
    ],
)
def test_wrong_flags_end_in_one_line(command, embedded, arguments, message):
    arguments = [argument.format(embedded[0]) for argument in arguments]
    assert message in run(command, *arguments, code=2)


def test_wrong_queries_end_in_one_line(command, embedded, tmp_path):
    made = tmp_path / "index"
    build = "build", f"--embeddings={embedded[0]}", f"--out={made}", "--backend=exact"
    assert "nothing to choose" in run(command, *build)
    query = "query", f"--index={made}"
    assert "expected --ids or --vectors" in run(command, *query, code=2)
    assert "--ids: 5 is not in" in run(command, *query, "--ids=4,5", code=2)
    assert "ids such as x are string" in run(command, *query, "--ids=x", code=2)
    np.save(tmp_path / "flat.npy", np.zeros(3))
    assert "expected floats (queries, dim)" in run(
        command, *query, f"--vectors={tmp_path}/flat.npy", code=2
    )
    for name, content in (("cut", b"\x93NUMPY"), ("empty", b""), ("zip", b"PK\x03\x04")):
        path = tmp_path / f"{name}.npy"
        path.write_bytes(content)
        assert f"{path}: not readable" in run(command, *query, f"--vectors={path}", code=2)
    path = tmp_path / "lists.parquet"
    pq.write_table(pa.table({"id": ["a"], "vector": [[1.0] * DIM]}), path)
    assert "a\t" in run(command, *query, f"--vectors={path}")
    pq.write_table(pa.table({"id": ["a"], "vector": ["[1, 2]"]}), path)
    message = f"--vectors={path}: vector is string; expected lists of numbers, all of one length"
    assert message in run(command, *query, f"--vectors={path}", code=2)
