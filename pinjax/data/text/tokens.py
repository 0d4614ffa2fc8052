"""Text as token ids: word unigrams, word bigrams and character trigrams.

These are the tokens of ItemSage (Baltescu et al., KDD 2022):

    "Café Table" -> café, table; "café table"; <ca, caf, afé, fé>, <ta, tab, abl, ble, le>

A text is normalised by `normalise`. A word is a maximal run of letters, marks and numbers, Unicode
categories L, M and N; everything else separates. So scripts without spaces have long words, and
mostly their trigrams are in the vocabulary. A lone surrogate separates, and so does a zero-width
joiner; a variation selector is a mark. A bigram is two consecutive words of a text, whatever
separates them. Trigrams are taken from a word between two boundary marks, so a word of n characters
has n trigrams (fastText: Bojanowski et al., TACL 2017, §3.2).

Categories and NFKC are of Python's Unicode version. Versions differ mainly in characters that the
older one does not have.

Everything is vectorised over a chunk of texts. Words and bigrams are compared by 64-bit hashes,
trigrams exactly. Among n distinct words or bigrams, two collide and count as one with probability
n^2 / 2^65: 3e-8 for a million, 3e-4 for a hundred million. An unknown word is mistaken for one of a
million in the vocabulary with probability 5e-14.
"""

import dataclasses
import functools
import hashlib
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from etils import epath

from pinjax import files
from pinjax.data import parquet
from pinjax.data.text.keys import Counts, Lookup, count_distinct, mix
from pinjax.errors import InputError
from pinjax.ragged import offsets_of

KINDS = ("unigram", "bigram", "trigram")

_ROWS = pa.schema([("kind", pa.string()), ("token", pa.large_string()), ("count", pa.int64())])
_VERSION = "pinjax.vocabulary"  # key of the format in a file's metadata
_FORMAT = "1"  # changes whenever the tokens of a text change
_CHUNK = 2**17  # characters processed at once, so that they stay in the cache
_CHARACTER = 21  # bits of a code point
_BEGIN, _END = ord("<"), ord(">")  # no word holds them


class Ragged(NamedTuple):
    """The tokens of several texts.

    Attributes:
      tokens: int32 (tokens,), text by text.
      offsets: int64 (texts + 1,), where the tokens of each text begin.
    """

    tokens: np.ndarray
    offsets: np.ndarray


def normalise(text: str | None) -> str:
    """NFKC in lower case, "" for None.

    Lower-casing may break NFKC ("j" and a caron have a composed form, "J" and a caron do not), so
    NFKC is applied again. Then the result is idempotent, since NFKC composes lower-case characters
    to lower-case characters.
    """
    folded = unicodedata.normalize("NFKC", text or "").lower()
    return unicodedata.normalize("NFKC", folded)


def interleave(columns: Sequence[Ragged]) -> Ragged:
    """Interleaves columns of texts by row: (rows * columns) texts."""
    lengths = np.stack([np.diff(column.offsets) for column in columns], axis=1)
    offsets = offsets_of(lengths.ravel())
    tokens = np.empty(offsets[-1], np.int32)
    for number, column in enumerate(columns):
        shift = offsets[number :: len(columns)][: len(lengths)] - column.offsets[:-1]
        tokens[np.repeat(shift, lengths[:, number]) + np.arange(len(column.tokens))] = column.tokens
    return Ragged(tokens, offsets)


def first(texts: Ragged, most: int) -> Ragged:
    """The first tokens of each text, at most `most`."""
    lengths = np.diff(texts.offsets)
    nth = np.arange(len(texts.tokens)) - np.repeat(texts.offsets[:-1], lengths)
    return Ragged(texts.tokens[nth < most], offsets_of(np.minimum(lengths, most)))


