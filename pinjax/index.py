"""Finds the items nearest to vectors, by an index with a stated recall.

    python -m pinjax.index build --embeddings=DIR --out=INDEX [--backend=NAME,NAME] [--recall=0.95]
    python -m pinjax.index tune  --embeddings=DIR [--backend=NAME,NAME] [--draw=FILE.html]
    python -m pinjax.index query --index=INDEX --ids=ID,ID or --vectors=FILE [--out=FILE.parquet]

`build` indexes the items that pinjax.embed wrote to DIR, by the fastest of the backends; `tune`
shows recall against queries a second; `query` searches. Recall is the share of the k exact results
that are found, on users of DIR (or else queries, or else items) by which no setting was chosen.
"""

import csv
import io
import shlex
import time
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from absl import flags

from pinjax import app, files
from pinjax.data import catalogue, embeddings, parquet
from pinjax.errors import InputError
from pinjax.retrieval import curves, tuning
from pinjax.retrieval import index as index_lib

EMBEDDINGS = flags.DEFINE_string("embeddings", None, "directory of pinjax.embed")
BACKEND = flags.DEFINE_list("backend", ["scann"], f"one or more of {', '.join(index_lib.BACKENDS)}")
K = flags.DEFINE_integer("k", 10, "results of each query", lower_bound=1)
RECALL = flags.DEFINE_float("recall", 0.95, "recall to reach", lower_bound=0.0, upper_bound=1.0)
QUERIES = flags.DEFINE_string("queries", None, "directory of pinjax.embed with the queries")
TABLE = flags.DEFINE_string("table", embeddings.ITEMS, "table of the embeddings to index")
OUT = flags.DEFINE_string("out", None, "directory of the new index, or file of query's results")
DRAW = flags.DEFINE_string("draw", None, "HTML file to draw the curves into")
INDEX = flags.DEFINE_string("index", None, "directory that build made")
IDS = flags.DEFINE_list("ids", None, "ids of items: find the items nearest to them")
VECTORS = flags.DEFINE_string("vectors", None, "vectors to search with: .npy, or embed's Parquet")
app.verify_flag()

_QUERIES = 1000  # that the setting is chosen by, and as many others that it is measured on
_SHOWN = 30  # rows that are printed


def build() -> None:
    out = app.local_directory("--out", _required(OUT))
    if out.exists():
        raise InputError(f"--out={out} is there already; expected a new directory")
    found, ids, vectors = _items()
    start = time.monotonic()
    queries = _queries(found, index_lib.create(ids, vectors, index_lib.EXACT))
    index = _fastest(ids, vectors, next(queries))
    others = next(queries)
    point = tuning.measure(index, others)
    manifest = {
        "embeddings": {name: x for name, x in found.manifest.items() if name != "files"},
        "identity": found.identity,
        "table": TABLE.value,
        "items": len(index),
        "k": K.value,
        "recall": point.recall,
        "error": point.error,
        "queries_per_second": point.queries_per_second,
    }
    index = index.save(out, manifest)
    about = curves.setting_text(point.setting) or "nothing to choose"
    print(f"{len(index):,} {TABLE.value} by {index.manifest['backend']}: {about}")
    within, number = tuning.ERRORS * point.error, len(others.vectors)
    print(f"recall@{others.k} {point.recall:.4f} ± {within:.4f} on {number:,} other queries")
    print(f"{point.queries_per_second:,.0f} queries/s; exact search {others.exact_per_second:,.0f}")
    print(f"{out}: built in {time.monotonic() - start:.1f} s; next:")
    listed = io.StringIO()  # as --ids reads it, which is comma-separated values
    csv.writer(listed, lineterminator="").writerow([str(ids[0])])
    about = f"--index={shlex.quote(str(out))} --ids={shlex.quote(listed.getvalue())}"
    print(f"  python -m pinjax.index query {about}")


