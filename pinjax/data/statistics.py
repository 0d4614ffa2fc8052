"""Statistics of a data set's rows for its spec, counted once when the directory is finished."""

from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from etils import epath

from pinjax.data import catalogue, pairs
from pinjax.data.text import tokens

# The shares of items at which `token_quantiles` are given: dense where texts are long.
LEVELS = np.append(1 - 2.0 ** (-np.arange(1, 33) / 2), 1.0)
# The share of items between each level and the one before it.
MASSES = np.diff(LEVELS, prepend=0.0)

LENGTHS_FILE = "lengths.npy"  # of timelines
# The shares of users at which `length_quantiles` are given: the middles of equal parts.
LENGTH_SHARES = (np.arange(128) + 0.5) / 128


def measure(
    directory: epath.Path, vocabulary: epath.Path, train_end: int, tasks: tuple[str, ...]
) -> dict[str, Any]:
    """The counted fields of a `Spec`, by name.

    Args:
      directory: with the catalogue, the timelines if there are any, and the pairs if there are
        tasks.
      vocabulary: its file, if there are tasks.
      train_end: of the spec.
      tasks: of the spec.
    """
    items = catalogue.Catalogue(directory / catalogue.FILE)
    lengths = {name: _lengths(items, catalogue.TOKENS + name) for name in items.text_features}
    lengths[""] = sum(lengths.values(), np.zeros(len(items), np.int64))
    found: dict[str, Any] = {}
    if (lengths_file := directory / "timelines" / LENGTHS_FILE).exists():
        trained = np.load(lengths_file)
        found["length_quantiles"] = tuple(
            np.quantile(trained, LENGTH_SHARES, method="inverted_cdf").tolist()
        )
    found |= {
        "num_existing": int((items.created <= train_end).sum()),
        "num_images": int(_lengths(items, "images").sum()) if items.has_images else 0,
        "num_tokens": {name: int(lengths[name].sum()) for name in items.text_features},
        "longest": {name: int(of_items.max(initial=0)) for name, of_items in lengths.items()},
    }
    if not tasks:
        return found
    train = pairs.read(directory / "pairs" / "train.parquet")
    of_tasks = {name: train[train["task"] == row] for row, name in enumerate(tasks)}
    of_tasks = {name: of_task for name, of_task in of_tasks.items() if len(of_task)}
    counts = [np.bincount(of["item"], minlength=len(items)) for of in of_tasks.values()]
    engaged = sum(counts, np.zeros(len(items), np.int64)) > 0
    found["num_engaged"] = int(engaged.sum())
    found["largest_query"] = {
        name: float(np.bincount(of["query"]).max() / len(of)) for name, of in of_tasks.items()
    }
    searches, words = _search_tokens(directory, vocabulary)
    found["num_search_tokens"] = int(searches.sum())
    found["longest_search"] = int(searches.max(initial=1))
    of_queries = {
        name: np.bincount(of["query"], minlength=len(words)) for name, of in of_tasks.items()
    }
    found["search_quantiles"] = {
        name: quantiles(words, [count, count > 0]) for name, count in of_queries.items()
    }
    weights = {"": [engaged]}
    weights |= {name: [x, x > 0] for name, x in zip(of_tasks, counts, strict=True)}
    found["token_quantiles"] = {
        kind: {name: quantiles(x, either) for name, x in lengths.items()}
        for kind, either in weights.items()
        if either[0].any()
    }
    return found


def _lengths(items: catalogue.Catalogue, column: str) -> np.ndarray:
    """The length of each item's list in a column: int64 (items,)."""
    batches = pq.ParquetFile(items.path).iter_batches(columns=[column])
    lengths = [pc.list_value_length(batch.column(0)).to_numpy() for batch in batches]
    return np.concatenate([np.zeros(0, np.int64), *lengths])


def quantiles(lengths: np.ndarray, weights: list[np.ndarray]) -> list[int]:
    """The weighted quantiles of lengths at `LEVELS`.

    Args:
      lengths: int64 (items,), or of queries.
      weights: of items, (items,) each; the result is the maximum over these weightings.
    """
    cumulative = [np.cumsum(np.bincount(lengths, weight)) for weight in weights]
    found = [np.searchsorted(x, LEVELS * x[-1]) for x in cumulative]
    return np.max(found, axis=0).tolist()


def _search_tokens(directory: epath.Path, vocabulary: epath.Path) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of tokens, and of words among them, of each search: int64 (queries,)."""
    searches = pairs.Queries.read(directory / pairs.QUERIES_FILE).searches
    known = tokens.Vocabulary.load(vocabulary)
    values, offsets = known.encode(searches)
    words = np.concatenate([[0], np.cumsum(values < known.sizes[0])])
    return np.diff(offsets), np.diff(words[offsets])
