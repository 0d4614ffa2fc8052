"""PinnerFormer (Pancha et al., KDD 2022): a user embedding from the user's timeline.

python -m pinjax.train --config=configs/pinnerformer.py            # pinworld
python -m pinjax.train --config=configs/pinnerformer.py:hour       # the same, better
python -m pinjax.train --config=configs/pinnerformer.py:own --config.data.name=DIR \
    --config.data.positives=ACTION,ACTION    # your own log; :own_ids if its items have no content
python -m pinjax.train --config=configs/pinnerformer.py:paper      # published size, a TPU slice
python -m pinjax.train --config=configs/pinnerformer.py:test       # seconds
python -m pinjax.train --config=configs/pinnerformer.py:ml1m --config.data.name=DIR

On two CPU cores the default takes 2.8 minutes and finds 0.147 of the test labels in the top 10
(Recall@10; the oracle 0.230, co-occurrence 0.124, popularity 0.011), `:hour` finds 0.187 in 50
minutes of one core.
"""

from configs import common
from pinjax.settings import UINT32, Bool, Choice, Float, Int, Section, Size, Tuple
from pinjax.timestamps import DAY


def get_config(variant: str = "") -> Section:
    """The config of a variant; every field may be overridden as --config.section.field=value."""
    config = common.config("pinnerformer")
    common.add_timelines(config, length=64)

    data = config.data
    data.users = Int(64, at_least=1, at_most=2**20)  # users in a batch, over all devices
    # Items are their content vectors, and learned ids if model.id_dim is not 0.
    data.content = Bool(True)

    objective = config.objective = Section()
    objective.name = Choice("dense_all_action", "all_action", "sasrec", "next_action")
    objective.labels = Size(32)  # pairs a user, for the all-action objectives
    objective.horizon = Int(28 * DAY, at_least=1, at_most=UINT32, unit="seconds")  # K

    model = config.model
    model.layers = Int(1, at_least=1, at_most=100)
    model.width = Size(128)  # H
    model.heads = Size(4)
    model.embedding_dim = Size(128)  # D: numbers in an embedding
    model.pin_hidden = Size(256)  # hidden width of the pin tower
    # Of an action. The paper's are the first five; `request_time` is an option as those below.
    model.features = Tuple(
        ("item", "action", "surface", "duration", "time"),
        Choice("item", "action", "surface", "duration", "time", "request_time"),
        at_least=1,
    )
    model.positions = Bool(True)  # learned positional encoding
    model.dropout = Float(0.0, at_least=0, below=1)
    model.remat = Bool(False)  # recompute activations in the backward pass: less memory, more time

    loss = config.loss
    # Negatives that are other users' positives, at most.
    loss.num_in_batch_negatives = Int(1_024, at_least=0)
    # Negatives drawn uniformly from the items that existed when training ended.
    loss.num_random_negatives = Int(2_048, at_least=0, at_most=2**20)
    # One normaliser over both kinds of negatives, or a loss for each.
    loss.terms = Choice("joined", "summed")

    # Not in the paper, and off in `:paper`; the modules explain each option.
    # Numbers of an item's learned vector, 0: none (models/learned_ids.py).
    model.id_dim = Size(64, at_least=0)
    # Sums over a history beside the transformer's output (models/history_sums.py).
    model.history_sums = Bool(False)
    # Gated layers of the pin tower; 0: one that is not gated (models/residual_mlp.py).
    model.gated_layers = Int(0, at_least=0, at_most=10)
    # Attention starts with larger outputs, time features are smaller (models/initial_scales.py).
    model.scaled_attention = Bool(True)
    model.divided_time = Bool(True)
    # Principal components that are kept of content vectors; 0: the vectors (data/item_features.py).
    data.pca_dim = Size(0, at_least=0)
    # Beside its content an item's popularity is a feature: the log of its actions a day in so many
    # seconds before a query; 0: it is not (models/popularity.py). Popularity is counted at so many
    # times, with as many actions between any two, the last when training ends or at the time for
    # which items are embedded.
    data.popularity_window = Int(0, at_least=0, at_most=UINT32, unit="seconds")
    data.popularity_times = Int(52, at_least=2, at_most=10_000)
    # Share of windows that end at a user's last action (data/last_action.py).
    objective.last_action_share = Float(0.0, at_least=0, at_most=1)
    # Each label counts the same; else each user does (losses/label_weights.py).
    loss.equal_labels = Bool(False)

    train = config.train
    train.update(steps=1_400, learning_rate=2e-3, checkpoint_every=700, evaluate_every=700)

    return common.with_variant(config, VARIANTS, variant or "pinworld")


def _options(config: Section) -> None:
    """What a run of minutes does not learn without, beyond the paper.

    Counts and sums over a history tell what a user likes. How popular an item is comes from
    `popularity_window`: learned ids would be memorised.
    """
    config.data.update(pca_dim=24, popularity_window=84 * DAY)
    config.model.update(history_sums=True, gated_layers=2, id_dim=0)
    config.model.features = ("item", "action", "surface", "duration", "time", "request_time")


def _pinworld(config: Section) -> None:
    """The default: a simulated log, in minutes."""
    _options(config)
    config.data.popularity_times = 13
    config.model.dropout = 0.1
    config.loss.update(num_in_batch_negatives=512, num_random_negatives=512)
    config.train.update(steps=160, learning_rate=3e-3, warmup_steps=40)
    config.train.update(checkpoint_every=80, evaluate_every=0)


def _small(config: Section) -> None:
    """The settings above: the paper's model and learned ids, small enough for a CPU."""


