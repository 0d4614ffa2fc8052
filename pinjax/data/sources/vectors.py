"""Vectors that are made where a user has none: of an item's tags, or of the words of its texts.

Both are latent semantic analysis: counts, weighted by how few items have a tag or a word, and a
truncated SVD. They stand in for the vectors of PinSage and SearchSage, which know engagements, too.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import scipy.linalg
import scipy.sparse
import Stemmer

from pinjax.data.text import tokens

_SATURATION = 1.5  # k: how many times a word comes before more of it hardly matters


def of_tags(item: np.ndarray, tag: np.ndarray, items: int, dim: int) -> np.ndarray:
    """Unit vectors from tags: TF-IDF, then a truncated SVD.

    Args:
      item: int (pairs,), rows of items.
      tag: int (pairs,), rows of tags; no pair comes twice.
      items: how many there are.
      dim: numbers in a vector; fewer where there are not as many tags or items.

    Returns:
      float16 (items, dim), zeros for an item without tags.
    """
    shape = (items, int(tag.max(initial=-1)) + 1)
    matrix = scipy.sparse.csr_array((np.ones(len(item)), (item, tag)), shape)
    matrix = weighted(matrix, inverse_frequency(matrix))
    return unit_rows(matrix @ latent_space(matrix, dim))


def commonest_tags(item: np.ndarray, tag: np.ndarray, items: int) -> np.ndarray:
    """Of each item's tags the one that the most items carry, int32 (items,), -1 without tags."""
    topics = np.full(items, -1, np.int32)
    carriers = np.bincount(tag, minlength=1)[tag]
    order = np.lexsort((-tag, carriers))  # the last that is written stays
    topics[item[order]] = tag[order]
    return topics


class WordSpace:
    """The space of the words of some texts.

    Attributes:
      vocabulary: of the words.
      dim: numbers of a vector, once `fit` has made the space.
    """

    def __init__(self, vocabulary: tokens.Vocabulary, language: str):
        self.vocabulary = vocabulary
        words = vocabulary.rows["token"][: vocabulary.sizes[0]].to_pylist()
        self._columns = np.arange(len(words))
        if language and words:
            stems = Stemmer.Stemmer(language).stemWords(words)
            self._columns = np.unique(stems, return_inverse=True)[1]

    def fit(self, matrix: scipy.sparse.csr_array, dim: int) -> np.ndarray:
        """Makes the space of what `counts` found of all items; their vectors, float16 (n, dim)."""
        # A product of two vectors has the weight twice: so this is once, as in BM25.
        self._weights = np.sqrt(inverse_frequency(matrix))
        matrix = weighted(matrix, self._weights)
        self._space = latent_space(matrix, dim)
        self.dim = self._space.shape[1]
        return unit_rows(matrix @ self._space)

    def vectors(self, texts: Sequence[str | None]) -> np.ndarray:
        """The vectors of other texts, float16 (texts, dim), zeros without a known word."""
        return unit_rows(weighted(self.counts([texts]), self._weights) @ self._space)

    def counts(self, features: Iterable[Sequence[str | None]]) -> scipy.sparse.csr_array:
        """n (k + 1) / (n + k) where a thing's texts have a word n times: (things, words).

        That is BM25's weight, with its k (Robertson & Zaragoza, FnTIR 2009) and without what it
        says of lengths, which unit vectors have not. By n itself a long text would be its commonest
        words. Words of one stem are one.
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
    """The weight of each column by how many of the n rows have it: log((1 + n) / (1 + rows)) + 1.

    Args:
      matrix: (rows, columns), without duplicates.
    """
    carriers = np.bincount(matrix.indices, minlength=matrix.shape[1])
    return np.log((1 + matrix.shape[0]) / (1 + carriers)) + 1


def weighted(matrix: scipy.sparse.csr_array, weights: np.ndarray) -> scipy.sparse.csr_array:
    """The columns times their weights, then the rows at unit length: TF-IDF."""
    matrix = (matrix @ scipy.sparse.diags_array(weights)).tocsr()
    return scipy.sparse.diags_array(1 / _lengths(matrix)) @ matrix


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Rows of unit length as float16, zeros where they are (almost) zero."""
    return (vectors / _lengths(vectors)[:, None]).astype(np.float16)


def latent_space(matrix: scipy.sparse.csr_array, rank: int) -> np.ndarray:
    """The right singular vectors of the largest singular values, (columns, at most `rank`).

    A seeded range finder with power iterations (Halko, Martinsson & Tropp, SIAM Review 2011,
    Algorithm 4.4), so that the result is a function of the matrix alone. Between these an LU
    factorisation keeps the basis well conditioned at a third of the cost of QR.
    """
    basis = np.random.default_rng(0).standard_normal((matrix.shape[1], rank + 16))
    for _ in range(4):
        basis, _ = scipy.linalg.lu(matrix.T @ (matrix @ basis), permute_l=True)
    basis, _ = np.linalg.qr(matrix.T @ (matrix @ basis))
    # Those of the triangular factor, which is small where there are many rows.
    _, _, right = np.linalg.svd(np.linalg.qr(matrix @ basis, mode="r"), full_matrices=False)
    return basis @ right[:rank].T


def _lengths(rows: np.ndarray | scipy.sparse.csr_array) -> np.ndarray:
    """The rows' lengths, 1 where they are 0."""
    lengths = np.sqrt((rows * rows).sum(axis=1))
    return np.where(lengths < 1e-9, 1, lengths)
