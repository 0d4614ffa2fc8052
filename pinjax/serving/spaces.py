"""Whether vectors of the same items or queries lie in one space before and after a log grew.

Each time that `pinjax.prepare` makes vectors of tags or words, it fits a new space, with the same
dimension but rotated.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from pinjax.data import embeddings, item_features
from pinjax.data.dataset import Dataset
from pinjax.data.embeddings import Embeddings
from pinjax.errors import InputError
from pinjax.systems import system
from pinjax.training import warm_start

_ALIKE = 0.5  # a smaller median cosine of vectors before and after means that the spaces differ
_SAMPLE = 10_000  # of what is compared, about


class Vectors(NamedTuple):
    """Vectors of items or queries.

    Attributes:
      ids: own ids (n,).
      of: from some rows (m,) to their vectors (m, dim), zeros where unknown.
    """

    ids: np.ndarray
    of: Callable[[np.ndarray], np.ndarray]


def content(dataset: Dataset) -> dict[str, Vectors]:
    """The content vectors of a data set by what they are, if it has any."""
    items = dataset.catalogue
    if items.content is None:
        return {}
    return {"content vectors of the same items": Vectors(items.ids, items.content.__getitem__)}


def images(dataset: Dataset) -> dict[str, Vectors]:
    """As `content`, the first image of each item that has one."""
    items = dataset.catalogue
    if items.images is None:
        return {}
    rows = np.flatnonzero(np.diff(items.image_offsets))
    first = items.image_offsets[rows]
    of_first = Vectors(items.ids[rows], lambda some: items.images[first[some]])
    return {"image vectors of the same items": of_first}


def queries(dataset: Dataset) -> dict[str, Vectors]:
    """As `content`, of the queries of each kind, whose spaces `prepare` makes in different ways."""
    found, given = {}, dataset.queries
    for kind in sorted(set(given.kinds)):
        rows = np.flatnonzero(given.kinds == kind)
        of_kind = Vectors(given.ids[rows], lambda some, rows=rows: given.vectors[rows[some]])
        found[f"vectors of the same {kind} queries"] = of_kind
    return found


def check_since(previous: Embeddings, made: system.System, as_of: int) -> None:
    """Checks that a system without parameters embeds items in the space of previous embeddings.

    Raises:
      InputError: if it does not.
    """
    vectors = next(previous.vectors(embeddings.ITEMS), None)
    if vectors is None:
        return
    # The items of the first file are enough.
    ids = previous.ids(embeddings.ITEMS).to_numpy()[: len(vectors)]
    items, dataset = made.serve(None, as_of).items, made.dataset
    check(
        Vectors(ids, vectors.__getitem__),
        Vectors(dataset.catalogue.ids[items.rows], lambda some: items.embed(items.rows[some])),
        f"--since={previous.directory}: {dataset.spec.name} has other vectors of the same items",
        "without it all are computed",
    )


def check(previous: Vectors, later: Vectors, about: str, expected: str) -> None:
    """Checks that vectors lie in one space, by those that both have.

    Args:
      previous: before.
      later: after.
      about: what the message begins with.
      expected: what it ends with.

    Raises:
      InputError: if they do not.
    """
    place = warm_start.match(previous.ids, later.ids, f"{about}: ids")
    both = np.flatnonzero(place >= 0)
    both = both[:: 1 + len(both) // _SAMPLE]
    before, after = previous.of(place[both]), later.of(both)
    if before.shape[1] != after.shape[1]:
        return  # parameters have another shape then
    one, other = (item_features.unit_length(x) for x in (before, after))
    known = one.any(axis=1) & other.any(axis=1)
    alike = np.sum(one * other, axis=1)[known]
    if len(alike) and np.median(alike) < _ALIKE:
        raise InputError(f"{about}, with a median cosine of {np.median(alike):.2f}; {expected}")
