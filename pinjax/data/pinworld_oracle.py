"""The best possible ranking of `pinworld`, from the latent state that its generator knew.

The oracle knows what each user cares about at a moment and the law by which that goes on, not what
the user will do. No ranking made from the log can be expected to beat it. Asked for what comes
next, it also sees the actions just before, since what a session is about is no part of that state.
"""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
from etils import epath
from scipy import special

from pinjax.data import pinworld_simulation as simulation

ORACLE_FILE = "oracle.npz"

_SESSION_BREAK = simulation.HOUR  # a longer pause than any within a session, but for chance
_QUERIES = 1024  # looked at at a time


@dataclasses.dataclass(frozen=True)
class Expectation:
    """What some queries, each a user at a moment, lead to: a score of every item.

    Attributes:
      taste: int (queries,), row of `appeal`.
      rate: float64 (queries, leaves), the score of an item of the leaf per unit of its appeal.
      leaf: int (items,).
      appeal: float32 (tastes, items), within the item's leaf.
    """

    taste: np.ndarray
    rate: np.ndarray
    leaf: np.ndarray
    appeal: np.ndarray

    def of(self, query: np.ndarray, item: np.ndarray) -> np.ndarray:
        """The scores of items for queries, float32, of the broadcast shape of both."""
        rate = self.rate.astype(np.float32)[query, self.leaf[item]]
        return rate * self.appeal[self.taste[query], item]

    def candidates(
        self, index: np.ndarray, depth: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Some queries at a time, the items that may be among their best, and the scores of these.

        Within a leaf the order is that of appeal, so the best of each leaf are enough.

        Args:
          index: bool (items,), the items that may be returned.
          depth: results of a query.

        Yields:
          (queries (n,), items (m,), scores float32 (n, m)).
        """
        allowed = np.flatnonzero(index)
        for taste in np.unique(self.taste):
            order = np.lexsort((-self.appeal[taste, allowed], self.leaf[allowed]))
            items = allowed[order]
            place = np.arange(len(items)) - np.searchsorted(self.leaf[items], self.leaf[items])
            items = items[place < depth]
            queries = np.flatnonzero(self.taste == taste)
            for start in range(0, len(queries), _QUERIES):
                some = queries[start : start + _QUERIES]
                yield some, items, self.of(some[:, None], items)


@dataclasses.dataclass(frozen=True)
class Oracle:
    """Latent state of the world and of some of its users; `pinworld` says what it means.

    Attributes:
      leaf: int32 (items,), the topic of an item.
      created: uint32 (items,), unix seconds.
      popularity: float32 (items,), within the item's leaf, up to a factor.
      style: float32 (items, style), of an item.
      tastes: float32 (tastes, style), liking for a style.
      leaf_popularity: float64 (leaves,), the chance of a burst to be about a leaf.
      users: text (users,), ids.
      taste: int32 (users,), row of `tastes`.
      rate: float64 (users,), positive actions per second and unit of interest.
      slow_leaf: int32 (users, slots), slow interests.
      slow_weight: float64 (users, slots), which sum to 1; 0 where there is none.
      burst_user: int64 (bursts,), row of `users`.
      burst_leaf: int32 (bursts,), what a burst is about.
      burst_start, burst_end: float64 (bursts,), unix seconds.
      burst_weight: units of interest in a burst.
      burst_rate: bursts that start, per second and user.
      burst_seconds: mean length of a burst.
      stray: share of actions that leave their session's topic for a slow interest.
    """

    leaf: np.ndarray
    created: np.ndarray
    popularity: np.ndarray
    style: np.ndarray
    tastes: np.ndarray
    leaf_popularity: np.ndarray
    users: np.ndarray
    taste: np.ndarray
    rate: np.ndarray
    slow_leaf: np.ndarray
    slow_weight: np.ndarray
    burst_user: np.ndarray
    burst_leaf: np.ndarray
    burst_start: np.ndarray
    burst_end: np.ndarray
    burst_weight: float
    burst_rate: float
    burst_seconds: float
    stray: float

    def save(self, directory: epath.PathLike) -> None:
        with (epath.Path(directory) / ORACLE_FILE).open("wb") as file:
            np.savez(file, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

    @classmethod
    def load(cls, directory: epath.PathLike) -> "Oracle":
        with (epath.Path(directory) / ORACLE_FILE).open("rb") as file, np.load(file) as arrays:
            return cls(**{f.name: arrays[f.name][()] for f in dataclasses.fields(cls)})

    def expect(
        self,
        users: list[str],
        moments: np.ndarray,
        horizon_seconds: int,
        history: dict[str, np.ndarray] | None = None,
    ) -> Expectation:
        """Expected positive actions on items in (moment, moment + horizon], or the next one's item.

        The daily and weekly rhythm is averaged out, so that a horizon of whole weeks is exact, and
        a session that is under way, which is over within minutes. An item created within the
        horizon takes its share of the leaf from then on.

        Args:
          users: their ids, (queries,), of the splits valid and test.
          moments: int64 (queries,), unix seconds.
          horizon_seconds: length of the window.
          history: the newest actions of each query, fields of `windows.history`. With it scores are
            chances of the next action: that of a session under way, or else one in the horizon.

        Raises:
          KeyError: where a user is not known.
        """
        rows = np.array([self._row[user] for user in users], np.int64)
        taste = self.taste[rows]
        mass = self._mass(rows, moments, horizon_seconds)
        if history is not None:
            mass = self._next(rows, moments, history, mass / mass.sum(axis=1, keepdims=True))
        # Queries of one taste and moment share what a leaf's items weigh together.
        pairs, query = np.unique(np.stack([taste, moments]), axis=1, return_inverse=True)
        total = self._total_appeal(*pairs, horizon_seconds)
        return Expectation(taste, mass / total[query], self.leaf, self._appeal)

    def scores(self, users: list[str], moment: int, horizon_seconds: int) -> np.ndarray:
        """The scores of `expect` for all items at one moment, float32 (len(users), items).

        They are 0 for an item that does not exist at the moment.
        """
        expected = self.expect(users, np.full(len(users), moment, np.int64), horizon_seconds)
        scores = expected.of(np.arange(len(users))[:, None], np.arange(len(self.leaf)))
        return np.where(self.created <= moment, scores, 0)

    def expected_recall(self, moment: int, horizon_seconds: int, k: int = 10) -> float:
        """What the oracle's own top k recalls of a user's distinct positives, on average.

        Items that do not exist at `moment` are missed. The mean is over users weighted by their
        chance to act, as a measured recall leaves out those without labels. Positives on an item
        are taken as Poisson events of their own; that sessions cluster them costs 1 to 3 % of the
        figure, on the low side.
        """
        choice = self.choice(moment, horizon_seconds)
        everybody = np.arange(len(self.users))
        moments = np.full(len(self.users), moment)
        mass = self._mass(everybody, moments, horizon_seconds).astype(np.float32)
        positives = mass.sum(axis=1)
        recalls = np.empty(len(self.users))
        chunk = max(1, 2**22 // len(self.leaf))
        for start in range(0, len(self.users), chunk):
            rows = slice(start, start + chunk)
            expected = np.take(mass[rows], self.leaf, axis=1) * choice[self.taste[rows]]
            new = positives[rows] - expected.sum(axis=1)  # too rare to meet one twice
            chance = -np.expm1(-expected)
            best = np.partition(chance, -k, axis=1)[:, -k:].sum(axis=1)
            recalls[rows] = best / (chance.sum(axis=1) + new)
        return float(np.average(recalls, weights=-np.expm1(-positives)))

    def choice(self, moment: int, horizon: int) -> np.ndarray:
        """p(item | leaf, taste), float32 (tastes, items); 0 where not created at `moment`."""
        tastes = np.arange(len(self.tastes))
        total = self._total_appeal(tastes, np.full(len(tastes), moment), horizon)
        chance = self._appeal / total.astype(np.float32)[:, self.leaf]
        return np.where(self.created <= moment, chance, 0)

    @functools.cached_property
    def _row(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.users.tolist())}

    @functools.cached_property
    def _appeal(self) -> np.ndarray:
        return simulation.appeal(self.popularity, self.style, self.tastes)

    def _total_appeal(self, taste: np.ndarray, moments: np.ndarray, horizon: int) -> np.ndarray:
        """What the items of a leaf weigh together, float64 (len(taste), leaves).

        An item that is created after the moment weighs the share of the horizon that it is there.
        """
        leaves = len(self.leaf_popularity)
        created = self.created.astype(np.float64)
        old = created <= moments.min()
        weights = [row[old] for row in self._appeal]
        total = np.stack([np.bincount(self.leaf[old], row, leaves) for row in weights])[taste]
        new = np.flatnonzero(~old & (created < moments.max() + horizon))
        new = new[np.argsort(self.leaf[new], kind="stable")]
        if not len(new):
            return total
        first = np.flatnonzero(np.diff(self.leaf[new], prepend=-1))
        for start in range(0, len(taste), _QUERIES):
            some = slice(start, start + _QUERIES)
            there = np.clip((moments[some, None] + horizon - created[new]) / horizon, 0, 1)
            there *= self._appeal[taste[some, None], new]
            total[some, self.leaf[new][first]] += np.add.reduceat(there, first, axis=1)
        return total

    def _mass(self, rows: np.ndarray, moments: np.ndarray, horizon: int) -> np.ndarray:
        """Expected positives of users (queries,) in leaves: float64 (queries, leaves)."""
        # Lengths are exponential: what is left of a burst does not depend on its age.
        left = self.burst_seconds * -np.expm1(-horizon / self.burst_seconds)
        slow, bursts = self._interests(rows, moments)
        bursts *= left
        bursts += (
            self.burst_weight
            * self.burst_rate
            * self.burst_seconds
            * (horizon - left)
            * self.leaf_popularity
        )
        total = horizon + bursts.sum(axis=1, keepdims=True)
        mass = (1 - self.stray) * (horizon * slow + bursts) + self.stray * total * slow
        return self.rate[rows, None] * mass

    def _interests(self, rows: np.ndarray, moments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What users care about, slowly and in bursts, each float64 (queries, leaves)."""
        slow, bursts = np.zeros((2, len(rows), len(self.leaf_popularity)))
        query = np.arange(len(rows))[:, None]
        np.add.at(slow, (query, self.slow_leaf[rows]), self.slow_weight[rows])

        by_user = np.argsort(self.burst_user, kind="stable")
        first = np.searchsorted(self.burst_user, rows, "left", by_user)
        count = np.searchsorted(self.burst_user, rows, "right", by_user) - first
        query = np.repeat(np.arange(len(rows)), count)
        nth = np.arange(len(query)) - np.repeat(np.cumsum(count) - count, count)
        burst = by_user[first[query] + nth]
        on = (self.burst_start[burst] <= moments[query]) & (moments[query] < self.burst_end[burst])
        np.add.at(bursts, (query[on], self.burst_leaf[burst[on]]), self.burst_weight)
        return slow, bursts

    def _next(
        self,
        rows: np.ndarray,
        moments: np.ndarray,
        history: dict[str, np.ndarray],
        later: np.ndarray,
    ) -> np.ndarray:
        """The leaf of the next positive action: a chance, float64 (queries, leaves).

        Lengths of sessions are geometric, so an action is followed by another one of its session
        with the same chance each time; the longer the pause since, the less so.

        Args:
          rows: of the users.
          moments: unix seconds.
          history: the newest actions up to then, fields of (queries, length).
          later: the same chance where no session is under way.
        """
        slow, bursts = self._interests(rows, moments)
        time, there = history["time"].astype(np.int64), history["item"] >= 0
        close = np.diff(time, axis=1) <= _SESSION_BREAK
        same = np.ones(time.shape, bool)
        same[:, :-1] = np.logical_and.accumulate(close[:, ::-1], axis=1)[:, ::-1]

        # What the session is about, by Bayes' rule: an action is wanted, and then on its leaf or
        # straying to a slow interest, or it is unwanted, and on any leaf.
        query, column = np.nonzero(same & there)
        leaf = self.leaf[history["item"][query, column]]
        kind = (history[name][query, column] for name in ("surface", "action", "duration"))
        wanted = simulation.wanted_share(*kind)
        elsewhere = wanted * self.stray * slow[query, leaf]
        elsewhere += (1 - wanted) * self.leaf_popularity[leaf]
        about = np.log(slow + bursts + 1e-6 * self.leaf_popularity)
        ratio = np.log1p(wanted * (1 - self.stray) / np.maximum(elsewhere, 1e-9))
        np.add.at(about, (query, leaf), ratio)
        about = special.softmax(about, axis=1)

        pause = np.maximum(moments - time[:, -1], 1) / simulation.GAP_SECONDS
        goes_on = (1 - 1 / simulation.SESSION_ACTIONS) * special.ndtr(-np.log(pause))
        goes_on = np.where(there[:, -1], goes_on, 0)
        goes_on = (goes_on / (goes_on + 1 / simulation.SESSION_ACTIONS))[:, None]
        session = (1 - self.stray) * about + self.stray * slow
        return goes_on * session + (1 - goes_on) * later