@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens that have an id.

    Attributes:
      rows: a table with columns kind, token, count: all unigrams, all bigrams ("two words"), all
        trigrams, each most frequent first. A token's id is its row.
    """

    rows: pa.Table

    @classmethod
    def build(
        cls, texts: Iterable[str | None], *, unigrams: int, bigrams: int, trigrams: int
    ) -> "Vocabulary":
        """The most frequent tokens of each kind.

        Ties are in order of code points, so the order of the texts does not matter.

        Args:
          texts: in any order; repeated texts count repeatedly.
          unigrams: the number that is kept; 200,000 in the paper.
          bigrams: 1,000,000 in the paper.
          trigrams: 64,000 in the paper.

        Raises:
          InputError: for a negative number.
        """
        sizes = (unigrams, bigrams, trigrams)
        if min(sizes) < 0:
            raise InputError(f"vocabulary sizes are {sizes}; expected none below 0")
        (keys, word_counts, words), (_, pair_counts, first, second), (packed, triple_counts) = (
            _count(texts)
        )
        words = pa.array(words, pa.large_string())
        rank = np.empty(len(words), int)
        rank[pc.sort_indices(words).to_numpy()] = np.arange(len(words))
        first, second = np.searchsorted(keys, first), np.searchsorted(keys, second)

        word = np.lexsort((rank, -word_counts))[:unigrams]
        pair = np.lexsort((rank[second], rank[first], -pair_counts))[:bigrams]
        triple = np.lexsort((packed, -triple_counts))[:trigrams]
        space = pa.scalar(" ", pa.large_string())
        tokens = (
            words.take(word),
            pc.binary_join_element_wise(words.take(first[pair]), words.take(second[pair]), space),
            pa.array(_unpack(packed[triple]), pa.large_string()),
        )
        counts = (word_counts[word], pair_counts[pair], triple_counts[triple])
        columns = {
            "kind": np.repeat(KINDS, [len(kind) for kind in tokens]),
            "token": pa.concat_arrays(tokens),
            "count": np.concatenate(counts),
        }
        return cls(pa.table(columns, _ROWS))

    @functools.cached_property
    def sizes(self) -> tuple[int, int, int]:
        """The numbers of unigrams, bigrams and trigrams."""
        return tuple(
            pc.sum(pc.equal(self.rows["kind"], kind), min_count=0).as_py() for kind in KINDS
        )

    def __len__(self) -> int:
        return len(self.rows)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the tokens and the format: if it is equal, texts have equal tokens."""
        digest = hashlib.sha256(f"{_FORMAT} {self.sizes}".encode())
        digest.update("\n".join(self.rows["token"].to_pylist()).encode())
        return digest.hexdigest()

    def save(self, path: epath.PathLike) -> None:
        """Writes one Parquet file atomically."""
        metadata = {_VERSION: _FORMAT, "sizes": str(self.sizes), "digest": self.digest}
        with files.replacing(path) as file:
            pq.write_table(self.rows.replace_schema_metadata(metadata), file)

    @classmethod
    def load(cls, path: epath.PathLike) -> "Vocabulary":
        """Reads what `save` wrote.

        Raises:
          InputError: if the file is missing, changed, of another format, or not a vocabulary.
        """
        path = epath.Path(path)
        if not path.is_file():
            raise InputError(f"{path}: no such file; expected a vocabulary")
        rows = parquet.read(path)
        metadata = {
            name.decode(): text.decode() for name, text in (rows.schema.metadata or {}).items()
        }
        if _VERSION not in metadata:
            raise InputError(f"{path}: no vocabulary; expected {_VERSION} in the file's metadata")
        if metadata[_VERSION] != _FORMAT:
            raise InputError(f"{path}: {_VERSION} is {metadata[_VERSION]}; expected {_FORMAT}")
        vocabulary = cls(rows.replace_schema_metadata())
        if rows.schema != _ROWS or vocabulary.digest != metadata.get("digest"):
            raise InputError(f"{path}: its rows are not those that were saved; expected its digest")
        return vocabulary

    def encode(self, texts: Iterable[str | None]) -> Ragged:
        """Token ids of texts: for each its unigrams in order, then its bigrams, then its trigrams.

        Tokens without an id are left out; a text that is None or "" has none.
        """
        parts = [self._encode(chunk) for chunk in _chunks(texts)]
        tokens, counts = (np.concatenate(column) for column in zip(*parts, strict=True))
        return Ragged(tokens, offsets_of(counts))

    def _encode(self, chunk: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """(int32 (tokens,), int64 (texts,)): the tokens of a chunk, and their number per text."""
        split = _split(chunk)
        counts = np.empty((len(chunk), len(KINDS)), np.int64)
        found = []
        for kind, lookup in enumerate(self._lookups):
            ids = lookup(split.keys[kind])
            known = ids >= 0
            counts[:, kind] = np.diff(offsets_of(known)[split.bounds[kind]])
            found.append(ids[known])
        ends = np.cumsum(counts).reshape(counts.shape)
        tokens = np.empty(counts.sum(), np.int32)
        for kind, ids in enumerate(found):
            # The shift of a text's tokens against their position among the tokens of their kind.
            shift = ends[:, kind] - np.cumsum(counts[:, kind])
            tokens[np.repeat(shift, counts[:, kind]) + np.arange(len(ids))] = ids
        return tokens, counts.sum(axis=1)

    @functools.cached_property
    def _lookups(self) -> tuple[Lookup, Lookup, Lookup]:
        unigrams, bigrams, _ = self.sizes
        tokens = self.rows["token"]
        words = _chunks(tokens.slice(0, unigrams).to_pylist())
        pairs = _chunks(tokens.slice(unigrams, bigrams).to_pylist())
        codes = _code_points("".join(tokens.slice(unigrams + bigrams).to_pylist()))
        return (
            Lookup(np.concatenate([_split(chunk).keys[0] for chunk in words]), 0),
            Lookup(np.concatenate([_split(chunk).keys[1] for chunk in pairs]), unigrams),
            Lookup(_pack(codes[0::3], codes[1::3], codes[2::3]), unigrams + bigrams),
        )


def _count(texts: Iterable[str | None]) -> tuple[tuple[np.ndarray, ...], ...]:
    """The distinct keys of each kind, ascending, their counts, and their spellings.

    Returns:
      (words, counts, spellings), (bigrams, counts, first words, second words), (trigrams, counts).
    """
    words, pairs, triples = Counts(), Counts(), Counts()
    for chunk in _chunks(texts):
        split = _split(chunk)
        word, pair, _ = split.keys
        key, count, start, end = count_distinct(word, np.ones(len(word), int), *split.spans)
        spelt = [split.joined[a:b] for a, b in zip(start, end, strict=True)]
        words.add(key, count, np.array(spelt, object))
        first, second = split.pairs
        pairs.add(*count_distinct(pair, np.ones(len(pair), int), word[first], word[second]))

    distinct = words.total()
    _, counts, spelt = distinct
    end = 0
    for chunk in _chunks(spelt):  # distinct words, since the trigrams of a word are always the same
        split = _split(chunk)
        start, end = end, end + len(chunk)
        count = np.repeat(counts[start:end], np.diff(split.bounds[2]))
        triples.add(*count_distinct(split.keys[2], count))
    return distinct, pairs.total(), triples.total()


class _Split(NamedTuple):
    """A chunk of texts in tokens; each triple is unigrams, bigrams, trigrams.

    Attributes:
      joined: the texts, with a separator before and after each.
      spans: int64 (words,) twice, where in `joined` each word begins and ends.
      pairs: int64 (bigrams,) twice, the first and second word of each bigram.
      keys: uint64 (tokens,) of each kind: hashes of words and bigrams, trigrams packed.
      bounds: int64 (texts + 1,) of each kind, where each text's tokens begin in `keys`.
    """

    joined: str
    spans: tuple[np.ndarray, np.ndarray]
    pairs: tuple[np.ndarray, np.ndarray]
    keys: tuple[np.ndarray, np.ndarray, np.ndarray]
    bounds: tuple[np.ndarray, np.ndarray, np.ndarray]


def _chunks(texts: Iterable[str | None]) -> Iterator[list[str]]:
    """Normalised texts, in chunks of bounded size unless one text is larger; the last may be []."""
    chunk, size = [], 0
    for text in texts:
        text = normalise(text)
        chunk.append(text)
        size += len(text) + 1
        if size >= _CHUNK:
            yield chunk
            chunk, size = [], 0
    yield chunk


def _split(texts: list[str]) -> _Split:
    joined = "\n".join(["", *texts, ""])
    codes = _code_points(joined)
    in_word = _word_characters()[codes]
    edges = np.flatnonzero(in_word[1:] != in_word[:-1]) + 1
    starts, ends = edges[0::2], edges[1::2]
    # The separator before each text, by counting: a text may have it, too, so a search would fail.
    borders = offsets_of(np.fromiter(map(len, texts), np.int64, len(texts)) + 1)
    character = np.flatnonzero(in_word)
    character_offsets = offsets_of(ends - starts)
    code = codes[character].astype(np.uint64)

    position = np.arange(len(character)) - np.repeat(character_offsets[:-1], ends - starts)
    mixed = mix(code | position.astype(np.uint64) << np.uint64(_CHARACTER))
    words = np.add.reduceat(mixed, character_offsets[:-1])

    left, right = codes[character - 1], codes[character + 1]
    left[character_offsets[:-1]], right[character_offsets[1:] - 1] = _BEGIN, _END

    word_bounds = np.searchsorted(starts, borders)
    follows = np.ones(len(starts), bool)
    follows[word_bounds[:-1][np.diff(word_bounds) > 0]] = False
    second = np.flatnonzero(follows)
    pair_counts = np.maximum(np.diff(word_bounds) - 1, 0)
    return _Split(
        joined=joined,
        spans=(starts, ends),
        pairs=(second - 1, second),
        keys=(words, mix(words[second - 1]) + words[second], _pack(left, code, right)),
        bounds=(word_bounds, offsets_of(pair_counts), character_offsets[word_bounds]),
    )


@functools.cache
def _word_characters() -> np.ndarray:
    """Bool (all code points,): whether they are letters, marks or numbers."""
    categories = map(unicodedata.category, map(chr, range(sys.maxunicode + 1)))
    return np.fromiter((category[0] in "LMN" for category in categories), bool)


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _pack(left: np.ndarray, middle: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Three code points as one uint64 with the same order."""
    packed = left.astype(np.uint64) << np.uint64(_CHARACTER) | middle
    return packed << np.uint64(_CHARACTER) | right


def _unpack(packed: np.ndarray) -> list[str]:
    codes = packed[:, None] >> np.array([2 * _CHARACTER, _CHARACTER, 0], np.uint64)
    codes &= np.uint64(2**_CHARACTER - 1)
    text = codes.astype("<u4").tobytes().decode("utf-32-le")
    return [text[i : i + 3] for i in range(0, len(text), 3)]
