"""SearchSage (Pinterest engineering, 2021): search queries in the space of frozen item vectors.

python -m pinjax.train --config=configs/searchsage.py          # pinshop, a laptop CPU
python -m pinjax.train --config=configs/searchsage.py:bert     # a transformer, from scratch
python -m pinjax.train --config=configs/searchsage.py:paper    # DistilBERT, weights in a directory
python -m pinjax.train --config=configs/searchsage.py:test     # seconds
"""

from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """The config of a variant; every field may be overridden as --config.section.field=value."""
    config = ConfigDict()
    config.system = "searchsage"

    data = config.data = ConfigDict()
    data.name = "pinshop/small"  # pinshop/tiny|small|base, or a directory of engagements
    data.dir = "~/.cache/pinjax"  # where named data sets are kept
    data.pairs = 1_024  # pairs in a batch, over all devices
    data.workers = 0  # processes that read ahead; 0: threads

    # (query kind/engagement, weight in the batch, pairs that one item may be in; 0: any number)
    config.tasks = (("text/click", 1.0, 50), ("text/save", 1.0, 50))

    model = config.model = ConfigDict()
    model.encoder = "bag"  # of hashed tokens, or bert
    # Add the tower's output to the queries' own vectors, for such as lie in the space of the items:
    # a search that training does not know stays near the items that look like it.
    model.residual = False
    model.token_buckets = 20_000  # bag: rows of the hash embedding of tokens; 0: one for each
    model.token_dim = 64  # bag: numbers of a token
    model.pretrained = ""  # bert: directory of weights; "": from scratch, with the sizes below
    model.length = 8  # bert: tokens of a query, with the special ones; the rest is cut
    model.layers = 2  # bert
    model.heads = 4  # bert
    model.width = 128  # of the transformer, or hidden width of the bag's MLP
    model.dtype = "float32"  # of the arithmetic; parameters and normalisation stay float32

    loss = config.loss = ConfigDict()
    loss.log_q = True  # correct logits by the log of the sampling probability
    # The sketch over-counts by at most e / width of all counts with probability 1 - e^-depth;
    # it takes 4 * depth * width bytes.
    loss.sketch_depth = 4
    loss.sketch_width = 2**18
    loss.sketch_decay = 1.0  # below 1, a count fades by this factor a step

    train = config.train = ConfigDict()
    train.seed = 0
    train.steps = 2_000
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
    evaluate.index_size = 1_000_000  # a seeded sample where there are more items

    if variant:
        if variant not in VARIANTS:
            raise ValueError(f"variant {variant!r} is none of {', '.join(VARIANTS)}")
        VARIANTS[variant](config)
    return config


def _bert(config: ConfigDict) -> None:
    """A small transformer over the words of the vocabulary."""
    config.model.encoder = "bert"
    config.train.learning_rate = 5e-4


def _paper(config: ConfigDict) -> None:
    """Published: a DistilBERT, fine-tuned end to end; name its directory."""
    config.data.update(name="pinshop/base", pairs=8_192, workers=8)
    config.model.update(encoder="bert", length=32, layers=6, heads=12, width=768, dtype="bfloat16")
    config.loss.sketch_width = 2**22
    config.train.update(steps=100_000, learning_rate=1e-4, warmup_steps=2_000)
    config.train.update(checkpoint_every=5_000, evaluate_every=5_000)


def _test(config: ConfigDict) -> None:
    """Everything that the default does, in seconds."""
    config.data.update(name="pinshop/tiny", pairs=32)
    config.model.update(token_buckets=100, token_dim=8, width=16, heads=2)
    config.loss.sketch_width = 2**12
    config.train.update(steps=30, warmup_steps=5, log_every=5)
    config.train.update(checkpoint_every=10, evaluate_every=20)


VARIANTS = {"paper": _paper, "bert": _bert, "test": _test}
