"""How fast one core tokenises titles, beside the same written plainly in Python.

    python -m benchmarks.text
    python -m benchmarks.text --parquet=products.parquet --column=title

It counts a vocabulary of the published sizes over all titles. Then it measures, on some of them,
turning texts into token ids, and counting them into a vocabulary, both ways in turn on the same
core; the results are checked to be equal. Titles are pseudo-random, of about 50 characters,
unless they are read from a file.
"""

import collections
import itertools
import os
import statistics
import time
import unicodedata

import numpy as np
import pyarrow.parquet as pq
from absl import app, flags

from pinjax.data.text import tokens

_PARQUET = flags.DEFINE_string("parquet", None, "a file of titles")
_COLUMN = flags.DEFINE_string("column", None, "the file's column of titles")
_TITLES = flags.DEFINE_integer("titles", 20_000, "titles to a measurement")

SIZES = {"unigrams": 200_000, "bigrams": 1_000_000, "trigrams": 64_000}


def main(_):
    os.sched_setaffinity(0, {0})
    titles = _read() if _PARQUET.value else _pseudo_random(200_000)
    vocabulary = tokens.Vocabulary.build(titles, **SIZES)
    rows = vocabulary.rows.to_pydict()
    ids = {row: i for i, row in enumerate(zip(rows["kind"], rows["token"], strict=True))}
    ids = {kind: {t: i for (k, t), i in ids.items() if k == kind} for kind in tokens.KINDS}
    some = titles[: _TITLES.value]

    encoded = vocabulary.encode(some)
    plain = [_encode(title, ids) for title in some]
    assert encoded.tokens.tolist() == list(itertools.chain(*plain))
    counted = tokens.Vocabulary.build(some, **SIZES).rows.to_pydict()
    assert list(zip(counted["token"], counted["count"], strict=True)) == _build(some)

    rates = collections.defaultdict(list)
    for _ in range(5):
        for name, call in {
            "ids, vectorised": lambda: vocabulary.encode(some),
            "ids, plain Python": lambda: [_encode(title, ids) for title in some],
            "vocabulary, vectorised": lambda: tokens.Vocabulary.build(some, **SIZES),
            "vocabulary, plain Python": lambda: _build(some),
        }.items():
            start = time.perf_counter()
            call()
            rates[name].append(len(some) / (time.perf_counter() - start))

    characters = statistics.mean(len(title or "") for title in some)
    print(f"{len(some):,} titles of {characters:.0f} characters, median of 5, one core")
    print("vocabulary of {:,} unigrams, {:,} bigrams, {:,} trigrams".format(*vocabulary.sizes))
    medians = {name: statistics.median(of_name) for name, of_name in rates.items()}
    for name, rate in medians.items():
        print(f"{name:26}{rate:9,.0f} titles/s")
    for task in ("ids", "vocabulary"):
        ratio = medians[f"{task}, vectorised"] / medians[f"{task}, plain Python"]
        print(f"{'ratio, ' + task:26}{ratio:9.1f}")


def _read():
    return pq.read_table(_PARQUET.value, columns=[_COLUMN.value])[_COLUMN.value].to_pylist()


def _pseudo_random(count):
    """Titles of 4 to 12 words with Zipf frequencies, made up of 1 to 10 letters each."""
    rng = np.random.default_rng(0)
    letters = rng.choice(list("etaoinshrdlucmfw1230é"), 1_000_000)
    ends = np.cumsum(rng.integers(1, 11, 150_000))
    spellings = ["".join(letters[a:b]) for a, b in itertools.pairwise(ends)]
    odds = 1 / np.arange(1, len(spellings) + 1)
    lengths = rng.integers(4, 13, count)
    words = iter(rng.choice(len(spellings), lengths.sum(), p=odds / odds.sum()))
    return [" ".join(spellings[next(words)].title() for _ in range(n)) for n in lengths]


class _Separators(dict):
    """For str.translate: everything but letters, marks and numbers becomes a space."""

    def __missing__(self, code):
        self[code] = code if unicodedata.category(chr(code))[0] in "LMN" else " "
        return self[code]


_SEPARATORS = _Separators()


def _tokens(title):
    words = tokens.normalise(title).translate(_SEPARATORS).split()
    bigrams = [f"{first} {second}" for first, second in itertools.pairwise(words)]
    trigrams = [f"<{word}>"[i : i + 3] for word in words for i in range(len(word))]
    return {"unigram": words, "bigram": bigrams, "trigram": trigrams}


def _encode(title, ids):
    found = _tokens(title).items()
    return [ids[kind][token] for kind, of_kind in found for token in of_kind if token in ids[kind]]


def _build(titles):
    """(token, count) of each kind, most frequent first."""
    counts = {kind: collections.Counter() for kind in tokens.KINDS}
    for title in titles:
        for kind, found in _tokens(title).items():
            counts[kind].update(found)
    rows = []
    for of_kind, size in zip(counts.values(), SIZES.values(), strict=True):
        rows += sorted(of_kind.items(), key=lambda item: (-item[1], item[0]))[:size]
    return rows


if __name__ == "__main__":
    app.run(main)
