"""Draws pinworld's topics, pins, users and timelines.

Topics, in this order:
  Topics are a tree of roots and leaves. A leaf's latent vector is its root's plus an offset.
  Each pin belongs to one leaf. Popularity within a leaf is Zipf-Mandelbrot. Some pins are created
    while the world runs. A pin's style means the same in all leaves, and its content vector is a
    noisy projection of its leaf and its style.
Users, a chunk at a time, in this order:
  A user has 2 to 6 slow interests (leaves, mostly of one root), bursts (interests that arrive as a
    Poisson process and last exponentially long), and a taste (a liking for styles).
  Sessions about an interest are a Poisson process. Its rate is the user's activity times the
    interest's weight times a daily and weekly rhythm. A session is a run of actions on its leaf,
    some of which stray to a slow interest.
  A wanted pin of leaf k at time t is drawn from
    p(i | k, user, t) ∝ popularity_i exp(style_i · taste_user) [created_i <= t]   for i in k;
    an unwanted one from the popularity over all leaves and tastes.
  A saved pin goes to the user's board about the leaf of the session, strayed or not.

Every draw comes from `World.rng(stream, chunk)`, so chunks do not depend on each other. Rates add
up, so the expected actions of a user on every pin have a closed form: see `oracle`.
"""

import dataclasses

import numpy as np

from pinjax.data import timelines
from pinjax.data.simulated.leaf_table import LeafTable
from pinjax.timestamps import DAY, HOUR

START = 1_736_121_600  # Monday, 2025-01-06, 00:00 UTC
END = START + 112 * DAY
TRAIN_END = END - 21 * DAY  # room for windows of 14 days that start a week apart

# Pins.
CONTENT_DIM = 256
LATENT_DIM = 16
STYLE_DIM = 8
TASTES = 32  # tastes come from a codebook, so that p(i | k, taste) is a table
TASTE_STRENGTH = 1.0  # standard deviation of log appeal between the pins of a leaf
LEAF_EXPONENT = 0.4  # popularity of the r-th leaf: r^-0.4
PIN_OFFSET = 4  # popularity of the r-th pin of a leaf: 1 / (r + 4)
NEW_PINS = 0.15  # share of pins created while the world runs
LEAF_OFFSET = 0.7  # of a leaf from its root, in units of the root's latent vector
CONTENT_STYLE = 0.7  # style and noise in a content vector, in units of its topic's part
CONTENT_NOISE = 1.0

# Users.
SLOW_SLOTS = 6
SAME_ROOT = 0.7  # share of slow interests that come from the user's favourite root
BURST_WEIGHT = 1.0  # all slow interests together weigh 1
BURST_RATE = 1 / (4 * DAY)
BURST_SECONDS = 1.5 * DAY
ACTIONS_MEDIAN = 85  # expected actions of the median user over all the world
ACTIONS_SIGMA = 0.7
ACTIONS_RANGE = (25, 350)

# Sessions.
SESSION_ACTIONS = 5  # mean of a geometric length
STRAY = 0.2
GAP_SECONDS = 40  # median time between the actions of a session
WEEKDAYS = np.array([0.9, 0.9, 0.9, 0.95, 1.0, 1.15, 1.2])  # Monday first, mean 1
DAILY_SWING = 0.8
PEAK_HOUR = 20.5  # local time
RHYTHM_MAX = (1 + DAILY_SWING) * WEEKDAYS.max()

ACTIONS = (timelines.UNKNOWN, "save", "closeup", "click", "hide")
SURFACES = (timelines.UNKNOWN, "home", "search", "related")
LONG = 10  # seconds; shorter close-ups and clicks are no sign of interest

# Kinds of actions: surface, action, duration, whether the pin was wanted, share of all actions.
KINDS = (
    ("home", "save", "none", True, 0.20),
    ("home", "closeup", "long", True, 0.25),
    ("home", "click", "long", True, 0.15),
    ("home", "closeup", "short", True, 0.04),
    ("home", "closeup", "short", False, 0.12),
    ("home", "click", "short", False, 0.05),
    ("home", "hide", "none", False, 0.03),
    ("search", "closeup", "long", True, 0.05),
    ("search", "save", "none", True, 0.03),
    ("related", "closeup", "long", True, 0.05),
    ("related", "click", "long", True, 0.03),
)
POSITIVE_SHARE = sum(
    share
    for surface, _, duration, wanted, share in KINDS
    if surface == "home" and wanted and duration != "short"
)


