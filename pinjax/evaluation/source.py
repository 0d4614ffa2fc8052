"""What an evaluator needs to know of a data set."""

from typing import Protocol

import numpy as np

from pinjax.data.dataset import Dataset
from pinjax.evaluation.engagements import Engagements
from pinjax.evaluation.queries import EvalQueries, Index
from pinjax.evaluation.retrievers import Retriever


class Source(Protocol):
    """Where queries and labels come from: `TimelineSource` or `PairSource`.

    Attributes:
      dataset: whose catalogue is searched.
      averaged_over, main_metrics, tiers, tasks: as in `records.About`.
      always_tiers: whether tiers are cheap enough for the table during training.
      depth: results of a query that count.
      cadences: how often queries are embedded, the first for the table during training.
      may_repeat: whether a query's own items are answers to it.
      few_excluded: whether a query excludes one item at most, as ScaNN needs.
      topics: int (items,), or None.
      engagements: of the training users.
    """

    dataset: Dataset
    averaged_over: str
    main_metrics: tuple[str, ...]
    tiers: tuple[str, ...]
    always_tiers: bool
    depth: int
    may_repeat: bool

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
        """The queries of a split by the start of the window, where there are labels."""

    def index(self, start: int) -> Index:
        """The index of a window."""

    def item_tiers(self, start: int) -> np.ndarray:
        """Int (items,), row of `tiers` at the start of a window."""

    def oracle(self, cadence: str) -> Retriever | None:
        """The best answers that a simulated world allows; None of a real log."""

    def describe(self, split: str) -> str:
        """What the table of a split rests on; raises InputError where it has no labels."""

    def notes(self, split: str) -> list[str]:
        """The description, and what speaks against the figures."""
