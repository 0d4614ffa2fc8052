"""SearchSage (Pinterest engineering, 2021): search queries in the space of frozen item vectors.

python -m pinjax.train --config=configs/searchsage.py          # pinworld, a laptop CPU
python -m pinjax.train --config=configs/searchsage.py:bert     # a transformer, from scratch
python -m pinjax.train --config=configs/searchsage.py:paper    # DistilBERT, weights in a directory
python -m pinjax.train --config=configs/searchsage.py:test     # seconds
"""

from pinjax.settings import UINT32, Bool, Choice, Float, Int, Row, Section, Size, Text, Tuple, named


def get_config(variant: str = "") -> Section:
    """The config of a variant; every field may be overridden as --config.section.field=value."""
    config = Section()
    config.system = Choice("searchsage")

    data = config.data = Section()
    # The name pinworld/tiny|small|base, or a directory by pinjax.prepare.
    data.name = Text("pinworld/small", ".+", "a name or a directory")
    data.dir = Text("~/.cache/pinjax", ".+", "a directory")  # where named data sets are kept
    data.pairs = Int(1_024, at_least=1, at_most=2**20)  # pairs in a batch, over all devices
    data.workers = Int(0, at_least=0, at_most=256)  # processes that read ahead; 0: threads

    # (query kind/engagement, weight in the batch, pairs that one item may be in; 0: any number)
    config.tasks = Tuple(
        (("text/click", 1.0, 50), ("text/save", 1.0, 50)),
        Row(
            task=Text(pattern="(image|text)/.+", expected="text like text/click"),
            weight=Float(above=0),
            cap=Int(at_least=0),
        ),
        at_least=1,
    )

    model = config.model = Section()
    model.encoder = Choice("bag", "bert")  # of hashed tokens, or bert
    # Add the tower's output to the queries' own vectors, for such as lie in the space of the items:
    # a search that training does not know stays near the items that look like it.
    model.residual = Bool(False)
    # bag: rows of the hash embedding of tokens; 0: one for each.
    model.token_buckets = Int(20_000, at_least=0)
    model.token_dim = Size(64)  # bag: numbers of a token
    # bert: directory of weights; "": from scratch, with the sizes below.
    model.pretrained = Text("")
    # bert: tokens of a query, with the special ones; the rest is cut.
    model.length = Size(8, at_least=2)
    model.layers = Int(2, at_least=1, at_most=100)  # bert
    model.heads = Size(4)  # bert
    model.width = Size(128)  # of the transformer, or hidden width of the bag's MLP
    # Of the arithmetic; parameters and normalisation stay float32.
    model.dtype = Choice("float32", "bfloat16")

    loss = config.loss = Section()
    loss.log_q = Bool(True)  # correct logits by the log of the sampling probability
    # The sketch over-counts by at most e / width of all counts with probability 1 - e^-depth;
    # it takes 4 * depth * width bytes.
    loss.sketch_depth = Int(4, at_least=1, at_most=32)
    loss.sketch_width = Int(2**18, at_least=2, at_most=2**25, power_of_two=True)
    # Below 1, a count fades by this factor a step.
    loss.sketch_decay = Float(1.0, above=0, at_most=1)

    train = config.train = Section()
    train.seed = Int(0, at_least=0, at_most=UINT32)
    train.steps = Int(2_000, at_least=1)
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
    evaluate.index_size = Int(1_000_000, at_least=1)  # a seeded sample where there are more items

    if variant:
        named(VARIANTS, variant)(config)
    return config


def _bert(config: Section) -> None:
    """A small transformer over the words of the vocabulary."""
    config.model.encoder = "bert"
    config.train.learning_rate = 5e-4


def _paper(config: Section) -> None:
    """Published: a DistilBERT, fine-tuned end to end; name its directory."""
    config.data.update(name="pinworld/base", pairs=8_192, workers=8)
    config.model.update(encoder="bert", length=32, layers=6, heads=12, width=768, dtype="bfloat16")
    config.loss.sketch_width = 2**22
    config.train.update(steps=100_000, learning_rate=1e-4, warmup_steps=2_000)
    config.train.update(checkpoint_every=5_000, evaluate_every=5_000)


def _test(config: Section) -> None:
    """Everything that the default does, in seconds."""
    config.data.update(name="pinworld/tiny", pairs=32)
    config.model.update(token_buckets=100, token_dim=8, width=16, heads=2)
    config.loss.sketch_width = 2**12
    config.train.update(steps=30, warmup_steps=5, log_every=5)
    config.train.update(checkpoint_every=10, evaluate_every=20)


VARIANTS = {"paper": _paper, "bert": _bert, "test": _test}
