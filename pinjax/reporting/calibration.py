"""Calibration of logQ: the sketches of a checkpoint beside counts of what it was trained on."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pinjax.losses import count_min_sketch
from pinjax.reporting import blocks, figures
from pinjax.reporting.blocks import Block
from pinjax.systems.system import System

STEPS = 1_000  # the most that are counted again
# Of a part of a run only ids that came so often in it are compared: rare ones of those that came at
# all have come more often there than they do otherwise.
_ENOUGH = 20
DOTS = 1_000  # ids that are drawn
_BINS = 24


class Calibration(NamedTuple):
    """A sketch beside counts.

    Attributes:
      name: of the stream of ids.
      estimated: float (ids,), the probability of each id by the sketch.
      counted: float (ids,), its share of what was counted.
      steps: training steps that were counted, the last ones.
      of: training steps that the sketch has seen.
    """

    name: str
    estimated: np.ndarray
    counted: np.ndarray
    steps: int
    of: int


def measure(system: System, sketches: Any, steps: int) -> list[Calibration]:
    """Counts the ids of the last `STEPS` steps of a run again.

    Args:
      system: of the run.
      sketches: of its checkpoint.
      steps: done in the checkpoint.
    """
    if not steps:  # of a warm start
        return []
    first = max(0, steps - STEPS)
    batches = itertools.islice(system.batches(first), steps - first)
    named = jax.tree_util.tree_flatten_with_path(
        sketches, is_leaf=lambda node: isinstance(node, count_min_sketch.CountMinSketch)
    )[0]
    streams = zip(
        *(jax.tree.leaves(system.trainable.sketched_ids(x)) for x in batches), strict=True
    )
    found = []
    for (path, sketch), stream in zip(named, streams, strict=True):
        ids, counted = shares([np.ravel(ids) for ids in stream], _ENOUGH if first else 1)
        if len(ids):
            estimated = np.exp(count_min_sketch.log_probability(sketch, jnp.asarray(ids)))
            name = path[0].key if path else "items"
            found.append(Calibration(name, estimated, counted, steps - first, steps))
    return found


def shares(stream: Sequence[np.ndarray], least: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The distinct ids of a stream, and the share of each; -1 is left out.

    Args:
      stream: the ids of each batch.
      least: how often an id has to come.
    """
    ids = np.concatenate(stream)
    ids, counts = np.unique(ids[ids != -1], return_counts=True)
    enough = counts >= least
    return ids[enough], counts[enough] / counts.sum()


def means(found: Calibration) -> tuple[np.ndarray, np.ndarray]:
    """Means of the counted shares, and of the estimates, over ids of similar estimates."""
    order = np.argsort(found.estimated, kind="stable")
    parts = [rows for rows in np.array_split(order, _BINS) if len(rows)]
    columns = found.counted, found.estimated
    return tuple(np.array([values[rows].mean() for rows in parts]) for values in columns)


def block(name: str, colour: str, found: Calibration) -> Block:
    """A figure of a sketch: ids as dots, and means of similar ones as a line."""
    from plotly import graph_objects

    rows = np.random.default_rng(0).permutation(len(found.counted))[:DOTS]
    x, y = found.counted[rows], found.estimated[rows]
    ends = figures.known([min(x.min(), y.min()), max(x.max(), y.max())])
    pointed = "counted %{x:.2e}, by the sketch %{y:.2e}"
    figure = graph_objects.Figure()
    for label, (counted, estimated), style in (
        ("an id", (x, y), {"mode": "markers", "marker": {"size": 4, "opacity": 0.45}}),
        ("mean of similar ids", means(found), {"mode": "lines+markers"}),
    ):
        figure.add_scatter(
            x=figures.known(counted),
            y=figures.known(estimated),
            name=label,
            **style,
            hovertemplate=pointed,
        )
    figure.data[0].marker.color = figures.GREY
    figure.data[1].update(line={"color": colour, "width": 2}, marker={"color": colour})
    dotted = {"color": figures.GREY, "width": 1, "dash": "dot"}
    figure.add_scatter(x=ends, y=ends, mode="lines", name="equal", hoverinfo="skip", line=dotted)
    logarithmic = {"type": "log", "exponentformat": "power", "dtick": 1}
    figure.update_layout(
        template=None,
        xaxis={"title": "counted share", **logarithmic},
        yaxis={"title": "probability by the sketch", **logarithmic},
    )
    ratio = found.estimated.sum() / found.counted.sum()
    told = f"{len(found.counted):,} ids"
    if len(found.counted) > DOTS:
        told += f", {DOTS:,} of them drawn"
    told += f". The sketch gives them {ratio:.3f} times their share."
    if found.steps < found.of:
        told += (
            f" They are those that came {_ENOUGH} times or more in the last {found.steps:,} of "
            f"{found.of:,} steps."
        )
    return blocks.figure(f"{name}: {found.name}", told, figures.plain(figure))