def tune() -> None:
    out = None if DRAW.value is None else app.directory("--draw", DRAW.value)
    found, ids, vectors = _items()
    queries = next(_queries(found, index_lib.create(ids, vectors, index_lib.EXACT)))
    drawn = {}
    for backend in _backends():
        start = time.monotonic()
        index = index_lib.create(ids, vectors, backend, K.value)
        seconds = time.monotonic() - start
        drawn[backend] = points = tuning.curve(index, queries)
        print(f"{backend}, {len(index):,} {TABLE.value}, built in {seconds:.1f} s")
        print(f"{curves.text(points, queries.k)}\n")
    if out is not None:
        with files.replacing(out) as file:
            file.write(curves.html(drawn, f"Recall@{K.value} of {EMBEDDINGS.value}").encode())
        print(f"{out}: drawn")
    embedded = shlex.quote(EMBEDDINGS.value)
    print(
        f"next:\n  python -m pinjax.index build --embeddings={embedded} --recall=0.95 --out=INDEX"
    )


def query() -> None:
    index = index_lib.open_index(app.directory("--index", _required(INDEX)), app.verifies())
    if (IDS.value is None) == (VECTORS.value is None):
        raise InputError("query: expected --ids or --vectors")
    if IDS.value is not None:
        rows = index.rows_of(pa.array(IDS.value))
        if (rows < 0).any():
            raise InputError(f"--ids: {IDS.value[np.argmin(rows)]} is not in {INDEX.value}")
        query_ids, vectors = index.ids_of(rows), index.vectors[rows]
        own = np.stack([np.arange(len(rows)), rows], axis=1)
    else:
        (query_ids, vectors), own = _read_vectors(VECTORS.value), None
    scores, rows = index.search(vectors, K.value, excluded=own)
    query, place = np.nonzero(rows >= 0)
    table = pa.table(
        {
            "query" if own is None else "from_item": query_ids.take(pa.array(query)),
            "item": index.ids_of(rows[query, place]),
            "score": scores[query, place],
            "rank": pa.array(place + 1, pa.int32()),
        }
    )
    if OUT.value is not None:
        with files.replacing(app.directory("--out", OUT.value)) as file:
            pq.write_table(table, file)
        print(f"{OUT.value}: {len(table):,} results of {len(query_ids):,} queries")
        return
    for row in table.slice(0, _SHOWN).to_pylist():
        print("\t".join(f"{x:.4f}" if isinstance(x, float) else str(x) for x in row.values()))
    if len(table) > _SHOWN:
        print(f"{len(table) - _SHOWN:,} more; --out=FILE.parquet writes all of them")


VERBS = {
    "build": (build, (EMBEDDINGS, OUT, BACKEND, K, RECALL, QUERIES, TABLE)),
    "tune": (tune, (EMBEDDINGS, BACKEND, K, QUERIES, TABLE, DRAW)),
    "query": (query, (INDEX, IDS, VECTORS, K, OUT)),
}


def main(argv: Sequence[str]) -> int:
    verb = argv[1]
    do, taken = VERBS[verb]
    names = {flag.name for flag in taken}
    for _, others in VERBS.values():
        for flag in others:
            if flag.present and flag.name not in names:
                raise InputError(f"{verb} takes no --{flag.name}")
    do()
    return 0


def _required(flag: flags.FlagHolder) -> str:
    if flag.value is None:
        raise InputError(f"flag --{flag.name} must be given")
    return flag.value


def _backends() -> list[str]:
    if not BACKEND.value:
        raise InputError(f"--backend is empty; expected some of {', '.join(index_lib.BACKENDS)}")
    for name in BACKEND.value:
        if name not in index_lib.BACKENDS:
            names = ", ".join(index_lib.BACKENDS)
            raise InputError(f"--backend={name}: expected one of {names}")
    return BACKEND.value


def _fastest(ids: pa.Array, vectors: np.ndarray, queries: tuning.Queries) -> index_lib.Index:
    """The tuned index of the fastest backend.

    Raises:
      InputError: if none reaches the recall.
    """
    fastest, speed, refused = None, -1.0, []
    for backend in _backends():
        try:
            made = index_lib.create(ids, vectors, backend, K.value)
            made = tuning.tune(made, queries, RECALL.value)
        except InputError as error:
            refused.append(str(error))
            continue
        rate = tuning.measure(made, queries).queries_per_second
        if rate > speed:
            fastest, speed = made, rate
    if fastest is None:
        raise InputError("; ".join(refused))
    for error in refused:
        print(f"left out: {error}")
    return fastest


