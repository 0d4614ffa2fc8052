"""A map of items: their embeddings in the plane, by t-SNE, coloured by topic."""

from collections.abc import Sequence

import numpy as np

from pinjax.reporting import blocks, figures
from pinjax.reporting.blocks import Block

ITEMS = 3_000  # on all maps of a page
_PERPLEXITY = 30
_COMPONENTS = 50  # principal ones, of which t-SNE measures distances
_SHADES = (*figures.COLOURS, "#b8860b", "#5f6fd0", "#4fae5a", "#c77d63")  # of topics


def project(vectors: np.ndarray) -> np.ndarray:
    """Coordinates of float vectors (n, dim), float (n, 2), by t-SNE of their cosines.

    Vectors that are all equal, or fewer than four, are placed by their principal components.
    """
    from sklearn import decomposition, manifold

    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.asarray(vectors / np.where(length > 0, length, 1), np.float64)
    vectors -= vectors.mean(axis=0)
    size = min(_COMPONENTS, *vectors.shape)
    few = len(vectors) < 4 or size < 2 or np.ptp(vectors, axis=0).max() < 1e-6
    if few:
        return np.pad(vectors, ((0, 0), (0, 2)))[:, :2]
    vectors = decomposition.PCA(size, random_state=0).fit_transform(vectors)
    perplexity = min(_PERPLEXITY, (len(vectors) - 1) / 3)
    return manifold.TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(vectors)


def block(
    title: str, told: str, places: np.ndarray, topics: np.ndarray, names: Sequence[str]
) -> Block:
    """A map.

    Args:
      title: of the map.
      told: what it shows.
      places: float (n, 2).
      topics: int (n,), -1 where unknown.
      names: of the items.
    """
    from plotly import graph_objects

    known, counts = np.unique(topics[topics >= 0], return_counts=True)
    commonest = known[np.argsort(-counts, kind="stable")][: len(_SHADES)].tolist()
    others = ~np.isin(topics, commonest)
    parts = [("other topics" if commonest else "items", others, figures.GREY, 0.35)]
    for topic, shade in zip(commonest, _SHADES, strict=False):
        parts.append((f"topic {topic}", topics == topic, shade, 0.8))
    figure = graph_objects.Figure()
    for label, where, shade, opacity in parts:
        if where.any():
            figure.add_scatter(
                x=[round(float(x), 2) for x in places[where, 0]],
                y=[round(float(y), 2) for y in places[where, 1]],
                mode="markers",
                name=label,
                text=[figures.escaped(names[row]) for row in np.flatnonzero(where)],
                marker={"size": 5, "color": shade, "opacity": opacity},
                hovertemplate="%{text}<extra>" + label + "</extra>",
            )
    hidden = {"visible": False}
    figure.update_layout(
        template=None,
        xaxis=hidden,
        yaxis={**hidden, "scaleanchor": "x"},
        dragmode="pan",
        hovermode="closest",
        height=620,
    )
    return blocks.figure(title, told, figures.plain(figure), wide=True)
