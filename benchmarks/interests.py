"""PinnerSage's clustering: its speed beside SciPy's, and the threshold at which it stops.

    python -m benchmarks.interests

Speed is of one core, for users of 200 actions on random items. Thresholds are compared by Recall@10
of pinworld's validation users, each beside its paired difference to the best one, and by how many
clusters a user has.
"""

import time

import numpy as np
from absl import app, flags, logging
from scipy.cluster import hierarchy

from configs import pinnersage as config_lib
from pinjax.data import dataset as dataset_lib
from pinjax.data import item_features, windows
from pinjax.distributed import sharding
from pinjax.evaluation import metrics, timeline_source
from pinjax.systems import pinnersage, registry, ward

_DATA_DIR = flags.DEFINE_string("data_dir", "~/.cache/pinjax", "where pinworld/small is kept")
_THRESHOLDS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
_USERS, _ACTIONS, _DIM = 100, 200, 256


def main(_):
    logging.set_verbosity(logging.ERROR)
    rng = np.random.default_rng(0)
    users = rng.standard_normal((_USERS, _ACTIONS, _DIM)).astype(np.float32)
    users /= np.linalg.norm(users, axis=2, keepdims=True)
    for name, cluster in {"pinjax": ward.clusters, "SciPy": _by_scipy}.items():
        print(f"{name:<10}{_users_per_second(cluster, users):8,.0f} users/s")

    print(f"\n{'threshold':<12}{'R@10':>8}{'less than the best by':>32}{'clusters a user':>18}")
    found = {threshold: _measure(threshold) for threshold in _THRESHOLDS}
    best = max((recalls for recalls, _ in found.values()), key=np.mean)
    for threshold, (recalls, clusters) in found.items():
        difference = metrics.paired_difference(best, recalls)
        interval = "{:.4f} [{:.4f}, {:.4f}]".format(*difference)
        print(f"{threshold:<12}{recalls.mean():8.4f}{interval:>32}{clusters:18.1f}")


def _by_scipy(points: np.ndarray, threshold: float) -> np.ndarray:
    return hierarchy.fcluster(hierarchy.linkage(points, "ward"), threshold, "distance")


def _users_per_second(cluster, users: np.ndarray) -> float:
    cluster(users[0], 1.3)  # compiles
    times = []
    for _ in range(5):
        start = time.process_time()
        for points in users:
            cluster(points, 1.3)
        times.append(time.process_time() - start)
    return len(users) / min(times)


def _measure(threshold: float) -> tuple[np.ndarray, float]:
    """Recall@10 of each validation user, and clusters a user."""
    config = config_lib.get_config()
    config.data.dir, config.model.threshold = _DATA_DIR.value, threshold
    table = registry.create(config, sharding.make_mesh()).evaluate(None, "valid")
    ranks = table.records.methods["PinnerSage", "window"].rank
    _, user = np.unique(table.records.labels["user"], return_inverse=True)
    recalls = metrics.recall(ranks, user, user.max() + 1, 10)

    dataset = dataset_lib.load(config.data.name, config.data.dir)
    positives = windows.Positives.create(dataset.spec, config.data.positives, config.data.surfaces)
    source = timeline_source.TimelineSource(dataset, positives, config.data.length, config.evaluate)
    ((_, queries),) = source.queries("valid").items()
    items = item_features.unit_length(dataset.catalogue.content)
    users = pinnersage.Users(items, positives, config)
    medoids = users.most_important(100, queries.features)
    return recalls, medoids.any(axis=2).sum() / len(medoids)


if __name__ == "__main__":
    app.run(main)
