"""The rows of a ranking model as a table for other programs, such as LightGBM or CatBoost."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from pinjax import files
from pinjax.data import catalogue
from pinjax.ids import ids_of
from pinjax.ranking.rows import Log, Rows
from pinjax.ranking.training import Features
from pinjax.ranking.vectors import Vectors

_ROWS = 2**14  # that are in memory at once


def write(
    path: epath.Path,
    log: Log,
    rows: Rows,
    item_ids: np.ndarray,
    names: Sequence[str],
    counts: np.ndarray,
    methods: Mapping[str, Vectors],
) -> None:
    """Writes rows with their labels and all features as Parquet.

    Columns: `user` and `item`, own ids; `time`; `request`; `split`, train or test; `label_TYPE`, 0
    or 1; the counts, by their names; and for each method METHOD_user_0, METHOD_item_0,
    METHOD_product_0 and so on, and METHOD_dot.

    Args:
      path: of the file.
      log: for the users' ids.
      rows: the rows.
      item_ids: own ids of the catalogue.
      names: of the counts.
      counts: float32 (rows, counts).
      methods: vectors by the method's name.
    """
    no_counts = np.zeros((len(rows), 0), np.float32)
    features = {name: Features(no_counts, vectors) for name, vectors in methods.items()}

    def tables() -> Iterator[pa.Table]:
        for start in range(0, len(rows), _ROWS):
            some = np.arange(start, min(start + _ROWS, len(rows)))
            columns = _about(log, rows, item_ids, some)
            columns |= dict(zip(names, counts[some].T, strict=True))
            for name, of_method in features.items():
                (values,) = of_method.blocks(some)
                columns |= dict(zip(_names(name, methods[name]), values.T, strict=True))
            yield pa.table(columns)

    with files.replacing(path) as file:
        made = tables()
        first = next(made)
        with pq.ParquetWriter(file, first.schema) as writer:
            writer.write_table(first)
            for table in made:
                writer.write_table(table)


def _about(log: Log, rows: Rows, item_ids: np.ndarray, some: np.ndarray) -> dict[str, pa.Array]:
    users = ids_of([log.users[user] for user in rows.user[some]])
    labels = rows.labels[some].astype(np.int8)
    return {
        "user": catalogue.id_array(users),
        "item": catalogue.id_array(item_ids[rows.item[some]]),
        "time": pa.array(rows.time[some], pa.timestamp("s", tz="UTC")),
        "request": pa.array(rows.request[some]),
        "split": pa.array(np.where(rows.test[some], "test", "train")),
        **{f"label_{x}": pa.array(y) for x, y in zip(rows.types, labels.T, strict=True)},
    }


def _names(method: str, vectors: Vectors) -> list[str]:
    """The names of `models.ranker.features` without counts."""
    dim, prefix = vectors.users.shape[1], method.replace(" ", "_")
    names = [f"{prefix}_{part}_{i}" for part in ("user", "item", "product") for i in range(dim)]
    return [*names, f"{prefix}_dot"]
