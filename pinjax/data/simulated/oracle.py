"""The best possible rankings of pinworld, from the latent state that the simulation knows.

The oracle knows each user's interests at any time and how they go on (`world`), the meaning of each
query and how products are chosen (`shop`), but not what users will do. No ranking made from the
data can be expected to beat it. For a user's next action it also reads the actions just before,
since the topic of a session is no part of its state.
"""

import dataclasses
import functools

import numpy as np
from etils import epath

from pinjax import ragged
from pinjax.data.simulated import shop as shop_lib
from pinjax.data.simulated import world as world_lib
from pinjax.data.simulated.expectation import Expectation
from pinjax.data.simulated.words import direction

FILE = "oracle.npz"

_SESSION_BREAK = world_lib.HOUR  # pauses within a session are almost never longer
_REQUESTS = 1024  # processed at a time


@dataclasses.dataclass(frozen=True)
class Oracle:
    """Latent state of items, of the users of valid and test, and of queries.

    Attributes:
      leaf, created, popularity, style, tastes, leaf_popularity: as in `world.World`.
      users: text (users,), ids.
      taste: int (users,), row of `tastes`.
      rate: float64 (users,), positive actions per second and unit of interest.
      slow_leaf, slow_weight: (users, slots), slow interests; weights sum to 1.
      burst_user, burst_leaf: int64 (bursts,), rows of `users`, ascending, and leaves.
      burst_start, burst_end: float64 (bursts,), unix seconds.
      product: int32 (products,), the items that are products, ascending.
      value: float32 (products,).
      query_item: int32 (queries,), the item that a query is, -1 for a text query.
      query_topic: int32 (queries,), row of `leaf_chance`.
      query_style: float32 (queries, style), of norm 1, or zeros for queries without a style.
      query_popularity: float64 (queries,), sums to 1.
      leaf_chance: float64 (topics, leaves), p(leaf | topic of a query).
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
    product: np.ndarray
    value: np.ndarray
    query_item: np.ndarray
    query_topic: np.ndarray
    query_style: np.ndarray
    query_popularity: np.ndarray
    leaf_chance: np.ndarray

    @classmethod
    def of(
        cls, world: world_lib.World, shop: shop_lib.Shop, ids: list[str], users: world_lib.Users
    ) -> "Oracle":
        """The oracle of a world, its shop, and some of its users with their ids."""
        of_world = ("leaf", "created", "popularity", "style", "tastes", "leaf_popularity")
        of_users = ("taste", "slow_leaf", "slow_weight")
        of_bursts = ("burst_user", "burst_leaf", "burst_start", "burst_end")
        return cls(
            **{name: getattr(world, name) for name in of_world},
            **{name: getattr(users, name) for name in of_users + of_bursts},
            rate=world_lib.POSITIVE_SHARE * users.rate,
            users=np.array(ids),
            product=shop.pin,
            value=shop.value,
            query_item=shop.queries.pin,
            query_topic=shop.queries.topic,
            query_style=shop.queries.style,
            query_popularity=shop.queries.popularity,
            leaf_chance=shop.leaf_chance,
        )

    def save(self, directory: epath.PathLike) -> None:
        with (epath.Path(directory) / FILE).open("wb") as file:
            np.savez(file, **{f.name: getattr(self, f.name) for f in dataclasses.fields(self)})

    @classmethod
    def load(cls, directory: epath.PathLike) -> "Oracle":
        with (epath.Path(directory) / FILE).open("rb") as file, np.load(file) as arrays:
            return cls(**arrays)

    # Users.

    def expect(
        self,
        users: list[str],
        request_times: np.ndarray,
        horizon_seconds: int,
        history: dict[str, np.ndarray] | None = None,
    ) -> Expectation:
        """Expected positive actions on items within the horizon, or the item of the next one.

        The horizon of a request is (request time, request time + horizon]. The daily and weekly
        rhythm is averaged out, so only horizons of entire weeks are exact. A session that is under
        way is ignored, since it ends within minutes. An item that is created within the horizon
        takes its share of the leaf from then on.

        Args:
          users: their ids, (requests,), of the splits valid and test.
          request_times: int64 (requests,), unix seconds.
          horizon_seconds: length of the window.
          history: the last actions of each request, fields of `windows.history`. With it scores are
            probabilities of the next action, in a session under way or within the horizon.

        Raises:
          KeyError: if a user is not known.
        """
        rows = np.array([self._row[user] for user in users], np.int64)
        taste = self.taste[rows]
        mass = self._mass(rows, request_times, horizon_seconds)
        if history is not None:
            mass = self._next(rows, request_times, history, mass / mass.sum(axis=1, keepdims=True))
        # The total appeal of a leaf depends on the taste and the request time alone.
        distinct, inverse = np.unique(np.stack([taste, request_times]), axis=1, return_inverse=True)
        total = self._total_appeal(*distinct, horizon_seconds)
        return Expectation(taste, mass / total[inverse], self.leaf, self._appeal)

    def scores(self, users: list[str], start: int, horizon_seconds: int) -> np.ndarray:
        """The scores of `expect` for all items and one request time, float32 (len(users), items).

        They are 0 for an item that does not exist at `start`.
        """
        expected = self.expect(users, np.full(len(users), start, np.int64), horizon_seconds)
        scores = expected.of(np.arange(len(users))[:, None], np.arange(len(self.leaf)))
        return np.where(self.created <= start, scores, 0)

    def choice(self, start: int, horizon: int) -> np.ndarray:
        """p(item | leaf, taste), float32 (tastes, items); 0 where not created at `start`."""
        tastes = np.arange(len(self.tastes))
        total = self._total_appeal(tastes, np.full(len(tastes), start), horizon)
        chance = self._appeal / total.astype(np.float32)[:, self.leaf]
        return np.where(self.created <= start, chance, 0)

    # Queries.

    def query_scores(
        self, queries: np.ndarray, kind: int, start: int, horizon_seconds: int
    ) -> np.ndarray:
        """p(item | query, kind) of an engagement at a random time in [start, start + horizon).

        Exact: within a leaf, the normaliser is constant from one product's creation to the next.

        Args:
          queries: int (n,), rows of queries.
          kind: row of `shop.KINDS`.
          start: unix seconds.
          horizon_seconds: length of the window.

        Returns:
          float32 (n, items), 0 for items that are not products, for items created after the window,
          and for the query itself. Rows sum to the chance that a query does not lead to itself.
        """
        order = self.product[np.lexsort((self.created[self.product], self.leaf[self.product]))]
        leaf, created = self.leaf[order], self.created[order].astype(np.float64)
        end = start + horizon_seconds

        # A step lasts from a product's creation to the creation of the leaf's next product, or to
        # `end`. A product without a step, by time, belongs to the first one after it.
        last = np.append(leaf[1:] != leaf[:-1], True)
        since = np.clip(created, start, end)
        lasts = np.where(last, end, np.append(since[1:], end)) - since
        steps = np.flatnonzero(lasts)
        step_leaf = leaf[steps]
        step = np.minimum(np.searchsorted(steps, np.arange(len(leaf))), len(steps) - 1)

        value = self.value[np.searchsorted(self.product, order)]
        base = np.log(self.popularity[order]) + float(shop_lib.VALUE_STRENGTH[kind]) * value
        base = np.where(created < end, base, -np.inf)
        style = shop_lib.STYLE_STRENGTH * direction(self.style[order])
        weight = np.exp(self.query_style[queries] @ style.T + base)
        sums = _cumulative(weight)
        total = sums[:, steps + 1] - sums[:, np.searchsorted(leaf, step_leaf)]
        sums = _cumulative(lasts[steps] / total)
        after = np.searchsorted(step_leaf, step_leaf, side="right")
        chance = (sums[:, after] - sums[:, :-1]) / horizon_seconds  # for each unit of weight
        chance *= self.leaf_chance[self.query_topic[queries]][:, step_leaf]

        scores = np.zeros((len(queries), len(self.leaf)), np.float32)
        scores[:, order] = weight * np.take(chance.astype(np.float32), step, axis=1)
        itself = self.query_item[queries]
        row = np.flatnonzero(itself >= 0)
        scores[row, itself[row]] = 0
        return scores

    def task_scores(self, queries: np.ndarray, task: int) -> np.ndarray:
        """The scores of `query_scores` after training, for a row of `shop.TASKS`."""
        kind, horizon = task % len(shop_lib.KINDS), world_lib.END - world_lib.TRAIN_END
        return self.query_scores(queries, kind, world_lib.TRAIN_END, horizon)

    # Interests of users over time.

    @functools.cached_property
    def _row(self) -> dict[str, int]:
        return {user: row for row, user in enumerate(self.users.tolist())}

    @functools.cached_property
    def _appeal(self) -> np.ndarray:
        return world_lib.appeal(self.popularity, self.style, self.tastes)

    def _total_appeal(
        self, taste: np.ndarray, request_times: np.ndarray, horizon: int
    ) -> np.ndarray:
        """The sum of the appeal of the items of each leaf, float64 (len(taste), leaves).

        An item that is created after the request time is weighted by its share of the horizon.
        """
        leaves = len(self.leaf_popularity)
        created = self.created.astype(np.float64)
        old = created <= request_times.min()
        weights = [row[old] for row in self._appeal]
        total = np.stack([np.bincount(self.leaf[old], row, leaves) for row in weights])[taste]
        new = np.flatnonzero(~old & (created < request_times.max() + horizon))
        new = new[np.argsort(self.leaf[new], kind="stable")]
        if not len(new):
            return total
        first = np.flatnonzero(np.diff(self.leaf[new], prepend=-1))
        for start in range(0, len(taste), _REQUESTS):
            some = slice(start, start + _REQUESTS)
            there = np.clip((request_times[some, None] + horizon - created[new]) / horizon, 0, 1)
            there *= self._appeal[taste[some, None], new]
            total[some, self.leaf[new][first]] += np.add.reduceat(there, first, axis=1)
        return total

    def _mass(self, rows: np.ndarray, request_times: np.ndarray, horizon: int) -> np.ndarray:
        """Expected positive actions of users in leaves: float64 (requests, leaves)."""
        # Lengths are exponential, so the rest of a burst does not depend on its age.
        left = world_lib.BURST_SECONDS * -np.expm1(-horizon / world_lib.BURST_SECONDS)
        slow, bursts = self._interests(rows, request_times)
        bursts *= left
        later = world_lib.BURST_RATE * world_lib.BURST_SECONDS * (horizon - left)
        bursts += world_lib.BURST_WEIGHT * later * self.leaf_popularity
        total = horizon + bursts.sum(axis=1, keepdims=True)
        mass = (1 - world_lib.STRAY) * (horizon * slow + bursts) + world_lib.STRAY * total * slow
        return self.rate[rows, None] * mass

    def _interests(
        self, rows: np.ndarray, request_times: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The slow interests and the bursts of users, each float64 (requests, leaves)."""
        slow, bursts = np.zeros((2, len(rows), len(self.leaf_popularity)))
        request = np.arange(len(rows))
        np.add.at(slow, (request[:, None], self.slow_leaf[rows]), self.slow_weight[rows])

        first = np.searchsorted(self.burst_user, rows)
        count = np.searchsorted(self.burst_user, rows, "right") - first
        request = np.repeat(request, count)
        burst = ragged.positions(first, count)
        request_times = request_times[request]
        on = (self.burst_start[burst] <= request_times) & (request_times < self.burst_end[burst])
        leaf = self.burst_leaf[burst[on]]
        np.add.at(bursts, (request[on], leaf), world_lib.BURST_WEIGHT)
        return slow, bursts

    def _next(
        self,
        rows: np.ndarray,
        request_times: np.ndarray,
        history: dict[str, np.ndarray],
        later: np.ndarray,
    ) -> np.ndarray:
        """p(leaf) of the next positive action, float64 (requests, leaves).

        Lengths of sessions are geometric, so every action is followed by another one of its session
        with the same probability. It falls with the pause since the last action.

        Args:
          rows: of the users.
          request_times: unix seconds.
          history: the last actions up to then, fields of (requests, length).
          later: p(leaf) if no session is under way.
        """
        from scipy import special  # imported here, since it takes 0.1 s

        slow, bursts = self._interests(rows, request_times)
        time, there = history["time"].astype(np.int64), history["item"] >= 0
        close = np.diff(time, axis=1) <= _SESSION_BREAK
        same = np.ones(time.shape, bool)
        same[:, :-1] = np.logical_and.accumulate(close[:, ::-1], axis=1)[:, ::-1]

        # The leaf of the session by Bayes' rule: a wanted action is on it or strays to a slow
        # interest; an unwanted action is on any leaf.
        request, column = np.nonzero(same & there)
        leaf = self.leaf[history["item"][request, column]]
        kind = (history[name][request, column] for name in ("surface", "action", "duration"))
        wanted, stray = world_lib.wanted_share(*kind), world_lib.STRAY
        elsewhere = wanted * stray * slow[request, leaf]
        elsewhere += (1 - wanted) * self.leaf_popularity[leaf]
        about = np.log(slow + bursts + 1e-6 * self.leaf_popularity)
        ratio = np.log1p(wanted * (1 - stray) / np.maximum(elsewhere, 1e-9))
        np.add.at(about, (request, leaf), ratio)
        about = special.softmax(about, axis=1)

        pause = np.maximum(request_times - time[:, -1], 1) / world_lib.GAP_SECONDS
        goes_on = (1 - 1 / world_lib.SESSION_ACTIONS) * special.ndtr(-np.log(pause))
        goes_on = np.where(there[:, -1], goes_on, 0)
        goes_on = (goes_on / (goes_on + 1 / world_lib.SESSION_ACTIONS))[:, None]
        session = (1 - stray) * about + stray * slow
        return goes_on * session + (1 - goes_on) * later


def _cumulative(values: np.ndarray) -> np.ndarray:
    """Cumulative sums along columns, from 0: float64 (rows, columns + 1)."""
    sums = np.zeros((len(values), values.shape[1] + 1))
    np.cumsum(values, axis=1, dtype=np.float64, out=sums[:, 1:])
    return sums
