"""Recommends items: a table of user, item, score and rank, with the user's own ids.

    python -m pinjax.recommend --workdir=DIR --out=FILE.parquet

For users of the data set, or of --histories=FILE; for queries, groups or items where a system has
no users; --to=items for the items nearest to items, --queries=FILE for texts of searches. Lists of
ids or texts are Parquet with one column, or text with one a line.
"""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq
import tqdm
from absl import flags

from pinjax import app, files, results, timestamps
from pinjax.data import parquet
from pinjax.errors import InputError
from pinjax.serving import run as run_lib

CONFIG, WORKDIR = app.run_flags(config_required=False)
OUT = flags.DEFINE_string("out", None, "the Parquet file to write", required=True)
K = flags.DEFINE_integer("k", 10, "items for each user, query, group or item", lower_bound=1)
USERS = flags.DEFINE_string("users", "all", "list of ids of users, queries or groups")
HISTORIES = flags.DEFINE_string(
    "histories", None, "what users did: files with the columns of the data set's log"
)
QUERIES = flags.DEFINE_string("queries", None, "list of texts of searches")
TO = flags.DEFINE_enum("to", None, ["items"], "find the items nearest to items")
FILTER_SEEN = flags.DEFINE_bool("filter_seen", True, "leave out items that a user has acted on")
ALLOW = flags.DEFINE_string("allow", None, "list of items: recommend no others")
DENY = flags.DEFINE_string("deny", None, "list of items not to recommend")
INDEX = flags.DEFINE_string("index", None, "directory of pinjax.index build; default: exact search")
AS_OF = app.as_of_flag("read nothing later")


def main(argv: Sequence[str]) -> int:
    del argv
    given = [flag.name for flag in (HISTORIES, QUERIES, TO) if flag.value is not None]
    if len(given) > 1:
        raise InputError(f"--{given[0]} and --{given[1]}: expected one of them")
    if given and given != ["to"] and USERS.value != "all":
        raise InputError(f"--users and --{given[0]}: expected one of them")
    out = app.directory("--out", OUT.value)
    index = None if INDEX.value is None else app.directory("--index", INDEX.value)
    users, texts, allow, deny = map(_list, (USERS, QUERIES, ALLOW, DENY))
    as_of = app.as_of_value(AS_OF)
    config, workdir = app.run_of(CONFIG, WORKDIR)
    run = run_lib.create(config, workdir, as_of, app.verifies())
    if HISTORIES.value is not None:
        request = run.histories(HISTORIES.value)
    elif texts is not None:
        request = run.texts(texts)
    else:
        request = run.items(users) if TO.value else run.known(users)
    rows, writer = 0, None
    with files.replacing(out) as file, tqdm.tqdm(desc=request.name, unit="", delay=1) as found:
        for table in run.answer(request, K.value, FILTER_SEEN.value, allow, deny, index):
            writer = writer or pq.ParquetWriter(file, table.schema)
            writer.write_table(table)
            rows += len(table)
            found.update(int((table["rank"].to_numpy() == 1).sum()))
        writer.close()
    about = f"{found.n:,} values of {request.name}, as of {timestamps.iso(request.as_of)}"
    print(f"{out}: {rows:,} rows, {about}")
    if workdir.exists():
        print(f"next  {results.command('report', workdir)}")
    return 0


def _list(flag: flags.FlagHolder) -> pa.Array | None:
    """The ids or texts in a flag's file."""
    path = flag.value
    if path is None or (flag is USERS and path == "all"):
        return None
    if path.endswith(".parquet"):
        table = parquet.read(path)
        if table.num_columns != 1:
            names = ", ".join(table.column_names)
            raise InputError(f"--{flag.name}={path}: has columns {names}; expected one")
        return table[0].combine_chunks()
    try:
        with open(path, encoding="utf-8-sig") as lines:
            return pa.array([line.strip("\r\n") for line in lines if line.strip()], pa.string())
    except UnicodeDecodeError as error:
        raise InputError(f"--{flag.name}={path}: expected text in UTF-8: {error}") from None


if __name__ == "__main__":
    app.run(main)
