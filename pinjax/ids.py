"""Users' own ids, which are integers or text, and where they are among others."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pinjax.errors import InputError


def ids_of(values: Sequence[int | str]) -> np.ndarray:
    """Ids, at least one, as int64 or objects: fixed-width text would be as wide as the longest."""
    return np.array(values, object if isinstance(values[0], str) else np.int64)


def cast(ids: pa.Array, kind: pa.DataType, about: str) -> pa.Array:
    """Ids in the type of others.

    Args:
      ids: of any type.
      kind: the others' type.
      about: what the message begins with.

    Raises:
      InputError: if they cannot be of that type.
    """
    try:
        return ids.cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise InputError(f"{about} such as {ids[0]} are {ids.type}; expected {kind}") from None


def rows_of(wanted: pa.Array | pa.ChunkedArray, known: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The first place of each wanted id among known ones of the same type: int64, -1 for others."""
    return pc.index_in(wanted, value_set=known).fill_null(-1).to_numpy().astype(np.int64)
