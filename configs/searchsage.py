"""SearchSage (Pinterest engineering, 2021): search queries in the space of frozen item vectors.

python -m pinjax.train --config=configs/searchsage.py          # pinworld, a laptop CPU
python -m pinjax.train --config=configs/searchsage.py:bert     # a transformer, from scratch
python -m pinjax.train --config=configs/searchsage.py:paper    # DistilBERT, weights in a directory
python -m pinjax.train --config=configs/searchsage.py:test     # seconds
"""

from configs import common
from pinjax.settings import Bool, Choice, Int, Section, Size, Text


def get_config(variant: str = "") -> Section:
    """The config of a variant; every field may be overridden as --config.section.field=value."""
    config = common.config("searchsage")
    tasks = (("text/click", 1.0, 50), ("text/save", 1.0, 50))
    common.add_pairs(config, pairs=1_024, tasks=tasks)

    model = config.model
    model.encoder = Choice("bag", "bert")  # of hashed tokens, or bert
    # Add the tower's output to the queries' own vectors, if these lie in the space of the items: a
    # search that is not in training stays near the items that look like it.
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

    config.loss.sketch_width = 2**18
    config.train.steps = 2_000

    return common.with_variant(config, VARIANTS, variant)


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
    common.few_steps(config)


VARIANTS = {"paper": _paper, "bert": _bert, "test": _test}
