"""PinSage (Ying et al., KDD 2018): items, and groups of items, from their graph.

python -m pinjax.train --config=configs/pinsage.py            # pinworld
python -m pinjax.train --config=configs/pinsage.py:paper      # published size, a TPU slice
python -m pinjax.train --config=configs/pinsage.py:test       # seconds
python -m pinjax.train --config=configs/pinsage.py:users --config.data.name=DIR  # users and items

On two CPU cores the default takes 3 minutes and finds 0.375 of the items that an item leads to in
the top 10 (Recall@10; the oracle 0.459, co-occurrence 0.359).
"""

from configs import common
from pinjax.settings import Bool, Choice, Float, Int, Section, Size, Text, Tuple


def get_config(variant: str = "") -> Section:
    """The config of a variant; every field may be overridden as --config.section.field=value."""
    config = common.config("pinsage")

    data = config.data
    # Pairs are two items that were engaged with after one another (the data set's pairs whose query
    # is an item), or two items of a group.
    data.pairs_from = Choice("engagements", "groups")
    data.pairs = Int(256, at_least=1, at_most=2**20)  # in a batch, over all devices
    # Edges of a group and an item in a batch, from which groups are learned. 0: groups are not
    # trained.
    data.groups = Int(64, at_least=0, at_most=2**20)
    data.group_items = Size(20)  # items of a group that are read, at most
    # Random walks from an item; its neighbours are the items that they visit most.
    data.neighbours = Size(20)  # T
    data.walks = Int(100, at_least=1, at_most=100_000)
    data.walk_steps = Int(3, at_least=1, at_most=1_000)
    data.walk_restart = Float(0.5, at_least=0, below=1)  # probability, before each further step
    data.content = Bool(True)  # nodes have the catalogue's content vectors

    model = config.model
    model.layers = Int(2, at_least=0, at_most=3)  # convolutions; 0: an item's own features alone
    model.pooling = Choice("importance", "mean", "max")
    model.width = Size(256)  # of a convolution's output
    model.message_width = Size(256)  # of what a neighbour sends
    model.embedding_dim = Size(256)
    # Further features of nodes.
    model.log_degree = Bool(True)  # the logarithm of an item's number of groups
    model.id_dim = Size(0, at_least=0)  # numbers of a learned vector; 0: none
    model.id_buckets = Int(0, at_least=0)  # rows that items are hashed to; 0: one for each item
    model.texts = Tuple((), Text(pattern=".+"), at_least=0)  # text features of the catalogue
    model.tokens = Size(32)  # of an item's texts, at most
    model.token_buckets = Int(20_000, at_least=0)  # rows; 0: one for each token
    model.token_dim = Size(64)

    loss = config.loss
    loss.name = Choice("softmax", "max_margin")
    loss.margin = Float(0.1, above=0, at_most=2)
    loss.num_random_negatives = Int(500, at_least=1, at_most=2**20)  # shared by a batch
    # Hard negatives of a pair: random items among those that personalised PageRank ranks from
    # `hard_first` to `hard_last`. A pair has none at first, and one more after every `hard_after`
    # steps.
    loss.num_hard_negatives = Int(0, at_least=0, at_most=100)
    loss.hard_after = Int(200, at_least=1)
    loss.hard_first = Int(200, at_least=1)
    loss.hard_last = Int(500, at_least=1)

    config.train.update(steps=500, learning_rate=1e-3, warmup_steps=50)
    config.train.update(checkpoint_every=250, evaluate_every=0)
    config.evaluate.queries = Int(4_000, at_least=1)  # at most; a seeded sample

    return common.with_variant(config, VARIANTS, variant)


def _users(config: Section) -> None:
    """A log of users and items alone: users are groups, and items have learned vectors."""
    config.data.update(pairs_from="groups", groups=4_096, group_items=50, content=False)
    config.model.update(id_dim=128)
    config.loss.sketch_width = 2**18
    config.train.learning_rate = 5e-3


def _paper(config: Section) -> None:
    """Published size: two layers, 50 neighbours, 2,048 pairs, about 500 negatives, 6 hard ones."""
    config.data.update(name="pinworld/base", pairs=2_048, groups=0, neighbours=50, workers=8)
    config.model.update(width=1_024, message_width=2_048, embedding_dim=256, dtype="bfloat16")
    config.loss.update(name="max_margin", num_random_negatives=512)
    config.loss.update(num_hard_negatives=6, hard_after=10_000, hard_first=2_000, hard_last=5_000)
    config.train.update(steps=70_000, warmup_steps=2_000, shard_tables=True)
    config.train.update(checkpoint_every=5_000, evaluate_every=5_000)


def _test(config: Section) -> None:
    """Everything that the default does, in seconds."""
    config.data.update(name="pinworld/tiny", pairs=32, groups=16, group_items=6)
    config.data.update(neighbours=8, walks=20)
    config.model.update(width=16, message_width=16)
    config.loss.update(num_random_negatives=64, sketch_width=2**14)
    config.loss.update(num_hard_negatives=2, hard_after=10, hard_first=50, hard_last=150)
    common.few_steps(config)


VARIANTS = {"users": _users, "paper": _paper, "test": _test}
