"""PinnerFormer (Pancha et al., KDD 2022): a user embedding from the user's timeline.

python -m pinjax.train --config=configs/pinnerformer.py            # pinworld, a laptop CPU
python -m pinjax.train --config=configs/pinnerformer.py:hour       # the same, better
python -m pinjax.train --config=configs/pinnerformer.py:paper      # published size, a TPU slice
python -m pinjax.train --config=configs/pinnerformer.py:test       # seconds
python -m pinjax.train --config=configs/pinnerformer.py:ml1m --config.data.name=DIR
"""

from pinjax.settings import UINT32, Bool, Choice, Float, Int, Section, Size, Text, Tuple, named

DAY = 24 * 60 * 60


def get_config(variant: str = "") -> Section:
    """The config of a variant; every field may be overridden as --config.section.field=value."""
    config = Section()
    config.system = Choice("pinnerformer")

    data = config.data = Section()
    # The name pinworld/tiny|small|base, or a directory by pinjax.prepare.
    data.name = Text("pinworld/small", ".+", "a name or a directory")
    data.dir = Text("~/.cache/pinjax", ".+", "a directory")  # where named data sets are kept
    data.users = Int(64, at_least=1, at_most=2**20)  # users in a batch, over all devices
    data.length = Size(64)  # M: actions that the model sees
    # Processes that read ahead; 0: threads, enough below some 5,000 users/s.
    data.workers = Int(0, at_least=0, at_most=256)
    # Items are their content vectors, and learned ids if model.id_dim is not 0.
    data.content = Bool(True)
    # Principal components that are left of content vectors; 0: all is left.
    data.pca_dim = Size(0, at_least=0)
    # Beside its content an item has the log of its actions a day in so many days (0: it has not).
    data.popularity_window = Int(0, at_least=0, at_most=UINT32, unit="seconds")
    # It was counted so many times, the last when training ends or for the moment for which items
    # are embedded, a twelfth of the days apart: an action or a label knows the count before it.
    data.popularity_times = Int(13, at_least=2, at_most=10_000)
    # Which actions are labels: type, seconds.
    data.positives = Text("save, closeup>=10, click>=10", ".+", "action types")
    data.surfaces = Text("home")  # ... on which surfaces ("": all)

    objective = config.objective = Section()
    objective.name = Choice("dense_all_action", "all_action", "sasrec", "next_action")
    objective.labels = Size(32)  # pairs a user, for the all-action objectives
    objective.horizon = Int(28 * DAY, at_least=1, at_most=UINT32, unit="seconds")  # K, seconds
    # Share of windows that end at a user's newest action; others end in the later half of all.
    objective.last_action_share = Float(0.0, at_least=0, at_most=1)

    model = config.model = Section()
    model.layers = Int(1, at_least=1, at_most=100)
    model.width = Size(128)  # H
    model.heads = Size(4)
    model.embedding_dim = Size(128)  # D: numbers in an embedding
    # Of an action; "request_time", which is not the paper's, is when its embedding is asked for.
    model.features = Tuple(
        ("item", "action", "surface", "duration", "time"),
        Choice("item", "action", "surface", "duration", "time", "request_time"),
        at_least=1,
    )
    model.positions = Bool(True)  # learned positional encoding
    # The user tower's head sees the sum of all items, too, and is added to the items' embeddings,
    # each topic by the logarithm of the visits it had. That is not the paper's. On pinworld it
    # finds what a user likes sooner.
    model.history_sums = Bool(False)
    model.id_dim = Size(64, at_least=0)  # numbers of an item's learned id (0: none)
    # Rows of the learned id table; 0: one for each item, no hashing.
    model.id_buckets = Int(0, at_least=0)
    model.pin_hidden = Size(256)  # hidden width of the pin tower
    # Hidden layers of the pin tower that are gated, which is not the paper's: what is near in
    # content is told apart sooner. 0: one that is not.
    model.gated_layers = Int(0, at_least=0, at_most=10)
    model.dropout = Float(0.0, at_least=0, below=1)
    # Of the arithmetic; parameters and normalisation stay float32.
    model.dtype = Choice("float32", "bfloat16")
    model.remat = Bool(False)  # recompute activations in the backward pass: less memory, more time

    loss = config.loss = Section()
    loss.num_in_batch_negatives = Int(
        1_024, at_least=0
    )  # negatives that are other users' positives, at most
    # Negatives drawn uniformly from the catalogue.
    loss.num_random_negatives = Int(2_048, at_least=0, at_most=2**20)
    # One normaliser over both kinds of negatives, or a loss for each.
    loss.terms = Choice("joined", "summed")
    loss.log_q = Bool(True)  # correct logits by the log of the sampling probability
    loss.equal_users = Bool(True)  # each user counts the same, or else each label does
    # The sketch over-counts by at most e / width of all counts with probability 1 - e^-depth;
    # it takes 4 * depth * width bytes.
    loss.sketch_depth = Int(4, at_least=1, at_most=32)
    loss.sketch_width = Int(2**16, at_least=2, at_most=2**25, power_of_two=True)
    # Below 1, a count fades by this factor a step.
    loss.sketch_decay = Float(1.0, above=0, at_most=1)

    train = config.train = Section()
    train.seed = Int(0, at_least=0, at_most=UINT32)
    train.steps = Int(1_400, at_least=1)
    train.learning_rate = Float(2e-3, above=0)  # peak, after warm-up; then cosine decay to 0
    train.warmup_steps = Int(100, at_least=0)
    train.b1 = Float(0.9, at_least=0, below=1)
    train.b2 = Float(0.98, at_least=0, below=1)
    train.weight_decay = Float(0.01, at_least=0)  # of the kernels of dense layers
    train.clip_norm = Float(1.0, above=0)  # largest global norm of the gradient
    train.log_every = Int(50, at_least=0)  # steps; 0: only with a checkpoint
    train.checkpoint_every = Int(700, at_least=0)  # steps; 0: only after evaluation
    train.evaluate_every = Int(700, at_least=0)  # on the validation users; 0: only at the end
    # A validation metric: serve its best checkpoint (none: the last one).
    train.select = Text("", "(valid/.+)?", "a metric, as valid/R@10, or nothing")
    # Along the mesh's axis `model`; a batch goes over the axis `data`.
    train.model_devices = Int(1, at_least=1)
    # Where parameters lie: "PATTERN = AXES; ...", as in "ffn_in/kernel = . . model; ffn_out/kernel
    # = . model", axes of the mesh for each dimension; the others are on every device.
    train.shard = Text("")
    train.shard_optimizer = Bool(False)  # the optimiser's state is shared out over `data`
    train.shard_tables = Bool(False)  # rows of item features and learned ids, over all devices

    evaluate = config.evaluate = Section()
    # Each T, in seconds after the training period; below 0, in it.
    evaluate.window_starts = Tuple(
        (0,), Int(at_least=-UINT32, at_most=UINT32, unit="seconds"), at_least=1
    )
    # Labels are what a user engages with in (T, T + window].
    evaluate.window = Int(14 * DAY, at_least=1, at_most=UINT32, unit="seconds")
    # When embeddings are recomputed.
    evaluate.cadences = Tuple(
        ("window", "daily", "realtime"),
        Choice("window", "daily", "realtime"),
        at_least=1,
    )
    evaluate.users = Int(2_000, at_least=1)  # at most, a moment
    # A seeded sample where more items existed at T.
    evaluate.index_size = Int(1_000_000, at_least=1)
    evaluate.filter_seen = Bool(False)  # leave what the user has acted on out of the results
    evaluate.batch = Int(256, at_least=1, at_most=2**20)  # windows at a time

    if variant:
        named(VARIANTS, variant)(config)
    return config


