"""The words of pinworld's texts and searches: words of topics and looks, and names of makers."""

import dataclasses

import numpy as np

from pinjax.data.simulated.world import STYLE_DIM

# Words. Word 0 is empty.
COMMON_WORDS = 400
ROOT_WORDS = 8  # of each root
LEAF_WORDS = 10  # of each leaf
STYLE_WORDS = {"colours": 24, "materials": 16, "patterns": 12}
BRANDS = 12  # of each root
MERCHANTS = 6  # of each root
CONSONANTS, VOWELS, CODAS = "bdfgklmnprstvz", "aeiou", ("", "", "n", "r", "l", "s")
LOOK_STRENGTH = 2.0  # how strongly colours, materials and patterns depend on the style
MAKER_ROOT = 3.0  # brands and merchants: log appeal of the own root, of style, ...
MAKER_STYLE = 1.0
MAKER_SPREAD = 1.5  # ... and how far, in standard deviations, the value is from the level


def direction(style: np.ndarray) -> np.ndarray:
    """Styles of norm 1, float32 (n, STYLE_DIM); zeros stay zeros."""
    norm = np.linalg.norm(style, axis=1, keepdims=True)
    return style / np.where(norm > 0, norm, 1)


@dataclasses.dataclass(frozen=True)
class Makers:
    """Brands, or merchants.

    Attributes:
      name: text (makers,).
      root: int64 (makers,), of most of their products.
      style: float32 (makers, STYLE_DIM), of norm 1.
      level: float32 (makers,), typical value of their products.
      popularity: float64 (makers,).
    """

    name: np.ndarray
    root: np.ndarray
    style: np.ndarray
    level: np.ndarray
    popularity: np.ndarray

    def draw(
        self, rng: np.random.Generator, root: np.ndarray, style: np.ndarray, value: np.ndarray
    ) -> list[str]:
        """Draws the names of some products' makers."""
        appeal = np.log(self.popularity) + MAKER_ROOT * (root[:, None] == self.root)
        appeal += MAKER_STYLE * style @ self.style.T
        appeal -= ((value[:, None] - self.level) / MAKER_SPREAD) ** 2 / 2
        return self.name[_draw_softmax(rng, appeal)].tolist()


class Words:
    """The vocabulary.

    Attributes:
      text: text (words,).
      leaf, root, common: the first word of leaves, of roots, and of common words.
      looks: the first colour, material and pattern.
      topic: int64 (words,), topic of a word: leaf l is l, root r is leaves + r, everything is
        leaves + roots.
      style: float32 (words, STYLE_DIM), of norm 1 for colours, materials and patterns, else 0.
      brands, merchants: `Makers`.
    """

    def __init__(self, rng: np.random.Generator, roots: int, leaves: int):
        counts = [1, leaves * LEAF_WORDS, roots * ROOT_WORDS, *STYLE_WORDS.values(), COMMON_WORDS]
        first = np.cumsum(counts)
        self.leaf, self.root, *looks, self.common = first[:-1].tolist()
        self.looks = dict(zip(STYLE_WORDS, looks, strict=True))
        makers = (roots * BRANDS, roots * MERCHANTS)
        text = _draw_words(rng, first[-1] - 1 + sum(makers))
        self.text = np.array(["", *text[: first[-1] - 1]], object)

        self.topic = np.full(first[-1], leaves + roots)
        self.topic[self.leaf : self.root] = np.repeat(np.arange(leaves), LEAF_WORDS)
        self.topic[self.root : looks[0]] = leaves + np.repeat(np.arange(roots), ROOT_WORDS)
        self.style = np.zeros((first[-1], STYLE_DIM), np.float32)
        self.style[looks[0] : self.common] = _draw_directions(rng, self.common - looks[0])

        names = np.split(np.array(text[first[-1] - 1 :], object), [makers[0]])
        self.brands, self.merchants = (
            Makers(
                name=name,
                root=np.arange(len(name)) % roots,
                style=_draw_directions(rng, len(name)),
                level=rng.standard_normal(len(name), np.float32),
                popularity=1 / (1 + rng.permutation(len(name))),
            )
            for name in names
        )

    def of_leaf(self, rng: np.random.Generator, leaf: np.ndarray) -> np.ndarray:
        """Draws a word of each leaf."""
        return self.leaf + leaf * LEAF_WORDS + draw_rank(rng, LEAF_WORDS, len(leaf))

    def of_root(self, rng: np.random.Generator, root: np.ndarray) -> np.ndarray:
        """Draws a word of each root."""
        return self.root + root * ROOT_WORDS + draw_rank(rng, ROOT_WORDS, len(root))

    def look(self, rng: np.random.Generator, name: str, style: np.ndarray) -> np.ndarray:
        """Draws a word of `STYLE_WORDS` for each style (n, STYLE_DIM)."""
        first, count = self.looks[name], STYLE_WORDS[name]
        appeal = LOOK_STRENGTH * style @ self.style[first : first + count].T
        return first + _draw_softmax(rng, appeal)

    def join(self, words: np.ndarray, length: np.ndarray) -> list[str]:
        """Texts of given lengths (texts,) from the concatenated words of all texts."""
        text, end = self.text[words].tolist(), np.cumsum(length)
        begin = end - length
        return [" ".join(text[a:b]) for a, b in zip(begin.tolist(), end.tolist(), strict=True)]


def _draw_words(rng: np.random.Generator, count: int) -> list[str]:
    """Draws distinct words of two or three syllables."""
    words: dict[str, None] = {}
    while len(words) < count:
        parts = [rng.choice(list(letters), 3 * count).tolist() for letters in (CONSONANTS, VOWELS)]
        syllables = [consonant + vowel for consonant, vowel in zip(*parts, strict=True)]
        codas = rng.choice(CODAS, count).tolist()
        lengths = rng.integers(2, 3, size=count, endpoint=True).tolist()
        for i, (coda, length) in enumerate(zip(codas, lengths, strict=True)):
            words["".join(syllables[3 * i : 3 * i + length]) + coda] = None
    return list(words)[:count]


def _draw_directions(rng: np.random.Generator, count: int) -> np.ndarray:
    """Draws directions of style, uniformly: float32 (count, STYLE_DIM), of norm 1."""
    return direction(rng.standard_normal((count, STYLE_DIM), np.float32))


def _draw_softmax(rng: np.random.Generator, appeal: np.ndarray) -> np.ndarray:
    """Draws p(column) ∝ exp(appeal) for each row of appeal (n, columns), int64 (n,)."""
    return np.argmax(appeal + rng.gumbel(size=appeal.shape), axis=1)


def draw_rank(rng: np.random.Generator, count: int, size: int | tuple[int, ...]) -> np.ndarray:
    """Draws numbers below `count` by Zipf's law."""
    cumulative = np.cumsum(1 / (1 + np.arange(count)))
    return np.searchsorted(cumulative[:-1], cumulative[-1] * rng.random(size), side="right")
