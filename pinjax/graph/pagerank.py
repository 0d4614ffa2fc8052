"""Items by personalised PageRank: PinSage's hard negatives (arXiv 1806.01973, §3.3).

The walk goes from an item to one of its groups and on to one of that group's items, each drawn
uniformly, and returns to its start before a step with a given probability. Where it is in the long
run is found by forward push (Andersen, Chung and Lang, FOCS 2006): probability that has not yet
moved on is moved while a node has much of it for its degree. benchmarks/pagerank.py measures it
against counting the visits of walks.
"""

import dataclasses

import numpy as np

from pinjax import signals
from pinjax.graph import csr
from pinjax.graph.compiled import arrays_of, compiled, nodes_of, over_ranges


@dataclasses.dataclass(frozen=True)
class PageRank:
    """What is computed, and how exactly.

    Attributes:
      restart: probability of returning to the start before a step; above 0.
      epsilon: probability for each edge of a node that is not worth moving on; above 0. Half of it
        takes up to twice the time.
    """

    restart: float
    epsilon: float


def ranked(
    graph: csr.Graph,
    nodes: np.ndarray,
    pagerank: PageRank,
    first: int,
    last: int,
    count: int,
    seed: int,
    threads: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Distinct random items among those of some ranks by personalised PageRank from each node.

    The node itself has no rank; equals (in float32) are ranked by row. A row is a function of its
    node, the seed and the graph alone. A thread takes 24 bytes for an item and 12 for a group.

    Args:
      graph: both sides of it.
      nodes: int (n,), items.
      pagerank: restart and precision.
      first: the first rank, from 1.
      last: the last rank.
      count: number of items of a node.
      seed: of all rows.
      threads: number of them; one a core if None.

    Returns:
      int32 (n, count), padded with -1 where fewer items have such a rank; int32 (n,), how many
      have.

    Raises:
      IndexError: if a node is not in the graph.
    """
    nodes, arrays = nodes_of(graph.items, nodes), arrays_of(graph)
    items, groups = (len(side.offsets) - 1 for side in (graph.items, graph.groups))
    chosen, available = np.full((len(nodes), count), -1, np.int32), np.zeros(len(nodes), np.int32)

    def fill(start: int, stop: int) -> None:
        settled, moving, in_groups = np.zeros(items), np.zeros(items), np.zeros(groups)
        lists = (np.empty(size, np.int32) for size in (items, items, groups))
        scratch = (settled, moving, in_groups, *lists)
        for row in range(start, stop):
            signals.check()
            node = int(nodes[row])
            found, scores = _push(*arrays, node, pagerank.restart, pagerank.epsilon, *scratch)
            candidates = _by_score(found, scores)[first - 1 : last]
            rng = np.random.default_rng((seed, node))
            picked = rng.choice(candidates, min(count, len(candidates)), replace=False)
            chosen[row, : len(picked)], available[row] = picked, len(candidates)

    over_ranges(fill, len(nodes), threads)
    return chosen, available


def _by_score(items: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Items, best first; an integer's sort is much faster than that of two keys."""
    keys = scores.view(np.uint32).astype(np.uint64) << 32  # in order of scores, as they are not < 0
    keys |= (2**31 - 1 - items).astype(np.uint64)
    keys.sort()
    return 2**31 - 1 - (keys[::-1] & (2**31 - 1)).astype(np.int32)


@compiled
def _push(
    item_offsets,
    item_neighbours,
    group_offsets,
    group_neighbours,
    node,
    restart,
    epsilon,
    settled,
    moving,
    in_groups,
    seen,
    waiting_items,
    waiting_groups,
):
    """The items reached from a node, and their probabilities.

    Args:
      item_offsets: of the graph.
      item_neighbours: of the graph.
      group_offsets: of the graph.
      group_neighbours: of the graph.
      node: where walks start.
      restart: as in `PageRank`.
      epsilon: as in `PageRank`.
      settled: scratch, float64 (items,), 0 before and after: probability of a walk's last item.
      moving: likewise, of the walks that go on.
      in_groups: likewise (groups,), of walks that are within a step.
      seen: scratch, int32 (items,): items that were reached.
      waiting_items: scratch, int32 (items,): those that have `moving`.
      waiting_groups: scratch, int32 (groups,): those that have `in_groups`.

    Returns:
      int32 (reached,) and float32 (reached,), without the node.
    """
    num_seen = num_items = num_groups = 0
    if item_offsets[node + 1] > item_offsets[node]:
        moving[node] = 1.0
        seen[0] = waiting_items[0] = node
        num_seen = num_items = 1
    moved = True
    while moved:
        moved = False
        left = 0
        for i in range(num_items):
            item = waiting_items[i]
            edges = item_neighbours[item_offsets[item] : item_offsets[item + 1]]
            if moving[item] < epsilon * len(edges):
                waiting_items[left] = item
                left += 1
                continue
            moved = True
            settled[item] += restart * moving[item]
            share = (1 - restart) * moving[item] / len(edges)
            moving[item] = 0
            for group in edges:
                if in_groups[group] == 0:
                    waiting_groups[num_groups] = group
                    num_groups += 1
                in_groups[group] += share
        num_items, left = left, 0
        for i in range(num_groups):
            group = waiting_groups[i]
            edges = group_neighbours[group_offsets[group] : group_offsets[group + 1]]
            if in_groups[group] < epsilon * len(edges):
                waiting_groups[left] = group
                left += 1
                continue
            moved = True
            share = in_groups[group] / len(edges)
            in_groups[group] = 0
            for item in edges:
                if moving[item] == 0:
                    waiting_items[num_items] = item
                    num_items += 1
                    if settled[item] == 0:
                        seen[num_seen] = item
                        num_seen += 1
                moving[item] += share
        num_groups = left
    for i in range(num_groups):
        in_groups[waiting_groups[i]] = 0
    found = np.empty(max(num_seen - 1, 0), np.int32)
    scores = np.empty(max(num_seen - 1, 0), np.float32)
    for i in range(num_seen):
        item = seen[i]
        if i > 0:  # the first is the node
            found[i - 1] = item
            # What has not moved on would end nearby: adding it ranks better than leaving it out.
            scores[i - 1] = settled[item] + moving[item]
        settled[item] = moving[item] = 0
    return found, scores
