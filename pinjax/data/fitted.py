"""What the features of a model were fitted to, when its training first began.

Parameters belong to the axes, scales and token ids that they were trained with. A model that goes
on, or embeds, on a later state of a log keeps those of the data set that it was first trained on:
fitted anew, the same item would have other features. `item_features.fit` makes them.
"""

import dataclasses
import functools
import zipfile
from collections.abc import Mapping

import numpy as np
import xxhash
from etils import epath

from pinjax import files
from pinjax.errors import InputError

FILE = "fitted.npz"


@dataclasses.dataclass(frozen=True, eq=False)
class Fitted:
    """Arrays by name, in a file of a run's work directory.

    They are `axes` and `origin` of `item_features.principal_axes`, the mean and the standard
    deviation of log degrees, `log_degree`, and the names of token ids, `tokens`, as `pack`ed text;
    each only where the model has it.

    Attributes:
      arrays: by name.
      former: the parameters from which training began, their `checkpoint.hash_of`.
    """

    arrays: Mapping[str, np.ndarray]
    former: str

    @functools.cached_property
    def identity(self) -> dict[str, str]:
        """What a checkpoint belongs to, by name, as of `System.identity`."""
        digest = xxhash.xxh3_64()
        for name, array in sorted(self.arrays.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array))
        return {"warm_start": self.former, "fitted": digest.hexdigest()}

    def save(self, directory: epath.Path) -> None:
        """Writes the file into a work directory."""
        files.make_directory(directory)
        with files.replacing(directory / FILE) as file:
            np.savez(file, former=np.array(self.former), **self.arrays)

    @classmethod
    def load(cls, directory: epath.Path) -> "Fitted | None":
        """What `save` wrote; None if training did not begin from a previous run.

        Raises:
          InputError: if the file is damaged.
        """
        path = directory / FILE
        if not path.exists():
            return None
        try:
            with path.open("rb") as file, np.load(file) as arrays:
                content = dict(arrays)
        except (ValueError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path}: damaged: {error}") from None
        return cls(former=str(content.pop("former")), arrays=content)


def pack(names: list[str]) -> np.ndarray:
    """Names without line breaks as one array of bytes."""
    return np.frombuffer("\n".join(names).encode(), np.uint8)


def unpack(packed: np.ndarray) -> list[str]:
    """The names of `pack`; an empty array holds none."""
    return packed.tobytes().decode().split("\n") if len(packed) else []