def _open(flag: str, value: str) -> embeddings.Embeddings:
    directory = app.local_directory(flag, value)
    return embeddings.open_directory(directory, directory, app.verifies())


def _items() -> tuple[embeddings.Embeddings, pa.Array, np.ndarray]:
    """The embeddings, and the ids and vectors of the table that is indexed."""
    found = _open("--embeddings", _required(EMBEDDINGS))
    ids = found.ids(TABLE.value)
    if ids is None:
        names = {name.partition("-")[0] for name in found.manifest["files"]}
        raise InputError(f"{found.directory} has no table {TABLE.value} among {sorted(names)}")
    where = f"{found.directory}: table {TABLE.value}"
    if not len(ids):
        raise InputError(f"{where} is empty; expected vectors to index")
    return found, _once(ids.combine_chunks(), where), _vectors(found, TABLE.value)


def _once(ids: pa.Array, where: str) -> pa.Array:
    """Ids with one vector each: the results of several are not merged here."""
    if len(pc.unique(ids)) < len(ids):
        raise InputError(
            f"{where} has several vectors of an id, by all of which pinjax.recommend searches; "
            "expected one"
        )
    return ids


def _vectors(
    found: embeddings.Embeddings, table: str, rows: np.ndarray | None = None
) -> np.ndarray:
    """Float32 (rows, dim), of all rows or of some; it holds no others in memory."""
    rows = np.arange(len(found.ids(table))) if rows is None else rows
    vectors, start = None, 0
    for part in found.vectors(table):
        if vectors is None:
            vectors = np.empty((len(rows), part.shape[1]), np.float32)
        here = (start <= rows) & (rows < start + len(part))
        vectors[here] = part[rows[here] - start]
        start += len(part)
    return vectors


def _queries(found: embeddings.Embeddings, index: index_lib.Index) -> Iterator[tuning.Queries]:
    """Two samples of queries, without one in common."""
    source = found if QUERIES.value is None else _open("--queries", QUERIES.value)
    tables = [name for name in ("users", embeddings.QUERIES) if len(source.ids(name) or ())]
    if not tables and source is not found:
        raise InputError(f"--queries={QUERIES.value} has neither users nor queries")
    table = tables[0] if tables else TABLE.value
    same = source.directory.resolve() == found.directory.resolve()
    indexed = same and table == TABLE.value
    number = len(index.vectors) if indexed else len(source.ids(table))
    rows = np.random.default_rng(0).permutation(number)[: 2 * _QUERIES]
    vectors = index.vectors[rows] if indexed else _vectors(source, table, rows)
    places = np.arange(len(rows))
    for half in np.array_split(places, 2) if len(rows) > 1 else (places, places):
        yield tuning.queries(index, vectors[half], K.value, rows[half] if indexed else None)


def _read_vectors(path: str) -> tuple[pa.Array, np.ndarray]:
    """The ids, or numbers from 0, and the vectors of a file."""
    if path.endswith(".npy"):
        try:
            with open(path, "rb") as file:
                vectors = np.lib.format.read_array(file)
        except ValueError as error:
            raise InputError(f"--vectors={path}: not readable by NumPy: {error}") from None
        if vectors.ndim != 2 or vectors.dtype.kind != "f":
            raise InputError(
                f"--vectors={path}: {vectors.dtype} {vectors.shape}; expected floats (queries, dim)"
            )
        return pa.array(np.arange(len(vectors))), vectors
    table = parquet.read(path)
    if not {"id", "vector"} <= set(table.column_names):
        raise InputError(f"--vectors={path}: columns {table.column_names}; expected id and vector")
    vectors = catalogue.given_vectors(table["vector"], f"--vectors={path}: vector")
    return _once(table["id"].combine_chunks(), f"--vectors={path}"), vectors


if __name__ == "__main__":
    app.run(main, verbs=tuple(VERBS))