def _own(config: Section) -> None:
    """A start for a log of your own, which `pinjax.prepare` proposes.

    Of several it has the best mean rank over the logs of benchmarks/options.py. A log may be small,
    so the best checkpoint is served.
    """
    _options(config)
    config.data.surfaces = ""
    config.train.update(checkpoint_every=200, evaluate_every=200, select="valid/R@10")


def _own_ids(config: Section) -> None:
    """The same for a log whose items have no content but their learned ids."""
    _own(config)
    config.data.update(content=False, pca_dim=0, popularity_window=0)
    config.model.update(gated_layers=0, id_dim=64)


def _paper(config: Section) -> None:
    """Published size: 6 layers of 768, 256 actions, 128 users a chip of a 16-chip slice."""
    config.data.name = "pinworld/base"
    config.data.users = 2_048
    config.data.length = 256
    config.data.workers = 8
    config.objective.labels = 32
    config.model.update(layers=6, width=768, heads=8, embedding_dim=256, id_dim=0, pin_hidden=1_024)
    config.model.update(scaled_attention=False, divided_time=False)
    config.model.dtype = "bfloat16"
    config.loss.update(num_in_batch_negatives=5_000, num_random_negatives=8_192, sketch_width=2**22)
    config.train.update(steps=100_000, learning_rate=1e-3, warmup_steps=2_000)
    config.train.update(checkpoint_every=5_000, evaluate_every=5_000)
    config.evaluate.users = 20_000


def _hour(config: Section) -> None:
    """The default for an hour of one CPU core: longer histories, 3,000 steps."""
    _pinworld(config)
    config.data.length = 128
    config.train.update(steps=3_000, warmup_steps=100, checkpoint_every=500, evaluate_every=500)
    config.train.select = "valid/R@10"


def _test(config: Section) -> None:
    """Every part of a run, in seconds; without `_options`."""
    config.data.update(name="pinworld/tiny", users=16, length=16)
    config.objective.labels = 4
    config.model.update(layers=1, width=16, heads=2, embedding_dim=8, id_dim=8, pin_hidden=16)
    config.loss.update(num_in_batch_negatives=32, num_random_negatives=64, sketch_width=2**12)
    common.few_steps(config)
    config.evaluate.update(users=40, batch=32)


def _ml1m(config: Section) -> None:
    """MovieLens-1M by the published leave-one-out protocol: all items ranked, seen ones filtered.

    The log has no times, types or surfaces, and an item is its learned id alone.
    """
    config.data.update(name="movielens_1m", length=200, content=False, surfaces="")
    config.data.positives = "rated"
    config.objective.update(name="sasrec", last_action_share=0.7)
    config.model.update(layers=2, width=128, heads=2, embedding_dim=128, id_dim=128, pin_hidden=256)
    config.model.update(features=("item",), dropout=0.1)
    config.loss.update(num_in_batch_negatives=0, num_random_negatives=1_500, equal_labels=True)
    config.train.update(steps=4_400, learning_rate=2e-3, weight_decay=0.0)
    config.train.update(checkpoint_every=400, evaluate_every=400, select="valid/NDCG@10")
    config.evaluate.update(cadences=("window",), users=10_000, filter_seen=True)


def _ifdb(config: Section) -> None:
    """Interactive fiction, by the evaluation of `common.ifdb_timelines`.

    There are few users, which learned ids soon memorise; so games are their tags, and how much they
    were played in the year before, at many times of the log's 15 years.
    """
    common.ifdb_timelines(config)
    config.data.update(popularity_window=365 * DAY, popularity_times=180)
    config.objective.horizon = 365 * DAY
    config.objective.labels = 16
    config.model.update(width=64, embedding_dim=64, id_dim=0, pin_hidden=64, dropout=0.5)
    config.model.features = ("item", "action", "time")
    config.loss.update(num_in_batch_negatives=512, num_random_negatives=1_024)
    config.train.update(steps=250, learning_rate=1e-3)
    config.train.update(checkpoint_every=50, evaluate_every=50, select="valid/R@10")


def _globo(config: Section) -> None:
    """News, configs/prepare/globo.py: the day after training, for users of all devices.

    An article is wanted for some hours, so the request time matters.
    """
    config.data.update(name="globo", content=False, positives="action", surfaces="")
    config.data.update(users=128, length=32)
    config.objective.horizon = DAY // 4
    config.objective.labels = 16
    config.model.update(width=64, embedding_dim=64, id_dim=32, dropout=0.5)
    config.model.features = ("item", "surface", "time", "request_time")
    config.loss.num_random_negatives = 1_024
    config.train.update(steps=1_200, learning_rate=3e-3)
    config.train.update(checkpoint_every=200, evaluate_every=200, select="valid/R@10")
    config.evaluate.update(window=1 * DAY, cadences=("window",), users=20_000, filter_seen=True)


def _kuairand(config: Section) -> None:
    """Short videos, configs/prepare/kuairand.py: hate is seen, but never a label."""
    config.data.update(name="kuairand", content=False, surfaces="")
    config.data.positives = "follow, forward, comment, like"
    config.objective.horizon = 7 * DAY
    config.model.update(features=("item", "action", "duration", "time"), dropout=0.2)
    config.train.update(steps=300, learning_rate=1e-3)
    config.train.update(checkpoint_every=50, evaluate_every=50, select="valid/R@10")
    config.evaluate.update(window=4 * DAY, cadences=("window",))


VARIANTS = {
    "pinworld": _pinworld,
    "small": _small,
    "own": _own,
    "own_ids": _own_ids,
    "paper": _paper,
    "hour": _hour,
    "test": _test,
    "ml1m": _ml1m,
    "ifdb": _ifdb,
    "globo": _globo,
    "kuairand": _kuairand,
}
