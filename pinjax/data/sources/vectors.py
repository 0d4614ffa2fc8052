"""Vectors from an item's tags, or from the words of its texts, if none are given.

Both are latent semantic analysis: counts with inverse document frequencies, and a truncated SVD.
They replace the vectors of PinSage and SearchSage, which also depend on engagements.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import scipy.linalg
import scipy.sparse
import Stemmer

from pinjax.data.text import tokens

_SATURATION = 1.5  # k of BM25: counts of a word above it hardly matter


def of_tags(item: np.ndarray, tag: np.ndarray, items: int, dim: int) -> np.ndarray:
    """Unit vectors from tags: TF-IDF, then a truncated SVD.

    Args:
      item: int (pairs,), rows of items.
      tag: int (pairs,), rows of tags; no pair comes twice.
      items: number of items.
      dim: dimension; smaller if there are fewer tags or items.

    Returns:
      float16 (items, dim), zeros for an item without tags.
    """
    shape = (items, int(tag.max(initial=-1)) + 1)
    matrix = scipy.sparse.csr_array((np.ones(len(item)), (item, tag)), shape)
    matrix = weighted(matrix, inverse_frequency(matrix))
    return unit_rows(matrix @ latent_space(matrix, dim))


def commonest_tags(item: np.ndarray, tag: np.ndarray, items: int) -> np.ndarray:
    """The most frequent tag of each item, int32 (items,), -1 without tags."""
    topics = np.full(items, -1, np.int32)
    carriers = np.bincount(tag, minlength=1)[tag]
    order = np.lexsort((-tag, carriers))  # the last write stays
    topics[item[order]] = tag[order]
    return topics


class WordSpace:
    """The space of the words of some texts.

    Attributes:
      vocabulary: of the words.
      dim: of vectors, after `fit`.
    """

    def __init__(self, vocabulary: tokens.Vocabulary, language: str):
        self.vocabulary = vocabulary
        words = vocabulary.rows["token"][: vocabulary.sizes[0]].to_pylist()
        self._columns = np.arange(len(words))
        if language and words:
            stems = Stemmer.Stemmer(language).stemWords(words)
            self._columns = np.unique(stems, return_inverse=True)[1]

    def fit(self, matrix: scipy.sparse.csr_array, dim: int) -> np.ndarray:
        """Fits the space to the `counts` of all items; returns their vectors, float16 (n, dim)."""
        # A product of two vectors has the weight twice: so this is once, as in BM25.
        self._weights = np.sqrt(inverse_frequency(matrix))
        matrix = weighted(matrix, self._weights)
        self._space = latent_space(matrix, dim)
        self.dim = self._space.shape[1]
        return unit_rows(matrix @ self._space)

    def vectors(self, texts: Sequence[str | None]) -> np.ndarray:
        """The vectors of new texts, float16 (texts, dim), zeros without a known word."""
        return unit_rows(weighted(self.counts([texts]), self._weights) @ self._space)

    def counts(self, features: Iterable[Sequence[str | None]]) -> scipy.sparse.csr_array:
        """n (k + 1) / (n + k) for n occurrences of a word in a row's texts: (rows, words).

        This is the weight of BM25 (Robertson & Zaragoza, FnTIR 2009) without its normalisation by
        length, which unit vectors do not need. With n itself the most common words would dominate
        long texts. Words with the same stem are counted together.
        """
        places = []
        for texts in features:
            found, offsets = self.vocabulary.encode(texts)
            row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
            places.append(np.stack([row, found])[:, found < len(self._columns)])
        row, word = np.concatenate(places, axis=1)
        shape = len(offsets) - 1, int(self._columns.max(initial=-1)) + 1
        counts = scipy.sparse.csr_array((np.ones(len(row)), (row, self._columns[word])), shape)
        counts.sum_duplicates()
        counts.data *= (_SATURATION + 1) / (counts.data + _SATURATION)
        return counts


def inverse_frequency(matrix: scipy.sparse.csr_array) -> np.ndarray:
    """The weight of a column that `rows` of n rows have: log((1 + n) / (1 + rows)) + 1.

    Args:
      matrix: (rows, columns), without duplicates.
    """
    carriers = np.bincount(matrix.indices, minlength=matrix.shape[1])
    return np.log((1 + matrix.shape[0]) / (1 + carriers)) + 1


def weighted(matrix: scipy.sparse.csr_array, weights: np.ndarray) -> scipy.sparse.csr_array:
    """TF-IDF: columns times their weights, with rows of unit length."""
    matrix = (matrix @ scipy.sparse.diags_array(weights)).tocsr()
    return scipy.sparse.diags_array(1 / _lengths(matrix)) @ matrix


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length, float16; (almost) zero rows become zeros."""
    return (vectors / _lengths(vectors)[:, None]).astype(np.float16)


def latent_space(matrix: scipy.sparse.csr_array, rank: int) -> np.ndarray:
    """The right singular vectors of the largest singular values, (columns, at most `rank`).

    It is a seeded range finder with power iterations (Halko, Martinsson & Tropp, SIAM Review 2011,
    Algorithm 4.4), so the result depends only on the matrix. Between iterations an LU factorisation
    keeps the basis well conditioned, at a third of the cost of QR.
    """
    basis = np.random.default_rng(0).standard_normal((matrix.shape[1], rank + 16))
    for _ in range(4):
        basis, _ = scipy.linalg.lu(matrix.T @ (matrix @ basis), permute_l=True)
    basis, _ = np.linalg.qr(matrix.T @ (matrix @ basis))
    # The singular vectors of the triangular factor, which is small if there are many rows.
    _, _, right = np.linalg.svd(np.linalg.qr(matrix @ basis, mode="r"), full_matrices=False)
    return basis @ right[:rank].T


def _lengths(rows: np.ndarray | scipy.sparse.csr_array) -> np.ndarray:
    """The norms of rows, 1 instead of 0."""
    lengths = np.sqrt((rows * rows).sum(axis=1))
    return np.where(lengths < 1e-9, 1, lengths)
