"""The interface between evaluators and data sets."""

from typing import Protocol

import numpy as np

from pinjax.data.dataset import Dataset
from pinjax.evaluation.engagements import Engagements
from pinjax.evaluation.queries import Candidates, EvalQueries
from pinjax.evaluation.retrievers import Retriever


class Source(Protocol):
    """A source of queries and labels: `TimelineSource`, `PairSource` or `GraphSource`.

    Attributes:
      dataset: of the catalogue.
      averaged_over, main_metrics, tiers, tasks: as in `records.About`.
      always_tiers: whether tiers are cheap enough for the table during training.
      depth: the number of results of a query that count.
      cadences: of the embeddings of queries; the first is for the table during training.
      context_lengths: candidates of how many items of a context count for co-occurrence.
      may_repeat: whether items of a query's context may be answers.
      few_excluded: whether a query excludes at most one item, as ScaNN requires.
      validates: whether the data set has a validation split.
      topics: int (items,), or None.
      engagements: of the training users.
    """

    dataset: Dataset
    averaged_over: str
    main_metrics: tuple[str, ...]
    tiers: tuple[str, ...]
    always_tiers: bool
    depth: int
    context_lengths: tuple[int, ...]
    may_repeat: bool

    @property
    def validates(self) -> bool: ...

    @property
    def few_excluded(self) -> bool: ...

    @property
    def tasks(self) -> tuple[str, ...]: ...

    @property
    def cadences(self) -> tuple[str, ...]: ...

    @property
    def topics(self) -> np.ndarray | None: ...

    @property
    def engagements(self) -> Engagements: ...

    def queries(self, split: str, cadence: str = "window") -> dict[int, EvalQueries]:
        """The queries of a split by the start of the window; only windows with labels."""

    def candidates(self, start: int) -> Candidates:
        """The candidates of a window."""

    def item_tiers(self, start: int) -> np.ndarray:
        """Int (items,), row of `tiers` at the start of a window."""

    def oracle(self, cadence: str) -> Retriever | None:
        """The best possible answers; None unless the world is simulated."""

    def describe(self, split: str) -> str:
        """A description of a split's labels; raises InputError if it has none."""

    def notes(self, split: str) -> list[str]:
        """The description, and caveats of the figures."""
