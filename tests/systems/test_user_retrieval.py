"""The table's baselines against loops over users."""

import jax.numpy as jnp
import numpy as np
import pytest

from pinjax.data import datasets, held_out, windows
from pinjax.systems import user_retrieval

SYSTEM = "pinnerformer"


@pytest.mark.parametrize("filter_seen", [False, True])
def test_popularity_is_the_same_list_for_everybody(make_config, rng, filter_seen):
    evaluate = {"cadences": ("window",), "filter_seen": filter_seen, "users": 30}
    config = make_config(evaluate=evaluate)
    dataset = datasets.load(config.data.name, config.data.dir)
    positives = windows.Positives.create(dataset.metadata, config.data.positives, "home")
    judge = user_retrieval.UserRetrieval("model", dataset, positives, 4, config.evaluate)
    items = jnp.asarray(rng.standard_normal((len(dataset.catalogue), 2)), jnp.float32)
    rows = judge(
        lambda histories: jnp.ones((len(histories["item"]), 2)),
        lambda rows: items[rows],
        "test",
        full=True,
    )
    found = {row.method: row.metrics["R@10"][0] for row in rows}

    source = held_out.HeldOut(
        dataset,
        *(positives, 4),
        window=config.evaluate.window,
        max_users=30,
        index_size=10**6,
        filter_seen=filter_seen,
    )
    moment = dataset.metadata.train_end
    asked, counts = source.questions("test", moment), source.counts(moment)
    for name, score in (("ever", counts.ever), ("lately", counts.lately)):
        score = np.where(source.index(moment), score, -1)
        fewest, most = [], []  # hits, as ties at the tenth place are broken
        for user in range(len(asked.users)):
            allowed = score.copy()
            allowed[asked.seen[asked.seen[:, 0] == user, 1]] = -2
            tenth = np.sort(allowed)[-10]
            labels = allowed[asked.label_item[asked.label_query == user]]
            fewest.append(np.mean(labels > tenth))
            most.append(np.mean(labels >= tenth))
        assert np.mean(fewest) <= found[f"popularity, {name}"] <= np.mean(most)
        assert 0 < np.mean(most) < 0.2
