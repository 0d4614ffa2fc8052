"""Evaluators: a source of queries, the retrievers that answer them, and the table of results.

Every full table has the system, the baselines, and an oracle if there is one; and ScaNN over the
system's vectors, unless queries exclude many items. All of them answer the same queries with the
same candidates.
"""

import collections
import dataclasses
import functools
import importlib.util
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from pinjax.evaluation import baselines, metrics, records, retrievers, tables, vector_search
from pinjax.evaluation.queries import Candidates, EvalQueries
from pinjax.evaluation.retrievers import Retriever
from pinjax.evaluation.source import Source
from pinjax.ids import ids_of

_HAS_SCANN = importlib.util.find_spec("scann") is not None  # it has wheels only for Linux


class _Method(NamedTuple):
    """A row of the table: a retriever and its queries."""

    name: str
    cadence: str
    retriever: Retriever


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluator:
    """Evaluates a system on a source.

    Attributes:
      name: of the system, for its rows of the table.
      source: of queries and labels.
    """

    name: str
    source: Source

    def __call__(
        self,
        retriever: Retriever,
        split: str,
        full: bool,
        others: Mapping[str, Retriever] = MappingProxyType({}),
    ) -> tables.Table:
        """The table of a split, over all evaluation windows.

        Args:
          retriever: of the system.
          split: of the labels.
          full: with all cadences, ScaNN, baselines and oracle; else only the first row.
          others: more methods, by name, for a full table.

        Raises:
          InputError: if there are no labels.
        """
        notes = self.source.notes(split)
        methods = self._methods(retriever, full, others)
        gathered = _Gathered(self.source, full or self.source.always_tiers)
        for cadence in dict.fromkeys(["window", *(method.cadence for method in methods)]):
            of_cadence = [method for method in methods if method.cadence == cadence]
            for start, queries in self.source.queries(split, cadence).items():
                candidates = self.source.candidates(start)
                if cadence == "window":
                    gathered.add_labels(start, queries)
                for method in of_cadence:
                    found = method.retriever.answer(queries, candidates)
                    answered = queries if found.queries is None else found.queries
                    gathered.add(method.name, cadence, answered, candidates, found)
        return tables.table_of(self._records(gathered, methods, full, notes))

    @property
    def metrics(self) -> dict[str, str]:
        """The better direction, by name, of the metrics of a table that is not full.

        Empty if the data set has no validation split.
        """
        if not self.source.validates:
            return {}
        names = [*self.source.main_metrics, tables.COVERAGE]
        if self.source.always_tiers:
            names += [f"R@10 {tier}" for tier in self.source.tiers]
        if self.source.cadences[0] == "window" and self.source.topics is not None:
            names.append(tables.ENTROPY)
        return dict.fromkeys(names, "max")

    @functools.cached_property
    def baselines(self) -> baselines.Baselines:
        return baselines.choose(self.source)

    def _methods(
        self, retriever: Retriever, full: bool, others: Mapping[str, Retriever]
    ) -> list[_Method]:
        """The methods in the order of the table's rows."""
        cadences = self.source.cadences if full else self.source.cadences[:1]
        methods = [_Method(self.name, cadence, retriever) for cadence in cadences]
        if not full:
            return methods
        searches = isinstance(retriever, vector_search.VectorSearch) and "window" in cadences
        if searches and self.source.few_excluded and _HAS_SCANN:
            approximate = vector_search.ScannSearch(retriever)
            methods.insert(1, _Method(f"{self.name}, ScaNN", "window", approximate))
        methods += [_Method(name, "window", other) for name, other in others.items()]
        for cadence in cadences:
            if oracle := self.source.oracle(cadence):
                methods.append(_Method(tables.ORACLE, cadence, oracle))
        for name, baseline in self.baselines.retrievers.items():
            # Popularity does not depend on the user, so one cadence is enough.
            anew = cadences if name == baselines.CO_OCCURRENCE else ("window",)
            anew = dict.fromkeys(["window", *anew])
            methods += [_Method(name, cadence, baseline) for cadence in anew]
        return methods

    def _records(
        self, gathered: "_Gathered", methods: list[_Method], full: bool, notes: list[str]
    ) -> records.Records:
        chosen = self.baselines if full else baselines.Baselines({}, [])
        order = [(method.name, method.cadence) for method in methods]
        about = records.About(
            system=self.name,
            averaged_over=self.source.averaged_over,
            metrics=self.source.main_metrics,
            tiers=self.source.tiers if gathered.with_tiers else (),
            tasks=self.source.tasks if full else (),
            has_topics=self.source.topics is not None,
            listed=gathered.missed,
            baselines=tuple(chosen.retrievers),
            figures=gathered.figures(order),
            notes=(*notes, *chosen.notes),
        )
        return records.Records(about, gathered.labels(), gathered.methods(order))


