"""Any engagements in: files of events and products, read by a column map, out as `pairs`.

What led to an engagement is a search, or an item that came shortly before it in a basket or a
sequence. Frozen vectors are the user's own, or they are made of texts: words, weighted by how few
texts have them, and a truncated SVD (latent semantic analysis). Such vectors stand in for those of
PinSage and SearchSage, which ItemSage and SearchSage are trained against as published; they know
words, not engagements.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import ml_collections
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse
import Stemmer
from etils import epath

from pinjax.data import column_map, logs, pairs, prepared, schema, tables, text
from pinjax.data import items as items_lib
from pinjax.errors import InputError

VERSION = "1.2.0"
_SATURATION = 1.5  # k: how many times a word comes before more of it hardly matters
_SECOND = 1_000_000
_LATEST = 2**32  # `pairs` holds seconds in 32 bits: 2106
_TASKS = 2**8  # `pairs.PAIR` holds a task in 8 bits


@dataclasses.dataclass(frozen=True)
class Items:
    """A table of items.

    Attributes:
      ids: the items' own ids, int64 or text, each once.
      topics: int32 (items,), -1 where unknown.
      created: unix seconds, float64 (items,), NaN where unknown.
      images: float16 (images, dim), the vectors of all images, item by item, or None.
      image_counts: int (items,), how many images each item has.
      texts: by name of the feature, each item's text or None.
    """

    ids: pa.Array
    topics: np.ndarray
    created: np.ndarray
    images: np.ndarray | None
    image_counts: np.ndarray
    texts: dict[str, list[str | None]]


@dataclasses.dataclass(frozen=True)
class QueryVectors:
    """A table of queries.

    Attributes:
      path: the file, for messages.
      ids: texts of searches, or ids of items, int64 or text; each once.
      vectors: float16 (queries, dim).
    """

    path: epath.Path
    ids: pa.Array
    vectors: np.ndarray


@dataclasses.dataclass(frozen=True)
class Engagements:
    """Queries and what they led to.

    Attributes:
      kind: of all queries, "text" or "image".
      queries: texts of searches, or ids of items.
      query_items: int (queries,), the rows of the items that the queries are; None for searches.
      pairs: `pairs.PAIR` (n,), in order of time, `task` a row of `names`.
      names: of the kinds of engagement, most frequent first.
      key: int (n,), which of `keys` each pair is split by.
      keys: normalised texts of searches, or ids of items or groups.
      first: unix seconds of each item's first row, float64 (items,), NaN for an item without any;
        0 where there are no times.
    """

    kind: str
    queries: list[str]
    query_items: np.ndarray | None
    pairs: np.ndarray
    names: tuple[str, ...]
    key: np.ndarray
    keys: list[int | str]
    first: np.ndarray


def prepare(
    events: Sequence[epath.PathLike],
    items: Sequence[epath.PathLike],
    out: epath.PathLike,
    config: ml_collections.ConfigDict,
    queries: epath.PathLike | None = None,
) -> tuple[pairs.Metadata, bool]:
    """Prepares engagements, unless `out` already holds just this.

    Args:
      events: files of engagements.
      items: the file of items, and those of `config.sides`.
      out: the data set's directory; written under another name, then renamed.
      config: a column map, see `column_map.engagements`.
      queries: a file of queries' own vectors, or None.

    Returns:
      (what is known about the data set, whether it was made now).

    Raises:
      InputError: for wrong input; nothing is left behind.
    """
    column_map.check_engagements(config, own_queries=bool(queries))
    if not items:
        raise InputError("--items is missing; expected a file of the items that are engaged with")
    out = epath.Path(out)
    files = [*events, *items, *([queries] if queries else [])]
    digest = prepared.digest_of(files, config, VERSION)
    if prepared.is_there(out, digest):
        return pairs.read(out).metadata, False

    table = read_items(items, config)
    given = read_queries(queries, config) if queries else None
    made, report = read_events(events, table, config, given)
    train_end = prepared.train_end_of(made.pairs["time"], config.split) if config.events.time else 0
    splits = split(made, table.ids, train_end, config)
    trained = np.zeros(len(table.ids), bool)
    trained[made.pairs["product"][splits == 0]] = True
    vocabulary = text.Vocabulary.build(
        itertools.chain.from_iterable(
            itertools.compress(column, trained) for column in table.texts.values()
        ),
        **config.vocabulary,
    )
    texts = {name: vocabulary.encode(column) for name, column in table.texts.items()}
    images, image_counts, vectors = _vectors(items[0], table, made, given, config)

    products = pairs.Products(
        ids=table.ids.to_numpy(zero_copy_only=False),
        topics=table.topics,
        created=np.nan_to_num(np.fmin(table.created, made.first)).astype(np.uint32),
        images=images,
        image_offsets=np.concatenate([[0], np.cumsum(image_counts)]),
        texts=texts,
    )
    asked = pairs.Queries(
        ids=np.array(made.queries, object),
        kinds=np.full(len(made.queries), made.kind, object),
        vectors=vectors,
        products=np.full(len(vectors), -1) if made.query_items is None else made.query_items,
    )
    tasks = tuple(f"{made.kind}/{name}" for name in made.names)
    report |= {
        "queries": len(asked),
        "queries without a vector": int((~vectors.any(axis=1)).sum()),
        "numbers in a query's vector": vectors.shape[1],
        "products": len(products),
        "products without an image": int((image_counts == 0).sum()),
        "products in training": int(trained.sum()),
        **{f"{kind}s": size for kind, size in zip(text.KINDS, vocabulary.sizes, strict=True)},
    }
    if config.events.time:
        report["train_end"] = prepared.iso(train_end)
    for row, name in enumerate(schema.SPLITS):
        count = np.bincount(made.pairs["task"][splits == row], minlength=len(tasks))
        report |= {f"{name}, {task}": int(n) for task, n in zip(tasks, count, strict=True)}
    metadata = pairs.Metadata(config.name, tasks, train_end, digest, report)
    try:
        pairs.write(out, metadata, products, asked, vocabulary, made.pairs, splits)
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}") from error
    prepared.is_there(out, digest)  # refuses what another process has written there meanwhile
    return metadata, True


def read_items(paths: Sequence[epath.PathLike], config: ml_collections.ConfigDict) -> Items:
    """Reads a table of items by the `catalogue` section of a column map.

    Args:
      paths: the file of items, then those in which its columns are looked up, in any order.
      config: a column map.

    Raises:
      InputError: for wrong input; here no bad row is tolerated.
    """
    names, path = config.catalogue, epath.Path(paths[0])
    columns = [column for _, column in names.texts]
    wanted = [names.id, *columns, names.images, names.created, names.topic]
    table = _looked_up(paths, list(filter(None, wanted)), config)
    ids = tables.ids(path, names.id, table[names.id]).combine_chunks()
    checks = [tables.Check("item", names.id, "an item's id", ids.is_null().to_numpy(False))]
    distinct = ids.unique()
    repeated = _repeated(ids)
    first = np.flatnonzero(~repeated)
    if not names.repeats:
        checks.append(tables.Check("item", names.id, "each item once", repeated))
    created = np.full(len(table), np.nan)
    if names.created:
        column = table[names.created]
        created = tables.moments(path, names.created, column, names.created_unit) / _SECOND
        bad = column.is_valid().to_numpy() & ~((created >= 0) & (created < _LATEST))
        checks.append(tables.Check("created", names.created, "a moment from 1970 to 2106", bad))
    images, image_counts = None, np.zeros(len(table), int)
    if names.images:
        images, row, bad = _images(path, names.images, table[names.images])
        expected = f"{images.shape[1]} finite numbers an image, as in the first"
        checks.append(tables.Check("image", names.images, expected, bad))
        images = images[np.isin(row, first)]
        image_counts = np.bincount(row, minlength=len(table))
    tables.usable(path, table, checks)

    topics = np.full(len(distinct), -1, np.int32)
    if names.topic:
        encoded = _text(path, names.topic, table[names.topic]).combine_chunks().dictionary_encode()
        topics = encoded.indices.fill_null(-1).to_numpy()[first]
    texts = {
        name: _text(path, column, table[column]).take(pa.array(first)).to_pylist()
        for name, column in names.texts
    }
    return Items(distinct, topics, created[first], images, image_counts[first], texts)


def _looked_up(
    paths: Sequence[epath.PathLike], columns: Sequence[str], config: ml_collections.ConfigDict
) -> pa.Table:
    """Columns of the first file, and those that are looked up in `config.sides`."""
    path, *others = map(epath.Path, paths)
    named = {other.name.split(".")[0]: other for other in others}
    if set(named) != set(config.sides) or len(named) < len(others):
        given = ", ".join(other.name for other in others) or "nothing"
        expected = ", ".join(config.sides) or "nothing"
        raise InputError(f"--items has {given} after {path.name}; expected {expected}")
    own = [side.on for side in config.sides.values()]
    wanted = {name: [] for name in named}
    for column in columns:
        name, _, field = column.partition(".")
        if name in named:
            wanted[name].append(field)
        else:
            own.append(column)

    table = tables.read(path, own, config.delimiter, config.catalogue.header)
    for name, side in config.sides.items():
        file = named[name]
        more = tables.read(file, [side.id, *wanted[name]], side.delimiter, side.header)
        ids = tables.ids(file, side.id, more[side.id]).combine_chunks()
        checks = [
            tables.Check("id", side.id, "an id", ids.is_null().to_numpy(False)),
            tables.Check("id", side.id, "each id once", _repeated(ids)),
        ]
        tables.usable(file, more, checks)
        known, asked = tables.same_type([ids, tables.ids(path, side.on, table[side.on])])
        row = pc.index_in(asked, known).combine_chunks()
        if not side.partial:
            missing = pc.and_(row.is_null(), asked.is_valid().combine_chunks()).to_numpy(False)
            expected = f"an id of {file.name}"
            tables.usable(path, table, [tables.Check(side.on, side.on, expected, missing)])
        for field in dict.fromkeys(wanted[name]):
            table = table.append_column(f"{name}.{field}", more[field].combine_chunks().take(row))
    return table


def _repeated(ids: pa.Array) -> np.ndarray:
    """Bool (rows,): those that equal an earlier one."""
    repeated = np.ones(len(ids), bool)
    repeated[np.unique(pc.index_in(ids, ids.unique()).to_numpy(), return_index=True)[1]] = False
    return repeated


def _images(
    path: epath.PathLike, name: str, column: pa.ChunkedArray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(float16 (images, dim), int (images,) the row of each, bool (rows,) which rows are bad)."""
    rows, row, missing = len(column), np.arange(len(column)), np.zeros(len(column), bool)
    if pa.types.is_nested(getattr(column.type, "value_type", column.type)):
        lists = column.combine_chunks()
        row = np.repeat(row, pc.list_value_length(lists).fill_null(0).to_numpy())
        column = pa.chunked_array([pc.list_flatten(lists)])
        missing = column.is_null().to_numpy()
    images, bad = items_lib.vectors(path, name, column)
    bad = np.bincount(row[bad | missing], minlength=rows) > 0
    some = images.any(axis=1)
    return images[some], row[some], bad


