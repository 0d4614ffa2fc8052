"""A map of items: their embeddings in the plane, by t-SNE, coloured by topic."""

from collections.abc import Sequence

import numpy as np

from pinjax.reporting import blocks, figures
from pinjax.reporting.blocks import Block

ITEMS = 2_000  # on all maps of a page
_PERPLEXITY = 30
_COMPONENTS = 50  # principal ones, of which t-SNE measures distances
_STEPS = 500  # of t-SNE
_NAMED = 12  # topics in the legend


def project(vectors: np.ndarray) -> np.ndarray:
    """Coordinates of float vectors (n, dim), float (n, 2), by t-SNE of their cosines.

    Vectors that are all equal, or fewer than four, are placed by their principal components.
    """
    import threadpoolctl
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
    tsne = manifold.TSNE(perplexity=perplexity, init="pca", max_iter=_STEPS, random_state=0)
    # Threads of OpenMP spin while they wait: beside other work two took longer than one.
    with threadpoolctl.threadpool_limits(1):
        return tsne.fit_transform(vectors)


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

    topics = topics.astype(int)
    known, counts = np.unique(topics[topics >= 0], return_counts=True)
    commonest = np.sort(known[np.argsort(-counts, kind="stable")][:_NAMED]).tolist()
    parts = [(f"topic {topic}", topics == topic) for topic in commonest]
    parts.append(("other topics" if commonest else "items", ~np.isin(topics, commonest)))
    figure = graph_objects.Figure()
    for label, where in parts:
        if where.any():
            rows = np.flatnonzero(where)
            shades = [_shade(topics[row]) for row in rows]
            figure.add_scatter(
                x=[round(float(x), 2) for x in places[where, 0]],
                y=[round(float(y), 2) for y in places[where, 1]],
                mode="markers",
                name=label,
                text=[
                    figures.escaped(names[row]) + f"<br>topic {topics[row]}" * int(topics[row] >= 0)
                    for row in rows
                ],
                marker={"size": 5, "color": shades if label[0] == "o" else shades[0]},
                opacity=0.9,
                hovertemplate="%{text}<extra></extra>",
            )
    hidden = {"visible": False}
    figure.update_layout(
        template=None,
        xaxis=hidden,
        yaxis={**hidden, "scaleanchor": "x"},
        dragmode="pan",
        hovermode="closest",
        height=640,
        legend={"orientation": "v", "x": 1, "y": 1, "yanchor": "top"},
    )
    return blocks.figure(title, told, figures.plain(figure), wide=True)


def _shade(topic: int) -> str:
    """The colour of a topic, the one of page.js: near numbers get hues that are far apart."""
    return figures.GREY if topic < 0 else f"hsl({topic * 137.5 % 360:g}, 55%, 56%)"
