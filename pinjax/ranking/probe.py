"""A linear probe: how well an embedding predicts an attribute of items, and the values it fills in.

Items with the attribute are split at random into those that the probe is trained on and those that
it is measured on. The same probe on the items' words says how well their texts predict it.
"""

import dataclasses
import pathlib
import tempfile
import warnings
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import scipy.sparse

from pinjax.data import catalogue
from pinjax.data.dataset import Dataset
from pinjax.data.sources import column_map, reading
from pinjax.data.sources.columns import Column
from pinjax.data.sources.engine import name_of, open_database
from pinjax.errors import InputError
from pinjax.evaluation import metrics
from pinjax.evaluation.metrics import Estimate
from pinjax.ids import rows_of

TOPIC = "topic"  # the attribute that the data set itself holds
HELD_OUT = 0.2  # of the items with the attribute
LEAST = 20  # items with a value; values of fewer are left out
MOST = 50_000  # items that a probe is trained on
FREQUENT, WORDS = "the most frequent value", "the words"
_STRENGTHS = (10.0, 1.0, 0.1, 0.01)  # inverse regularisation
_SOLVER = {"max_iter": 100, "tol": 1e-3}


@dataclasses.dataclass(frozen=True)
class Attribute:
    """An attribute of all items.

    Attributes:
      code: int64 (items,), row of `values`, -1 where it is missing.
      values: the distinct values.
    """

    code: np.ndarray
    values: pa.Array


def topics(dataset: Dataset) -> Attribute:
    """The topics that the data set holds."""
    topic = dataset.catalogue.topics
    values, code = np.unique(topic[topic >= 0], return_inverse=True)
    found = np.full(len(topic), -1)
    found[topic >= 0] = code
    return Attribute(found, pa.array(values))