def read_queries(path: epath.PathLike, config: ml_collections.ConfigDict) -> QueryVectors:
    """Reads a table of queries by the `queries` section of a column map.

    Raises:
      InputError: for wrong input; here no bad row is tolerated, and a vector of zeros is none.
    """
    path, names = epath.Path(path), config.queries
    table = tables.read(path, [names.id, names.vector], config.delimiter)
    if config.events.query:
        ids, expected = _searches(path, names.id, table[names.id]), "the text of a search"
    else:
        ids, expected = tables.ids(path, names.id, table[names.id]), "an item's id"
    ids = ids.combine_chunks()
    vectors, bad = items_lib.vectors(path, names.vector, table[names.vector])
    finite = f"{vectors.shape[1]} finite numbers, not all of them 0"
    checks = [
        tables.Check("query", names.id, expected, ids.is_null().to_numpy(False)),
        tables.Check("query", names.id, "each query once", _repeated(ids)),
        tables.Check("vector", names.vector, finite, bad | ~vectors.any(axis=1)),
    ]
    tables.usable(path, table, checks)
    return QueryVectors(path, ids, vectors)


def read_events(
    paths: Sequence[epath.PathLike],
    items: Items,
    config: ml_collections.ConfigDict,
    given: QueryVectors | None = None,
) -> tuple[Engagements, dict[str, int]]:
    """Reads engagements.

    Rows without an item of the table, a query or group, a position or a time between 1970 and 2106
    are bad: more of them than `config.tolerance` allows are refused. Searches that are equal but
    for spaces around them are one query. An item is no query for itself. Where queries' vectors
    are given, by a table of them or as images of items, those without one are bad likewise.

    Args:
      paths: Parquet, npz or CSV files; a group's rows may lie in several.
      items: the table of items.
      config: a column map.
      given: the queries' own vectors, or None.

    Returns:
      (queries and pairs, counts for the report).

    Raises:
      InputError: for wrong input.
    """
    report: dict[str, int] = {"rows read": 0}
    parts = []
    for path in map(epath.Path, paths):
        part, counts = _read_file(path, items, config, given)
        parts.append(part)
        for name, count in counts.items():
            report[name] = report.get(name, 0) + count
    leads = tables.same_type([part["lead"] for part in parts])
    parts = [p.set_column(0, "lead", lead) for p, lead in zip(parts, leads, strict=True)]
    table = pa.concat_tables(parts)
    where = ", ".join(map(str, paths))
    if not len(table):
        raise InputError(f"{where}: no usable row is left")

    leads, lead = logs.encode(table["lead"])
    item, time = table["item"].to_numpy(), table["time"].to_numpy()
    if config.events.query:
        led = np.arange(len(table))
        query, key = lead, lead
        queries, query_items = leads.to_pylist(), None
        keys = [text.normalise(query) for query in queries]
    else:
        place = table["position"].to_numpy() if config.events.position else time
        before, led = _next_ones(lead, place, config.events.ahead)
        other = item[before] != item[led]
        report["an item after itself"] = int((~other).sum())
        before, led = before[other], led[other]
        if not len(led):
            raise InputError(f"{where}: no two items in a {config.events.group}")
        known = _have_vectors(where, item[before], items, config, given)
        report["dropped for a bad query's vector"] = int((~known).sum())
        before, led = before[known], led[known]
        query_items, query = np.unique(item[before], return_inverse=True)
        queries = tables.text(items.ids.take(pa.array(query_items))).to_pylist()
        key, keys = (query, queries) if config.events.time else (lead[led], leads.to_pylist())

    order = np.argsort(time[led], kind="stable")
    led, query = led[order], query[order]
    names, task = _names(table["action"].take(pa.array(led)))
    made = np.empty(len(led), pairs.PAIR)
    made["query"], made["product"], made["task"] = query, item[led], task
    made["time"] = time[led] // _SECOND
    kind = "text" if config.events.query else "image"
    first = np.full(len(items.ids), np.nan)
    np.fmin.at(first, item, time // _SECOND)
    return Engagements(kind, queries, query_items, made, names, key[order], keys, first), report


def split(
    made: Engagements, ids: pa.Array, train_end: int, config: ml_collections.ConfigDict
) -> np.ndarray:
    """Which of `schema.SPLITS` each pair is of: int8 (pairs,).

    With times, what is later than `train_end` is held out, in valid or test by the query. Without,
    a search or a group is in one split. What would be in training of a cold item goes to valid or
    test by the item; that an item is cold says nothing of pairs whose query it is.

    Args:
      made: the pairs.
      ids: the items' own ids.
      train_end: unix seconds, used only where the column map has a time.
      config: a column map.

    Raises:
      InputError: where a split is empty.
    """
    shares = config.split
    tests = shares.test / (shares.valid + shares.test)
    if config.events.time:
        splits = _hashed(made.keys, shares.seed, 1, tests)[made.key]
        splits[made.pairs["time"] <= train_end] = 0
    else:
        splits = _hashed(made.keys, shares.seed, shares.valid, shares.test)[made.key]
    ids = ids.to_pylist()
    cold = _hashed(ids, f"{shares.seed}:cold", 0, shares.cold) > 0
    held_out = _hashed(ids, f"{shares.seed}:held out", 1, tests)
    product = made.pairs["product"]
    splits = np.where((splits == 0) & cold[product], held_out[product], splits)
    for row, name in enumerate(schema.SPLITS):
        if not (splits == row).any():
            raise InputError(f"no engagement of {len(splits)} falls into {name}; see config.split")
    return splits


def _hashed(keys: Iterable[int | str], seed: int | str, valid: float, test: float) -> np.ndarray:
    """Int8 (keys,), rows of `schema.SPLITS`: see `prepared.split_of`."""
    shares = ml_collections.FrozenConfigDict({"seed": seed, "valid": valid, "test": test})
    splits = (schema.SPLITS.index(prepared.split_of(key, shares)) for key in keys)
    return np.fromiter(splits, np.int8)


def _have_vectors(
    where: str,
    query: np.ndarray,
    items: Items,
    config: ml_collections.ConfigDict,
    given: QueryVectors | None,
) -> np.ndarray:
    """Bool (pairs,): whose query, a row of the items, has a vector or will get one of words.

    Raises:
      InputError: where more have none than `config.tolerance` allows.
    """
    has, lacks = np.ones(len(items.ids), bool), ""
    if given is not None:
        has = pc.is_in(tables.text(items.ids), tables.text(given.ids)).to_numpy(False)
        lacks = f"is not in {given.path}"
    elif items.images is not None:
        has, lacks = items.image_counts > 0, f"has no {config.catalogue.images}"
    known = has[query]
    without = int((~known).sum())
    if without > config.tolerance * len(known):
        item = items.ids[int(query[np.argmin(known)])].as_py()
        share = f"{without} of {len(known)} pairs have none, tolerance is {config.tolerance:g}"
        raise InputError(
            f"{where}: item {item} leads to others and {lacks}; expected a vector of each query "
            f"({share})"
        )
    return known


def _read_file(
    path: epath.Path,
    items: Items,
    config: ml_collections.ConfigDict,
    given: QueryVectors | None,
) -> tuple[pa.Table, dict[str, int]]:
    """The usable rows of a file.

    Their columns are lead (search or group), item (row), time (us), position and action.
    """
    events = config.events
    wanted = [events.item, events.time, events.query, events.group, events.position, events.action]
    wanted += [*events.least[:1], *(column for _, column, _ in events.action_rules)]
    table = tables.read(path, list(filter(None, wanted)), config.delimiter, events.header)
    rows = len(table)

    known, item = tables.same_type([items.ids, tables.ids(path, events.item, table[events.item])])
    item = pc.index_in(item, known).fill_null(-1).to_numpy()
    checks = [tables.Check("item", events.item, "an id of the table of items", item < 0)]
    if events.query:
        lead = _searches(path, events.query, table[events.query])
        name, expected = events.query, "the text of a search"
    else:
        lead = tables.ids(path, events.group, table[events.group])
        name, expected = events.group, "a group's id"
    checks.append(tables.Check("query or group", name, expected, lead.is_null().to_numpy()))
    if events.query and given is not None:
        lacks = pc.and_(lead.is_valid(), pc.invert(pc.is_in(lead, given.ids))).to_numpy()
        expected = f"a search that has its vector in {given.path}"
        checks.append(tables.Check("query's vector", events.query, expected, lacks))
    position, time, dropped = np.zeros(rows), np.zeros(rows), np.zeros(rows, bool)
    if events.least:
        column, least = events.least
        value = tables.numbers(path, column, table[column])
        checks.append(tables.Check(column, column, "a number", np.isnan(value)))
        dropped = value < least
    if events.position:
        position = tables.numbers(path, events.position, table[events.position])
        bad = np.isnan(position)
        checks.append(tables.Check("position", events.position, "a number", bad))
    report = {"rows read": rows, "dropped as too little": int(dropped.sum())}
    if events.time:
        time = tables.moments(path, events.time, table[events.time], events.time_unit)
        if events.since:
            early = ~dropped & (time < tables.moment("events.since", events.since) * _SECOND)
            report["dropped as too early"] = int(early.sum())
            dropped = dropped | early
        checks.append(logs.check_time(table, time, dropped, events))

    checks = [check._replace(bad=check.bad & ~dropped) for check in checks]
    good, counts = tables.usable(path, table, checks, config.tolerance)
    counts = {f"dropped for a bad {field}": count for field, count in counts.items()}
    good &= ~dropped
    columns = {
        "lead": lead,
        "item": item,
        "time": np.where(good, time, 0).astype(np.int64),
        "position": position,
        "action": logs.action_types(path, table, events),
    }
    return pa.table(columns).filter(pa.array(good)), {**report, **counts}


def _next_ones(
    group: np.ndarray, position: np.ndarray, ahead: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two rows of one group, of which the second is one of the `ahead` next after the first."""
    order = np.lexsort((position, group))
    first, second = [], []
    for step in range(1, ahead + 1):
        same = group[order[:-step]] == group[order[step:]]
        first.append(order[:-step][same])
        second.append(order[step:][same])
    return np.concatenate(first), np.concatenate(second)


def _names(actions: pa.ChunkedArray) -> tuple[tuple[str, ...], np.ndarray]:
    """The kinds of engagement that come, most frequent first, and the row of each pair's."""
    names, row, others = logs.vocabulary(actions, _TASKS - 1)
    if others:
        raise InputError(f"more than {_TASKS - 1} kinds of engagement; see config.events.action")
    come = np.bincount(row, minlength=len(names)) > 0
    return tuple(itertools.compress(names, come)), (np.cumsum(come) - 1)[row]


def _vectors(
    path: epath.PathLike,
    items: Items,
    made: Engagements,
    given: QueryVectors | None,
    config: ml_collections.ConfigDict,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (images, dim), int (items,) how many each item has, and queries' vectors; float16.

    Images are the table's, or made of texts in their place. Queries' vectors are the given ones. Or
    else a search's is made of its words in the space of the items' texts, zeros where it has none
    of their words; and that of an item as a query is the vector of its first image.
    """
    images, image_counts = items.images, items.image_counts
    if images is None or (made.query_items is None and given is None):
        texts = [items.texts[name] for name in config.vectors.texts]
        # Of all items: a word that no engaged one has says what an item is near, too.
        vocabulary = text.Vocabulary.build(
            itertools.chain.from_iterable(texts),
            **{**config.vocabulary, "bigrams": 0, "trigrams": 0},
        )
        columns = _word_columns(vocabulary, config.vectors.language)
        counts = _word_counts([vocabulary.encode(column) for column in texts], columns)
        if min(counts.shape) < 2:
            found = f"{counts.shape[1]} words on {len(items.ids)} items"
            raise InputError(f"{path}: {found}; expected 2 or more of each to make vectors from")
        # A product of two vectors has the weight twice: so this is once, as in BM25.
        weights = np.sqrt(items_lib.inverse_frequency(counts))
        matrix = items_lib.weighted(counts, weights)
        space = items_lib.latent_space(matrix, config.vectors.dim)
        if images is None:
            images = items_lib.unit_rows(matrix @ space)
            image_counts = images.any(axis=1).astype(int)
            images = images[image_counts > 0]
    if given is not None:
        asked = pa.array(made.queries, pa.large_string())
        row = pc.index_in(asked, tables.text(given.ids)).to_numpy()
        return images, image_counts, given.vectors[row]
    if made.query_items is not None:
        vectors = np.zeros((len(image_counts), images.shape[1]), np.float16)
        first = np.cumsum(image_counts) - image_counts
        vectors[image_counts > 0] = images[first[image_counts > 0]]
        return images, image_counts, vectors[made.query_items]
    asked = _word_counts([vocabulary.encode(made.queries)], columns)
    return images, image_counts, items_lib.unit_rows(items_lib.weighted(asked, weights) @ space)


def _searches(path: epath.PathLike, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of texts without spaces around them, null where nothing is left."""
    column = pc.utf8_trim_whitespace(_text(path, name, column))
    return pc.if_else(pc.equal(column, ""), None, column)


def _word_columns(vocabulary: text.Vocabulary, language: str) -> np.ndarray:
    """Which column each word of the vocabulary is counted in, int (words,): that of its stem."""
    words = vocabulary.rows["token"][: vocabulary.sizes[0]].to_pylist()
    if not language:
        return np.arange(len(words))
    stems = Stemmer.Stemmer(language).stemWords(words)
    return np.unique(stems, return_inverse=True)[1] if stems else np.zeros(0, int)


def _word_counts(features: Sequence[text.Ragged], columns: np.ndarray) -> scipy.sparse.csr_array:
    """n (k + 1) / (n + k) where a row's texts have a column's words n times: (rows, columns).

    That is BM25's weight, with its k (Robertson & Zaragoza, FnTIR 2009) and without what it says of
    lengths, which unit vectors have not. By n itself a long text would be its commonest words.
    """
    places = []
    for tokens, offsets in features:
        row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        places.append(np.stack([row, tokens])[:, tokens < len(columns)])
    row, word = np.concatenate(places, axis=1)
    shape = len(offsets) - 1, int(columns.max(initial=-1)) + 1
    counts = scipy.sparse.csr_array((np.ones(len(row)), (row, columns[word])), shape)
    counts.sum_duplicates()
    counts.data *= (_SATURATION + 1) / (counts.data + _SATURATION)
    return counts


def _text(path: epath.PathLike, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    kind = column.type
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise InputError(f"{path}: {name} is {kind}; expected text")
    return tables.text(column)
