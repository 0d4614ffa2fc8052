"""A report as one HTML file that needs nothing else."""

import html
import json
import pathlib
from typing import Any

_HERE = pathlib.Path(__file__).parent


def render(content: dict[str, Any]) -> str:
    """The page of the content of `build.content`."""
    from plotly import offline

    parts = {  # in the order of the template, so that no part is searched for a later one's place
        "title": html.escape(content["title"]),
        "css": (_HERE / "page.css").read_text("utf-8"),
        "data": embedded(content),
        "plotly": offline.get_plotlyjs(),
        "js": (_HERE / "page.js").read_text("utf-8"),
    }
    page, rest = "", (_HERE / "page.html").read_text("utf-8")
    for name, part in parts.items():
        before, rest = rest.split("{{" + name + "}}", 1)
        page += before + part
    return page + rest


def embedded(content: Any) -> str:
    """JSON that may stand within a script element, whatever its text holds."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    text = text.encode("utf-8", "backslashreplace").decode()  # lone surrogates, as JSON has them
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text
