"""The table of timelines: its rows against loops over users, and its notes."""

import jax.numpy as jnp
import numpy as np
import pytest

from pinjax.data import dataset as dataset_lib
from pinjax.data import windows
from pinjax.errors import InputError
from pinjax.evaluation import (
    baselines,
    evaluator,
    metrics,
    tables,
    timeline_source,
    vector_search,
)
from pinjax.evaluation import queries as queries_lib
from pinjax.timestamps import DAY

SYSTEM = "pinnerformer"


def make(config):
    dataset = dataset_lib.load(config.data.name, config.data.dir)
    positives = windows.Positives.create(dataset.spec, config.data.positives, "home")
    source = timeline_source.TimelineSource(dataset, positives, 4, config.evaluate)
    return evaluator.Evaluator("model", source), source


def search(users, items, as_of=None):
    """From histories to vectors, and items (items, dim), at every time."""
    towers = vector_search.Towers(users, items.__getitem__, as_of)
    return vector_search.VectorSearch(lambda time: towers)


def same_for_all(items):
    """All users have the same vector."""
    dim = items.shape[1]
    return search(lambda histories: jnp.ones((len(histories["item"]), dim)) / dim, items)


@pytest.mark.parametrize("filter_seen", [False, True])
def test_popularity_is_the_same_list_for_everybody(make_config, rng, filter_seen):
    evaluate = {"cadences": ("window",), "filter_seen": filter_seen, "users": 30}
    made, source = make(make_config(evaluate=evaluate))
    items = rng.standard_normal((len(source.dataset.catalogue), 2)).astype(np.float32)
    rows = made(same_for_all(items), "test", full=True).rows
    found = {row.method: row.metrics["R@10"].value for row in rows}
    (recent,) = [name for name in found if name.startswith("popularity") and "all" not in name]

    def recall(score, split):
        ((start, queries),) = source.queries(split).items()
        score = np.where(source.candidates(start).included, score, -1)
        hits = []
        for user in range(len(queries)):
            allowed = score.copy()
            allowed[queries.excluded[queries.excluded[:, 0] == user, 1]] = -2
            labels = allowed[queries.label_item[queries.label_query == user]]
            # Equal scores count against a label, except its own.
            hits.append(np.mean([label > max(np.sort(allowed)[-11], -1) for label in labels]))
        return np.array(hits)

    time = source.dataset.spec.train_end
    ever = source.engagements.counts(time).astype(np.float64)

    def lately(seconds):
        return source.engagements.counts(time, seconds) + ever / (1 + ever.max())

    # The span is the longest that is no worse on the validation users than chance explains.
    times = np.concatenate([x.records["time"] for x in source.dataset.chunks("train")])
    spans = {
        name: recall(lately(seconds), "valid")
        for name, seconds in baselines.SPANS.items()
        if seconds < np.ptp(times)  # a longer span is all time
    }
    assert 5 < len(spans) < len(baselines.SPANS)
    best = max(spans.values(), key=np.mean)
    no_worse = [name for name in spans if metrics.paired_difference(best, spans[name]).low <= 0]
    assert recent == f"popularity, {no_worse[-1]}"
    span = baselines.SPANS[recent.removeprefix("popularity, ")]
    for name, score in (("popularity, all time", ever), (recent, lately(span))):
        assert found[name] == pytest.approx(recall(score, "test").mean())
        assert 0 < found[name] < 0.2


