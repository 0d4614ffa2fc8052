"""The base class of sources with a single evaluation window, the whole split."""

import dataclasses
import functools

import numpy as np
from ml_collections import ConfigDict

from pinjax.data.dataset import Dataset
from pinjax.errors import InputError
from pinjax.evaluation import tables
from pinjax.evaluation.engagements import TIERS, Engagements
from pinjax.evaluation.queries import Candidates, EvalQueries, missed_labels


@dataclasses.dataclass(frozen=True, eq=False)
class OneWindow:
    """A source with one window. Subclasses make its queries, and say what they are.

    Attributes:
      name: of the system, for messages.
      dataset: where queries, items and engagements come from.
      eligible: bool (items,), the items that may be candidates, for any method.
      config: the `evaluate` section of a run's config.
    """

    name: str
    dataset: Dataset
    eligible: np.ndarray
    config: ConfigDict

    tiers = TIERS
    always_tiers = True
    cadences = ("window",)
    topics = None
    described = ("queries", "labels")  # what they are called
    lacking = "no label"  # of a split without one

    def __post_init__(self):
        if not self.eligible.any():
            name = self.dataset.spec.name
            raise InputError(f"data.name: no item of {name} has features that {self.name} uses")

    @property
    def engagements(self) -> Engagements:
        raise NotImplementedError

    def _queries(self, split: str) -> EvalQueries | None:
        """The queries of a split; None if it has no label."""
        raise NotImplementedError

    @functools.cache  # noqa: B019, it lives as long as its command
    def candidates(self, start: int) -> Candidates:
        return Candidates.create(start, self.eligible, self.config.index_size)

    def item_tiers(self, start: int) -> np.ndarray:
        """Int (items,), row of `tiers`."""
        return self.engagements.tiers(start)

    def queries(self, split: str, cadence: str = "window") -> dict[int, EvalQueries]:
        """The queries of a split, ascending, or a seeded sample; by the start of the window."""
        del cadence
        found = self._of_split(split)
        return {} if found is None else {self.dataset.spec.train_end: found}

    @functools.cache  # noqa: B019, it lives as long as its command
    def _of_split(self, split: str) -> EvalQueries | None:
        return self._queries(split)

    def describe(self, split: str) -> str:
        """A description of a split's labels.

        Raises:
          InputError: if it has none.
        """
        if (found := self._of_split(split)) is None:
            raise InputError(f"{self.dataset.spec.name}, split {split}: {self.lacking}")
        queries, labels = self.described
        return f"{len(found):,} {queries}, {len(found.label_item):,} {labels}"

    def notes(self, split: str) -> list[str]:
        """The description, and a warning if there are few queries."""
        description, found = self.describe(split), self._of_split(split)
        not_eligible = f"{self.name} does not embed the item"
        description += missed_labels([found], not_eligible, "its query leaves it out")
        number = len(found)
        more = f"split.{split} or split.test_days of pinjax.prepare"
        if number == self.config.queries:
            more = "evaluate.queries"
        return [description, *tables.too_few(number, self.described[0], more)]
