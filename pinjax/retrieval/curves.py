"""Recall against queries a second, as text and as a drawing."""

from collections.abc import Mapping, Sequence

from pinjax.retrieval import backends
from pinjax.retrieval.tuning import Point


def setting_text(setting: backends.Setting | None) -> str:
    """A setting in words, such as "leaves 8, reorder 50"; "" if there is none."""
    return ", ".join(f"{name} {value:,}" for name, value in (setting or {}).items() if name != "k")


def text(points: Sequence[Point], k: int) -> str:
    """A table of a curve, with a bar as long as the speed."""
    fastest = max(point.queries_per_second for point in points)
    lines = [f"{f'recall@{k}':>10}{'queries/s':>12}"]
    for point in points:
        bar = "█" * max(1, round(24 * point.queries_per_second / fastest))
        about = setting_text(point.setting)
        lines.append(f"{point.recall:>10.4f}{point.queries_per_second:>12,.0f}  {bar:<24}  {about}")
    return "\n".join(line.rstrip() for line in lines)


def html(of_backend: Mapping[str, Sequence[Point]], title: str) -> str:
    """A page with the curves of several backends, which needs no network."""
    import plotly.graph_objects as go  # here, since other commands do without it

    figure = go.Figure(layout={"title": title})
    for name, points in of_backend.items():
        figure.add_scatter(
            x=[point.recall for point in points],
            y=[point.queries_per_second for point in points],
            text=[setting_text(point.setting) for point in points],
            name=name,
            mode="lines+markers",
        )
    figure.update_xaxes(title="recall")
    figure.update_yaxes(title="queries a second", type="log")
    return figure.to_html(include_plotlyjs=True)