@pytest.mark.parametrize("filter_seen", [False, True])
def test_the_oracle_gets_the_queries_of_the_other_methods(make_config, rng, filter_seen):
    """For the same users, as often, and without seen items if the others exclude them."""
    config = make_config(evaluate={"filter_seen": filter_seen, "users": 30})
    made, source = make(config)
    items = rng.standard_normal((len(source.dataset.catalogue), 2)).astype(np.float32)
    table = made(same_for_all(items), "test", full=True)
    found = {row.method: row.metrics for row in table.rows}
    start, oracle = source.dataset.spec.train_end, source.dataset.oracle
    held = source.candidates(start).included
    for cadence, part in (("window", ""), ("daily", ", daily")):
        queries = source.queries("test", cadence)[start]
        recalls = [[] for _ in queries.users]
        for query, user in enumerate(queries.query_user):
            then = int(queries.query_time[query])
            horizon = config.evaluate.window if cadence == "window" else DAY
            scores = np.where(held, oracle.scores([queries.users[user]], then, horizon)[0], -1)
            scores[queries.excluded[queries.excluded[:, 0] == query, 1]] = -1
            earlier = (queries.label_user == user) & (queries.label_time <= then)
            scores[queries.label_item[earlier]] = -1  # a label is the first engagement
            top = np.argsort(-scores)[:10]
            recalls[user] += np.isin(queries.label_item[queries.label_query == query], top).tolist()
        expected = np.mean([np.mean(hits) for hits in recalls])
        assert found["oracle" + part]["R@10"].value == pytest.approx(expected)
        share = found["model" + part]["R@10"].value / expected
        assert found["model" + part]["of oracle"].value == pytest.approx(share)
    now = found["oracle, real time"]["R@10"].value
    assert now > found["oracle"]["R@10"].value
    methods = [row.method for row in table.rows if "ScaNN" not in row.method]
    popular = [name for name in methods if name.startswith("popularity, ")]
    assert popular[0] == "popularity, all time"
    assert len(popular) == 2
    cadences = ["", ", daily", ", real time"]
    ours, oracles, others = (
        [name + x for x in cadences] for name in ("model", "oracle", "co-occurrence")
    )
    assert methods == [*ours, *oracles, *popular, *others]


def test_differences_are_paired_with_the_best_baseline_at_the_same_cadence(make_config, rng):
    made, source = make(make_config(evaluate={"users": 30}))
    items = rng.standard_normal((len(source.dataset.catalogue), 8)).astype(np.float32)
    table = made(same_for_all(items), "test", full=True)
    found = {row.method: row.metrics for row in table.rows}
    best = max(made.baselines.retrievers, key=lambda name: found[name]["R@10"].value)
    assert (
        f"over baseline: R@10 less that of {best}, the best baseline of this table" in table.notes
    )
    for part in ("", ", daily", ", real time"):
        other = found.get(best + part, found[best])
        above = found["model" + part]["R@10"].value - other["R@10"].value
        value, low, high = found["model" + part]["over baseline"]
        assert value == pytest.approx(above)
        assert low < value < high
    assert found["co-occurrence, real time"]["R@10"] != found["co-occurrence"]["R@10"]


def test_an_oracle_of_several_vectors_shows_a_list_for_each_label(make_config, rng):
    config = make_config(evaluate={"cadences": ("window",), "users": 30})
    made, source = make(config)
    ((start, queries),) = source.queries("test").items()
    vectors = rng.standard_normal((len(source.dataset.catalogue), 3, 8)).astype(np.float32)
    items = rng.standard_normal((len(vectors), 8)).astype(np.float32)
    # Each user has three vectors, which the last action decides.
    several = search(lambda histories: vectors[histories["item"][:, -1]], items)
    others = {"model, oracle": vector_search.NearestVector(several, 3)}
    table = made(several, "test", full=True, others=others)
    (found,) = [row.metrics for row in table.rows if row.method == "model, oracle"]

    held = np.flatnonzero(source.candidates(start).included)
    hits, entropies = ([[] for _ in queries.users] for _ in range(2))
    for query, item, exists in zip(
        queries.label_query, queries.label_item, queries.label_exists, strict=True
    ):
        own = items @ vectors[queries.features["item"][query, -1]].T
        top = held[np.argsort(-own[held, own[item].argmax()])]
        hits[query].append(exists and item in top[:10])
        share = np.unique(source.topics[top[:50]], return_counts=True)[1] / 50
        entropies[query].append(-np.sum(share * np.log(share)))
    for name, values in (("R@10", hits), (tables.ENTROPY, entropies)):
        expected = np.mean([np.mean(of_user) for of_user in values])
        assert found[name].value == pytest.approx(expected, rel=1e-5)
    assert np.mean([np.ptp(of_user) for of_user in entropies]) > 0.1


