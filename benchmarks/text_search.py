"""TF-IDF and BM25 on texts of benchmarks/real_engagements.py, which starts this in .venv-peers.

    .venv-peers/bin/python benchmarks/text_search.py IN.json OUT.npz

IN has the method, the texts of products and queries, and for each query the row of the product that
it is, which is not an answer, or -1. OUT has the answers, int (queries, K), best first and -1
where there are fewer, for each way to cut a text into words. Every other setting is the library's
default: TF-IDF compares by cosine and keeps stop words, BM25 has k1 = 1.5 and b = 0.75 and drops
English ones.
"""

import json
import pathlib
import sys

import bm25s
import numpy as np
import Stemmer
from sklearn.feature_extraction.text import TfidfVectorizer

K = 100
PATTERNS = {"words": r"(?u)\b\w\w+\b", "words and single characters": r"(?u)\b\w+\b"}
STEMMERS = {"": None, ", stemmed": Stemmer.Stemmer("english")}
BATCH = 256  # queries at a time


def main(source: str, target: str) -> None:
    content = json.loads(pathlib.Path(source).read_text())
    search = {"TF-IDF": tf_idf, "BM25": bm25}[content["method"]]
    own = np.array(content["own"])
    found = {}
    for words, pattern in PATTERNS.items():
        for stems, stemmer in STEMMERS.items():
            rows, scores = search(content["products"], content["queries"], pattern, stemmer)
            found[words + stems] = answers(rows, scores, own)
    np.savez(target, **found)


def answers(rows: np.ndarray, scores: np.ndarray, own: np.ndarray) -> np.ndarray:
    """The first K of K + 1 results that have a word of the query and are not the query itself."""
    rows = np.where((scores > 0) & (rows != own[:, None]), rows, -1)
    last = np.argsort(rows < 0, axis=1, kind="stable")  # what is not an answer goes to the end
    return np.take_along_axis(rows, last, axis=1)[:, :K]


def cut(
    texts: list[str], pattern: str, stemmer: Stemmer.Stemmer, stop: str | list[str]
) -> list[list[str]]:
    return bm25s.tokenize(
        texts,
        token_pattern=pattern,
        stopwords=stop,
        stemmer=stemmer,
        return_ids=False,
        show_progress=False,
    )


def tf_idf(products: list[str], queries: list[str], pattern: str, stemmer: Stemmer.Stemmer):
    vectorizer = TfidfVectorizer(analyzer=lambda words: words)
    held = vectorizer.fit_transform(cut(products, pattern, stemmer, [])).T.tocsr()
    vectors = vectorizer.transform(cut(queries, pattern, stemmer, []))
    rows = np.empty((len(queries), K + 1), int)
    scores = np.empty(rows.shape)
    for start in range(0, len(queries), BATCH):
        part = slice(start, start + BATCH)
        similar = (vectors[part] @ held).toarray()
        top = np.argpartition(-similar, K, axis=1)[:, : K + 1]
        order = np.argsort(-np.take_along_axis(similar, top, axis=1), axis=1, kind="stable")
        rows[part] = np.take_along_axis(top, order, axis=1)
        scores[part] = np.take_along_axis(similar, rows[part], axis=1)
    return rows, scores


def bm25(products: list[str], queries: list[str], pattern: str, stemmer: Stemmer.Stemmer):
    index = bm25s.BM25()
    index.index(cut(products, pattern, stemmer, "english"), show_progress=False)
    words = cut(queries, pattern, stemmer, "english")
    return index.retrieve(words, k=K + 1, show_progress=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
