"""Texts as words of fixed number, for a transformer that is trained from scratch."""

import numpy as np

from pinjax.data.text.tokens import Ragged


def of_texts(encoded: Ragged, words: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    """[CLS] and the first words of each text: int32 (texts, length), and their mask.

    Args:
      encoded: tokens of the texts; those below `words` are words.
      words: number of words; also the id of [CLS].
      length: words that are kept of a text, with [CLS].
    """
    tokens, offsets = encoded
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    row, word = row[tokens < words], tokens[tokens < words]
    place = 1 + np.arange(len(row)) - np.searchsorted(row, row)
    found = np.zeros((len(offsets) - 1, length), np.int32)
    mask = np.zeros(found.shape, bool)
    found[:, 0], mask[:, 0] = words, True
    fits = place < length
    found[row[fits], place[fits]], mask[row[fits], place[fits]] = word[fits], True
    return found, mask