def _paper(config: Section) -> None:
    """Published size: 6 layers of 768, 256 actions, 128 users a chip of a 16-chip slice."""
    config.data.name = "pinworld/base"
    config.data.users = 2_048
    config.data.length = 256
    config.data.workers = 8
    config.objective.labels = 32
    config.model.update(layers=6, width=768, heads=8, embedding_dim=256, id_dim=0, pin_hidden=1_024)
    config.model.update(dtype="bfloat16", remat=True)
    config.loss.update(num_in_batch_negatives=5_000, num_random_negatives=8_192, sketch_width=2**22)
    config.train.update(steps=100_000, learning_rate=1e-3, warmup_steps=2_000)
    config.train.update(checkpoint_every=5_000, evaluate_every=5_000)
    config.evaluate.users = 20_000


def _hour(config: Section) -> None:
    """The default's data for an hour of one CPU core.

    How much a user likes a topic shows in a count of actions, and what a user likes in all topics
    in a sum over them, for which 64 are too few. Users come by again and again, and learned ids
    know them by heart after 1,500 steps: so how popular an item is comes from its degree. What is
    left of a visit is no part of what the next weeks hold, which is known from the moment. Noise
    makes up most of a content vector's dimensions, which components leave out. Fewer negatives make
    more steps.
    """
    config.data.update(length=128, pca_dim=24, popularity_window=84 * DAY)
    config.model.update(history_sums=True, gated_layers=2, id_dim=0, dropout=0.1)
    config.model.features = ("item", "action", "surface", "duration", "time", "request_time")
    config.loss.update(num_in_batch_negatives=512, num_random_negatives=512)
    config.train.update(steps=3_000, learning_rate=3e-3, checkpoint_every=500, evaluate_every=500)
    config.train.select = "valid/R@10"


