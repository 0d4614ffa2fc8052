"""The best possible answers of a simulated world, as retrievers."""

import dataclasses

import numpy as np

from pinjax import ragged
from pinjax.data.simulated.oracle import Oracle
from pinjax.evaluation.queries import Candidates, EvalQueries
from pinjax.evaluation.retrievers import Found, Scored, without_excluded
from pinjax.retrieval import exact

_QUERIES = 1024  # scored at a time


@dataclasses.dataclass(frozen=True)
class UserOracle:
    """Ranks by the expected engagements of users after the request time.

    Attributes:
      oracle: of the world.
      horizon: seconds after the request time that count.
      in_session: whether to predict only the next action, given the session under way.
    """

    oracle: Oracle
    horizon: int
    in_session: bool

    def answer(self, queries: EvalQueries, candidates: Candidates) -> Found:
        queries = _without_engaged(queries)
        expected = self.oracle.expect(
            [queries.users[user] for user in queries.query_user],
            queries.query_time,
            self.horizon,
            queries.features if self.in_session else None,
        )
        depth = queries.searched(len(candidates.included))
        rows = np.empty((len(queries), depth), np.int32)
        scores = np.empty(rows.shape, np.float32)
        for some, items, expectation in expected.candidates(candidates.included, depth):
            every = np.ones(len(items), bool)
            scores[some], columns = exact.best(expectation, every, depth)
            rows[some] = np.where(columns >= 0, items[columns], -1)
        label_scores = expected.of(queries.label_query, queries.label_item)
        return without_excluded(Found(rows, scores, label_scores, rounding=0.0), queries)


def _without_engaged(queries: EvalQueries) -> EvalQueries:
    """Queries that exclude what their users have engaged with since the window began.

    A label is the first engagement with an item, so none of these is one again.
    """
    order = np.argsort(queries.label_user, kind="stable")
    query, place = ragged.places_of(queries.label_user[order], queries.query_user)
    label = order[place]
    done = queries.label_time[label] <= queries.query_time[query]
    pairs = np.stack([query, queries.label_item[label]], axis=1)[done].astype(np.int64)
    return dataclasses.replace(queries, excluded=np.concatenate([queries.excluded, pairs]))


@dataclasses.dataclass(frozen=True)
class PairOracle:
    """Ranks by the chance of an engagement, for each task of a query's labels."""

    oracle: Oracle

    def answer(self, queries: EvalQueries, candidates: Candidates) -> Found:
        queries = queries.by_task()
        scored = Scored(queries, candidates)
        tasks = queries.features["task"]
        for task in np.unique(tasks):
            of_task = np.flatnonzero(tasks == task)
            for start in range(0, len(of_task), _QUERIES):
                some = of_task[start : start + _QUERIES]
                scored.add(
                    some, self.oracle.task_scores(queries.features["query"][some], int(task))
                )
        return scored.found()._replace(queries=queries)
