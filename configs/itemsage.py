"""ItemSage (Baltescu et al., KDD 2022): products in the space of frozen query embeddings.

python -m pinjax.train --config=configs/itemsage.py            # pinshop, a laptop CPU
python -m pinjax.train --config=configs/itemsage.py:paper      # published size, a TPU slice
python -m pinjax.train --config=configs/itemsage.py:test       # seconds
"""

from ml_collections import ConfigDict

TEXTS = (
    *("title", "description", "merchant_domain", "link", "category", "product_type"),
    *("brand", "colours", "materials", "patterns", "size", "size_type"),
)
# Shares of a batch, about as the square root of how often they happen. With equal ones half of a
# batch was carts and checkouts, the same few ones again and again: on pinshop's validation queries
# Recall@10 was 0.19 instead of 0.23, and that of checkouts no better.
ENGAGEMENTS = {"click": 7.0, "save": 4.0, "add_to_cart": 2.0, "checkout": 1.0}


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant; every field may be overridden as --config.section.field=value."""
    config = ConfigDict()
    config.system = "itemsage"

    data = config.data = ConfigDict()
    data.name = "pinshop/small"  # pinshop/tiny|small|base, or a directory of engagements
    data.dir = "~/.cache/pinjax"  # where named data sets are kept
    data.pairs = 512  # pairs in a batch, over all devices
    data.workers = 0  # processes that read ahead; 0: threads

    # (query kind/engagement, weight in the batch, pairs that one product may be in; 0: any number)
    config.tasks = tuple(
        (f"{kind}/{name}", share, 0)
        for kind in ("image", "text")
        for name, share in ENGAGEMENTS.items()
    )

    model = config.model = ConfigDict()
    model.image_slots = 8  # images of a product that the tower sees, at most (0: none)
    model.texts = tuple((name, name) for name in TEXTS)  # (text feature, group of its linear map)
    model.encoder = "transformer"  # or the baselines sum, sum_mlp, mlp_concat_mlp
    # Add the encoder's output to the mean of the images, for images in the space of the queries:
    # what training does not know stays near the queries that look like it.
    model.residual = False
    model.token_buckets = 20_000  # rows of the hash embedding of tokens; 0: one for each token
    model.token_dim = 64  # numbers of a text feature
    model.width = 128
    model.heads = 4
    model.layers = 1
    model.dim = 256  # numbers of an embedding: those of the frozen query vectors
    model.dtype = "float32"  # of the arithmetic; parameters and normalisation stay float32

    loss = config.loss = ConfigDict()
    loss.random = 512  # negatives drawn uniformly from the products that were engaged with
    loss.terms = "summed"  # a loss for each kind of negatives; joined, or in_batch or random alone
    loss.log_q = True  # correct logits by the log of the sampling probability
    # The sketch of pairs over-counts by at most e / width of all counts with probability
    # 1 - e^-depth, and takes 4 * depth * width bytes; those of products and queries are smaller.
    loss.sketch_depth = 4
    loss.sketch_width = 2**20
    loss.sketch_decay = 1.0  # below 1, a count fades by this factor a step

    train = config.train = ConfigDict()
    train.seed = 0
    train.steps = 1_000
    train.learning_rate = 1e-3  # peak, after warm-up; then cosine decay to 0
    train.warmup_steps = 100
    train.b1 = 0.9
    train.b2 = 0.98
    train.weight_decay = 0.01  # of the kernels of dense layers
    train.clip_norm = 1.0  # largest global norm of the gradient
    train.log_every = 50  # steps
    train.checkpoint_every = 500
    train.evaluate_every = 500  # on the validation queries
    train.select = ""  # a validation metric: serve its best checkpoint (none: the last one)
    train.model_devices = 1  # along the mesh's axis `model`; a batch goes over the axis `data`
    # Where parameters lie: "PATTERN = AXES; ...", as in "ffn_in/kernel = . . model; ffn_out/kernel
    # = . model", axes of the mesh for each dimension; the others are on every device.
    train.shard = ""
    train.shard_optimizer = False  # the optimiser's state is shared out over `data`
    train.shard_tables = False  # rows of texts, images and hash embeddings, over all devices

    evaluate = config.evaluate = ConfigDict()
    evaluate.queries = 4_000  # at most, a seeded sample
    evaluate.index_size = 1_000_000  # a seeded sample where there are more products

    if variant:
        if variant not in VARIANTS:
            raise ValueError(f"variant {variant!r} is none of {', '.join(VARIANTS)}")
        VARIANTS[variant](config)
    return config


def _paper(config: ConfigDict) -> None:
    """Published size: 100,000 x 256 hashed tokens, one block of 512 with 8 heads."""
    config.data.update(name="pinshop/base", pairs=8_192, workers=8)
    config.model.update(image_slots=20, token_buckets=100_000, token_dim=256, width=512, heads=8)
    config.model.dtype = "bfloat16"
    config.loss.update(random=8_192, sketch_width=2**25)
    config.train.update(steps=100_000, warmup_steps=2_000)
    config.train.update(checkpoint_every=5_000, evaluate_every=5_000)


def _test(config: ConfigDict) -> None:
    """Everything that the default does, in seconds."""
    config.data.update(name="pinshop/tiny", pairs=32)
    config.model.update(image_slots=4, token_buckets=100, token_dim=8, width=16, heads=2)
    config.loss.update(random=64, sketch_width=2**14)
    config.train.update(steps=30, warmup_steps=5, log_every=5)
    config.train.update(checkpoint_every=10, evaluate_every=20)


VARIANTS = {"paper": _paper, "test": _test}
