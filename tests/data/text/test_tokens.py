"""Tokens and vocabularies, against a tokeniser that goes through a text character by character."""

import collections
import itertools
import pickle
import sys
import unicodedata

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pinjax.data.text import tokens
from pinjax.errors import InputError

ALL = dict(unigrams=10**6, bigrams=10**6, trigrams=10**6)
FEW = dict(unigrams=60, bigrams=50, trigrams=90)

# A few characters of each script, so that tokens repeat.
SCRIPTS = {
    "latin": "aAbBéÉßẞøŒğ",
    "turkish and Kelvin": "iIİı\u212aK",
    "greek": "αΑσςΣᾼὈ",
    "cyrillic": "яЯёЁи\u0306",
    "arabic": "مرحبا\u064b\ufefb\ufdfa٣",
    "hebrew": "שלוםש\u05c1",
    "devanagari": "क\u094dष\u093f\u200d२",
    "thai": "ไทย\u0e49\u0e33",
    "chinese": "漢字語\uf900\U00020000",
    "hangul": "한글\u1112\u1161\u11ab",
    "japanese": "かがカ\uff76\uff9e\u3099ー々",
    "emoji": "😀❤\ufe0f👩\u200d👧🇩🇪1\u20e3🏽",
    "full width": "ＡａＢ１\uff0d\u3000",
    "ligatures": "ﬁﬀǆǅ㎏℡™½²①Ⅷ",
    "mathematical": "𝔘𝔞𝟙ϒ\u03d3",
    "marks": "J\u030c\u0323\u0301\u0345\u20dd",
    "punctuation": " \t\n\r.,-_'’\u00b4\u00a8<>#\u00a0\u2028\ufeff",
    "controls": "\x00\x01\x1f\x7f\x85\u202e\ud800\udfff\ue000\U0010ffff",
}

ADVERSARIAL = [
    *(None, "", " ", "\n", "\n\n", "a\nb", "\na", "a\n", "a b", "b a", "a\x00b", "\x00"),
    *("\ud800", "a\udc00b", "\ud83d\ude00", "😀", "👩\u200d👩\u200d👧", "1\ufe0f\u20e3 ❤\ufe0f"),
    *("\u0301", "\u0301a", "e\u0301", "\u0301\u0323 x", "a \u0301", "İ", "İstanbul I ı", "J\u030c"),
    *("ΑΣ ΣΑΣ Σ", "ΑΣ", "Σ", "ΑΣ\u0301", "ΑΣ.Β", "ΑΣ\u0345\u0323", "\u03d3\u0301"),
    *("<a> <b", "a<b>c", "<", ">", "ﬁn ﬁ", "ＡＢＣ　ａｂｃ", "½ ² ℡", "\u00b4x", "\ufdfa"),
    *("שלום world مرحبا", "\u202eabc\u202c", "\ufeffa", "a\u2028b", "\U0010ffff", "a_b-c'd"),
]


def words_of(string):
    folded = unicodedata.normalize("NFKC", string or "").lower()
    words = [""]
    for character in unicodedata.normalize("NFKC", folded):
        if unicodedata.category(character)[0] in "LMN":
            words[-1] += character
        else:
            words.append("")
    return [word for word in words if word]


def tokens_of(string):
    """Unigrams, bigrams and trigrams of one text."""
    words = words_of(string)
    marked = [f"<{word}>" for word in words]
    return (
        words,
        [f"{first} {second}" for first, second in itertools.pairwise(words)],
        [word[i : i + 3] for word in marked for i in range(len(word) - 2)],
    )


def rows_of(strings, **sizes):
    rows = []
    for kind, of_kind in enumerate(zip(*map(tokens_of, strings), strict=True)):
        counts = collections.Counter(itertools.chain(*of_kind))
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        name = tokens.KINDS[kind]
        rows += [(name, *item) for item in ordered[: sizes[f"{name}s"]]]
    return rows


def encode(strings, rows):
    ids = {(kind, token): i for i, (kind, token, _) in enumerate(rows)}
    encoded = []
    for string in strings:
        kinds = zip(tokens.KINDS, tokens_of(string), strict=True)
        found = [ids.get((kind, token)) for kind, of_kind in kinds for token in of_kind]
        encoded.append([i for i in found if i is not None])
    return encoded