def read(names: Sequence[str], column: str, item_id: str, ids: np.ndarray) -> Attribute:
    """A column of users' files; of an item with several rows, the first value.

    Args:
      names: of the files, or globs.
      column: of the attribute.
      item_id: the column of ids.
      ids: own ids of the data set's items.

    Raises:
      InputError: for a file without these columns, a column of lists or of several types, or none
        of the ids.
    """
    wanted = catalogue.id_array(ids)
    kind = "BIGINT" if pa.types.is_integer(wanted.type) else "VARCHAR"
    item, value = f"TRY_CAST({name_of(item_id)} AS {kind})", name_of(column)
    paths, section = reading.expand("items", names), column_map.default().catalogue
    with (
        tempfile.TemporaryDirectory() as directory,
        open_database(pathlib.Path(directory), None) as database,
    ):
        files = reading.open_files(database, paths, [item_id, column], section)
        for file in files:
            Column(file, item_id).id(integers=False)  # refuses what is no id
            Column(file, column).text()  # and this what is no single value
        found = [
            database.table(
                f"SELECT {item} AS id, arg_min({value}, {reading.ROW}) AS value "
                f"FROM {file.relation} WHERE {value} IS NOT NULL GROUP BY 1"
            )
            for file in files
        ]
    try:
        table = pa.concat_tables(found, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        types = ", ".join(str(of_file["value"].type) for of_file in found)
        raise InputError(
            f"{', '.join(paths)}: {column} is {types}; expected one type in all"
        ) from None
    place = rows_of(wanted, table["id"].cast(wanted.type))
    if (place < 0).all():
        raise InputError(f"{paths[0]}: no {item_id} with a {column} is an item of the data set")
    values = table["value"].take(place[place >= 0]).combine_chunks().dictionary_encode()
    code = np.full(len(ids), -1)
    code[place >= 0] = values.indices.to_numpy()
    return Attribute(code, values.dictionary)


@dataclasses.dataclass(frozen=True, eq=False)
class Probed:
    """The results of a probe.

    Attributes:
      rows: (method, metrics by name), for a table.
      items: (training items, held-out items).
      values: how many values there are to predict.
      missing: int64 (n,), rows of the items without the attribute that have a vector.
      code: int64 (n,), the value filled in for each of them, row of the attribute's values.
      probability: float32 (n,), of this value.
    """

    rows: list[tuple[str, dict[str, Estimate]]]
    items: tuple[int, int]
    values: int
    missing: np.ndarray
    code: np.ndarray
    probability: np.ndarray


def probe(
    attribute: Attribute,
    vectors: dict[str, np.ndarray],
    words: scipy.sparse.csr_array | None,
    seed: int = 0,
) -> Probed:
    """Trains probes of an attribute and measures them on the same held-out items.

    Args:
      attribute: of all items.
      vectors: by name, float32 (items, dim), zeros where there is none; the first fills in.
      words: (items, words), see `words_of`; None: the data set has no texts.
      seed: of the split.

    Raises:
      InputError: unless two values have `LEAST` items.
    """
    # Imported here: other commands start without it.
    from sklearn import feature_extraction, preprocessing
    from sklearn import metrics as sklearn_metrics

    has_vector = np.logical_and.reduce([x.any(axis=1) for x in vectors.values()])
    counts = np.bincount(attribute.code[has_vector & (attribute.code >= 0)])
    frequent = np.flatnonzero(counts >= LEAST)
    if len(frequent) < 2:
        raise InputError(
            f"{len(frequent)} values of the attribute have {LEAST} items or more with a vector; "
            "expected two such values at the least"
        )
    known = np.flatnonzero(has_vector & np.isin(attribute.code, frequent))
    order = np.random.default_rng(seed).permutation(known)
    number = round(HELD_OUT * len(known))
    held_out, training = order[:number], order[number : number + MOST]
    truth = attribute.code[held_out]
    most_frequent = np.bincount(attribute.code[training]).argmax()
    predicted = {FREQUENT: np.full(len(held_out), most_frequent)}
    if words is not None:
        weighted = feature_extraction.text.TfidfTransformer(sublinear_tf=True).fit(words[training])
        model = _fit(weighted.transform(words[training]), attribute.code[training])
        predicted[WORDS] = model.predict(weighted.transform(words[held_out]))
    models = {}
    for name, table in vectors.items():
        scaled = preprocessing.StandardScaler().fit(table[training])
        models[name] = scaled, _fit(scaled.transform(table[training]), attribute.code[training])
        predicted[name] = models[name][1].predict(scaled.transform(table[held_out]))
    correct = {name: (code == truth).astype(np.float64) for name, code in predicted.items()}
    rows = []
    for name, code in predicted.items():
        f1 = sklearn_metrics.f1_score(truth, code, average="macro", zero_division=0)
        cells = {"accuracy": metrics.estimate(correct[name]), "macro F1": Estimate(float(f1))}
        if name in vectors:
            for other in (FREQUENT, WORDS):
                if other in correct:
                    lift = metrics.paired_difference(correct[name], correct[other])
                    cells[f"over {other}"] = lift
        rows.append((name, cells))
    name = next(iter(vectors))
    scaled, model = models[name]
    missing = np.flatnonzero(has_vector & (attribute.code < 0))
    chances = np.zeros((0, len(model.classes_)))
    if len(missing):
        chances = model.predict_proba(scaled.transform(vectors[name][missing]))
    return Probed(
        rows=rows,
        items=(len(training), len(held_out)),
        values=len(frequent),
        missing=missing,
        code=model.classes_[chances.argmax(axis=1)],
        probability=chances.max(axis=1, initial=0).astype(np.float32),
    )


def _fit(features: np.ndarray | scipy.sparse.csr_array, code: np.ndarray):
    """A logistic regression; its strength is what does best on a fifth of the items."""
    from sklearn import exceptions, linear_model

    def fit(strength, rows):
        model = linear_model.LogisticRegression(C=strength, **_SOLVER)
        return model.fit(features[rows], code[rows])

    rows = np.arange(len(code))
    chosen = rows % 5 == 0
    with warnings.catch_warnings():
        # A probe that has not converged is measured all the same.
        warnings.simplefilter("ignore", exceptions.ConvergenceWarning)
        best = max(_STRENGTHS, key=lambda x: fit(x, ~chosen).score(features[chosen], code[chosen]))
        return fit(best, rows)


def words_of(dataset: Dataset, but: str) -> scipy.sparse.csr_array | None:
    """How often each item has each word, (items, words); None if it has no texts.

    Args:
      dataset: of the items.
      but: name of a text that is left out, since it is what the probe should tell.
    """
    texts = [dataset.catalogue.text(x) for x in dataset.catalogue.text_features if x != but]
    if not texts:
        return None
    words = dataset.spec.vocabulary[0]
    total = scipy.sparse.csr_array((len(dataset.catalogue), words))
    for tokens, offsets in texts:
        item = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        is_word = tokens < words  # of a vocabulary, words come first
        ones = np.ones(is_word.sum(), np.float32)
        total += scipy.sparse.csr_array((ones, (item[is_word], tokens[is_word])), total.shape)
    return total