def wanted_share(surface: np.ndarray, action: np.ndarray, duration: np.ndarray) -> np.ndarray:
    """The share of wanted pins among actions of the same kind: float64 (n,)."""
    shares = np.zeros((2, len(SURFACES), len(ACTIONS), 2))
    for on, type_, length, wanted, share in KINDS:
        looks = SURFACES.index(on), ACTIONS.index(type_), int(length == "long")
        shares[(int(wanted), *looks)] += share
    unwanted, wanted = shares[:, surface, action, (duration >= LONG).astype(int)]
    return wanted / (unwanted + wanted)


def appeal(popularity: np.ndarray, style: np.ndarray, tastes: np.ndarray) -> np.ndarray:
    """Unnormalised chance of pins within their leaf: float32 (tastes, pins)."""
    return popularity * np.exp(tastes @ style.T)


class World:
    """Topics and pins.

    Attributes:
      seed: of all draws.
      leaves_per_root: the leaves of root r are r * leaves_per_root and those after it.
      leaf_popularity: float64 (leaves,), sums to 1.
      ids: int64 (pins,), own ids in the log.
      leaf: int32 (pins,), each leaf at least once.
      popularity: float32 (pins,), within the leaf, up to a factor that all leaves share.
      created: uint32 (pins,), unix seconds.
      style: float32 (pins, STYLE_DIM).
      content: float16 (pins, CONTENT_DIM), of norm 1.
      tastes: float32 (TASTES, STYLE_DIM).
      topic: float32 (leaves, CONTENT_DIM), a leaf's part of a content vector.
      look: float32 (STYLE_DIM, CONTENT_DIM), the projection of styles into content vectors.
    """

    def __init__(self, pins: int, roots: int, leaves: int, seed: int = 0):
        self.seed, self.leaves_per_root = seed, leaves // roots
        rng = self.rng(0)
        rank = 1 + rng.permutation(leaves)
        self.leaf_popularity = rank**-LEAF_EXPONENT / (rank**-LEAF_EXPONENT).sum()

        more = rng.choice(leaves, size=pins - leaves, p=self.leaf_popularity)
        self.leaf = rng.permutation(np.r_[np.arange(leaves), more]).astype(np.int32)
        order = np.lexsort((rng.random(pins), self.leaf))
        first = np.searchsorted(self.leaf[order], np.arange(leaves))
        rank = 1 + np.arange(pins) - first[self.leaf[order]]
        self.popularity = np.empty(pins, np.float32)
        self.popularity[order] = 1 / (rank + PIN_OFFSET)

        # A leaf's most popular pin is old, so that a draw is always possible.
        new = rng.random(pins) < NEW_PINS
        new[order[first]] = False
        age = rng.uniform(0, 365 * DAY, pins)
        created = np.where(new, rng.uniform(START, END, pins), START - age)
        self.created = created.astype(np.uint32)

        self.ids = 10**9 + rng.permutation(pins)
        self.style = rng.standard_normal((pins, STYLE_DIM), np.float32)
        tastes = rng.standard_normal((TASTES, STYLE_DIM), np.float32)
        self.tastes = TASTE_STRENGTH * tastes / np.linalg.norm(tastes, axis=1, keepdims=True)

        root = rng.standard_normal((roots, 1, LATENT_DIM))
        offset = rng.standard_normal((roots, self.leaves_per_root, LATENT_DIM))
        latent = (root + LEAF_OFFSET * offset).reshape(-1, LATENT_DIM).astype(np.float32)
        self.topic = latent @ rng.standard_normal((LATENT_DIM, CONTENT_DIM), np.float32)
        self.topic /= np.sqrt(np.mean(self.topic**2))
        self.look = rng.standard_normal((STYLE_DIM, CONTENT_DIM), np.float32) / np.sqrt(STYLE_DIM)
        self.content = self.observe(rng, self.topic, self.leaf, self.style)

        chance = appeal(self.popularity, self.style, self.tastes)
        self._table = LeafTable(chance, self.leaf, order)

    def rng(self, stream: int, chunk: int = 0) -> np.random.Generator:
        """The generator of a chunk of a stream. The world's own stream is 0."""
        return np.random.default_rng([self.seed, stream, chunk])

    def choose(
        self, rng: np.random.Generator, leaf: np.ndarray, taste: np.ndarray, time: np.ndarray
    ) -> np.ndarray:
        """Draws p(pin | leaf, taste, time), each int64 (n,)."""
        pins = np.empty(len(leaf), np.int64)
        pending = np.arange(len(leaf))
        while len(pending):
            pins[pending] = self._table.draw(rng, taste[pending], leaf[pending])
            pending = pending[self.created[pins[pending]] > time[pending]]
        return pins

    def observe(
        self,
        rng: np.random.Generator,
        topics: np.ndarray,
        topic: np.ndarray,
        style: np.ndarray,
        noise: float = CONTENT_NOISE,
    ) -> np.ndarray:
        """Draws content vectors, float16 (n, CONTENT_DIM) of norm 1.

        Args:
          rng: of the noise.
          topics: float32 (m, CONTENT_DIM), such as `topic` or mixtures of its rows.
          topic: int (n,), rows of `topics`.
          style: float32 (n, STYLE_DIM).
          noise: its standard deviation, in units of the topic's part.
        """
        content = np.empty((len(topic), CONTENT_DIM), np.float16)
        for start in range(
            0, len(content), 2**16
        ):  # the full array in float32 may not fit into memory
            rows = slice(start, start + 2**16)
            vectors = topics[topic[rows]] + CONTENT_STYLE * style[rows] @ self.look
            vectors += noise * rng.standard_normal(vectors.shape, np.float32)
            content[rows] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return content


