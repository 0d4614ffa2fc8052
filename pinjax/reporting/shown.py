"""How a report shows items: by their names, or else by their words."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pinjax.data.dataset import Dataset
from pinjax.data.text import tokens

WORDS = 8  # of a text, for an item without a name
LONGEST = 60  # characters of a name: 16,000 names fit a page in any script
LONGEST_URL = 500


class Shown:
    """The items of a data set that a page mentions.

    Attributes:
      dataset: of the items.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self._places: dict[int, int] = {}

    @functools.cached_property
    def row_of(self) -> dict[Any, int]:
        """Rows of the catalogue by own id."""
        return {id_: row for row, id_ in enumerate(self.dataset.catalogue.ids.tolist())}

    def places(self, rows: Iterable[int]) -> list[int]:
        """The places of items, by row of the catalogue, in the lists of `to_json`."""
        return [self._places.setdefault(int(row), len(self._places)) for row in rows]

    def places_of_ids(self, ids: Iterable[Any]) -> list[int]:
        """The same by own ids."""
        return self.places(self.row_of[id_] for id_ in ids)

    def names(self, rows: Sequence[int]) -> list[str]:
        """What to call items: their name, their first words, or "" if they have neither."""
        given = self.dataset.catalogue.shown.get("name")
        made = [clipped(given[row] or "") if given else "" for row in rows]
        for feature in self.dataset.catalogue.text_features:
            if not all(made):
                words = self._words(feature, rows)
                made = [name or of_text for name, of_text in zip(made, words, strict=True)]
        return made

    def _words(self, feature: str, rows: Sequence[int]) -> list[str]:
        texts, vocabulary = self._text(feature), self.dataset.vocabulary
        firsts = [texts.tokens[slice(*texts.offsets[[r, r + 1]])][:WORDS] for r in rows]
        # The first tokens of a text are its words, in their order.
        firsts = [first[first < vocabulary.sizes[0]] for first in firsts]
        spelt = vocabulary.rows["token"].take(np.concatenate(firsts)).to_pylist()
        ends = np.cumsum([len(first) for first in firsts])
        spans = ((end - len(first), end) for first, end in zip(firsts, ends, strict=True))
        return [clipped(" ".join(spelt[start:end])) for start, end in spans]

    @functools.lru_cache(maxsize=1)  # noqa: B019, it lives as long as its command
    def _text(self, feature: str) -> tokens.Ragged:
        return self.dataset.catalogue.text(feature)

    def to_json(self) -> dict[str, list]:
        """The items: ids, names, topics, actions, dates and URLs of pictures, each a list."""
        rows, catalogue = np.array(list(self._places), int), self.dataset.catalogue
        urls = catalogue.shown.get("image_url")
        return {
            "ids": [clipped(str(id_)) for id_ in catalogue.ids[rows]],
            "names": self.names(rows) if len(rows) else [],
            "topics": catalogue.topics[rows].tolist(),
            "counts": catalogue.counts[rows].tolist(),
            "created": catalogue.created[rows].tolist(),
            "pictures": [_url(urls[row]) for row in rows] if urls else [],
        }


def clipped(text: str) -> str:
    """Text on one line, of at most `LONGEST` characters."""
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _url(url: str | None) -> str:
    """A URL that a page may show: of http or https alone, and no picture in itself."""
    shown = url and url.startswith(("https://", "http://")) and len(url) <= LONGEST_URL
    return url if shown else ""