def as_tuples(vocabulary):
    return list(zip(*vocabulary.rows.to_pydict().values(), strict=True))


def as_lists(ragged):
    assert ragged.tokens.dtype == np.int32
    assert ragged.offsets.dtype == np.int64
    assert ragged.offsets[0] == 0
    assert ragged.offsets[-1] == len(ragged.tokens)
    return [ragged.tokens[a:b].tolist() for a, b in itertools.pairwise(ragged.offsets)]


def random_texts(rng, count, longest=30):
    """Texts of one script or all scripts, with and without separators."""
    pools = [*SCRIPTS.values(), "".join(SCRIPTS.values())]
    texts = []
    for _ in range(count):
        pool = list(pools[rng.integers(len(pools))] + " " * rng.integers(4))
        texts.append("".join(rng.choice(pool, rng.integers(longest))))
    return texts


@pytest.mark.parametrize("sizes", [ALL, FEW, dict(unigrams=5, bigrams=0, trigrams=0)])
def test_vocabulary_and_ids_are_those_of_a_plain_tokeniser(rng, sizes):
    texts = random_texts(rng, 1500) + ADVERSARIAL
    vocabulary = tokens.Vocabulary.build(texts, **sizes)
    rows = rows_of(texts, **sizes)
    assert as_tuples(vocabulary) == rows
    assert len(vocabulary) == len(rows)
    assert vocabulary.sizes == tuple(sum(row[0] == kind for row in rows) for kind in tokens.KINDS)
    others = ADVERSARIAL + random_texts(rng, 500)
    assert as_lists(vocabulary.encode(others)) == encode(others, rows)


@pytest.mark.parametrize("string", ADVERSARIAL)
def test_each_adversarial_text_alone(string):
    vocabulary = tokens.Vocabulary.build([string], **ALL)
    rows = rows_of([string], **ALL)
    assert as_tuples(vocabulary) == rows
    assert as_lists(vocabulary.encode([string, None, string])) == encode([string, "", string], rows)


def test_very_long_words(rng):
    long = "".join(rng.choice(list("abcé漢"), 30_000))
    texts = [long, f"{long[:-1]}z {long}", "x", long[1:] + " " + long]
    vocabulary = tokens.Vocabulary.build(texts, **ALL)
    assert as_tuples(vocabulary) == rows_of(texts, **ALL)
    assert as_lists(vocabulary.encode(texts)) == encode(texts, as_tuples(vocabulary))


def test_no_texts_and_no_tokens():
    for texts in ([], [None, "", "--"]):
        vocabulary = tokens.Vocabulary.build(texts, **ALL)
        assert len(vocabulary) == 0
        assert vocabulary.sizes == (0, 0, 0)
        assert as_lists(vocabulary.encode(["a", None])) == [[], []]
        assert as_lists(vocabulary.encode([])) == []


def test_normalising_twice_changes_nothing(rng):
    characters = list(map(chr, range(sys.maxunicode + 1)))
    marks = [c for c in map(chr, range(0x3100)) if unicodedata.combining(c)]
    cased = [c for c in characters if c.lower() != c]
    pairs = [c + rng.choice(marks) for c in cased for _ in range(5)]
    for string in [*characters, *pairs, *random_texts(rng, 3000), *filter(None, ADVERSARIAL)]:
        once = tokens.normalise(string)
        assert tokens.normalise(once) == once
        assert unicodedata.is_normalized("NFKC", once)
        assert once.lower() == once
    assert tokens.normalise("J\u030cÉﬁ Ｋ") == "ǰéfi k"
    assert tokens.normalise(None) == ""


@pytest.mark.parametrize("characters", [1, 7, 100])
def test_chunks_do_not_matter(rng, monkeypatch, characters):
    texts = random_texts(rng, 60) + ADVERSARIAL
    full = tokens.Vocabulary.build(texts, **FEW)
    encoded = as_lists(full.encode(texts))
    monkeypatch.setattr(tokens, "_CHUNK", characters)
    parts = tokens.Vocabulary.build(iter(texts), **FEW)
    assert parts.rows.equals(full.rows)
    assert parts.digest == full.digest
    assert as_lists(parts.encode(iter(texts))) == encoded