@dataclasses.dataclass(frozen=True)
class Users:
    """Latent state of a chunk of users.

    Attributes:
      taste: int64 (users,), row of `World.tastes`.
      rate: float64 (users,), actions per second and unit of interest.
      zone: float64 (users,), seconds that local time is ahead of UTC.
      slow_leaf, slow_weight: (users, SLOW_SLOTS), weights that sum to 1, 0 in an empty slot.
      burst_user, burst_leaf: int64 (bursts,), users ascending.
      burst_start, burst_end: float64 (bursts,), unix seconds.
    """

    taste: np.ndarray
    rate: np.ndarray
    zone: np.ndarray
    slow_leaf: np.ndarray
    slow_weight: np.ndarray
    burst_user: np.ndarray
    burst_leaf: np.ndarray
    burst_start: np.ndarray
    burst_end: np.ndarray


def draw_users(world: World, rng: np.random.Generator, users: int) -> Users:
    """Draws the latent state of some users over all the world's time."""
    leaves, per_root = len(world.leaf_popularity), world.leaves_per_root
    cumulative = np.r_[0, np.cumsum(world.leaf_popularity)]

    # A slow interest is a leaf by popularity: within the favourite root, or anywhere.
    favourite = rng.choice(leaves, size=users, p=world.leaf_popularity) // per_root * per_root
    near = rng.random((users, SLOW_SLOTS)) < SAME_ROOT
    low = np.where(near, cumulative[favourite][:, None], 0)
    high = np.where(near, cumulative[favourite + per_root][:, None], 1)
    place = np.searchsorted(cumulative, rng.uniform(low, high), side="right") - 1
    slots = 2 + rng.binomial(SLOW_SLOTS - 2, 0.5, users)
    weight = rng.gamma(1.5, size=(users, SLOW_SLOTS))
    weight *= np.arange(SLOW_SLOTS) < slots[:, None]

    expected = ACTIONS_MEDIAN * np.exp(ACTIONS_SIGMA * rng.standard_normal(users))
    interest = 1 + BURST_WEIGHT * BURST_RATE * BURST_SECONDS

    # From ten mean lengths before the start: earlier bursts are over.
    early = START - 10 * BURST_SECONDS
    bursts = rng.poisson(BURST_RATE * (END - early), users)
    start = rng.uniform(early, END, bursts.sum())
    return Users(
        taste=rng.integers(TASTES, size=users),
        rate=np.clip(expected, *ACTIONS_RANGE) / interest / (END - START),
        zone=HOUR * rng.integers(-8, 10, size=users).astype(np.float64),
        slow_leaf=np.minimum(place, leaves - 1),
        slow_weight=weight / weight.sum(axis=1, keepdims=True),
        burst_user=np.repeat(np.arange(users), bursts),
        burst_leaf=rng.choice(leaves, size=len(start), p=world.leaf_popularity),
        burst_start=start,
        burst_end=start + rng.exponential(BURST_SECONDS, len(start)),
    )


