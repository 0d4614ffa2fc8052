"""ItemSage (Baltescu et al., KDD 2022): products in the space of frozen query embeddings.

python -m pinjax.train --config=configs/itemsage.py            # pinworld
python -m pinjax.train --config=configs/itemsage.py:paper      # published size, a TPU slice
python -m pinjax.train --config=configs/itemsage.py:test       # seconds

On one CPU core the default takes 10 minutes and reaches 0.89 of the oracle's Recall@10, 15 times
popularity's.
"""

from configs import common
from pinjax.settings import Bool, Choice, Int, Row, Section, Size, Text, Tuple

TEXTS = (
    *("title", "description", "merchant_domain", "link", "category", "product_type"),
    *("brand", "colours", "materials", "patterns", "size", "size_type"),
)
# Shares of a batch, about as the square root of how often they happen. With equal ones half of a
# batch would be carts and checkouts, the same few ones again and again.
SHARES = {"click": 7.0, "save": 4.0, "add_to_cart": 2.0, "checkout": 1.0}


def get_config(variant: str = "") -> Section:
    """The config of a variant; every field may be overridden as --config.section.field=value."""
    config = common.config("itemsage")
    tasks = tuple(
        (f"{kind}/{name}", share, 0) for kind in ("image", "text") for name, share in SHARES.items()
    )
    common.add_pairs(config, pairs=512, tasks=tasks)

    model = config.model
    # Images of a product that the tower sees, at most (0: none).
    model.image_slots = Int(8, at_least=0, at_most=1_000)
    model.texts = Tuple(  # (text feature, group of its linear map)
        tuple((name, name) for name in TEXTS),
        Row(feature=Text(pattern=".+"), group=Text(pattern=".+")),
        at_least=0,
    )
    # The published one, or a baseline.
    model.encoder = Choice("transformer", "sum", "sum_mlp", "mlp_concat_mlp")
    # Add the encoder's output to the mean of the images, if these lie in the space of the queries:
    # a product that is not in training stays near the queries that look like it.
    model.residual = Bool(False)
    # Rows of the hash embedding of tokens; 0: one for each token.
    model.token_buckets = Int(20_000, at_least=0)
    model.token_dim = Size(64)  # numbers of a text feature
    model.width = Size(128)
    model.heads = Size(4)
    model.layers = Int(1, at_least=1, at_most=100)
    model.embedding_dim = Size(256)  # that of the frozen query vectors

    loss = config.loss
    # Negatives drawn uniformly from the products that were engaged with.
    loss.num_random_negatives = Int(512, at_least=1, at_most=2**20)
    # A loss for each kind of negatives, one normaliser over both, or one kind alone.
    loss.terms = Choice("summed", "joined", "in_batch", "random")
    # The width of the sketch of pairs; those of products and queries are smaller.
    loss.sketch_width = 2**20

    return common.with_variant(config, VARIANTS, variant)


def _paper(config: Section) -> None:
    """Published size: 100,000 x 256 hashed tokens, one block of 512 with 8 heads."""
    config.data.update(name="pinworld/base", pairs=8_192, workers=8)
    config.model.update(image_slots=20, token_buckets=100_000, token_dim=256, width=512, heads=8)
    config.model.dtype = "bfloat16"
    config.loss.update(num_random_negatives=8_192, sketch_width=2**25)
    config.train.update(steps=100_000, warmup_steps=2_000)
    config.train.update(checkpoint_every=5_000, evaluate_every=5_000)


def _test(config: Section) -> None:
    """Everything that the default does, in seconds."""
    config.data.update(name="pinworld/tiny", pairs=32)
    config.model.update(image_slots=4, token_buckets=100, token_dim=8, width=16, heads=2)
    config.loss.update(num_random_negatives=64, sketch_width=2**14)
    common.few_steps(config)


VARIANTS = {"paper": _paper, "test": _test}