def _test(config: Section) -> None:
    """Everything that the default does, in seconds."""
    config.data.update(name="pinworld/tiny", users=16, length=16)
    config.objective.labels = 4
    config.model.update(layers=2, width=16, heads=2, embedding_dim=8, id_dim=8, pin_hidden=16)
    config.loss.update(num_in_batch_negatives=32, num_random_negatives=64, sketch_width=2**12)
    config.train.update(steps=30, warmup_steps=5, log_every=5)
    config.train.update(checkpoint_every=10, evaluate_every=20)
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
    config.loss.update(num_in_batch_negatives=0, num_random_negatives=1_500, equal_users=False)
    config.train.update(steps=4_400, learning_rate=2e-3, weight_decay=0.0)
    config.train.update(checkpoint_every=400, evaluate_every=400, select="valid/NDCG@10")
    config.evaluate.update(cadences=("window",), users=10_000, filter_seen=True)


def _ifdb(config: Section) -> None:
    """Interactive fiction, configs/prepare/ifdb.py: rolling windows of four weeks from 2023 on.

    There are few users, of whom learned ids are soon learned by heart; so games are their tags, and
    how much they were played in the year before, at each month of the log's 15 years.
    """
    config.data.update(name="ifdb", positives="played, wish-listed", surfaces="")
    config.data.update(popularity_window=365 * DAY, popularity_times=180)
    config.objective.horizon = 365 * DAY
    config.objective.labels = 16
    config.model.update(width=64, embedding_dim=64, id_dim=0, pin_hidden=64, dropout=0.5)
    config.model.features = ("item", "action", "time")
    config.loss.update(num_in_batch_negatives=512, num_random_negatives=1_024)
    config.train.update(steps=250, learning_rate=1e-3)
    config.train.update(checkpoint_every=50, evaluate_every=50, select="valid/R@10")
    config.evaluate.window_starts = tuple(28 * DAY * window for window in range(44))
    config.evaluate.update(window=28 * DAY, cadences=("window",), filter_seen=True, batch=64)


def _globo(config: Section) -> None:
    """News, configs/prepare/globo.py: the day after training, for users of all devices.

    An article is wanted for some hours, so what is asked for depends on when it is asked.
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
    "paper": _paper,
    "hour": _hour,
    "test": _test,
    "ml1m": _ml1m,
    "ifdb": _ifdb,
    "globo": _globo,
    "kuairand": _kuairand,
}
