"""`pinworld`: a simulated small Pinterest whose best possible ranking is known.

`pinworld_simulation` is the law by which it is drawn, `pinworld_oracle` the ranking. Every draw
comes from `default_rng([seed, stream, chunk])`, and users are drawn a chunk at a time: memory holds
the catalogue and the latent state of the users of valid and test, and no other timelines than a
chunk's.
"""

import contextlib
import dataclasses
import hashlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from etils import epath

from pinjax import files
from pinjax.data import pinworld_simulation as simulation
from pinjax.data import schema
from pinjax.data.pinworld_oracle import Oracle
from pinjax.errors import InputError

NAME = "pinworld"
CHUNK = 1024  # users drawn at a time
WINDOW = 14 * simulation.DAY  # for which the oracle's recall is reported


@dataclasses.dataclass(eq=False, kw_only=True)
class Config(tfds.core.BuilderConfig):
    """The size of a world.

    Attributes:
      train_users: users drawn for the split train; the few who never act are not in the log.
      eval_users: the same for each of valid and test.
      pins: items of the catalogue.
      roots: topics at the top of the tree.
      leaves: topics at the bottom, a multiple of `roots`.
      seed: of all that is drawn.
    """

    train_users: int
    eval_users: int
    pins: int
    roots: int
    leaves: int
    seed: int = 0


class Pinworld(tfds.core.GeneratorBasedBuilder):
    """Timelines of simulated users, in the layout of `schema`, and the oracle beside them.

    TFDS writes the rows in the order of their hashed keys: unlike `disable_shuffling`, which sorts
    a whole split in memory, that spills to disk.
    """

    VERSION = tfds.core.Version("1.0.1")
    BUILDER_CONFIGS = (
        Config(
            name="tiny",
            train_users=300,
            eval_users=100,
            pins=1_000,
            roots=6,
            leaves=24,
        ),
        Config(
            name="small",
            train_users=20_000,
            eval_users=2_000,
            pins=10_000,
            roots=12,
            leaves=96,
        ),
        Config(
            name="base",
            train_users=996_000,
            eval_users=2_000,
            pins=1_000_000,
            roots=35,
            leaves=350,
        ),
    )
    url_infos = None  # nothing is downloaded; looking for checksums needs importlib_resources

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=schema.timeline_features(),
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager
        config = self.builder_config
        world = draw_world(config)
        oracle = make_oracle(world, config)
        oracle.save(self.data_path)
        settings = f"{self.VERSION} {dataclasses.asdict(config)}"
        metadata = schema.Metadata(
            name=f"{NAME}/{config.name}",
            actions=simulation.ACTIONS,
            surfaces=simulation.SURFACES,
            num_items=config.pins,
            train_end=simulation.TRAIN_END,
            digest=hashlib.sha256(settings.encode()).hexdigest(),
            report={"oracle_recall_at_10": oracle.expected_recall(simulation.TRAIN_END, WINDOW)},
        )
        self.info.metadata.update(metadata.to_tfds())
        return {split: self._generate_examples(world, split) for split in schema.SPLITS}

    def _generate_examples(
        self, world: simulation.World, split: str
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        counts = np.zeros(self.builder_config.pins, np.int64)
        for number, actions in timelines(world, self.builder_config, split):
            seen = actions["time"] <= simulation.TRAIN_END
            np.add.at(counts, actions["item"][seen], 1)
            yield number, {"user": user_id(number), "actions": schema.pack(actions)}
        if split == "train":  # only now is it known what the training users did
            world.catalogue(counts).write(self.data_path / schema.CATALOGUE_FILE)


def ensure(size: str, data_dir: epath.PathLike) -> epath.Path:
    """Builds a world under `data_dir` unless it is there.

    Args:
      size: the name of one of `Pinworld.BUILDER_CONFIGS`.
      data_dir: where data sets are kept.

    Returns:
      The directory of the data set.

    Raises:
      InputError: where there is no such size.
    """
    builder_config(size)
    directory = epath.Path(data_dir) / NAME / size / str(Pinworld.VERSION)
    if not directory.exists():
        with files.unfinished(directory) as unfinished, _quiet():
            builder = Pinworld(config=size, data_dir=unfinished, file_format="array_record")
            builder.download_and_prepare()
            files.finish(builder.data_path, directory)
    return directory


def builder_config(size: str) -> Config:
    """What a world of a size is made of.

    Raises:
      InputError: where there is no such size.
    """
    if size not in Pinworld.builder_configs:
        sizes = ", ".join(f"{NAME}/{name}" for name in Pinworld.builder_configs)
        raise InputError(f"data.name: no data set {NAME}/{size}; expected one of {sizes}")
    return Pinworld.builder_configs[size]


def draw_world(config: Config) -> simulation.World:
    rng = np.random.default_rng([config.seed, 0, 0])
    return simulation.World(rng, config.pins, config.roots, config.leaves)


def timelines(
    world: simulation.World, config: Config, split: str
) -> Iterator[tuple[int, np.ndarray]]:
    """The users of a split that act, each with its number and actions: `schema.ACTION` (n,)."""
    for numbers, users, rng in _chunks(world, config, split):
        user, actions = simulation.draw_actions(world, users, rng)
        bounds = np.searchsorted(user, np.arange(len(numbers) + 1))
        for number, start, end in zip(numbers, bounds, bounds[1:], strict=False):
            if start < end:
                yield number, actions[start:end]


def user_id(number: int) -> str:
    return f"u{number:08d}"


def make_oracle(world: simulation.World, config: Config) -> Oracle:
    """The ranking for the users of valid and test."""
    ids, parts = [], []
    for split in ("valid", "test"):
        for numbers, users, _ in _chunks(world, config, split):
            parts.append(dataclasses.replace(users, burst_user=users.burst_user + len(ids)))
            ids += map(user_id, numbers)

    def joined(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    return Oracle(
        leaf=world.leaf,
        created=world.created,
        popularity=world.popularity,
        style=world.style,
        tastes=world.tastes,
        leaf_popularity=world.leaf_popularity,
        users=np.array(ids),
        taste=joined("taste"),
        rate=simulation.POSITIVE_SHARE * joined("rate"),
        slow_leaf=joined("slow_leaf"),
        slow_weight=joined("slow_weight"),
        burst_user=joined("burst_user"),
        burst_leaf=joined("burst_leaf"),
        burst_start=joined("burst_start"),
        burst_end=joined("burst_end"),
        burst_weight=simulation.BURST_WEIGHT,
        burst_rate=simulation.BURST_RATE,
        burst_seconds=simulation.BURST_SECONDS,
        stray=simulation.STRAY,
    )


def _chunks(
    world: simulation.World, config: Config, split: str
) -> Iterator[tuple[range, simulation.Users, np.random.Generator]]:
    """The users of a split, `CHUNK` at a time: numbers, latent state, generator of actions."""
    sizes = (config.train_users, config.eval_users, config.eval_users)
    stream = schema.SPLITS.index(split)
    offset = sum(sizes[:stream])
    for start in range(0, sizes[stream], CHUNK):
        rng = np.random.default_rng([config.seed, 1 + stream, start // CHUNK])
        numbers = range(offset + start, offset + min(start + CHUNK, sizes[stream]))
        yield numbers, simulation.draw_users(world, rng, len(numbers)), rng


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences what TFDS prints and logs."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        tfds.enable_progress_bar()
        logging.set_verbosity(verbosity)