class _Gathered:
    """Attributes of labels and results of methods, window by window."""

    def __init__(self, source: Source, with_tiers: bool):
        self._source, self.with_tiers, self.missed = source, with_tiers, 0
        self._labels = collections.defaultdict(list)
        self._ranks = collections.defaultdict(lambda: collections.defaultdict(list))
        self._figures = collections.defaultdict(lambda: collections.defaultdict(list))

    def add_labels(self, start: int, queries: EvalQueries) -> None:
        """Adds the labels of a window."""
        source, number = self._source, len(queries.label_item)
        self.missed = queries.missed
        catalogue, item = source.dataset.catalogue, queries.label_item
        users = ids_of(queries.users)
        popularity, tier = np.zeros(number, np.int64), np.full(number, "", object)
        if self.with_tiers:
            popularity = source.engagements.all_counts(start)[item]
            tier = np.array(source.tiers, object)[source.item_tiers(start)[item]]
        task = np.array(source.tasks or ("",), object)[queries.label_task]
        columns = {
            "user": users[queries.label_user],
            "window": np.full(number, start, np.int64),
            "label": catalogue.ids[item],
            "label_time": queries.label_time,
            "label_age": queries.label_time - catalogue.created[item].astype(np.int64),
            "label_popularity": popularity.astype(np.int32),
            "history": queries.history[queries.label_query],
            "task": task,
            "tier": tier,
        }
        for name, values in columns.items():
            self._labels[name].append(values)

    def add(
        self,
        method: str,
        cadence: str,
        queries: EvalQueries,
        candidates: Candidates,
        found: retrievers.Found,
    ) -> None:
        """Adds the results of a method in a window."""
        key = method, cadence
        found = retrievers.without_excluded(found, queries)
        entropy = np.full(len(queries), np.nan, np.float32)
        if cadence == "window" and self._source.topics is not None:
            top = metrics.untied_top(found.rows, found.scores, queries.depth, found.rounding)
            entropy = metrics.interest_entropy(top, self._source.topics).astype(np.float32)
        ranks = {
            "rank": retrievers.ranks(found, queries).astype(np.int32),
            "request_time": queries.query_time[queries.label_query],
            "entropy": entropy[queries.label_query],
        }
        for name, values in ranks.items():
            self._ranks[key][name].append(values)
        top = metrics.untied_top(found.rows, found.scores, 10, found.rounding)
        figures = {
            tables.COVERAGE: metrics.coverage(top, int(candidates.included.sum())),
            tables.OVERLAP: metrics.overlap(top),
            **found.figures,
        }
        for name, value in figures.items():
            self._figures[key][name].append(value)

    def labels(self) -> dict[str, np.ndarray]:
        return {name: np.concatenate(parts) for name, parts in self._labels.items()}

    def methods(self, order: list[tuple[str, str]]) -> dict[tuple[str, str], records.Ranks]:
        return {
            key: records.Ranks(**{name: np.concatenate(x) for name, x in self._ranks[key].items()})
            for key in order
            if key in self._ranks
        }

    def figures(self, order: list[tuple[str, str]]) -> tuple:
        """Means of the figures over the windows that have them."""

        def means(of_key: dict[str, list[float]]) -> dict[str, float]:
            known = {name: [x for x in values if np.isfinite(x)] for name, values in of_key.items()}
            return {name: float(np.mean(values)) for name, values in known.items() if values}

        return tuple((*key, means(self._figures[key])) for key in order if key in self._figures)
