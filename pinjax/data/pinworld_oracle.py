"""The best possible ranking of `pinworld`, from the latent state that its generator knew.

The oracle knows what each user cares about at a moment and the law by which that goes on, not what
the user will do. No ranking made from the log can be expected to beat it.
"""

import dataclasses

import numpy as np
from etils import epath

ORACLE_FILE = "oracle.npz"


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

    def scores(self, user_ids: list[str], moment: int, horizon_seconds: int) -> np.ndarray:
        """Expected positive actions of users on items in (moment, moment + horizon].

        The daily and weekly rhythm is averaged out, so that a horizon of whole weeks is exact. An
        item created within the window takes its share of the leaf from then on.

        Args:
          user_ids: ids of users in the splits valid and test.
          moment: unix seconds.
          horizon_seconds: length of the window.

        Returns:
          float32 (len(user_ids), items); 0 for an item that does not exist at `moment`.

        Raises:
          KeyError: where a user is not known.
        """
        row = {user: i for i, user in enumerate(self.users.tolist())}
        rows = np.array([row[user] for user in user_ids], np.int64)
        mass = self._mass(moment, horizon_seconds)[rows].astype(np.float32)
        return (
            np.take(mass, self.leaf, axis=1)
            * self.choice(moment, horizon_seconds)[self.taste[rows]]
        )

    def expected_recall(self, moment: int, horizon_seconds: int, k: int = 10) -> float:
        """What the oracle's own top k recalls of a user's distinct positives, on average.

        Items that do not exist at `moment` are missed. The mean is over users weighted by their
        chance to act, as a measured recall leaves out those without labels. Positives on an item
        are taken as Poisson events of their own; that sessions cluster them costs 1 to 3 % of the
        figure, on the low side.
        """
        choice = self.choice(moment, horizon_seconds)
        mass = self._mass(moment, horizon_seconds).astype(np.float32)
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
        weight = appeal(self.popularity, self.style, self.tastes)
        available = np.clip((moment + horizon - self.created.astype(np.float64)) / horizon, 0, 1)
        for row in weight:
            row /= np.bincount(self.leaf, row * available)[self.leaf]
        weight[:, self.created > moment] = 0
        return weight

    def _mass(self, moment: int, horizon: int) -> np.ndarray:
        """Expected positives of users in leaves within the window: float64 (users, leaves)."""
        # Lengths are exponential: what is left of a burst does not depend on its age.
        left = self.burst_seconds * -np.expm1(-horizon / self.burst_seconds)
        on = (self.burst_start <= moment) & (moment < self.burst_end)
        bursts = np.zeros((len(self.users), len(self.leaf_popularity)))
        np.add.at(bursts, (self.burst_user[on], self.burst_leaf[on]), left)
        bursts += self.burst_rate * self.burst_seconds * (horizon - left) * self.leaf_popularity
        bursts *= self.burst_weight
        slow = np.zeros_like(bursts)
        np.add.at(slow, (np.arange(len(slow))[:, None], self.slow_leaf), self.slow_weight)
        total = horizon + bursts.sum(axis=1, keepdims=True)
        mass = (1 - self.stray) * (horizon * slow + bursts) + self.stray * total * slow
        return self.rate[:, None] * mass


def appeal(popularity: np.ndarray, style: np.ndarray, tastes: np.ndarray) -> np.ndarray:
    """Unnormalised chance of items within their leaf: float32 (tastes, items)."""
    return popularity * np.exp(tastes @ style.T)