def test_the_order_of_texts_does_not_matter(rng):
    texts = random_texts(rng, 300) + ADVERSARIAL
    shuffled = [texts[i] for i in rng.permutation(len(texts))]
    first, second = (tokens.Vocabulary.build(strings, **FEW) for strings in (texts, shuffled))
    assert first.rows.equals(second.rows)


def test_a_saved_vocabulary_is_the_same(rng, tmp_path):
    texts = random_texts(rng, 400) + ADVERSARIAL
    vocabulary = tokens.Vocabulary.build(texts, **FEW)
    path = tmp_path / "vocabulary.parquet"
    for _ in range(2):  # the second replaces the first
        vocabulary.save(path)
    assert list(tmp_path.iterdir()) == [path]
    table = pq.read_table(path)
    assert table.column_names == ["kind", "token", "count"]
    assert list(zip(*table.to_pydict().values(), strict=True)) == rows_of(texts, **FEW)
    assert table.schema.metadata[b"pinjax.vocabulary"] == b"1"
    assert table.schema.metadata[b"sizes"] == b"(60, 50, 90)"

    loaded = tokens.Vocabulary.load(path)
    assert loaded.rows.equals(vocabulary.rows)
    assert loaded.digest == vocabulary.digest
    assert loaded.sizes == vocabulary.sizes
    assert as_lists(loaded.encode(texts)) == as_lists(vocabulary.encode(texts))
    assert pickle.loads(pickle.dumps(loaded)).digest == vocabulary.digest


def test_the_digest_is_that_of_the_tokens():
    texts = ["red table", "red chair"]
    digest = tokens.Vocabulary.build(texts, **ALL).digest
    assert len(bytes.fromhex(digest)) == 32
    assert tokens.Vocabulary.build(texts * 2, **ALL).digest == digest
    others = [
        tokens.Vocabulary.build(["red table", "red chain"], **ALL),
        tokens.Vocabulary.build(texts, **{**ALL, "bigrams": 1}),
        tokens.Vocabulary.build(["red table", "chair red"], **ALL),
    ]
    assert len({digest, *(other.digest for other in others)}) == 4


def test_refusals(tmp_path):
    path = tmp_path / "vocabulary.parquet"
    vocabulary = tokens.Vocabulary.build(["red table"], **ALL)
    saved = {
        b"pinjax.vocabulary": b"1",
        b"sizes": b"(2, 1, 8)",
        b"digest": vocabulary.digest.encode(),
    }

    def refused(match):
        with pytest.raises(InputError, match=match) as error:
            tokens.Vocabulary.load(path)
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)

    refused("no such file")
    path.write_bytes(b"red,table\n")
    refused("not readable as Parquet")
    pq.write_table(vocabulary.rows, path)
    refused("no vocabulary")
    rows = vocabulary.rows
    pq.write_table(rows.replace_schema_metadata({**saved, b"pinjax.vocabulary": b"2"}), path)
    refused("is 2; expected 1")
    pq.write_table(rows.slice(1).replace_schema_metadata(saved), path)
    refused("not those that were saved")
    pq.write_table(rows.drop_columns("count").replace_schema_metadata(saved), path)
    refused("not those that were saved")
    pq.write_table(pa.table({"a": [1]}).replace_schema_metadata(saved), path)
    refused("not those that were saved")
    with pytest.raises(InputError, match="expected none below 0"):
        tokens.Vocabulary.build(["a"], unigrams=1, bigrams=-1, trigrams=1)


@pytest.mark.parametrize("columns", [1, 3])
def test_interleave_is_thing_by_thing(rng, columns):
    lists = [[rng.integers(0, 9, rng.integers(0, 4)) for _ in range(5)] for _ in range(columns)]

    def ragged(lists):
        offsets = np.cumsum([0, *map(len, lists)])
        return tokens.Ragged(np.concatenate(lists).astype(np.int32), offsets)

    found = tokens.interleave([ragged(column) for column in lists])
    expected = ragged([lists[column][thing] for thing in range(5) for column in range(columns)])
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_array_equal(found.offsets, expected.offsets)