@pytest.mark.parametrize("full", [False, True])
def test_a_model_that_shows_all_users_the_same_is_said_to(make_config, rng, full):
    made, source = make(make_config(evaluate={"cadences": ("window",)}))
    items = rng.standard_normal((len(source.dataset.catalogue), 2)).astype(np.float32)
    table = made(same_for_all(items), "test", full)
    (note,) = [note for note in table.notes if note.startswith("warning: model has collapsed")]
    assert note.endswith("two of its lists have 100% in common")
    assert ("its P90 cov@10 is below twice popularity's and" in note) == full

    constant = made(same_for_all(np.ones_like(items)), "test", full).rows[0].metrics
    assert constant["R@10"].value == constant["P90 cov@10"].value == 0
    assert np.isnan(constant["entropy@50"].value)

    def users(histories):  # each likes items similar to the last action
        return jnp.asarray(vectors[histories["item"][:, -1]])

    vectors = rng.standard_normal((len(items), 16)).astype(np.float32)
    notes = made(search(users, vectors), "test", full).notes
    assert not any("collapsed" in note for note in notes)


def test_a_table_says_what_it_rests_on(make_config):
    config = make_config(
        evaluate={"cadences": ("window",), "users": 30, "window_starts": (0, 7 * DAY)}
    )
    made, source = make(config)
    parts = source.queries("test").values()
    users = {user for part in parts for user in part.users}
    labels = sum(len(part.label_item) for part in parts)
    missing = sum((~part.label_exists).sum() for part in parts)
    assert missing > 0
    items = np.ones((len(source.dataset.catalogue), 2), np.float32)
    table = made(same_for_all(items), "test", full=False)
    rests_on = f"{len(users)} users, {labels} labels"
    assert table.notes[:2] == [
        f"{rests_on}, {missing} of which every method misses: the item did not exist yet",
        f"warning: {len(users)} users are too few to tell methods apart; for more, raise "
        "evaluate.users",
    ]
    assert made.source.describe("test") == rests_on
    assert table.rows[0].metrics.keys() == made.metrics.keys()
    config.evaluate.users = 1_000
    assert make(config)[0].source.notes("test")[1].endswith("split.test of pinjax.prepare")


def test_records_tell_of_each_label_what_a_loop_does(make_config):
    """Of two windows, by every cadence; a baseline that has none is asked at the start."""
    evaluate = {"users": 12, "window_starts": (0, 7 * DAY)}
    made, source = make(make_config(evaluate=evaluate))
    spec, catalogue = source.dataset.spec, source.dataset.catalogue
    items = np.ones((len(catalogue), 2), np.float32)
    records = made(same_for_all(items), "test", full=True).records
    trained = np.concatenate([chunk.records for chunk in source.dataset.chunks("train")])
    timelines = {}
    for chunk in source.dataset.chunks("test"):
        timelines |= zip(chunk.users, np.split(chunk.records, chunk.offsets[1:-1]), strict=True)
    assert set(records.labels["window"]) == {spec.train_end, spec.train_end + 7 * DAY}
    row = {own: number for number, own in enumerate(catalogue.ids.tolist())}
    requests = {"window": [], "daily": [], "realtime": []}
    names = ("user", "window", "label", "label_time", "label_age", "label_popularity", "history")
    for values in zip(*(records.labels[name].tolist() for name in names), strict=True):
        user, start, label, time, age, popularity, history = values
        item, own = row[label], timelines[user]
        assert age == time - int(catalogue.created[item])
        assert popularity == ((trained["item"] == item) & (trained["time"] <= start)).sum()
        assert history == (own["time"] <= start).sum()
        assert time in own["time"][own["item"] == item]
        requests["window"].append(start)
        requests["daily"].append(max(range(start, time, DAY)))
        requests["realtime"].append(max(start, int(own["time"][own["time"] < time].max())))
    for (method, cadence), ranks in records.methods.items():
        assert ranks.request_time.tolist() == requests[cadence], (method, cadence)
    assert {cadence for _, cadence in records.methods} == set(requests)
    assert len({*map(tuple, requests.values())}) == 3


