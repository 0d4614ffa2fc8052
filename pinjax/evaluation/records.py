"""Per-query records: the rank of every label by every method. All figures are computed from them.

They are a Parquet file with a row for each method and label:

    method         as "PinnerFormer, ScaNN"
    cadence        how often embeddings are computed: window, daily or realtime
    user           own id of the user; for pairs, own id of the query
    window         start of the evaluation window, unix seconds
    request_time   of the query that the label belongs to, unix seconds
    label          own id of the item
    label_time     of the engagement, unix seconds
    label_age      seconds from the item's creation to its engagement
    label_popularity   engagements of training users with the item up to the window's start
    history        all that is known of the query at the window's start: a user's actions, training
                   engagements of a query of pairs, training items of a group
    task           kind of query and kind of engagement; "" for timelines
    tier           of the item's popularity; "" if tiers were not computed
    rank           0 for the best; `listed` (in the metadata) or more: not found
    entropy        Interest Entropy@50 of the query's results; NaN if it is not measured

Every method has the same labels in the same order. The file's metadata, as JSON under "pinjax", is
`About`.
"""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from pinjax import config_json, files
from pinjax.data import parquet
from pinjax.errors import InputError

_KEY = b"pinjax"
_CODED = ("method", "cadence", "user", "label", "task", "tier")  # text or own ids


@dataclasses.dataclass(frozen=True)
class About:
    """Metadata of the records of an evaluation.

    Attributes:
      system: name of the evaluated system; the names of its methods begin with it.
      averaged_over: "users": metrics are means over users and windows; "labels": over labels.
      metrics: names of the main metrics, as "R@10".
      tiers: names of the tiers of popularity, in order.
      tasks: names of the tasks, in order.
      has_topics: whether items have topics, so that there are entropies.
      listed: the rank of labels that were not found.
      baselines: methods that are baselines.
      figures: [method, cadence, figures by name], figures of methods that no label has.
      notes: lines about the queries and labels.
    """

    system: str
    averaged_over: str
    metrics: tuple[str, ...]
    tiers: tuple[str, ...]
    tasks: tuple[str, ...]
    has_topics: bool
    listed: int
    baselines: tuple[str, ...]
    figures: tuple[tuple[str, str, dict[str, float]], ...]
    notes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Ranks:
    """The results of a method, by label.

    Attributes:
      rank: int32 (labels,).
      request_time: int64 (labels,).
      entropy: float32 (labels,).
    """

    rank: np.ndarray
    request_time: np.ndarray
    entropy: np.ndarray


@dataclasses.dataclass(frozen=True)
class Records:
    """The records of an evaluation.

    Attributes:
      about: metadata.
      labels: columns that do not depend on the method, each (labels,).
      methods: by (method, cadence), in the order of the table.
    """

    about: About
    labels: dict[str, np.ndarray]
    methods: dict[tuple[str, str], Ranks]

    def key(self, method: str) -> tuple[str, str]:
        """A method, with the system's first cadence or, if the method lacks that, with "window"."""
        first = next(cadence for name, cadence in self.methods if name == self.about.system)
        return method, first if (method, first) in self.methods else "window"


def write(path: epath.PathLike, records: Records) -> None:
    """Writes records as Parquet."""
    constant = {name: _column(name, values) for name, values in records.labels.items()}
    number = len(records.labels["user"])
    tables = [
        pa.table(
            {
                "method": _column("method", np.full(number, method, object)),
                "cadence": _column("cadence", np.full(number, cadence, object)),
                **constant,
                **{name: pa.array(values) for name, values in vars(ranks).items()},
            }
        )
        for (method, cadence), ranks in records.methods.items()
    ]
    about = json.dumps(dataclasses.asdict(records.about), allow_nan=False).encode()
    table = pa.concat_tables(tables).replace_schema_metadata({_KEY: about})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", row_group_size=max(1, number))
    with files.replacing(epath.Path(path)) as file:
        file.write(buffer.getvalue())


def read(path: epath.PathLike) -> Records:
    """Reads what `write` wrote.

    Raises:
      InputError: if it cannot be read.
    """
    table = parquet.read(path)
    metadata = table.schema.metadata or {}
    if _KEY not in metadata:
        raise InputError(f"{path}: no records of an evaluation, expected metadata of pinjax")
    try:
        about = About(**config_json.with_tuples(json.loads(metadata[_KEY])))
    except (ValueError, TypeError, AttributeError):
        raise InputError(f"{path}: damaged, or of another version: evaluate anew") from None
    columns = {name: _values(table[name]) for name in table.column_names}
    keys = list(zip(columns.pop("method"), columns.pop("cadence"), strict=True))
    methods = {}
    fields = [field.name for field in dataclasses.fields(Ranks)]
    for key in dict.fromkeys(keys):
        here = np.array([other == key for other in keys])
        methods[key] = Ranks(**{name: columns[name][here] for name in fields})
    labels = {name: values[here] for name, values in columns.items() if name not in fields}
    return Records(about, labels, methods)


def _column(name: str, values: np.ndarray) -> pa.Array:
    if name not in _CODED:
        return pa.array(values)
    kind = pa.int64() if values.dtype != object else pa.large_string()
    return pa.array(values, kind).dictionary_encode()


def _values(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.to_numpy()
