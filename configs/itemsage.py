"""ItemSage (Baltescu et al., KDD 2022): products in the space of frozen query embeddings.

python -m pinjax.train --config=configs/itemsage.py            # pinworld, a laptop CPU
python -m pinjax.train --config=configs/itemsage.py:paper      # published size, a TPU slice
python -m pinjax.train --config=configs/itemsage.py:test       # seconds
"""

from pinjax.settings import UINT32, Bool, Choice, Float, Int, Row, Section, Size, Text, Tuple, named

TEXTS = (
    *("title", "description", "merchant_domain", "link", "category", "product_type"),
    *("brand", "colours", "materials", "patterns", "size", "size_type"),
)
# Shares of a batch, about as the square root of how often they happen. With equal ones half of a
# batch would be carts and checkouts, the same few ones again and again.
ENGAGEMENTS = {"click": 7.0, "save": 4.0, "add_to_cart": 2.0, "checkout": 1.0}


def get_config(variant: str = "") -> Section:
    """The config of a variant; every field may be overridden as --config.section.field=value."""
    config = Section()
    config.system = Choice("itemsage")

    data = config.data = Section()
    # The name pinworld/tiny|small|base, or a directory by pinjax.prepare.
    data.name = Text("pinworld/small", ".+", "a name or a directory")
    data.dir = Text("~/.cache/pinjax", ".+", "a directory")  # where named data sets are kept
    data.pairs = Int(512, at_least=1, at_most=2**20)  # pairs in a batch, over all devices
    data.workers = Int(0, at_least=0, at_most=256)  # processes that read ahead; 0: threads

    # (query kind/engagement, weight in the batch, pairs that one item may be in; 0: any number)
    config.tasks = Tuple(
        tuple(
            (f"{kind}/{name}", share, 0)
            for kind in ("image", "text")
            for name, share in ENGAGEMENTS.items()
        ),
        Row(
            task=Text(pattern="(image|text)/.+", expected="text like image/click"),
            weight=Float(above=0),
            cap=Int(at_least=0),
        ),
        at_least=1,
    )

    model = config.model = Section()
    # Images of a product that the tower sees, at most (0: none).
    model.image_slots = Int(8, at_least=0, at_most=1_000)
    model.texts = Tuple(  # (text feature, group of its linear map)
        tuple((name, name) for name in TEXTS),
        Row(feature=Text(pattern=".+"), group=Text(pattern=".+")),
        at_least=0,
    )
    # The published one, or a baseline.
    model.encoder = Choice("transformer", "sum", "sum_mlp", "mlp_concat_mlp")
    # Add the encoder's output to the mean of the images, for images in the space of the queries:
    # what training does not know stays near the queries that look like it.
    model.residual = Bool(False)
    # Rows of the hash embedding of tokens; 0: one for each token.
    model.token_buckets = Int(20_000, at_least=0)
    model.token_dim = Size(64)  # numbers of a text feature
    model.width = Size(128)
    model.heads = Size(4)
    model.layers = Int(1, at_least=1, at_most=100)
    model.embedding_dim = Size(256)  # numbers of an embedding: those of the frozen query vectors
    # Of the arithmetic; parameters and normalisation stay float32.
    model.dtype = Choice("float32", "bfloat16")

    loss = config.loss = Section()
    # Negatives drawn uniformly from the products that were engaged with.
    loss.num_random_negatives = Int(512, at_least=1, at_most=2**20)
    # A loss for each kind of negatives, one normaliser over both, or one kind alone.
    loss.terms = Choice("summed", "joined", "in_batch", "random")
    loss.log_q = Bool(True)  # correct logits by the log of the sampling probability
    # The sketch of pairs over-counts by at most e / width of all counts with probability
    # 1 - e^-depth, and takes 4 * depth * width bytes; those of products and queries are smaller.
    loss.sketch_depth = Int(4, at_least=1, at_most=32)
    loss.sketch_width = Int(2**20, at_least=2, at_most=2**25, power_of_two=True)
    # Below 1, a count fades by this factor a step.
    loss.sketch_decay = Float(1.0, above=0, at_most=1)

    train = config.train = Section()
    train.seed = Int(0, at_least=0, at_most=UINT32)
    train.steps = Int(1_000, at_least=1)
    train.learning_rate = Float(1e-3, above=0)  # peak, after warm-up; then cosine decay to 0
    train.warmup_steps = Int(100, at_least=0)
    train.b1 = Float(0.9, at_least=0, below=1)
    train.b2 = Float(0.98, at_least=0, below=1)
    train.weight_decay = Float(0.01, at_least=0)  # of the kernels of dense layers
    train.clip_norm = Float(1.0, above=0)  # largest global norm of the gradient
    train.log_every = Int(50, at_least=0)  # steps; 0: only with a checkpoint
    train.checkpoint_every = Int(500, at_least=0)  # steps; 0: only after evaluation
    train.evaluate_every = Int(500, at_least=0)  # on the validation queries; 0: only at the end
    # A validation metric: serve its best checkpoint (none: the last one).
    train.select = Text("", "(valid/.+)?", "a metric, as valid/R@10, or nothing")
    # Along the mesh's axis `model`; a batch goes over the axis `data`.
    train.model_devices = Int(1, at_least=1)
    # Where parameters lie: "PATTERN = AXES; ...", as in "ffn_in/kernel = . . model; ffn_out/kernel
    # = . model", axes of the mesh for each dimension; the others are on every device.
    train.shard = Text("")
    train.shard_optimizer = Bool(False)  # the optimiser's state is shared out over `data`
    train.shard_tables = Bool(False)  # rows of texts, images and hash embeddings, over all devices

    evaluate = config.evaluate = Section()
    evaluate.queries = Int(4_000, at_least=1)  # at most, a seeded sample
    # A seeded sample where there are more products.
    evaluate.index_size = Int(1_000_000, at_least=1)

    if variant:
        named(VARIANTS, variant)(config)
    return config


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
    config.train.update(steps=30, warmup_steps=5, log_every=5)
    config.train.update(checkpoint_every=10, evaluate_every=20)


VARIANTS = {"paper": _paper, "test": _test}
