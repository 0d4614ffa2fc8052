"""IFDB's tables as they were when training ends: tags that were added later are left out.

    python -m benchmarks.ifdb_dated --data=DIR --out=OUT
    python -m benchmarks.real_engagements --data=OUT --workdir=DIR --sets=ifdb

Anybody may tag a game at any time, and who played it is likely to. So the tags of today, which
configs/prepare/ifdb.py reads, tell of the test period. Titles, authors and descriptions have no
dates, and stay as they are today.
"""

import pathlib

import duckdb
from absl import app, flags

from benchmarks import real_sets

_DATA = flags.DEFINE_string("data", None, "directory of the raw logs", required=True)
_OUT = flags.DEFINE_string("out", None, "directory to write ifdb's tables to", required=True)

_TRAIN_END = "2023-01-01"  # split.train_end in configs/prepare/ifdb.py


def main(_):
    raw, out = (pathlib.Path(flag.value).absolute() / "ifdb" for flag in (_DATA, _OUT))
    out.mkdir(parents=True)
    files = real_sets.FILES["ifdb"]
    for name in files.events:
        (out / name).symlink_to(raw / name)
    tags, documents = files.items
    # A game whose tags are all later stays in the table, without one.
    queries = {
        tags: f"SELECT DISTINCT gameid, CASE WHEN moddate <= '{_TRAIN_END}' THEN tag END AS tag "
        f"FROM '{raw / tags}' ORDER BY ALL",
        documents: "SELECT d.* REPLACE (t.tags AS tags, "
        "replace(doc_text, concat('Tags: ', d.tags, '.'), '') AS doc_text) "
        f"FROM '{raw / documents}' d LEFT JOIN (SELECT gameid, string_agg(tag, ', ' ORDER BY tag) "
        f"AS tags FROM '{out / tags}' GROUP BY gameid) t USING (gameid) ORDER BY gameid",
    }
    for name, query in queries.items():
        duckdb.sql(f"COPY ({query}) TO '{out / name}'")


if __name__ == "__main__":
    app.run(main)
