"""Training batches of PinSage: pairs of items, edges of groups, negatives, and their subgraphs.

A batch is a function of (seed, step), as in `pinjax.data.batches`. Every device has its share of
the pairs, edges and negatives, and a subgraph of these alone.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import numpy as np

from pinjax.data import batches, item_pairs, subgraphs
from pinjax.graph import csr, walks
from pinjax.graph import groups as groups_lib
from pinjax.graph.walks import Neighbours

_ON_THE_HOST = ("pair_group", "group", "place", "group_place")  # fields that no step reads
BY_DEVICE = "graph_"  # begins the names of fields with an axis of devices
_PROBED = 2  # batches whose subgraphs are counted to fix the sizes of all
_MARGIN = 1.1  # by which the sizes exceed these counts


@dataclasses.dataclass(frozen=True)
class BatchSizes:
    """How much is in a batch.

    Attributes:
      pairs: of items, in the global batch.
      groups: edges of a group and an item in the global batch.
      group_items: items of a group that are read, at most.
      negatives: shared by the global batch.
      hard: hard negatives of a pair, at most.
      layers: number of convolutions.
      neighbours: T, of an item, at most.
      items: of the catalogue.
      devices: of all processes, along the mesh's axis `data`.
    """

    pairs: int
    groups: int
    group_items: int
    negatives: int
    hard: int
    layers: int
    neighbours: int
    items: int
    devices: int

    @property
    def ends(self) -> int:
        """Ends of a device's pairs and edges, the first targets of its subgraph."""
        return (2 * self.pairs + self.groups) // self.devices

    @property
    def targets(self) -> int:
        """Targets of a device's subgraph."""
        others = self.negatives + self.pairs * self.hard + self.groups * self.group_items
        return self.ends + min(others // self.devices, self.items)

    @property
    def most_nodes(self) -> list[int]:
        """The most nodes of each list of a subgraph below its targets."""
        return subgraphs.most_nodes(
            self.targets, self.ends, self.layers, self.neighbours, self.items
        )

    def shapes(
        self, sizes: list[int], widths: tuple[int, int]
    ) -> dict[str, tuple[tuple[int, ...], type]]:
        """Shapes and types of the fields of a global batch, see `GraphBatches.__getitem__`.

        Args:
          sizes: of the lists of nodes below the targets.
          widths: of `excluded` and `group_excluded`.
        """
        n, ids = self, np.int32
        fields = {
            "query": ((n.pairs,), ids),
            "item": ((n.pairs,), ids),
            "excluded": ((n.pairs, widths[0]), ids),
            "hard": ((n.pairs, n.hard), ids),
            "hard_ranks": ((n.pairs,), ids),
            "group_item": ((n.groups,), ids),
            "group_drawn": ((n.groups,), np.bool_),
            "group_excluded": ((n.groups, widths[1]), ids),
            "negatives": ((n.negatives,), ids),
        }
        groups = n.groups // n.devices, n.group_items
        of_device = {
            "negatives_at": ((n.negatives // n.devices,), ids),
            "hard_at": ((n.pairs // n.devices, n.hard), ids),
            "group_at": (groups, ids),
            "group_weights": (groups, np.float32),
            "nodes": (([self.targets, *sizes][-1],), ids),
        }
        for layer, size in enumerate(reversed([self.targets, *sizes][:-1])):
            of_device |= {
                f"own_{layer}": ((size,), ids),
                f"neighbours_{layer}": ((size, n.neighbours), ids),
                f"weights_{layer}": ((size, n.neighbours), np.float32),
            }
        return fields | {
            BY_DEVICE + name: ((n.devices, *shape), kind)
            for name, (shape, kind) in of_device.items()
        }


@dataclasses.dataclass(frozen=True, eq=False)
class GraphBatches(batches.RandomAccess):
    """Batches of pairs of items and of edges of groups.

    Attributes:
      batch_sizes: what is in a batch.
      graph: of items and groups.
      table: neighbours of all items.
      walks: from the ends of pairs and edges. They do not take the step from one end to the other
        that makes them a pair.
      pairs: draws the pairs of items.
      find_hard: makes `hard`, which only training reads.
      hard_after: steps after which a pair has one more hard negative.
      corpus: int32 (n,), items that may be negatives.
      steps: number of batches.
      seed: of the draws.
      shard: (index, count), the share of the devices that this process has.
    """

    batch_sizes: BatchSizes
    graph: csr.Graph
    table: Neighbours
    walks: walks.Walks
    pairs: item_pairs.Source
    find_hard: Callable[[], tuple[np.ndarray, np.ndarray]]
    hard_after: int
    corpus: np.ndarray
    steps: int
    seed: int
    shard: tuple[int, int] = (0, 1)

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, np.ndarray]:
        """The share of this process.

        Returns:
          of pairs: `query` and `item`, int32 (pairs,); `hard`, int32 (pairs, n), padded with -1;
          `hard_ranks`, int32 (pairs,), how many items these are drawn from; `excluded`, int32
          (pairs, n), the items of all pairs of the batch with the same query, padded with -1.
          Of edges: `group_item`, int32 (edges,); `group_drawn`, bool (edges,), whether that may be
          a random negative; `group_excluded`, likewise.
          `negatives`, int32 (negatives,).
          By device, with names that begin with `BY_DEVICE`: `nodes`, `own_L`, `neighbours_L` and
          `weights_L`, see `subgraphs.Subgraph`. Its targets are the queries, the items, the items
          of edges, and then all others, among which `negatives_at`, `hard_at` and `group_at` are
          places, -1 for padding. `group_at` are those of a group's items, and `group_weights` their
          weights.
        """
        drawn = self._draw(step)
        number = self.batch_sizes.devices
        devices = range(number)[batches.share_of(number, self.shard)]
        shares = [self._share(drawn, device) for device in devices]
        fields = {
            name: np.concatenate([share[name] for share in shares])
            for name in shares[0]
            if name not in _ON_THE_HOST
        }
        made = [self._subgraph(step, share) for share in shares]
        return fields | {
            BY_DEVICE + name: np.stack([part[name] for part in made]) for name in made[0]
        }

    def iterate(self, first_step: int, workers: int) -> Iterator[dict[str, np.ndarray]]:
        for name in ("hard", "sizes", "widths"):  # once, before worker processes copy them
            getattr(self, name)
        return super().iterate(first_step, workers)

    @functools.cached_property
    def edges(self) -> item_pairs.Memberships:
        """Draws the edges of groups."""
        return item_pairs.Memberships(self.graph, stream=2)

    @functools.cached_property
    def hard(self) -> tuple[np.ndarray, np.ndarray]:
        """Candidates for the hard negatives of each query, as `pagerank.ranked` finds them."""
        return self.find_hard()

    @functools.cached_property
    def sizes(self) -> list[int]:
        """The sizes of the lists of nodes below the targets, in every batch and on every device.

        They suffice for the batches that are probed, with a margin. These are the last, which have
        the most hard negatives.
        """
        n, counted = self.batch_sizes, []
        for step in range(max(0, self.steps - _PROBED), self.steps):
            drawn = self._draw(step)
            for device in range(min(_PROBED, n.devices)):
                targets, near, _ = self._targets(step, self._share(drawn, device))
                counted.append(subgraphs.count(targets, n.ends, near, self.table, n.layers))
        probed = np.max(counted, axis=0) * _MARGIN
        return [
            min(-int(-size // 8) * 8, most) for size, most in zip(probed, n.most_nodes, strict=True)
        ]

    @functools.cached_property
    def widths(self) -> tuple[int, int]:
        """Of `excluded` and `group_excluded`. They are wider in a batch that needs it."""
        probed = [self._ends(step) for step in range(min(_PROBED, self.steps))]
        queries = [pairs.query for pairs, _ in probed], [edges.group for _, edges in probed]
        most = [
            max(np.unique(rows, return_counts=True)[1].max(initial=1) for rows in of_kind)
            for of_kind in queries
        ]
        return tuple(2 << int(number).bit_length() for number in most)

    def _draw(self, step: int) -> dict[str, np.ndarray]:
        """The global batch, without its subgraphs."""
        rng = np.random.default_rng([self.seed, step])
        pairs, edges = self._ends(step)
        return {
            "query": pairs.query,
            "item": pairs.item,
            "pair_group": pairs.group,
            "excluded": batches.values_by_group(pairs.query, pairs.item, self.widths[0]),
            "hard": self._hard(rng, pairs.query, step),
            "hard_ranks": self.hard[1][pairs.query],
            "group": edges.group,
            "group_item": edges.item,
            "group_drawn": self._may_be_drawn(edges.item),
            "group_excluded": batches.values_by_group(edges.group, edges.item, self.widths[1]),
            "negatives": rng.choice(self.corpus, self.batch_sizes.negatives),
            "place": np.arange(self.batch_sizes.pairs),
            "group_place": np.arange(self.batch_sizes.groups),
        }

    def _ends(self, step: int) -> tuple[item_pairs.Pairs, item_pairs.Pairs]:
        """The pairs of items and the edges of groups of the global batch."""
        return (
            self.pairs(self.seed, step, self.batch_sizes.pairs),
            self.edges(self.seed, step, self.batch_sizes.groups),
        )

    def _hard(self, rng: np.random.Generator, query: np.ndarray, step: int) -> np.ndarray:
        """Random candidates of each query: one more after every `hard_after` steps."""
        candidates = self.hard[0][query]
        order = np.where(candidates >= 0, rng.random(candidates.shape), 2).argsort(axis=1)
        chosen = np.take_along_axis(candidates, order[:, : self.batch_sizes.hard], axis=1)
        chosen[:, step // self.hard_after :] = -1
        return chosen

    def _may_be_drawn(self, items: np.ndarray) -> np.ndarray:
        """Bool (n,): whether items may be random negatives."""
        place = np.searchsorted(self.corpus, items)
        return self.corpus[np.minimum(place, len(self.corpus) - 1)] == items

    def _share(self, drawn: dict[str, np.ndarray], device: int) -> dict[str, np.ndarray]:
        """A device's share of the global batch."""
        return {
            name: values[batches.share_of(len(values), (device, self.batch_sizes.devices))]
            for name, values in drawn.items()
        }

    def _targets(
        self, step: int, share: dict[str, np.ndarray]
    ) -> tuple[np.ndarray, Neighbours, dict[str, np.ndarray]]:
        """The targets of a device, their neighbours, and the places of those that are shared."""
        ends = np.concatenate([share["query"], share["item"], share["group_item"]])
        group_items = groups_lib.members(
            self.graph.groups,
            share["group"],
            self.batch_sizes.group_items,
            (self.seed << 32) + step,  # others of a large group in each step
            share["group_item"],
        )
        others = share["negatives"], share["hard"], group_items
        distinct, places = subgraphs.distinct(np.concatenate([x.ravel() for x in others]))
        places = np.where(places >= 0, places + np.int32(len(ends)), -1)
        places = np.split(places, np.cumsum([x.size for x in others])[:-1])
        negatives_at, hard_at, group_at = (
            place.reshape(x.shape) for place, x in zip(places, others, strict=True)
        )
        targets = np.full(self.batch_sizes.targets, -1, np.int32)
        targets[: len(ends)] = ends
        targets[len(ends) : len(ends) + len(distinct)] = distinct

        near = subgraphs.rows(self.table, targets)
        avoid = np.concatenate([share["pair_group"], share["pair_group"], share["group"]])
        walked = np.flatnonzero(avoid >= 0)
        # A stream of random numbers for each end in the run; those of the table are items.
        pairs = self.batch_sizes.pairs
        place = share["place"], pairs + share["place"], 2 * pairs + share["group_place"]
        first = (1 << 63) + step * (2 * pairs + self.batch_sizes.groups)
        near.ids[walked], near.weights[walked] = walks.neighbourhoods(
            self.graph,
            ends[walked],
            self.walks,
            self.seed,
            avoid[walked],
            streams=np.uint64(first) + np.concatenate(place)[walked].astype(np.uint64),
            threads=1,
        )
        return (
            targets,
            near,
            {
                "negatives_at": negatives_at,
                "hard_at": hard_at,
                "group_at": group_at,
                "group_weights": groups_lib.equal_weights(group_items),
            },
        )

    def _subgraph(self, step: int, share: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The fields of a device."""
        targets, near, places = self._targets(step, share)
        ends = self.batch_sizes.ends
        nodes, hops = subgraphs.sample(targets, ends, near, self.table, self.sizes)
        fields = {"nodes": nodes, **places}
        for layer, hop in enumerate(hops):
            fields |= {f"{name}_{layer}": values for name, values in hop._asdict().items()}
        return fields