def test_a_split_without_labels_is_refused(make_config):
    made, _ = make(make_config(evaluate={"window_starts": (900 * DAY,)}))
    with pytest.raises(InputError, match="split valid: in no evaluation window has a user a"):
        made.source.describe("valid")


def test_each_window_has_its_own_towers(make_config):
    """Towers that know what is popular at each time find it; stale ones do not."""
    starts = (-80 * DAY, 20 * DAY)
    made, source = make(make_config(evaluate={"window_starts": starts, "cadences": ("window",)}))

    def popular(time, as_of=None):
        vectors = jnp.asarray(source.engagements.counts(time)[:, None], jnp.float32)
        users = lambda histories: jnp.ones((len(histories["item"]), 1))  # noqa: E731
        return vector_search.Towers(users, vectors.__getitem__, as_of)

    first = source.window_starts[0]
    rows = made(vector_search.VectorSearch(lambda t: popular(t, t)), "test", full=True).rows
    found = {row.method: row.metrics["R@10"].value for row in rows}
    assert found["model"] == found["popularity, all time"]
    (row,) = made(vector_search.VectorSearch(lambda t: popular(first)), "test", full=False).rows
    assert row.metrics["R@10"].value != found["model"]


def test_items_that_depend_on_no_time_are_embedded_once(make_config):
    starts = tuple(7 * DAY * week for week in range(3))
    made, source = make(make_config(evaluate={"window_starts": starts, "cadences": ("window",)}))
    embedded = []

    def towers(as_of):
        def items(rows):
            embedded.append(len(rows))
            return np.ones((len(rows), 2), np.float32)

        users = lambda histories: np.ones((len(histories["item"]), 2))  # noqa: E731
        return lambda time: vector_search.Towers(users, items, as_of and time)

    assert len(source.queries("test")) == 3
    made(vector_search.VectorSearch(towers(None)), "test", full=False)
    assert embedded == [source.dataset.spec.num_items]
    made(vector_search.VectorSearch(towers(True)), "test", full=False)
    assert len(embedded) == 4


def test_of_a_small_part_of_the_catalogue_no_more_is_embedded(make_config):
    _, source = make(make_config())
    (queries,) = source.queries("test").values()
    eligible = np.arange(source.dataset.spec.num_items) < 9
    candidates = queries_lib.Candidates(0, eligible, eligible)
    search = vector_search.VectorSearch.fixed(
        lambda features: np.ones((len(features["item"]), 2), np.float32),
        lambda rows: np.stack([rows, rows], axis=1).astype(np.float32),
    )
    _, items = search.embed(queries, candidates)
    np.testing.assert_array_equal(items.rows, np.union1d(np.arange(9), queries.label_item))
    np.testing.assert_array_equal(items.vectors[:, 0], items.rows)


def test_a_figure_that_a_window_lacks_is_of_the_others(make_config, monkeypatch):
    starts = tuple(7 * DAY * week for week in range(3))
    made, _ = make(make_config(evaluate={"window_starts": starts, "cadences": ("window",)}))
    overlaps = iter([0.5, np.nan, 0.7])
    monkeypatch.setattr(evaluator.metrics, "overlap", lambda top: next(overlaps))
    table = made(same_for_all(np.ones((made.source.dataset.spec.num_items, 2))), "test", full=False)
    ((_, _, figures),) = table.records.about.figures
    assert figures[tables.OVERLAP] == pytest.approx(0.6)
