"""The fields that the configs of all systems share."""

from collections.abc import Callable, Mapping

from pinjax.settings import (
    UINT32,
    Bool,
    Choice,
    Float,
    Int,
    Row,
    Section,
    Size,
    Text,
    Tuple,
    named,
)
from pinjax.timestamps import DAY


def config(system: str, trained: bool = True) -> Section:
    """A config with the shared fields, to which a system adds its own.

    Args:
      system: a name of `pinjax.systems.registry`.
      trained: whether with the fields of training.
    """
    config = Section()
    config.system = Choice(system)

    data = config.data = Section()
    # The name pinworld/tiny|small|base, or a directory by pinjax.prepare.
    data.name = Text("pinworld/small", ".+", "a name or a directory")
    data.dir = Text("~/.cache/pinjax", ".+", "a directory")  # where named data sets are kept
    # Directories by pinjax.embed, "DIR, DIR": their vectors of items and queries replace those of
    # the data set, and the last one that knows an item or a query counts. "": the data set's own.
    data.vectors = Text("")

    config.model = Section()
    if trained:
        _add_training(config)

    evaluate = config.evaluate = Section()
    # Candidates; a seeded sample where there are more.
    evaluate.index_size = Int(1_000_000, at_least=1)
    return config


def with_variant(
    config: Section, variants: Mapping[str, Callable[[Section], None]], variant: str
) -> Section:
    """The config, changed to the named variant of it; as it is if the name is empty."""
    if variant:
        named(variants, variant)(config)
    return config


def few_steps(config: Section) -> None:
    """Trains for seconds, with checkpoints and an evaluation on the way."""
    config.train.update(steps=30, warmup_steps=5, log_every=5)
    config.train.update(checkpoint_every=10, evaluate_every=20)


def _add_training(config: Section) -> None:
    config.data.workers = Int(0, at_least=0, at_most=256)  # processes that read ahead; 0: threads

    # Of the arithmetic; parameters and normalisation stay float32.
    config.model.dtype = Choice("float32", "bfloat16")

    loss = config.loss = Section()
    loss.log_q = Bool(True)  # correct logits by the log of the sampling probability
    # Counters in each of the four rows of the count-min sketch: it takes 16 bytes for each, and
    # with probability 0.98 over-counts by at most e / width of all counts.
    loss.sketch_width = Int(2**16, at_least=2, at_most=2**25, power_of_two=True)
    # Each step multiplies all earlier counts by this; below 1 the sketch forgets.
    loss.sketch_decay = Float(1.0, above=0, at_most=1)

    train = config.train = Section()
    train.seed = Int(0, at_least=0, at_most=UINT32)
    train.steps = Int(1_000, at_least=1)
    train.learning_rate = Float(1e-3, above=0)  # peak, after warm-up; then cosine decay to 0
    train.warmup_steps = Int(100, at_least=0)
    train.weight_decay = Float(0.01, at_least=0)  # of the kernels of dense layers
    train.clip_norm = Float(1.0, above=0)  # largest global norm of the gradient
    train.log_every = Int(50, at_least=0)  # steps; 0: only with a checkpoint
    train.checkpoint_every = Int(500, at_least=0)  # steps; 0: only after evaluation
    train.evaluate_every = Int(500, at_least=0)  # steps, on the validation split; 0: at the end
    # A validation metric: serve its best checkpoint. "": the last one.
    train.select = Text("", "(valid/.+)?", "a metric, as valid/R@10, or nothing")
    # Devices along the mesh's axis `model`; a batch is split over the axis `data`.
    train.model_devices = Int(1, at_least=1)
    # Where parameters lie: "PATTERN = AXES; ...", as in "ffn_in/kernel = . . model; ffn_out/kernel
    # = . model", axes of the mesh for each dimension; the others are replicated.
    train.shard = Text("")
    train.shard_optimizer = Bool(False)  # split the optimiser's state over `data`
    # Split the rows of item features, texts and learned embeddings over all devices.
    train.shard_tables = Bool(False)


def add_timelines(config: Section, length: int) -> None:
    """Adds the fields of a system that reads timelines and is evaluated on them.

    Args:
      config: what to add them to.
      length: default of `data.length`.
    """
    data = config.data
    data.length = Size(length)  # M: actions that the model sees
    # Which actions are labels: type, seconds.
    data.positives = Text("save, closeup>=10, click>=10", ".+", "action types")
    data.surfaces = Text("home")  # ... on which surfaces ("": all)

    evaluate = config.evaluate
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
    evaluate.users = Int(2_000, at_least=1)  # at most, for each T
    evaluate.filter_seen = Bool(False)  # leave what the user has acted on out of the results
    evaluate.batch = Int(256, at_least=1, at_most=2**20)  # windows at a time


def ifdb_timelines(config: Section) -> None:
    """Interactive fiction, configs/prepare/ifdb.py: rolling windows of four weeks from 2023 on."""
    config.data.update(name="ifdb", positives="played, wish-listed", surfaces="")
    config.evaluate.window_starts = tuple(28 * DAY * window for window in range(44))
    config.evaluate.update(window=28 * DAY, cadences=("window",), filter_seen=True, batch=64)


def add_pairs(config: Section, pairs: int, tasks: tuple[tuple[str, float, int], ...]) -> None:
    """Adds the fields of a system that is trained on pairs of a query and an item.

    Args:
      config: what to add them to.
      pairs: default of `data.pairs`.
      tasks: default of `tasks`.
    """
    config.data.pairs = Int(pairs, at_least=1, at_most=2**20)  # in a batch, over all devices
    # (query kind/engagement, weight in the batch, pairs that one item may be in; 0: any number)
    config.tasks = Tuple(
        tasks,
        Row(
            task=Text(pattern="(image|text)/.+", expected="text like image/click"),
            weight=Float(above=0),
            cap=Int(at_least=0),
        ),
        at_least=1,
    )
    config.evaluate.queries = Int(4_000, at_least=1)  # at most; a seeded sample