def rhythm(local_time: np.ndarray) -> np.ndarray:
    """Relative activity at local times (seconds): mean 1 over a week, at most RHYTHM_MAX."""
    day, second = np.divmod(local_time - START, DAY)
    swing = 1 + DAILY_SWING * np.cos(2 * np.pi * (second / HOUR - PEAK_HOUR) / 24)
    return swing * WEEKDAYS[day.astype(np.int64) % 7]


def _draw_sessions(
    users: Users, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws sessions: row of `users`, leaf, start in unix seconds, each (n,)."""
    slow = np.arange(users.slow_leaf.size)
    user = np.r_[slow // SLOW_SLOTS, users.burst_user]
    leaf = np.r_[users.slow_leaf.ravel(), users.burst_leaf]
    weight = np.r_[users.slow_weight.ravel(), np.full(len(users.burst_user), BURST_WEIGHT)]
    start = np.r_[np.full(len(slow), START), np.clip(users.burst_start, START, END)]
    end = np.r_[np.full(len(slow), END), np.clip(users.burst_end, START, END)]

    # Each interest is a Poisson process, drawn at its highest rate and thinned to the rhythm.
    highest = RHYTHM_MAX * users.rate[user] * weight / SESSION_ACTIONS
    interest = np.repeat(np.arange(len(user)), rng.poisson(highest * (end - start)))
    time = rng.uniform(start[interest], end[interest])
    local = time + users.zone[user[interest]]
    kept = rng.random(len(time)) * RHYTHM_MAX < rhythm(local)
    return user[interest][kept], leaf[interest][kept], time[kept]


def draw_actions(
    world: World, users: Users, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws the actions of some users.

    Returns:
      (rows of `users`, int64 (n,), sorted; actions, `timelines.ACTION` (n,), in order of time for
      each user; the leaves of their sessions, int64 (n,)).
    """
    user, about, start = _draw_sessions(users, rng)
    length = rng.geometric(1 / SESSION_ACTIONS, len(user))
    first = np.cumsum(length) - length
    elapsed = np.cumsum(GAP_SECONDS * np.exp(rng.standard_normal(length.sum())))
    time = (np.repeat(start - elapsed[first], length) + elapsed).astype(np.int64)
    user, about = np.repeat(user, length), np.repeat(about, length)
    user, about, time = (column[time < END] for column in (user, about, time))
    count = len(time)

    leaf = about.copy()
    stray = np.flatnonzero(rng.random(count) < STRAY)
    shares = np.cumsum(users.slow_weight, axis=1)[user[stray], :-1]
    slot = (shares < rng.random(len(stray))[:, None]).sum(axis=1)
    leaf[stray] = users.slow_leaf[user[stray], slot]

    surface, action, duration, wanted, share = map(np.array, zip(*KINDS, strict=True))
    kind = rng.choice(len(KINDS), size=count, p=share)
    taste = users.taste[user]
    unwanted = np.flatnonzero(~wanted[kind])
    leaf[unwanted] = rng.choice(
        len(world.leaf_popularity), size=len(unwanted), p=world.leaf_popularity
    )
    taste[unwanted] = rng.integers(TASTES, size=len(unwanted))

    records = np.empty(count, timelines.ACTION)
    records["item"] = world.choose(rng, leaf, taste, time)
    records["time"] = time
    records["action"] = np.array([ACTIONS.index(name) for name in action])[kind]
    records["surface"] = np.array([SURFACES.index(name) for name in surface])[kind]
    long = LONG + 15 * np.exp(0.8 * rng.standard_normal(count))
    short = rng.uniform(0.5, LONG - 0.5, count)
    kinds = [duration[kind] == "long", duration[kind] == "short"]
    records["duration"] = np.select(kinds, [long, short])
    order = np.lexsort((time, user))
    return user[order], records[order], about[order]
